"""From one vector per time step to one vector per sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from penstock._arrays import array_module


class PoolOutput(NamedTuple):
    """`y` (B, W); `backprop(dy)` returns the gradient of the input, (T, B, W)."""

    y: Any
    backprop: Callable[[Any], Any]


def _valid(x: Any, lengths: Any) -> Any:
    """Return whether step t belongs to sequence b, bool (T, B, 1)."""
    xp = array_module(x)
    return (xp.arange(x.shape[0])[:, None] < xp.asarray(lengths))[:, :, None]


def pool_last(x: Any, lengths: Any, directions: int) -> PoolOutput:
    """Take the last step of each direction: time runs backwards in the second half of W.

    Args:
        x: (T, B, W), T >= 1.
        lengths: int (B,), at least 1 each; None means T.
        directions: 1 or 2.
    """
    xp = array_module(x)
    steps, batch, width = x.shape
    rows = xp.arange(batch)
    last = xp.full(batch, steps - 1) if lengths is None else xp.asarray(lengths) - 1
    half = width // directions
    y = xp.concatenate([x[last, rows, :half], x[0, :, half:]], axis=1)

    def backprop(dy: Any) -> Any:
        dx = xp.zeros_like(x)
        dx[last, rows, :half] = dy[:, :half]
        dx[0, :, half:] = dy[:, half:]
        return dx

    return PoolOutput(y, backprop)


def pool_max(x: Any, lengths: Any, directions: int) -> PoolOutput:
    """Take each feature's maximum over a sequence's valid steps, the first one where they tie.

    Args:
        x: (T, B, W), T >= 1.
        lengths: int (B,), at least 1 each; None means T.
        directions: not used.
    """
    xp = array_module(x)
    masked = x if lengths is None else xp.where(_valid(x, lengths), x, x.dtype.type(-np.inf))
    where = masked.argmax(axis=0)
    index = (where, xp.arange(x.shape[1])[:, None], xp.arange(x.shape[2]))
    y = x[index]

    def backprop(dy: Any) -> Any:
        dx = xp.zeros_like(x)
        dx[index] = dy
        return dx

    return PoolOutput(y, backprop)


def pool_mean(x: Any, lengths: Any, directions: int) -> PoolOutput:
    """Average over a sequence's valid steps.

    Args:
        x: (T, B, W), T >= 1; steps past a sequence's end are 0.
        lengths: int (B,), at least 1 each; None means T.
        directions: not used.
    """
    xp = array_module(x)
    if lengths is None:
        share = x.dtype.type(1 / x.shape[0])
        return PoolOutput(
            x.sum(axis=0) * share, lambda dy: xp.broadcast_to(dy * share, x.shape).copy()
        )
    valid = _valid(x, lengths)
    weights = valid / xp.asarray(lengths).astype(x.dtype)[:, None]
    weights = weights.astype(x.dtype)
    return PoolOutput((x * weights).sum(axis=0), lambda dy: dy * weights)


POOLINGS: dict[str, Callable[[Any, Any, int], PoolOutput]] = {
    "last": pool_last,
    "max": pool_max,
    "mean": pool_mean,
}
