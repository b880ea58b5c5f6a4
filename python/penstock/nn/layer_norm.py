"""Layer normalisation (Ba, Kiros and Hinton, arXiv 1607.06450)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from penstock.nn.module import (
    Array,
    Layer,
    check_gradient,
    check_input,
    no_backprop,
    positive_int,
    resolve_dtype,
    wide_dtype,
)


class LayerNormOutput(NamedTuple):
    """``y``, of the input's shape. ``backprop(dy)`` -> :class:`LayerNormGrads`."""

    y: Array
    backprop: Callable[..., LayerNormGrads]


class LayerNormGrads(NamedTuple):
    """``dx``, of the input's shape; ``dparameters``: gradients by parameter name."""

    dx: Array
    dparameters: dict[str, Array]


class LayerNorm(Layer):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias, over the last axis.

    The variance is the mean of squares, without Bessel's correction. Half types are
    normalised in float32.

    Args:
        features: length of the last axis.
        eps: added to the variance.
        dtype: float32, float64, float16 or bfloat16.
        device: where the parameters lie, "cpu" or "cuda[:N]".
    """

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        dtype: npt.DTypeLike = "float32",
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.features = positive_int("features", features)
        if not eps > 0.0:
            raise ValueError(f"eps: expected a positive float, got {eps}")
        self.eps = float(eps)
        kind = resolve_dtype(dtype)
        self._add_parameter("weight", np.ones(self.features, kind))
        self._add_parameter("bias", np.zeros(self.features, kind))
        if device != "cpu":
            self.to(device)

    @property
    def weight(self) -> Array:
        """The live gain, (features,)."""
        return self._parameters["weight"]

    @property
    def bias(self) -> Array:
        """The live offset, (features,)."""
        return self._parameters["bias"]

    def __call__(
        self, x: Array, *, training: bool = False, need_grad: bool | None = None
    ) -> LayerNormOutput:
        """Normalise the last axis of ``x`` (..., features)."""
        weight, bias = self.weight, self.bias
        xp = check_input("x", x, weight, self.features)
        kind, wide = weight.dtype, wide_dtype(weight.dtype)
        n = self.features
        flat = x.reshape(-1, n).astype(wide, copy=False)
        normed = flat - flat.mean(axis=1, keepdims=True)
        rstd = xp.einsum("nd,nd->n", normed, normed)[:, None]
        rstd *= 1.0 / n
        rstd += self.eps
        xp.sqrt(rstd, out=rstd)
        xp.reciprocal(rstd, out=rstd)
        normed *= rstd
        need = training if need_grad is None else need_grad
        gain = weight.astype(wide, copy=False)
        y = normed * gain if need else xp.multiply(normed, gain, out=normed)
        y += bias.astype(wide, copy=False)
        y = y.reshape(x.shape).astype(kind, copy=False)
        if not need:
            return LayerNormOutput(y, no_backprop)

        def backprop(dy: Array) -> LayerNormGrads:
            check_gradient("dy", dy, weight, x.shape)
            dflat = dy.reshape(-1, n).astype(wide, copy=False)
            product = dflat * normed
            dweight = product.sum(axis=0)
            dbias = dflat.sum(axis=0)
            # dx = rstd (g - mean(g) - normed mean(g normed)) with g = dy * weight
            current = weight.astype(wide, copy=False)
            along = (product @ current)[:, None] * (1.0 / n)
            level = (dflat @ current)[:, None] * (1.0 / n)
            dx = dflat * current
            xp.multiply(normed, along, out=product)
            dx -= product
            dx -= level
            dx *= rstd
            gradients = {
                "weight": dweight.astype(kind, copy=False),
                "bias": dbias.astype(kind, copy=False),
            }
            return LayerNormGrads(dx.reshape(x.shape).astype(kind, copy=False), gradients)

        return LayerNormOutput(y, backprop)

    def __repr__(self) -> str:
        return f"LayerNorm({self.features}, eps={self.eps:g})"
