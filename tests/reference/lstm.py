"""Long short-term memory in NumPy and float64. Equations: include/penstock/lstm.h."""

from __future__ import annotations

from typing import Any

import numpy as np

from .recurrent import State, StepBack, run, sigmoid


def _step(a: np.ndarray, state: State, r: np.ndarray, b: np.ndarray) -> tuple[State, StepBack]:
    h_prev, c_prev = state
    a_i, a_f, a_g, a_o = np.split(a + h_prev @ r.T + b, 4, axis=1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
    c = f * c_prev + i * g
    s = np.tanh(c)

    def back(dstate: State) -> tuple[np.ndarray, State, np.ndarray, np.ndarray]:
        dh, dc = dstate
        dc = dc + dh * o * (1 - s * s)
        da = np.concatenate(
            [
                dc * g * i * (1 - i),
                dc * c_prev * f * (1 - f),
                dc * i * (1 - g * g),
                dh * s * o * (1 - o),
            ],
            axis=1,
        )
        return da, (da @ r, dc * f), da.T @ h_prev, da.sum(0)

    return (o * s, c), back


def lstm(
    x: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias_ih: np.ndarray | None = None,
    bias_hh: np.ndarray | None = None,
    *,
    h0: np.ndarray | None = None,
    c0: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    direction: str = "forward",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    """Return y, h_last, c_last and backprop(dy, dh_last, dc_last) -> dict of gradients, float64."""
    y, (h_last, c_last), back = run(
        _step, 4, x, weight_ih, weight_hh, bias_ih, bias_hh, (h0, c0), lengths, direction
    )

    def backprop(
        dy: np.ndarray | None = None,
        dh_last: np.ndarray | None = None,
        dc_last: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        names = ("dx", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh", "dh0", "dc0")
        return dict(zip(names, back(dy, dh_last, dc_last), strict=True))

    return y, h_last, c_last, backprop
