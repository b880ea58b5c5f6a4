"""Random problems for the SRU and the comparison of results. NumPy only; never imports penstock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import sru as reference

# max|a-b| / max|b| of outputs; gradients get ten times as much.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
FORMS = ("k3", "k4", "noskip", "x_skip")
DIRECTIONS = ("forward", "reverse", "bidirectional")
ACTIVATIONS = ("identity", "tanh", "relu")
FLOATS = ("x", "weight", "weight_c", "bias", "c0", "mask_c", "x_skip")
KEYWORDS = ("c0", "mask_pad", "lengths", "mask_c", "x_skip")


def dtype_of(name: str) -> np.dtype:
    """The NumPy type of that name; bfloat16 from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@dataclass
class Problem:
    """Arguments of the SRU and gradients of its outputs. Arrays that are None are not given."""

    arrays: dict[str, Any]
    options: dict[str, Any]
    dy: np.ndarray | None
    dc_last: np.ndarray | None
    expected: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        return self.arrays["x"].dtype

    def keywords(self) -> dict[str, Any]:
        """Everything but x, weight, weight_c and bias."""
        given = {k: self.arrays.get(k) for k in KEYWORDS}
        return {k: v for k, v in given.items() if v is not None} | self.options

    def solve(self) -> dict[str, np.ndarray]:
        """The reference's outputs and gradients; those of arrays not given are left out."""
        if not self.expected:
            a = self.arrays
            y, c_last, backprop = reference.sru(
                a["x"], a["weight"], a["weight_c"], a["bias"], **self.keywords()
            )
            self.expected = {"y": y, "c_last": c_last} | backprop(self.dy, self.dc_last)
            for name in ("weight_c", "mask_c"):
                if a[name] is None:
                    del self.expected["d" + name]
        return self.expected


def random_problem(
    steps: int = 6,
    batch: int = 3,
    hidden: int = 5,
    *,
    inputs: int | None = None,
    form: str = "k3",
    direction: str = "forward",
    activation: str = "identity",
    mask_site: str | None = None,
    padding: str | None = None,
    with_v: bool = True,
    with_c0: bool = True,
    dtype: str = "float64",
    seed: int = 0,
) -> Problem:
    """A problem of the given sizes.

    ``form``: "k3" with x in the skip term, "k4", "noskip", or "x_skip" with K = 3 and an array of
    its own in the skip term. ``inputs`` is D (k3: always dirs * H); ``mask_site`` None gives no
    dropout mask; ``padding`` is None, "mask", "lengths" or "both". Values are rounded to ``dtype``
    first, so the reference and what is tested see the same numbers.
    """
    rng = np.random.default_rng([seed, steps, batch, hidden])
    dirs = 2 if direction == "bidirectional" else 1
    width = dirs * hidden
    features = width if form == "k3" or inputs is None else inputs
    blocks = 4 if form == "k4" else 3
    kind = dtype_of(dtype)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(kind)

    mask = rng.random((batch, width)) < 0.7
    arrays: dict[str, Any] = {
        "x": draw(steps, batch, features),
        "weight": draw(dirs, blocks * hidden, features, scale=max(1, features) ** -0.5),
        "weight_c": draw(dirs, 2, hidden, scale=0.7) if with_v else None,
        "bias": draw(dirs, 2, hidden, scale=0.5),
        "c0": draw(batch, width) if with_c0 else None,
        "mask_c": (mask / 0.7).astype(kind) if mask_site else None,
        "mask_pad": rng.random((steps, batch)) < 0.3 if padding in ("mask", "both") else None,
        "lengths": rng.integers(0, steps + 1, batch) if padding in ("lengths", "both") else None,
        "x_skip": draw(steps, batch, width) if form == "x_skip" else None,
    }
    options: dict[str, Any] = {"activation": activation, "direction": direction}
    if form == "noskip":
        options["skip"] = False
    elif form != "k4":
        options["scale_x"] = 1.25
    if mask_site:
        options["mask_site"] = mask_site
    return Problem(arrays, options, draw(steps, batch, width), draw(batch, width))


def error(actual: np.ndarray, expected: np.ndarray, floor: float = 1e-300) -> float:
    """max|a-b| / max|b|, with max|b| taken as at least ``floor``; NaN is an error without bound."""
    actual = np.asarray(actual, np.float64)
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {actual.shape}, expected {expected.shape}")
    if actual.size == 0:
        return 0.0
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), floor))


def assert_close(
    actual: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    tolerance: float,
    floor: float = 1e-300,
) -> None:
    """Compare y and c_last within ``tolerance``, gradients within ten times as much."""
    assert actual.keys() == expected.keys()
    errors = {name: error(actual[name], expected[name], floor) for name in expected}
    bad = {
        name: e
        for name, e in errors.items()
        if not e <= (tolerance if name in ("y", "c_last") else 10 * tolerance)
    }
    assert not bad, f"errors {bad}, tolerance {tolerance} (gradients ten times)"
