"""Random problems for the cells that mix the state, plain and sliced. Never imports penstock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import gru, lstm, rnn
from . import sliced as sliced_reference
from .problems import dtype_of, error

REFERENCE = {"rnn": rnn.rnn, "gru": gru.gru, "lstm": lstm.lstm}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
# Every combination of a cell and the options of its own.
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    **{f"rnn-{a}": ("rnn", {"activation": a}) for a in ("tanh", "relu", "identity")},
    **{
        f"gru-{r}-{a}": ("gru", {"reset": r, "activation": a})
        for r in ("after", "before")
        for a in ("tanh", "relu", "identity")
    },
    "lstm": ("lstm", {}),
}
# With biases: on both sides, on one of them, on none.
BIASES = ("both", "ih", "hh", "none")
POSITIONAL = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
KEYWORDS = ("h0", "c0", "lengths")


def flat(results: dict[str, Any]) -> dict[str, Any]:
    """Name the members of tuples by their place and leave out what is None."""
    found: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, (tuple, list)):
            found |= flat({f"{name}_{i}": v for i, v in enumerate(value)})
        elif value is not None:
            found[name] = value
    return found


def assert_close(
    actual: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    tolerance: float,
    floor: float = 1e-300,
) -> None:
    """Compare outputs within ``tolerance``, gradients (d…) within ten times as much."""
    assert actual.keys() == expected.keys()
    errors = {name: error(actual[name], expected[name], floor) for name in expected}
    bad = {
        name: e
        for name, e in errors.items()
        if not e <= (10 * tolerance if name[0] == "d" else tolerance)
    }
    assert not bad, f"errors {bad}, tolerance {tolerance} (gradients ten times)"


@dataclass
class RecurrentProblem:
    """Arguments of a plain cell and gradients of its outputs. What is None is not given."""

    cell: str
    arrays: dict[str, Any]
    options: dict[str, Any]
    gradients: dict[str, np.ndarray | None]  # dy, dh_last and, of the LSTM, dc_last
    expected: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def operation(self) -> str:
        return self.cell

    @property
    def dtype(self) -> np.dtype:
        return self.arrays["x"].dtype

    def positional(self) -> list[Any]:
        return [self.arrays[n] for n in POSITIONAL]

    def keywords(self) -> dict[str, Any]:
        given = {n: self.arrays.get(n) for n in KEYWORDS}
        return {n: a for n, a in given.items() if a is not None} | self.options

    def floats(self) -> dict[str, np.ndarray]:
        """The arrays that have a gradient, by the gradient's name."""
        names = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0")
        given = {n: self.arrays.get(n) for n in names}
        return {f"d{n}": a for n, a in given.items() if a is not None}

    def loss(self, outputs: dict[str, np.ndarray]) -> float:
        """The scalar whose gradients backprop(**gradients) returns."""
        return sum(float((outputs[n[1:]] * g).sum()) for n, g in self.gradients.items())

    def solve(self) -> dict[str, np.ndarray]:
        """The reference's outputs and gradients; those of arrays not given are left out."""
        if not self.expected:
            *outputs, backprop = REFERENCE[self.cell](*self.positional(), **self.keywords())
            names = ("y", "h_last", "c_last")
            self.expected = dict(zip(names, outputs, strict=False)) | backprop(**self.gradients)
            for name in ("bias_ih", "bias_hh"):
                if self.arrays[name] is None:
                    del self.expected["d" + name]
        return self.expected


def random_recurrent(
    cell: str,
    steps: int = 6,
    batch: int = 3,
    hidden: int = 5,
    *,
    inputs: int = 4,
    direction: str = "forward",
    with_lengths: bool = False,
    biases: str = "both",
    with_state: bool = True,
    dtype: str = "float64",
    seed: int = 0,
    **options: Any,
) -> RecurrentProblem:
    """A problem of the given sizes, its values rounded to ``dtype``."""
    rng = np.random.default_rng([seed, steps, batch, hidden])
    dirs = 2 if direction == "bidirectional" else 1
    width, rows = dirs * hidden, GATES[cell] * hidden
    kind = dtype_of(dtype)
    # Without a squashing function the state must not grow from step to step.
    gain = 1.0 if options.get("activation", "tanh") == "tanh" else 0.5

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(kind)

    arrays: dict[str, Any] = {
        "x": draw(steps, batch, inputs),
        "weight_ih": draw(dirs, rows, inputs, scale=max(1, inputs) ** -0.5),
        "weight_hh": draw(dirs, rows, hidden, scale=gain * hidden**-0.5),
        "bias_ih": draw(dirs, rows, scale=0.5) if biases in ("both", "ih") else None,
        "bias_hh": draw(dirs, rows, scale=0.5) if biases in ("both", "hh") else None,
        "h0": draw(batch, width) if with_state else None,
        "lengths": rng.integers(0, steps + 1, batch) if with_lengths else None,
    }
    gradients = {"dy": draw(steps, batch, width), "dh_last": draw(batch, width)}
    if cell == "lstm":
        arrays["c0"] = draw(batch, width) if with_state else None
        gradients["dc_last"] = draw(batch, width)
    return RecurrentProblem(cell, arrays, {"direction": direction, **options}, gradients)


@dataclass
class SlicedProblem:
    """Arguments of a sliced network and gradients of its outputs."""

    cell: str
    x: np.ndarray
    levels: list[list[Any]]
    lengths: np.ndarray | None
    options: dict[str, Any]  # slices and all else
    dy: np.ndarray | None
    dlevels: list[np.ndarray | None] | None
    expected: dict[str, np.ndarray] = field(default_factory=dict)

    operation = "sliced"

    @property
    def dtype(self) -> np.dtype:
        return self.x.dtype

    @property
    def gradients(self) -> dict[str, Any]:
        return {"dy": self.dy, "dlevels": self.dlevels}

    def positional(self) -> list[Any]:
        return [self.cell, self.x, self.levels]

    def keywords(self) -> dict[str, Any]:
        given = {} if self.lengths is None else {"lengths": self.lengths}
        return given | self.options

    def floats(self) -> dict[str, np.ndarray]:
        """The arrays that have a gradient, by the gradient's name."""
        return flat({"dx": self.x, "dlevels": self.levels})

    def loss(self, outputs: dict[str, np.ndarray]) -> float:
        """The scalar whose gradients backprop(**gradients) returns."""
        total = 0.0 if self.dy is None else float((outputs["y"] * self.dy).sum())
        for i, d in enumerate(self.dlevels or ()):
            total += 0.0 if d is None else float((outputs[f"levels_{i}"] * d).sum())
        return total

    def counted(self) -> np.ndarray:
        """(T, B) bool: the steps of each sequence that are not padding."""
        time, batch, _ = self.x.shape
        n = np.full(batch, time) if self.lengths is None else self.lengths
        t = np.arange(time)[:, None]
        return t >= time - n if self.options.get("pad", "left") == "left" else t < n

    def solve(self) -> dict[str, np.ndarray]:
        """The reference's outputs and gradients; those of arrays not given are left out."""
        if not self.expected:
            y, states, backprop = sliced_reference.sliced(*self.positional(), **self.keywords())
            dx, dlevels = backprop(**self.gradients)
            self.expected = flat({"y": y, "levels": states, "dx": dx, "dlevels": dlevels})
        return self.expected


def random_sliced(
    cell: str,
    slices: Sequence[int] = (2, 2),
    steps: int = 9,
    batch: int = 3,
    hidden: int = 5,
    *,
    inputs: int = 4,
    direction: str = "forward",
    with_lengths: bool = False,
    biases: str = "both",
    dtype: str = "float64",
    seed: int = 0,
    **options: Any,
) -> SlicedProblem:
    """A sliced problem. An "sru" has K = 4 in level 0 and K = 3 above, where D = dirs·H.

    ``biases`` "none" also takes weight_c from an SRU, whose bias cannot be left out.
    """
    rng = np.random.default_rng([seed, steps, batch, hidden, *slices])
    dirs = 2 if direction == "bidirectional" else 1
    width = dirs * hidden
    kind = dtype_of(dtype)
    gain = 1.0 if options.get("activation", "tanh") == "tanh" else 0.5

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(kind)

    levels: list[list[Any]] = []
    for i in range(len(slices) + 1):
        features = width if i else inputs
        scale = max(1, features) ** -0.5
        if cell == "sru":
            rows = (3 if i or not options.get("skip", True) else 4) * hidden
            levels.append(
                [
                    draw(dirs, rows, features, scale=scale),
                    draw(dirs, 2, hidden, scale=0.7) if biases != "none" else None,
                    draw(dirs, 2, hidden, scale=0.5),
                ]
            )
            continue
        rows = GATES[cell] * hidden
        levels.append(
            [
                draw(dirs, rows, features, scale=scale),
                draw(dirs, rows, hidden, scale=gain * hidden**-0.5),
                draw(dirs, rows, scale=0.5) if biases in ("both", "ih") else None,
                draw(dirs, rows, scale=0.5) if biases in ("both", "hh") else None,
            ]
        )
    parts = [int(np.prod(slices[: len(slices) - i], dtype=int)) for i in range(len(levels))]
    return SlicedProblem(
        cell,
        draw(steps, batch, inputs),
        levels,
        rng.integers(0, steps + 1, batch) if with_lengths else None,
        {"slices": tuple(slices), "direction": direction, **options},
        draw(batch, width),
        [draw(s, batch, width) for s in parts],
    )
