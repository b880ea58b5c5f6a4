"""The example that trains with Flax and Optax."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("flax")
pytest.importorskip("optax")

EXAMPLE = Path(__file__).parents[2] / "examples/jax_flax.py"


def test_the_example_learns() -> None:
    command = [sys.executable, EXAMPLE, "--updates", "200", "--hidden", "32"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    losses = [float(n) for n in re.findall(r"mean loss ([0-9.]+)", result.stdout)]
    right = [float(n) for n in re.findall(r"right ([0-9.]+)%", result.stdout)]
    assert len(losses) == 2
    assert losses[1] < 0.7 * losses[0]
    assert right[1] > 75
