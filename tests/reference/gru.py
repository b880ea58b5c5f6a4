"""The gated recurrent unit in NumPy and float64. Equations: include/penstock/gru.h."""

from __future__ import annotations

from typing import Any

import numpy as np

from .recurrent import State, Step, StepBack, activate, run, sigmoid


def _step_after(activation: str) -> Step:
    def step(a: np.ndarray, state: State, r: np.ndarray, b: np.ndarray) -> tuple[State, StepBack]:
        (h_prev,) = state
        a_r, a_z, a_n = np.split(a, 3, axis=1)
        m_r, m_z, m_n = np.split(h_prev @ r.T + b, 3, axis=1)
        reset, z = sigmoid(a_r + m_r), sigmoid(a_z + m_z)
        n, slope = activate(a_n + reset * m_n, activation)
        h = (1 - z) * n + z * h_prev

        def back(dstate: State) -> tuple[np.ndarray, State, np.ndarray, np.ndarray]:
            (dh,) = dstate
            d_n = dh * (1 - z) * slope
            d_z = dh * (h_prev - n) * z * (1 - z)
            d_r = d_n * m_n * reset * (1 - reset)
            da = np.concatenate([d_r, d_z, d_n], axis=1)
            dm = np.concatenate([d_r, d_z, d_n * reset], axis=1)
            return da, (dh * z + dm @ r,), dm.T @ h_prev, dm.sum(0)

        return (h,), back

    return step


def _step_before(activation: str) -> Step:
    def step(a: np.ndarray, state: State, r: np.ndarray, b: np.ndarray) -> tuple[State, StepBack]:
        (h_prev,) = state
        r_r, r_z, r_n = np.split(r, 3)
        a_r, a_z, a_n = np.split(a + b, 3, axis=1)
        reset = sigmoid(a_r + h_prev @ r_r.T)
        z = sigmoid(a_z + h_prev @ r_z.T)
        n, slope = activate(a_n + (reset * h_prev) @ r_n.T, activation)
        h = (1 - z) * n + z * h_prev

        def back(dstate: State) -> tuple[np.ndarray, State, np.ndarray, np.ndarray]:
            (dh,) = dstate
            d_n = dh * (1 - z) * slope
            d_z = dh * (h_prev - n) * z * (1 - z)
            dreset_h = d_n @ r_n
            d_r = dreset_h * h_prev * reset * (1 - reset)
            da = np.concatenate([d_r, d_z, d_n], axis=1)
            dh_prev = dh * z + dreset_h * reset + d_r @ r_r + d_z @ r_z
            dr = np.concatenate([d_r.T @ h_prev, d_z.T @ h_prev, d_n.T @ (reset * h_prev)])
            return da, (dh_prev,), dr, da.sum(0)

        return (h,), back

    return step


def gru(
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
    reset: str = "after",
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return y, h_last and backprop(dy=None, dh_last=None) -> dict of gradients, all float64."""
    step = {"after": _step_after, "before": _step_before}[reset](activation)
    y, (h_last,), back = run(
        step, 3, x, weight_ih, weight_hh, bias_ih, bias_hh, (h0,), lengths, direction
    )

    def backprop(
        dy: np.ndarray | None = None, dh_last: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        names = ("dx", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh", "dh0")
        return dict(zip(names, back(dy, dh_last), strict=True))

    return y, h_last, backprop
