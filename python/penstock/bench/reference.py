"""The networks as plain NumPy loops over time: what results are held to, and a peer.

They share nothing with the library: the equations of the public headers, one step after the other,
in whatever element type the arrays have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.bench.cases import Case

Parameters = Mapping[str, Any]
_RECURRENT = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), by tanh, which cannot overflow."""
    result: np.ndarray = 0.5 * np.tanh(0.5 * x) + 0.5
    return result


def forward(case: Case, parameters: Parameters, x: np.ndarray) -> np.ndarray:
    """The output of a case's network, as :attr:`Case.output_shape` says.

    ``parameters``: by name, as those of :class:`penstock.GRU`, ``LSTM``, ``RNN`` and ``SRU`` or of
    :class:`penstock.SlicedRNN`, with each ``scale_x``. x: (T, B, D) of the same element type.
    """
    if not case.slices:
        y = x
        for i in range(case.layers):
            y = _layer(case, parameters, f"layers.{i}.", y)[0]
        return y
    rows = x
    for i, (steps, count, _) in enumerate(case.parts()):
        parts = count // case.B
        # (part, step, sequence) -> (step, part and sequence)
        cut = rows.reshape(parts, steps, case.B, -1).swapaxes(0, 1)
        prefix = f"levels.{i}."
        scale = parameters.get("scale_x", 1.0)
        _, last = _layer(case, parameters, prefix, cut.reshape(steps, parts * case.B, -1), scale)
        rows = last.reshape(parts, case.B, -1)
    return rows[0]


def _layer(
    case: Case, parameters: Parameters, prefix: str, x: np.ndarray, scale_x: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """All outputs of one layer, and what each row's last step gave."""
    outputs = []
    ends = []
    for d in range(case.dirs):
        backwards = d == 1 or case.direction == "reverse"
        turned = x[::-1] if backwards else x
        if case.op == "sru":
            scale = parameters.get(f"{prefix}scale_x", 1.0) if scale_x is None else scale_x
            weights = [parameters[prefix + n][d] for n in ("weight", "weight_c", "bias")]
            y = _sru(turned, weights, scale, case, d)
        else:
            weights = [parameters[prefix + n][d] for n in _RECURRENT]
            y = _RECURRENCES[case.op](turned, *weights)
        ends.append(y[-1])
        outputs.append(y[::-1] if backwards else y)
    return np.concatenate(outputs, axis=-1), np.concatenate(ends, axis=-1)


def _gru(x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    u = x @ w.T + b
    h = np.zeros((x.shape[1], r.shape[1]), x.dtype)
    y = np.empty((*x.shape[:2], r.shape[1]), x.dtype)
    for t in range(x.shape[0]):
        u_r, u_z, u_n = np.split(u[t], 3, axis=1)
        q_r, q_z, q_n = np.split(h @ r.T + c, 3, axis=1)
        z = sigmoid(u_z + q_z)
        n = np.tanh(u_n + sigmoid(u_r + q_r) * q_n)
        h = n + z * (h - n)
        y[t] = h
    return y


def _lstm(x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    u = x @ w.T + (b + c)
    h = np.zeros((x.shape[1], r.shape[1]), x.dtype)
    cell = np.zeros_like(h)
    y = np.empty((*x.shape[:2], r.shape[1]), x.dtype)
    for t in range(x.shape[0]):
        i, f, g, o = np.split(u[t] + h @ r.T, 4, axis=1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(cell)
        y[t] = h
    return y


def _rnn(x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    u = x @ w.T + (b + c)
    h = np.zeros((x.shape[1], r.shape[1]), x.dtype)
    y = np.empty((*x.shape[:2], r.shape[1]), x.dtype)
    for t in range(x.shape[0]):
        h = np.tanh(u[t] + h @ r.T)
        y[t] = h
    return y


def _sru(
    x: np.ndarray,
    weights: Sequence[np.ndarray],
    scale_x: Any,
    case: Case,
    direction: int,
) -> np.ndarray:
    weight, weight_c, bias = weights
    hidden = case.H
    u = np.split(x @ weight.T, weight.shape[0] // hidden, axis=-1)
    if len(u) == 4:
        skip = u[3]
    else:
        skip = x[..., direction * hidden : (direction + 1) * hidden] * x.dtype.type(scale_x)
    u_f, u_r = u[1] + bias[0], u[2] + bias[1]
    c = np.zeros((x.shape[1], hidden), x.dtype)
    y = np.empty((*x.shape[:2], hidden), x.dtype)
    for t in range(x.shape[0]):
        f = sigmoid(u_f[t] + weight_c[0] * c)
        r = sigmoid(u_r[t] + weight_c[1] * c)
        c = u[0][t] + f * (c - u[0][t])
        y[t] = skip[t] + r * (c - skip[t])
    return y


_RECURRENCES = {"gru": _gru, "lstm": _lstm, "rnn": _rnn}
