"""The SRU in plain NumPy and float64: one loop over time, gradients by hand.

Never imports penstock. Equations and shapes: include/penstock/sru.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def _sigmoid(a: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(a))  # never overflows
    return np.where(a >= 0, 1, small) / (1 + small)


def _activate(c: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray]:
    """g(c) and g'(c)."""
    if activation == "tanh":
        g = np.tanh(c)
        return g, 1 - g * g
    if activation == "relu":
        return np.maximum(c, 0), (c > 0).astype(c.dtype)
    return c, np.ones_like(c)


def _one_direction(
    x: np.ndarray,
    w: np.ndarray,
    v: np.ndarray,
    b: np.ndarray,
    *,
    c0: np.ndarray,
    activation: str,
    skip: bool,
    scale_x: float,
    pad: np.ndarray,
    mask: np.ndarray,
    mask_site: str,
    reverse: bool,
    x_skip: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """One direction; returns y (T,B,H), c_last and a function from (dy, dc_last) to gradients."""
    steps, batch, _ = x.shape
    hidden = b.shape[1]
    blocks = w.shape[0] // hidden
    # A padded step's x must not matter, so it is never multiplied.
    x_clean = np.where(pad[:, :, None], 0.0, x)
    u = (x_clean @ w.T).reshape(steps, batch, blocks, hidden)
    order = range(steps - 1, -1, -1) if reverse else range(steps)
    y = np.zeros((steps, batch, hidden))
    c = c0.copy()
    saved = {}
    for t in order:
        f = _sigmoid(u[t, :, 1] + v[0] * c + b[0])
        r = _sigmoid(u[t, :, 2] + v[1] * c + b[1])
        if not skip:
            xp = np.zeros((batch, hidden))
        elif blocks == 4:
            xp = u[t, :, 3]
        else:
            assert x_skip is not None
            xp = scale_x * np.where(pad[t][:, None], 0.0, x_skip[t])
        c_new = f * c + (1 - f) * u[t, :, 0]
        g, slope = _activate(c_new, activation)
        inner = mask * (g - xp) if mask_site == "output" else mask * g - xp
        h = r * inner + xp
        saved[t] = (f, r, xp, c, g, slope, inner)
        keep = pad[t][:, None]
        c = np.where(keep, c, c_new)
        y[t] = np.where(keep, 0.0, h)

    def backprop(dy: np.ndarray, dc_last: np.ndarray) -> tuple[np.ndarray, ...]:
        du = np.zeros_like(u)
        dx_skip = np.zeros((steps, batch, hidden))
        dv = np.zeros_like(v)
        db = np.zeros_like(b)
        dmask = np.zeros_like(mask)
        dc = dc_last.copy()
        for t in reversed(list(order)):
            f, r, xp, c_prev, g, slope, inner = saved[t]
            keep = pad[t][:, None]
            dh = np.where(keep, 0.0, dy[t])
            through = np.where(keep, 0.0, dc)
            dr = dh * inner
            if mask_site == "output":
                dg, dxp, dm = dh * r * mask, dh * (1 - r * mask), dh * r * (g - xp)
            else:
                dg, dxp, dm = dh * r * mask, dh * (1 - r), dh * r * g
            total = through + dg * slope
            d2 = dr * r * (1 - r)
            d1 = total * (c_prev - u[t, :, 0]) * f * (1 - f)
            du[t, :, 0] = total * (1 - f)
            du[t, :, 1] = d1
            du[t, :, 2] = d2
            if skip and blocks == 4:
                du[t, :, 3] = dxp
            elif skip:
                dx_skip[t] = scale_x * dxp
            dv += np.stack([(d1 * c_prev).sum(0), (d2 * c_prev).sum(0)])
            db += np.stack([d1.sum(0), d2.sum(0)])
            dmask += dm
            dc = np.where(keep, dc, total * f + d1 * v[0] + d2 * v[1])
        flat = du.reshape(steps * batch, w.shape[0])
        dx = (flat @ w).reshape(x.shape)
        dw = flat.T @ x_clean.reshape(steps * batch, x.shape[2])
        return dx, dx_skip, dw, dv, db, dc, dmask

    return y, c, backprop


def sru(
    x: np.ndarray,
    weight: np.ndarray,
    weight_c: np.ndarray | None,
    bias: np.ndarray,
    *,
    c0: np.ndarray | None = None,
    activation: str = "identity",
    skip: bool = True,
    scale_x: float = 1.0,
    mask_pad: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    mask_c: np.ndarray | None = None,
    mask_site: str = "output",
    direction: str = "forward",
    x_skip: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return y, c_last and backprop(dy=None, dc_last=None) -> dict of gradients, all float64."""
    x, weight, bias = (np.asarray(a, np.float64) for a in (x, weight, bias))
    steps, batch, _ = x.shape
    dirs, _, hidden = bias.shape
    width = dirs * hidden
    from_x = skip and weight.shape[1] == 3 * hidden
    source = x if x_skip is None else np.asarray(x_skip, np.float64)
    v = np.zeros_like(bias) if weight_c is None else np.asarray(weight_c, np.float64)
    start = np.zeros((batch, width)) if c0 is None else np.asarray(c0, np.float64)
    mask = np.ones((batch, width)) if mask_c is None else np.asarray(mask_c, np.float64)
    pad = np.zeros((steps, batch), bool) if mask_pad is None else np.asarray(mask_pad, bool).copy()
    if lengths is not None:
        pad |= np.arange(steps)[:, None] >= np.asarray(lengths)[None, :]

    parts = []
    for d in range(dirs):
        at = slice(d * hidden, (d + 1) * hidden)
        parts.append(
            _one_direction(
                x,
                weight[d],
                v[d],
                bias[d],
                c0=start[:, at],
                activation=activation,
                skip=skip,
                scale_x=scale_x,
                pad=pad,
                mask=mask[:, at],
                mask_site=mask_site,
                reverse=direction == "reverse" or d == 1,
                x_skip=source[:, :, at] if from_x else None,
            )
        )
    y = np.concatenate([p[0] for p in parts], axis=2)
    c_last = np.concatenate([p[1] for p in parts], axis=1)

    def backprop(
        dy: np.ndarray | None = None, dc_last: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        dy = np.zeros_like(y) if dy is None else np.asarray(dy, np.float64)
        dc = np.zeros_like(c_last) if dc_last is None else np.asarray(dc_last, np.float64)
        dx = np.zeros_like(x)
        dsource = dx if x_skip is None else np.zeros_like(source)
        grads: dict[str, list[np.ndarray]] = {}
        for d, (_, _, back) in enumerate(parts):
            at = slice(d * hidden, (d + 1) * hidden)
            dx_d, dx_skip, dw, dv, db, dc0, dm = back(dy[:, :, at], dc[:, at])
            dx += dx_d
            if from_x:
                dsource[:, :, at] += dx_skip
            here = {"dweight": dw, "dweight_c": dv, "dbias": db, "dc0": dc0, "dmask_c": dm}
            for name, gradient in here.items():
                grads.setdefault(name, []).append(gradient)
        return {
            "dx": dx,
            **({} if x_skip is None else {"dx_skip": dsource}),
            "dweight": np.stack(grads["dweight"]),
            "dweight_c": np.stack(grads["dweight_c"]),
            "dbias": np.stack(grads["dbias"]),
            "dc0": np.concatenate(grads["dc0"], axis=1),
            "dmask_c": np.concatenate(grads["dmask_c"], axis=1),
        }

    return y, c_last, backprop
