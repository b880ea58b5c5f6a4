"""penstock.jax on each kind of device that JAX and penstock both have, against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import penstock
import pytest
from reference.problems import TOLERANCE, random_problem
from reference.recurrent_problems import assert_close, flat, random_recurrent, random_sliced

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
import penstock.jax as pj  # noqa: E402


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "cuda" and not penstock.config()["cuda_available"]:
        pytest.skip(penstock.config()["cuda_status"])
    try:
        found = jax.devices(request.param)[0]
    except RuntimeError as e:
        pytest.skip(f"JAX has no such device: {e}")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    with jax.default_device(found):
        yield found
    jax.config.update("jax_enable_x64", before)


def on(device: Any, tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.device_put(a, device), tree)


def run(device: Any, function: Any, floats: Any, gradients: Any) -> dict[str, np.ndarray]:
    """Outputs and gradients by name, computed on the device."""

    @jax.jit
    def both(floats: Any, gradients: Any) -> Any:
        outputs, back = jax.vjp(function, floats)
        return outputs, back(gradients)[0]

    outputs, grads = both(on(device, floats), on(device, gradients))
    assert all(a.devices() == {device} for a in jax.tree.leaves((outputs, grads)))
    found = flat(outputs._asdict()) | flat({f"d{n}": a for n, a in grads.items()})
    return {name: np.asarray(array) for name, array in found.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_recurrent(cell: str, direction: str, dtype: str, device: Any) -> None:
    problem = random_recurrent(cell, direction=direction, with_lengths=True, dtype=dtype)
    arrays = {n: a for n, a in problem.arrays.items() if n != "lengths"}
    kind = {"rnn": pj.RNNOutput, "gru": pj.GRUOutput, "lstm": pj.LSTMOutput}[cell]
    lengths = on(device, problem.arrays["lengths"])
    actual = run(
        device,
        lambda f: getattr(pj, cell)(**f, lengths=lengths, direction=direction),
        arrays,
        kind(*problem.gradients.values()),
    )
    assert_close(actual, problem.solve(), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_sru(dtype: str, device: Any) -> None:
    problem = random_problem(form="x_skip", mask_site="output", padding="mask", dtype=dtype)
    arrays = {n: a for n, a in problem.arrays.items() if a is not None}
    mask_pad = on(device, arrays.pop("mask_pad"))
    actual = run(
        device,
        lambda f: pj.sru(**f, mask_pad=mask_pad, **problem.options),
        arrays,
        pj.SRUOutput(problem.dy, problem.dc_last),
    )
    assert_close(actual, problem.solve(), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("cell", ["gru", "sru"])
def test_sliced(cell: str, dtype: str, device: Any) -> None:
    problem = random_sliced(cell, with_lengths=True, dtype=dtype)
    lengths = on(device, problem.lengths)
    actual = run(
        device,
        lambda f: pj.sliced(cell, f["x"], f["levels"], lengths=lengths, **problem.options),
        {"x": problem.x, "levels": tuple(map(tuple, problem.levels))},
        pj.SlicedOutput(problem.dy, tuple(problem.dlevels)),
    )
    assert_close(actual, problem.solve(), TOLERANCE[dtype])


def test_mapped_and_compiled_once_for_several_calls(device: Any) -> None:
    problem = random_recurrent("gru", 20, 4, 48, inputs=16, dtype="float32")
    arrays = on(device, {n: a for n, a in problem.arrays.items() if a is not None})
    x = arrays.pop("x")
    xs = jnp.stack([x, 2 * x, -x])
    step = jax.jit(jax.vmap(lambda x: pj.gru(x, **arrays).y))
    for factor in (1.0, -0.5, 2.0):
        each = [pj.gru(x * factor, **arrays).y for x in xs]
        np.testing.assert_allclose(step(xs * factor), jnp.stack(each), rtol=1e-5, atol=1e-5)
