"""Dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from penstock.nn._random import Seed, check_probability, dropout_mask, make_rng
from penstock.nn.module import Array, Layer, check_gradient, no_backprop


class DropoutOutput(NamedTuple):
    """``y``, of the input's shape. ``backprop(dy)`` -> :class:`DropoutGrads`."""

    y: Array
    backprop: Callable[..., DropoutGrads]


class DropoutGrads(NamedTuple):
    """``dx``, of the input's shape; ``dparameters`` is empty."""

    dx: Array
    dparameters: dict[str, Array]


class Dropout(Layer):
    """Zero elements with probability ``p`` in training, scaling the others by 1 / (1 - p).

    Outside training the input itself is returned.

    Args:
        p: probability of a zero, 0 <= p < 1.
        shared_axes: axes along which one mask is shared, such as ``(0,)`` for the same mask at
            every time step of a (T, B, D) input.
        seed: int, generator or None (a fresh seed) for the masks.
    """

    def __init__(
        self, p: float = 0.5, *, shared_axes: tuple[int, ...] = (), seed: Seed = None
    ) -> None:
        super().__init__()
        self.p = check_probability("p", p)
        if not isinstance(shared_axes, (tuple, list)) or not all(
            isinstance(axis, (int, np.integer)) for axis in shared_axes
        ):
            raise TypeError(f"shared_axes: expected a tuple of ints, got {shared_axes!r}")
        self.shared_axes = tuple(shared_axes)
        self._rng = make_rng(seed)
        self._add_rng("rng", self._rng)

    def __call__(
        self, x: Array, *, training: bool = False, need_grad: bool | None = None
    ) -> DropoutOutput:
        """Apply dropout to a floating array of any shape."""
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            raise TypeError(f"x: expected an array, got {type(x).__name__}")
        if x.dtype.kind in "biucmMOSU":
            raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
        need = training if need_grad is None else need_grad
        mask: Array | None = None
        y = x
        if training and self.p > 0.0:
            shape = list(x.shape)
            for axis in self.shared_axes:
                if not -x.ndim <= axis < x.ndim:
                    raise ValueError(
                        f"x: expected enough axes for shared_axes {self.shared_axes}, got {x.ndim}"
                    )
                shape[axis] = 1
            mask = dropout_mask(self._rng, self.p, tuple(shape), x, x.dtype)
            y = x * mask
        if not need:
            return DropoutOutput(y, no_backprop)

        def backprop(dy: Array) -> DropoutGrads:
            check_gradient("dy", dy, x, x.shape)
            return DropoutGrads(dy if mask is None else dy * mask, {})

        return DropoutOutput(y, backprop)

    def __repr__(self) -> str:
        return f"Dropout({self.p})"
