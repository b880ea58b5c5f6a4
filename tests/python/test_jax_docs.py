"""The code of docs/jax.md runs; calls leave nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

jax = pytest.importorskip("jax")

PAGE = Path(__file__).parents[2] / "docs/jax.md"


def run(program: str, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="this JAX has shard_map elsewhere")
def test_the_code_of_the_page() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    same = """
one = jax.grad(loss)(parameters, x, lengths)
for name, gradient in gradients.items():
    assert jnp.allclose(gradient, one[name], atol=1e-6), name
"""
    program = "\n".join(blocks) + same
    run(program, XLA_FLAGS="--xla_force_host_platform_device_count=2")


def test_calls_leave_nothing_behind() -> None:
    """100,000 gradients, and calls that fail, grow the process by less than 1 MB."""
    run("""
import jax, jax.numpy as jnp, penstock.jax

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

x, w, r = jnp.ones((2, 1, 4)), jnp.ones((1, 12, 4)), jnp.ones((1, 12, 4))
gradient = jax.jit(jax.grad(lambda x: penstock.jax.gru(x, w, r).y.sum()))
lengths = jax.jit(lambda n: penstock.jax.gru(x, w, r, lengths=n).y)
wrong = jnp.array([3])

def fail():
    try:
        lengths(wrong).block_until_ready()
    except (RuntimeError, ValueError):
        return
    raise AssertionError("expected an error")

for _ in range(5000):
    gradient(x)
for _ in range(100):
    fail()
before = resident()
for _ in range(100_000):
    gradient(x)
for _ in range(500):
    fail()
assert resident() - before < 1_000_000, resident() - before
""")
