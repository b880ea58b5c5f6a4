"""Sliced recurrence in NumPy and float64, put together from the plain cells.

Semantics: include/penstock/sliced.h. Every part of every sequence is run by itself over its valid
steps alone, so no mask reaches a cell; parts whose valid steps lie alike are run as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .gru import gru
from .lstm import lstm
from .rnn import rnn
from .sru import sru

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
PARAMETERS_OF_SRU = ("weight", "weight_c", "bias")


def _last_output(y: np.ndarray, hidden: int, direction: str) -> np.ndarray:
    """The outputs of the step that each direction reads last: (B, dirs·H)."""
    if direction == "forward":
        return y[-1]
    if direction == "reverse":
        return y[0]
    return np.concatenate([y[-1, :, :hidden], y[0, :, hidden:]], axis=1)


def _run_cell(
    cell: str, x: np.ndarray, level: Sequence[Any], direction: str, options: dict[str, Any]
) -> tuple[np.ndarray, Any]:
    """The last states (B, dirs·H) of at least one step, and a function to (dx, gradients)."""
    if cell == "sru":
        y, _, back = sru(x, *level, direction=direction, **options)
        hidden = np.shape(level[2])[2]

        def backprop_sru(dlast: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
            dy = np.zeros_like(y)
            if direction != "reverse":
                dy[-1, :, :hidden] += dlast[:, :hidden]
            if direction != "forward":
                dy[0, :, -hidden:] += dlast[:, -hidden:]
            grads = back(dy)
            return grads["dx"], [grads["d" + n] for n in PARAMETERS_OF_SRU]

        return _last_output(y, hidden, direction), backprop_sru

    function: Any = {"rnn": rnn, "gru": gru, "lstm": lstm}[cell]
    _, h_last, *_, back = function(x, *level, direction=direction, **options)

    def backprop(dlast: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        grads = back(None, dlast)
        return grads["dx"], [grads["d" + n] for n in PARAMETERS]

    return h_last, backprop


def _level(
    cell: str,
    x: np.ndarray,
    valid: np.ndarray,
    steps: int,
    level: Sequence[Any],
    width: int,
    direction: str,
    options: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Cut x (parts · steps, B, D) and run every part: last states, which have a step, backprop."""
    parts = x.shape[0] // steps if steps else x.shape[0]
    batch = x.shape[1]
    out = np.zeros((parts, batch, width))
    alive = np.zeros((parts, batch), bool)
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for p in range(parts):
        for b in range(batch):
            inside = tuple(np.flatnonzero(valid[p * steps : (p + 1) * steps, b]).tolist())
            if inside:
                groups.setdefault(inside, []).append((p, b))
    calls = []
    for inside, rows in groups.items():
        p, b = np.array(rows).T
        times = p * steps + np.array(inside)[:, None]  # (valid steps, rows)
        last, back = _run_cell(cell, x[times, b], level, direction, options)
        out[p, b] = last
        alive[p, b] = True
        calls.append((times, p, b, back))

    def backprop(dout: np.ndarray) -> tuple[np.ndarray, list[np.ndarray | None]]:
        dx = np.zeros_like(x)
        grads = [None if a is None else np.zeros(a.shape) for a in level]
        for times, p, b, back in calls:
            dx[times, b], found = back(dout[p, b])
            grads = [None if g is None else g + more for g, more in zip(grads, found, strict=False)]
        return dx, grads

    return out, alive, backprop


def sliced(
    cell: str,
    x: np.ndarray,
    levels: Sequence[Sequence[Any]],
    *,
    slices: Sequence[int],
    lengths: np.ndarray | None = None,
    pad: str = "left",
    mask: str = "skip",
    direction: str = "forward",
    activation: str | None = None,
    reset: str = "after",
    skip: bool = True,
    scale_x: float = 1.0,
) -> tuple[np.ndarray, tuple[np.ndarray, ...], Any]:
    """Return y, the levels' last states and backprop(dy=None, dlevels=None), all float64.

    ``backprop`` returns dx and, for every level, the list of its parameters' gradients, None where
    a parameter was None.
    """
    options: dict[str, Any] = {} if activation is None else {"activation": activation}
    if cell == "gru":
        options["reset"] = reset
    elif cell == "lstm":
        options = {}
    elif cell == "sru":
        options |= {"skip": skip, "scale_x": scale_x}

    x = np.asarray(x, np.float64)
    time, batch, features = x.shape
    assert len(levels) == len(slices) + 1
    parts = math.prod(slices)
    first = -(-time // parts)
    whole = first * parts
    begin = whole - time if pad == "left" else 0
    here = slice(begin, begin + time)
    padded = np.zeros((whole, batch, features))
    if mask == "none":
        padded[here] = x
        valid = np.ones((whole, batch), bool)
    else:
        t = np.arange(time)[:, None]
        n = np.full(batch, time) if lengths is None else np.asarray(lengths)
        counts = t >= time - n if pad == "left" else t < n
        padded[here] = np.where(counts[:, :, None], x, 0.0)
        valid = np.zeros((whole, batch), bool)
        valid[here] = counts

    dirs = 2 if direction == "bidirectional" else 1
    state, outputs, backs = padded, [], []
    for i, steps in enumerate((first, *reversed(slices))):
        width = dirs * np.shape(levels[i][2 if cell == "sru" else 1])[2]
        if steps == 0:  # T = 0: no part has a step
            state, valid = np.zeros((parts, batch, 0)), np.zeros((parts, batch), bool)
        state, valid, back = _level(cell, state, valid, steps, levels[i], width, direction, options)
        outputs.append(state)
        backs.append(back)

    def backprop(
        dy: np.ndarray | None = None, dlevels: Sequence[np.ndarray | None] | None = None
    ) -> tuple[np.ndarray, list[list[np.ndarray | None]]]:
        given = [None] * len(outputs) if dlevels is None else dlevels
        totals = [
            np.zeros_like(o) if d is None else np.asarray(d, np.float64)
            for o, d in zip(outputs, given, strict=True)
        ]
        if dy is not None:
            totals[-1] = totals[-1] + np.asarray(dy, np.float64)
        grads: list[list[np.ndarray | None]] = []
        dstate = np.zeros_like(outputs[-1])
        for i in reversed(range(len(outputs))):
            dstate, found = backs[i](totals[i] + dstate)
            grads.insert(0, found)
        return (dstate[here] if time else np.zeros_like(x)), grads

    return outputs[-1][0], tuple(outputs), backprop
