"""A sequence of a batch gets the bits that it gets alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import penstock
import pytest

LENGTHS = np.array([7, 1, 2, 5, 3, 1, 6, 4, 7, 0, 1, 2, 2, 3, 4, 5, 6, 7, 1, 1])
GATES = {"rnn": 1, "gru": 3, "lstm": 4, "sru": 4}


@pytest.fixture
def batch_invariant() -> Iterator[None]:
    before = penstock.get_batch_invariant()
    penstock.set_batch_invariant(True)
    yield
    penstock.set_batch_invariant(before)


def arguments_of(
    cell: str, dirs: int, batch: int, inputs: int, hidden: int, dtype: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What belongs to the sequences, batch second but for states, and the parameters."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.uniform(-0.2, 0.2, shape).astype(dtype)

    gates = GATES[cell]
    rows = {"x": draw(int(LENGTHS.max()), batch, inputs)}
    if cell == "sru":
        rows["c0"] = draw(batch, dirs * hidden)
        parameters = {
            "weight": draw(dirs, gates * hidden, inputs),
            "weight_c": draw(dirs, 2, hidden),
            "bias": draw(dirs, 2, hidden),
        }
        return rows, parameters
    rows["h0"] = draw(batch, dirs * hidden)
    if cell == "lstm":
        rows["c0"] = draw(batch, dirs * hidden)
    parameters = {
        "weight_ih": draw(dirs, gates * hidden, inputs),
        "weight_hh": draw(dirs, gates * hidden, hidden),
        "bias_ih": draw(dirs, gates * hidden),
        "bias_hh": draw(dirs, gates * hidden),
    }
    return rows, parameters


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "sru"])
@pytest.mark.parametrize(
    ("batch", "inputs", "hidden"), [(3, 16, 16), (20, 150, 160), (20, 60, 256), (20, 256, 40)]
)
@pytest.mark.usefixtures("batch_invariant")
def test_alone_as_in_a_batch(
    cell: str, direction: str, batch: int, inputs: int, hidden: int, dtype: str
) -> None:
    dirs = 2 if direction == "bidirectional" else 1
    rows, parameters = arguments_of(cell, dirs, batch, inputs, hidden, dtype)
    function = getattr(penstock, cell)
    lengths = LENGTHS[:batch]
    whole = function(**rows, **parameters, direction=direction, lengths=lengths)
    dy = np.random.default_rng(1).uniform(-1, 1, whole.y.shape).astype(dtype)
    grads = whole.backprop(dy)
    for b, n in enumerate(lengths):
        if n == 0:
            continue
        own = {name: v[:n, b : b + 1] if v.ndim == 3 else v[b : b + 1] for name, v in rows.items()}
        alone = function(**own, **parameters, direction=direction)
        expected = alone.backprop(dy[:n, b : b + 1])
        np.testing.assert_array_equal(whole.y[:n, b], alone.y[:, 0])
        np.testing.assert_array_equal(grads.dx[:n, b], expected.dx[:, 0])
        for name in own.keys() - {"x"}:
            found = getattr(grads, f"d{name}")[b]
            np.testing.assert_array_equal(found, getattr(expected, f"d{name}")[0])


def test_setting() -> None:
    before = penstock.get_batch_invariant()
    for value in (True, False):
        penstock.set_batch_invariant(value)
        assert penstock.get_batch_invariant() is value
    with pytest.raises(TypeError, match="enabled: expected a bool"):
        penstock.set_batch_invariant(1)  # type: ignore[arg-type]
    penstock.set_batch_invariant(before)


@pytest.mark.parametrize(("value", "expected"), [("1", "True"), ("0", "False"), ("yes", "False")])
def test_environment(value: str, expected: str) -> None:
    code = """
import penstock
print(penstock.get_batch_invariant(), penstock.config()["cpu_warning"])
"""
    paths = [str(Path(penstock.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"PENSTOCK_BATCH_INVARIANT": value, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert said.split()[0] == expected
    assert ("PENSTOCK_BATCH_INVARIANT" in said) == (value == "yes")
