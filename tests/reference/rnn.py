"""The plain recurrent layer in NumPy and float64. Equations: include/penstock/rnn.h."""

from __future__ import annotations

from typing import Any

import numpy as np

from .recurrent import State, Step, StepBack, activate, run


def _step(activation: str) -> Step:
    def step(a: np.ndarray, state: State, r: np.ndarray, b: np.ndarray) -> tuple[State, StepBack]:
        (h_prev,) = state
        h, slope = activate(a + h_prev @ r.T + b, activation)

        def back(dstate: State) -> tuple[np.ndarray, State, np.ndarray, np.ndarray]:
            da = dstate[0] * slope
            return da, (da @ r,), da.T @ h_prev, da.sum(0)

        return (h,), back

    return step


def rnn(
    x: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias_ih: np.ndarray | None = None,
    bias_hh: np.ndarray | None = None,
    *,
    h0: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    direction: str = "forward",
    activation: str = "tanh",
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return y, h_last and backprop(dy=None, dh_last=None) -> dict of gradients, all float64."""
    y, (h_last,), back = run(
        _step(activation), 1, x, weight_ih, weight_hh, bias_ih, bias_hh, (h0,), lengths, direction
    )

    def backprop(
        dy: np.ndarray | None = None, dh_last: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        names = ("dx", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh", "dh0")
        return dict(zip(names, back(dy, dh_last), strict=True))

    return y, h_last, backprop
