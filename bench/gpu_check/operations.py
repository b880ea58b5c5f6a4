"""The operations that are checked and measured: their arguments, calls, arithmetic and traffic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import penstock

from bench.gpu_check.arrays import Array, Library, dtype_of

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
#: Distinct random numbers in an array.
MOST_NUMBERS = 2**22 + 1
#: Largest error, as max|a-b|/max|b|; gradients ten times that. As in the tests.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


@dataclass(frozen=True)
class Case:
    """One call of one operation: sizes, element type and options."""

    op: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    dtype: str = "float32"
    direction: str = "forward"
    #: "sliced": the cell that is sliced, and into how many parts.
    cell: str = "gru"
    slices: tuple[int, ...] = ()
    #: Sequences of different lengths.
    lengths: bool = False
    reset: str = "after"
    #: With an initial state.
    initial: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", tuple(self.slices))

    @property
    def dirs(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def width(self) -> int:
        return self.dirs * self.hidden

    @property
    def label(self) -> str:
        """Names the case in tables and comparisons."""
        words = [self.op, f"({self.steps}, {self.batch}, {self.inputs}, {self.hidden})"]
        if self.op == "sliced":
            words.insert(1, f"{self.cell} {'x'.join(map(str, self.slices))}")
        words.append(self.dtype)
        if self.direction != "forward":
            words.append(self.direction)
        if self.lengths:
            words.append("lengths")
        if self.reset != "after":
            words.append(f"reset {self.reset}")
        return " ".join(words)

    def levels(self) -> Iterator[tuple[str, int, int, int]]:
        """(cell, steps, rows, features) of each recurrence: of a plain one, itself."""
        if self.op != "sliced":
            yield self.op, self.steps, self.batch, self.inputs
            return
        parts = math.prod(self.slices)
        yield self.cell, -(-self.steps // parts), parts * self.batch, self.inputs
        for count in reversed(self.slices):
            parts //= count
            yield self.cell, count, parts * self.batch, self.width

    def product_operations(self) -> int:
        """Floating-point operations of all matrix products of a forward pass."""
        total = 0
        for cell, steps, rows, features in self.levels():
            if cell == "sru":
                blocks = 3 if features == self.width else 4
                per_row = blocks * self.hidden * features
            else:
                per_row = GATES[cell] * self.hidden * (features + self.hidden)
            total += 2 * steps * rows * self.dirs * per_row
        return total

    def scan_bytes(self, training: bool) -> int:
        """Bytes that an SRU's recurrence alone must move, besides its product.

        Per channel and step: u0, u1, u2 and the skip term in, h out, in training c too; backward
        u0, u1, u2, the skip term, c and dh in, du0, du1, du2 and the skip term's gradient out.
        """
        size = dtype_of(self.dtype).itemsize
        state = max(size, 4)  # c is never kept in 16 bits
        per_channel = 14 * size + 2 * state if training else 5 * size
        return self.steps * self.batch * self.width * per_channel


def available() -> list[str]:
    """Operations that this penstock has."""
    return [op for op in ("sru", "rnn", "gru", "lstm", "sliced") if hasattr(penstock, op)]


def parameter_shapes(case: Case, cell: str, features: int) -> dict[str, tuple[int, ...]]:
    if cell == "sru":
        blocks = 3 if features == case.width else 4
        return {
            "weight": (case.dirs, blocks * case.hidden, features),
            "weight_c": (case.dirs, 2, case.hidden),
            "bias": (case.dirs, 2, case.hidden),
        }
    rows = GATES[cell] * case.hidden
    return {
        "weight_ih": (case.dirs, rows, features),
        "weight_hh": (case.dirs, rows, case.hidden),
        "bias_ih": (case.dirs, rows),
        "bias_hh": (case.dirs, rows),
    }


def values(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arguments and gradients of the outputs, by name, in the case's element type."""
    rng = np.random.default_rng([seed, case.steps, case.batch, case.inputs, case.hidden])
    kind = dtype_of(case.dtype)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        # Large arrays repeat their beginning: making so many numbers would take seconds.
        size = math.prod(shape)
        numbers = scale * rng.standard_normal(min(size, MOST_NUMBERS), np.float32)
        return np.resize(numbers.astype(kind), shape)

    found = {"x": draw(case.steps, case.batch, case.inputs)}
    for i, (cell, _, _, features) in enumerate(case.levels()):
        prefix = f"levels.{i}." if case.op == "sliced" else ""
        for name, shape in parameter_shapes(case, cell, features).items():
            scale = max(1, shape[-1]) ** -0.5 if name.startswith("weight_") else 0.5
            scale = max(1, features) ** -0.5 if name == "weight" else scale
            found[prefix + name] = draw(*shape, scale=scale)
    if case.op == "sliced":
        found["dy"] = draw(case.batch, case.width)
    else:
        found["dy"] = draw(case.steps, case.batch, case.width)
        states = {"sru": ["c"], "lstm": ["h", "c"]}.get(case.op, ["h"])
        for state in states:
            if case.initial:
                found[f"{state}0"] = draw(case.batch, case.width)
            found[f"d{state}_last"] = draw(case.batch, case.width)
    if case.lengths:
        found["lengths"] = rng.integers(0, case.steps + 1, case.batch)
        found["lengths"][:1] = case.steps
    return found


def flat(output: Any, prefix: str = "") -> dict[str, Array]:
    """Arrays of nested (named) tuples by name; functions and None are left out."""
    found: dict[str, Array] = {}
    names = getattr(output, "_fields", None) or map(str, range(len(output)))
    for name, value in zip(names, output, strict=True):
        if value is None or callable(value):
            continue
        if isinstance(value, tuple):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


class Call:
    """A case's operation on arrays of one library."""

    def __init__(
        self, case: Case, library: Library, seed: int = 0, dtype: str | None = None
    ) -> None:
        """``dtype``: compute in another element type, on the values of the case's own."""
        self.case = case
        self.library = library
        self.arrays: dict[str, Array] = {}
        for name, value in values(case, seed).items():
            if dtype is not None and value.dtype.kind not in "iu":
                value = value.astype(dtype)  # noqa: PLW2901
            self.arrays[name] = library.array(value)

    def assign(self, seed: int) -> None:
        """Other values in the same arrays."""
        for name, value in values(self.case, seed).items():
            self.library.assign(self.arrays[name], value)

    def forward(self, need_grad: bool = False) -> Any:
        """The operation's output."""
        a, case = self.arrays, self.case
        options: dict[str, Any] = {"direction": case.direction, "need_grad": need_grad}
        options |= {name: a[name] for name in ("h0", "c0", "lengths") if name in a}
        if case.op == "sru":
            return penstock.sru(a["x"], a["weight"], a["weight_c"], a["bias"], **options)
        if case.op == "sliced":
            levels = [
                tuple(a[f"levels.{i}.{name}"] for name in parameter_shapes(case, cell, features))
                for i, (cell, _, _, features) in enumerate(case.levels())
            ]
            if case.cell == "gru":
                options["reset"] = case.reset
            sliced: Any = penstock.sliced
            return sliced(case.cell, a["x"], levels, slices=case.slices, **options)
        if case.op == "gru":
            options["reset"] = case.reset
        function = getattr(penstock, case.op)
        weights = (a[n] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return function(a["x"], *weights, **options)

    def backward(self, output: Any) -> Any:
        """Gradients, from those of the outputs."""
        names = ("dy", "dh_last", "dc_last")
        given = {name: self.arrays[name] for name in names if name in self.arrays}
        return output.backprop(**given)

    def train(self) -> dict[str, Array]:
        """Forward and backward: outputs and gradients by name."""
        output = self.forward(need_grad=True)
        return flat(output) | flat(self.backward(output))

    def infer(self) -> dict[str, Array]:
        """Forward alone: outputs by name."""
        return flat(self.forward())

    def mode(self, training: bool) -> Any:
        return self.train if training else self.infer

    def least_bytes(self, training: bool) -> int:
        """Each argument read once and each result written once; in training once more each way."""
        found = {name: int(value.nbytes) for name, value in self.arrays.items()}
        given = sum(n for k, n in found.items() if not is_gradient(k))
        results = sum(int(value.nbytes) for value in self.infer().values())
        if not training:
            return given + results
        # Forward, then backward: all arguments and output gradients in, argument gradients out.
        outer = sum(n for k, n in found.items() if is_gradient(k))
        return 3 * given + results + outer


def is_gradient(name: str) -> bool:
    return name in ("dy", "dh_last", "dc_last")


def host(library: Library, arrays: dict[str, Array]) -> dict[str, np.ndarray]:
    return {name: library.numpy(value) for name, value in arrays.items()}


def differing(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    """Names of arrays that are not the same bits (NaN included)."""
    assert a.keys() == b.keys()
    return [name for name in a if a[name].tobytes() != b[name].tobytes()]


def errors(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """max|a-b| / max|b| of each array; NaN and wrong shapes are errors without bound."""
    assert actual.keys() == expected.keys(), f"{sorted(actual)}, expected {sorted(expected)}"
    found = {}
    for name, right in expected.items():
        value = np.asarray(actual[name], np.float64)
        if value.shape != right.shape or not np.isfinite(value).all():
            found[name] = math.inf
        elif value.size == 0:
            found[name] = 0.0
        else:
            found[name] = float(np.abs(value - right).max() / max(np.abs(right).max(), 1e-300))
    return found


def too_wrong(case: Case, found: dict[str, float]) -> dict[str, float]:
    """Errors beyond the element type's tolerance."""
    limit = TOLERANCE[case.dtype]
    return {k: e for k, e in found.items() if not e <= (10 * limit if k.startswith("d") else limit)}


def as_json(case: Case) -> dict[str, Any]:
    return dataclasses.asdict(case)
