"""What the cells whose steps mix the state have in common: the loop over time, both directions.

NumPy and float64, gradients by hand; never imports penstock. Shapes: include/penstock/recurrent.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

State = tuple[np.ndarray, ...]  # h, or h and c; each (B, H)


def sigmoid(a: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(a))  # never overflows
    return np.where(a >= 0, 1, small) / (1 + small)


def activate(a: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray]:
    """act(a) and act'(a)."""
    if activation == "tanh":
        y = np.tanh(a)
        return y, 1 - y * y
    if activation == "relu":
        return np.maximum(a, 0), (a > 0).astype(a.dtype)
    if activation == "identity":
        return a, np.ones_like(a)
    raise ValueError(f"activation: {activation!r}")


# One step: from what W x + b_ih adds to each gate (B, G·H), the state before, R and b_hh to the
# state after and a function from its gradients to (gradient of the first argument, gradients of the
# state before, of R, of b_hh).
StepBack = Callable[[State], tuple[np.ndarray, State, np.ndarray, np.ndarray]]
Step = Callable[[np.ndarray, State, np.ndarray, np.ndarray], tuple[State, StepBack]]


def _one_direction(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b_ih: np.ndarray,
    b_hh: np.ndarray,
    state: State,
    pad: np.ndarray,
    step: Step,
    *,
    reverse: bool,
) -> tuple[np.ndarray, State, Any]:
    steps, batch, _ = x.shape
    order = range(steps - 1, -1, -1) if reverse else range(steps)
    y = np.zeros((steps, batch, r.shape[1]))
    # A padded step's x must not matter, so it is never multiplied.
    x = np.where(pad[:, :, None], 0.0, x)
    saved = {}
    for t in order:
        keep = pad[t][:, None]
        after, saved[t] = step(x[t] @ w.T + b_ih, state, r, b_hh)
        y[t] = np.where(keep, 0.0, after[0])
        state = tuple(np.where(keep, old, new) for old, new in zip(state, after, strict=True))

    def backprop(dy: np.ndarray, dstate: State) -> tuple[Any, ...]:
        dx, dw, dr = np.zeros_like(x), np.zeros_like(w), np.zeros_like(r)
        db_ih, db_hh = np.zeros_like(b_ih), np.zeros_like(b_hh)
        for t in reversed(order):
            keep = pad[t][:, None]
            dafter = [np.where(keep, 0.0, d) for d in dstate]
            dafter[0] = dafter[0] + np.where(keep, 0.0, dy[t])
            da, dbefore, dr_t, db_t = saved[t](tuple(dafter))
            dstate = tuple(np.where(keep, d, b) for d, b in zip(dstate, dbefore, strict=True))
            dx[t] = da @ w
            dw += da.T @ x[t]
            db_ih += da.sum(0)
            dr += dr_t
            db_hh += db_t
        return dx, dw, dr, db_ih, db_hh, dstate

    return y, state, backprop


def run(
    step: Step,
    gates: int,
    x: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias_ih: np.ndarray | None,
    bias_hh: np.ndarray | None,
    states: tuple[np.ndarray | None, ...],
    lengths: np.ndarray | None,
    direction: str,
) -> tuple[np.ndarray, State, Any]:
    """Return y (T, B, dirs·H), the last states (B, dirs·H) each, and backprop(dy, *dstates).

    ``backprop`` returns dx, dweight_ih, dweight_hh, dbias_ih, dbias_hh and the initial states'
    gradients; what it is given may be None. Everything is float64.
    """
    x, weight_ih, weight_hh = (np.asarray(a, np.float64) for a in (x, weight_ih, weight_hh))
    steps, batch, _ = x.shape
    dirs, _, hidden = weight_hh.shape
    assert dirs == (2 if direction == "bidirectional" else 1)
    assert weight_hh.shape[1] == weight_ih.shape[1] == gates * hidden

    def or_zeros(a: np.ndarray | None, *shape: int) -> np.ndarray:
        return np.zeros(shape) if a is None else np.asarray(a, np.float64).reshape(shape)

    b_ih, b_hh = (or_zeros(b, dirs, gates * hidden) for b in (bias_ih, bias_hh))
    starts = [or_zeros(s, batch, dirs * hidden) for s in states]
    pad = np.zeros((steps, batch), bool)
    if lengths is not None:
        pad = np.arange(steps)[:, None] >= np.asarray(lengths)

    sides = [slice(d * hidden, (d + 1) * hidden) for d in range(dirs)]
    parts = [
        _one_direction(
            x,
            weight_ih[d],
            weight_hh[d],
            b_ih[d],
            b_hh[d],
            tuple(s[:, at] for s in starts),
            pad,
            step,
            reverse=direction == "reverse" or d == 1,
        )
        for d, at in enumerate(sides)
    ]
    y = np.concatenate([p[0] for p in parts], axis=2)
    last = tuple(np.concatenate(s, axis=1) for s in zip(*(p[1] for p in parts), strict=True))

    def backprop(dy: np.ndarray | None, *dstates: np.ndarray | None) -> tuple[Any, ...]:
        dy = or_zeros(dy, *y.shape)
        given = [or_zeros(d, batch, dirs * hidden) for d in dstates]
        found = [
            back(dy[:, :, at], tuple(d[:, at] for d in given))
            for (_, _, back), at in zip(parts, sides, strict=True)
        ]
        dx = sum(f[0] for f in found)
        parameters = [np.stack([f[i] for f in found]) for i in range(1, 5)]
        initial = [np.concatenate(s, axis=1) for s in zip(*(f[5] for f in found), strict=True)]
        return dx, *parameters, *initial

    return y, last, backprop
