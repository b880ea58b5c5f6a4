"""Gradient clipping, in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock._arrays import array_module
from penstock.nn._random import check_number
from penstock.nn.row_gradient import RowGradient

_BLOCK = 8192  # short enough that BLAS uses one thread, so the sum's order is fixed


def _arrays(gradients: Mapping[str, Any]) -> list[Any]:
    if not isinstance(gradients, Mapping):
        raise TypeError(f"gradients: expected a dict name -> array, got {type(gradients).__name__}")
    return [g.values if isinstance(g, RowGradient) else g for g in gradients.values()]


def _square_sum(array: Any) -> Any:
    """Sum of squares: a float for NumPy, a 0-d float64 array for CuPy."""
    xp = array_module(array)
    if xp is not np:
        wide = array.astype(np.float32) if array.dtype.itemsize < 4 else array
        return xp.sum(xp.square(wide), dtype=np.float64)
    flat = array.reshape(-1)
    total = 0.0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if block.dtype.itemsize < 4:
            block = block.astype(np.float32)
        total += float(np.dot(block, block))
    return total


def clip_grad_norm(gradients: Mapping[str, Any], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint L2 norm is at most ``max_norm``.

    Returns the norm before clipping. If it is not finite, gradients are left alone: test the
    returned value to skip such an update.

    Raises ValueError unless ``max_norm`` > 0. Arrays are changed in place; an array that stands
    under several names is counted once per name and scaled once.
    """
    if not check_number("max_norm", max_norm, "a number > 0") > 0:
        raise ValueError(f"max_norm: expected a number > 0, got {max_norm}")
    arrays = _arrays(gradients)
    norm = math.sqrt(float(sum(_square_sum(g) for g in arrays)))
    if math.isfinite(norm) and norm > max_norm:
        factor = max_norm / norm
        for gradient in {id(g): g for g in arrays}.values():
            scale = gradient.dtype.type(factor)
            array_module(gradient).multiply(gradient, scale, out=gradient)
    return norm


def clip_grad_value(gradients: Mapping[str, Any], max_value: float) -> None:
    """Limit every element to [-max_value, max_value], in place.

    Raises ValueError unless ``max_value`` > 0.
    """
    if not check_number("max_value", max_value, "a number > 0") > 0:
        raise ValueError(f"max_value: expected a number > 0, got {max_value}")
    for gradient in _arrays(gradients):
        bound = gradient.dtype.type(max_value)
        array_module(gradient).clip(gradient, -bound, bound, out=gradient)
