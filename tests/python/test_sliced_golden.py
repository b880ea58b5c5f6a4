"""penstock.sliced against results of Keras, stored as files beside the checkout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.problems import error
from reference.recurrent_problems import SlicedProblem

FOLDER = Path(
    os.environ.get("PENSTOCK_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden")
)
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
OPTIONS = ("slices", "reset", "activation", "mask")


def meta_of(path: Path) -> dict[str, Any]:
    with np.load(path) as case:
        return json.loads(str(case["meta"]))


CASES = [path for path in sorted(FOLDER.glob("*.npz")) if meta_of(path)["op"] == "sliced_gru"]

pytestmark = pytest.mark.skipif(
    not CASES, reason=f"no golden cases in {FOLDER}; set PENSTOCK_GOLDEN to their folder"
)


def load(path: Path) -> tuple[SlicedProblem, dict[str, np.ndarray], float]:
    """A case as a problem, the results that are stored, and their tolerance."""
    meta = meta_of(path)
    with np.load(path) as case:
        arrays = {k: case[k] for k in case.files if k != "meta"}
    count = len(meta["slices"]) + 1
    levels = [[arrays[f"{name}_{i}"] for name in PARAMETERS] for i in range(count)]
    options = {name: meta[name] for name in OPTIONS}
    problem = SlicedProblem("gru", arrays["x"], levels, None, options, arrays["dy"], None)
    expected = {"y": arrays["y"], "dx": arrays["dx"]}
    for i in range(count):
        expected |= {
            f"dlevels_{i}_{j}": arrays[f"d{name}_{i}"] for j, name in enumerate(PARAMETERS)
        }
    return problem, expected, float(meta["tol"])


def check(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert {n for n in actual if not n.startswith("levels_")} == expected.keys()
    errors = {name: error(actual[name], value) for name, value in expected.items()}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden(backend: Any, path: Path, recompute: bool) -> None:
    problem, expected, tolerance = load(path)
    check(backend.outcome(problem, recompute=recompute), expected, tolerance)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_reference_agrees(path: Path) -> None:
    """What the other tests compare with is itself held to the golden cases."""
    problem, expected, tolerance = load(path)
    check(problem.solve(), expected, tolerance)
