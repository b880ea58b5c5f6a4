"""penstock.sru against results of other implementations, stored as files beside the checkout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.problems import Problem, error

FOLDER = Path(
    os.environ.get("PENSTOCK_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden")
)
CASES = sorted(FOLDER.glob("sru*.npz"))
ARRAYS = ("x", "weight", "weight_c", "bias", "c0", "mask_pad", "lengths", "mask_c")
OPTIONS = ("activation", "direction", "skip", "scale_x", "mask_site")

pytestmark = pytest.mark.skipif(
    not CASES, reason=f"no golden cases in {FOLDER}; set PENSTOCK_GOLDEN to their folder"
)


def load(path: Path) -> tuple[Problem, dict[str, np.ndarray], float]:
    """A case as a problem, the results that are stored, and their tolerance."""
    with np.load(path) as case:
        meta = json.loads(str(case["meta"]))
        arrays = {k: case[k] for k in case.files if k != "meta"}
    assert meta["op"] == "sru"
    problem = Problem(
        {name: arrays.get(name) for name in ARRAYS},
        {name: meta[name] for name in OPTIONS if name in meta},
        arrays.get("dy"),
        arrays.get("dc_last"),
    )
    results = ("y", "c_last", *(f"d{name}" for name in ARRAYS))
    return problem, {k: arrays[k] for k in results if k in arrays}, float(meta["tol"])


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden(backend: Any, path: Path) -> None:
    problem, expected, tolerance = load(path)
    assert {"y", "c_last", "dx", "dweight", "dbias", "dc0"} <= expected.keys()
    actual = backend.run(problem)
    errors = {name: error(actual[name], value) for name, value in expected.items()}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_reference_agrees(path: Path) -> None:
    """What the other tests compare with is itself held to the golden cases."""
    problem, expected, tolerance = load(path)
    actual = problem.solve()
    errors = {name: error(actual[name], value) for name, value in expected.items()}
    assert max(errors.values()) <= tolerance, errors
