"""Affine maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from penstock.nn._random import Seed, make_rng
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


class LinearOutput(NamedTuple):
    """``y`` (..., out_features). ``backprop(dy)`` -> :class:`LinearGrads`."""

    y: Array
    backprop: Callable[..., LinearGrads]


class LinearGrads(NamedTuple):
    """``dx`` (..., in_features); ``dparameters``: gradients by parameter name."""

    dx: Array
    dparameters: dict[str, Array]


def matmul_operand(a: Array) -> Array:
    """``a`` in a type that its library multiplies well: float32 for half types NumPy lacks."""
    if a.dtype.itemsize >= 4 or (not isinstance(a, np.ndarray) and a.dtype == np.float16):
        return a
    return a.astype(np.float32)


class Linear(Layer):
    """y = x · weightᵀ + bias.

    Parameters are ``weight`` (out_features, in_features) and ``bias`` (out_features,), drawn
    uniformly from ±1 / sqrt(in_features).

    Args:
        in_features: last axis of the input.
        out_features: last axis of the output.
        bias: whether to add a bias.
        dtype: float32, float64, float16 or bfloat16.
        seed: int, generator or None (a fresh seed) for the initial weights.
        device: where the parameters lie, "cpu" or "cuda[:N]".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        kind = resolve_dtype(dtype)
        rng = make_rng(seed)
        bound = self.in_features**-0.5
        shape = (self.out_features, self.in_features)
        self._add_parameter("weight", rng.uniform(-bound, bound, shape).astype(kind))
        if bias:
            self._add_parameter("bias", rng.uniform(-bound, bound, self.out_features).astype(kind))
        if device != "cpu":
            self.to(device)

    @property
    def weight(self) -> Array:
        """The live weight array, (out_features, in_features)."""
        return self._parameters["weight"]

    @property
    def bias(self) -> Array | None:
        """The live bias array, (out_features,), or None."""
        return self._parameters.get("bias")

    def __call__(
        self, x: Array, *, training: bool = False, need_grad: bool | None = None
    ) -> LinearOutput:
        """Map the last axis of ``x`` (..., in_features); any number of leading axes.

        The input is kept, not copied, for ``backprop``: do not change it in between.
        """
        weight, bias = self.weight, self.bias
        check_input("x", x, weight, self.in_features)
        flat = matmul_operand(x.reshape(-1, self.in_features))
        wide = matmul_operand(weight)
        y = flat @ wide.T
        if bias is not None:
            y += bias
        shape = (*x.shape[:-1], self.out_features)
        y = y.reshape(shape).astype(weight.dtype, copy=False)
        if not (training if need_grad is None else need_grad):
            return LinearOutput(y, no_backprop)

        def backprop(dy: Array) -> LinearGrads:
            check_gradient("dy", dy, weight, shape)
            dflat = matmul_operand(dy.reshape(-1, self.out_features))
            kind = weight.dtype
            dx = (dflat @ matmul_operand(weight)).reshape(x.shape).astype(kind, copy=False)
            gradients: dict[str, Any] = {"weight": (dflat.T @ flat).astype(kind, copy=False)}
            if bias is not None:
                total = dflat.sum(axis=0, dtype=wide_dtype(dflat.dtype))
                gradients["bias"] = total.astype(kind, copy=False)
            return LinearGrads(dx, gradients)

        return LinearOutput(y, backprop)

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}, bias={self.bias is not None})"
