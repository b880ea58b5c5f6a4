"""penstock.rnn, gru and lstm against results of PyTorch, stored as files beside the checkout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.problems import error
from reference.recurrent_problems import KEYWORDS, POSITIONAL, RecurrentProblem

FOLDER = Path(
    os.environ.get("PENSTOCK_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden")
)
OPTIONS = {"rnn": ("direction", "activation"), "lstm": ("direction",)}
OPTIONS["gru"] = ("direction", "activation", "reset")
GRADIENTS = ("dy", "dh_last", "dc_last")


def meta_of(path: Path) -> dict[str, Any]:
    with np.load(path) as case:
        return json.loads(str(case["meta"]))


CASES = [path for path in sorted(FOLDER.glob("*.npz")) if meta_of(path)["op"] in OPTIONS]

pytestmark = pytest.mark.skipif(
    not CASES, reason=f"no golden cases in {FOLDER}; set PENSTOCK_GOLDEN to their folder"
)


def load(path: Path) -> tuple[RecurrentProblem, dict[str, np.ndarray], float]:
    """A case as a problem, the results that are stored, and their tolerance."""
    meta = meta_of(path)
    with np.load(path) as case:
        arrays = {k: case[k] for k in case.files if k != "meta"}
    cell = meta["op"]
    problem = RecurrentProblem(
        cell,
        {name: arrays.pop(name, None) for name in (*POSITIONAL, *KEYWORDS)},
        {name: meta[name] for name in OPTIONS[cell]},
        {name: arrays.pop(name) for name in GRADIENTS if name in arrays},
    )
    return problem, arrays, float(meta["tol"])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden(backend: Any, path: Path, recompute: bool) -> None:
    problem, expected, tolerance = load(path)
    actual = backend.outcome(problem, recompute=recompute)
    assert actual.keys() == expected.keys()
    errors = {name: error(actual[name], value) for name, value in expected.items()}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_reference_agrees(path: Path) -> None:
    """What the other tests compare with is itself held to the golden cases."""
    problem, expected, tolerance = load(path)
    actual = problem.solve()
    assert actual.keys() == expected.keys()
    errors = {name: error(actual[name], value) for name, value in expected.items()}
    assert max(errors.values()) <= tolerance, errors
