"""Loss functions.

Each returns a :class:`LossOutput` ``(loss, backprop)``. ``loss`` is a scalar of the array library
(a 0-d array on a GPU, so nothing waits for it) or, with ``reduction="none"``, one value per
row. ``backprop(dloss=None)`` returns the gradient of the first argument, in its dtype; ``dloss``
defaults to 1. Half types are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from penstock._arrays import array_module
from penstock.nn.module import Array, check_array, wide_dtype

Reduction = Literal["mean", "sum", "none"]


class LossOutput(NamedTuple):
    """``loss``: a scalar, or one value per row. ``backprop(dloss=None)``: gradient array."""

    loss: Array
    backprop: Callable[..., Array]


def _check_floating(name: str, x: Any) -> Any:
    """Raise TypeError unless ``x`` is a floating NumPy or CuPy array; return the library."""
    xp = array_module(x)
    if not isinstance(x, xp.ndarray):
        raise TypeError(f"{name}: expected an array, got {type(x).__module__}.{type(x).__name__}")
    if x.dtype.kind in "biucmMOSU":
        raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}")
    return xp


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")


def softmax_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
    ignore_index: int | None = None,
) -> LossOutput:
    """Cross entropy between softmax(logits) and integer targets.

    With smoothing s, C classes and class weights w (1 if not given), a row's loss is
    ``sum_c w_c q_c (-log softmax(logits)_c)``, q_c = s / C + (1 - s) [c = target]; "mean" divides
    the rows' sum by the sum of the targets' weights, which without weights is the number of rows.

    Args:
        logits: (..., C), floating.
        targets: (...), integers in [0, C), or ``ignore_index``.
        reduction: "mean", "sum" or "none".
        label_smoothing: 0 <= s < 1.
        class_weights: (C,) or None.
        ignore_index: a target whose rows do not count; it may lie outside [0, C).

    Raises TypeError or ValueError for shapes and dtypes other than these, and for NumPy arrays
    for targets out of range. The mean over no row at all is 0.
    """
    xp = _check_floating("logits", logits)
    check_array("targets", targets, logits)
    _check_reduction(reduction)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits: expected shape (..., C), got {tuple(logits.shape)}")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integers, got dtype {targets.dtype}")
    if tuple(targets.shape) != tuple(logits.shape[:-1]):
        raise ValueError(
            f"targets: expected shape {tuple(logits.shape[:-1])}, got {tuple(targets.shape)}"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing: expected a float in [0, 1), got {label_smoothing}")
    classes = logits.shape[-1]
    wide = wide_dtype(logits.dtype)
    weights: Array | None = None
    if class_weights is not None:
        check_array("class_weights", class_weights, logits)
        if tuple(class_weights.shape) != (classes,):
            raise ValueError(
                f"class_weights: expected shape ({classes},), got {tuple(class_weights.shape)}"
            )
        weights = class_weights.astype(wide, copy=False)
    labels = targets.reshape(-1)
    counted: Array | None = None
    if ignore_index is not None:
        counted = labels != ignore_index
        # By choosing and not by multiplying: NaN times zero is NaN.
        labels = xp.where(counted, labels, 0)
    if xp is np and labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"targets: expected values in [0, {classes}), got {labels.min()} to {labels.max()}"
        )

    rows = xp.arange(labels.size)
    logp = logits.reshape(-1, classes).astype(wide)
    if counted is not None:
        logp = xp.where(counted[:, None], logp, wide.type(0))
    logp -= logp.max(axis=1, keepdims=True)
    probabilities = xp.exp(logp)
    total = probabilities.sum(axis=1, keepdims=True)
    probabilities /= total
    picked = logp[rows, labels] - xp.log(total[:, 0])  # log-probability of the target
    smooth, sharp = label_smoothing / classes, 1.0 - label_smoothing
    row_weight = weights[labels] if weights is not None else None
    losses = picked * -sharp
    if row_weight is not None:
        losses *= row_weight
    weight_sum: Any = classes
    if label_smoothing:
        if weights is None:
            spread = logp.sum(axis=1) - classes * xp.log(total[:, 0])
        else:
            weight_sum = weights.sum()
            spread = logp @ weights - weight_sum * xp.log(total[:, 0])
        losses -= smooth * spread
    if counted is not None:
        losses = xp.where(counted, losses, wide.type(0))
        ones = wide.type(1) if row_weight is None else row_weight
        row_weight = xp.where(counted, ones, wide.type(0))

    denominator: Any = 1.0
    if reduction == "mean":
        if row_weight is None:
            denominator = max(labels.size, 1)
        else:
            denominator = row_weight.sum()
            denominator = xp.where(denominator == 0, denominator.dtype.type(1), denominator)
    loss = losses.reshape(targets.shape) if reduction == "none" else losses.sum() / denominator

    def backprop(dloss: Array | float | None = None) -> Array:
        # d/dlogits = (sum_c w_c q_c) softmax - w q, times the row's share of the loss
        mass = 1.0 if weights is None else sharp * weights[labels] + smooth * weight_sum
        if dloss is None:
            share: Any = 1.0 / denominator
        elif reduction == "none":
            share = xp.asarray(dloss, dtype=wide)
            if tuple(share.shape) != tuple(targets.shape):
                raise ValueError(
                    f"dloss: expected shape {tuple(targets.shape)}, got {tuple(share.shape)}"
                )
            share = share.reshape(-1)
        else:
            share = dloss / denominator
        if counted is not None:
            share = xp.where(counted, xp.asarray(share, dtype=wide), wide.type(0))
        scale = xp.asarray(share, dtype=wide)
        heights = xp.asarray(mass, dtype=wide)
        dlogits = probabilities * (heights[:, None] if heights.ndim else heights)
        if label_smoothing:
            dlogits -= smooth if weights is None else smooth * weights
        dlogits[rows, labels] -= sharp if weights is None else sharp * weights[labels]
        dlogits *= scale[:, None] if scale.ndim else scale
        return dlogits.reshape(logits.shape).astype(logits.dtype, copy=False)

    return LossOutput(loss, backprop)


def _elementwise(
    values: Array,
    losses: Array,
    reduction: Reduction,
    derivative: Callable[[], Array],
) -> LossOutput:
    """Reduce elementwise losses, and give the backward pass from d loss / d value."""
    xp = array_module(values)
    scale = 1.0 / max(values.size, 1) if reduction == "mean" else 1.0
    loss = losses if reduction == "none" else losses.sum() * scale

    def backprop(dloss: Array | float | None = None) -> Array:
        gradient = derivative()
        if dloss is not None and reduction == "none":
            heights = xp.asarray(dloss, dtype=gradient.dtype)
            if tuple(heights.shape) != tuple(values.shape):
                raise ValueError(
                    f"dloss: expected shape {tuple(values.shape)}, got {tuple(heights.shape)}"
                )
            gradient *= heights
        elif dloss is not None:
            gradient *= xp.asarray(dloss, dtype=gradient.dtype) * scale
        elif scale != 1.0:
            gradient *= scale
        return gradient.astype(values.dtype, copy=False)

    return LossOutput(loss, backprop)


def _check_pair(name: str, values: Array, targets: Array) -> Any:
    xp = _check_floating(name, values)
    check_array("targets", targets, values)
    if tuple(targets.shape) != tuple(values.shape):
        raise ValueError(
            f"targets: expected shape {tuple(values.shape)}, got {tuple(targets.shape)}"
        )
    return xp


def binary_cross_entropy_with_logits(
    logits: Array, targets: Array, *, reduction: Reduction = "mean"
) -> LossOutput:
    """Cross entropy between sigmoid(logits) and targets in [0, 1], element by element.

    Computed as ``max(z, 0) - z t + log(1 + exp(-|z|))``, which does not overflow.

    Args:
        logits: any shape, floating.
        targets: the same shape; any dtype that converts, bool included.
        reduction: "mean" (over elements), "sum" or "none".
    """
    xp = _check_pair("logits", logits, targets)
    _check_reduction(reduction)
    wide = wide_dtype(logits.dtype)
    z, t = logits.astype(wide, copy=False), targets.astype(wide, copy=False)
    small = xp.exp(-xp.abs(z))
    losses = xp.maximum(z, 0) - z * t + xp.log1p(small)

    def derivative() -> Array:
        # sigmoid(z) - t, from exp(-|z|) so that nothing overflows
        return xp.where(z >= 0, wide.type(1), small) / (1 + small) - t

    return _elementwise(logits, losses, reduction, derivative)


def mean_squared_error(
    predictions: Array, targets: Array, *, reduction: Reduction = "mean"
) -> LossOutput:
    """(prediction - target)², element by element.

    Args:
        predictions: any shape, floating.
        targets: the same shape.
        reduction: "mean" (over elements), "sum" or "none".
    """
    _check_pair("predictions", predictions, targets)
    _check_reduction(reduction)
    wide = wide_dtype(predictions.dtype)
    error = predictions.astype(wide, copy=False) - targets.astype(wide, copy=False)
    return _elementwise(predictions, error * error, reduction, lambda: error * 2)
