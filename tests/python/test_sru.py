"""penstock.sru: values and gradients against a float64 reference and finite differences."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import penstock
import pytest
from reference.problems import (
    ACTIVATIONS,
    DIRECTIONS,
    FLOATS,
    FORMS,
    TOLERANCE,
    Problem,
    assert_close,
    dtype_of,
    error,
    random_problem,
)

MASK_SITES = (None, "output", "state")
PADDINGS = (None, "mask", "lengths", "both")
HALF_DTYPES = ("float16", "bfloat16")
LOWER_DTYPES = ("float32", *HALF_DTYPES)


def check(backend: Any, problem: Problem, tolerance: float | None = None) -> None:
    name = problem.dtype.name
    if not backend.has_dtype(name):
        pytest.skip(f"{name} is not available on {backend.name}")
    actual = backend.run(problem)
    for array in actual.values():
        assert array.dtype == problem.dtype
    expected = problem.solve()
    if name in HALF_DTYPES and problem.options["activation"] == "relu" and not backend.is_cpu:
        # A GPU keeps u in the half type, so a state beside relu's kink may come to lie on its other
        # side, where the gradient is another one.
        values = ("y", "c_last")
        actual, expected = {k: actual[k] for k in values}, {k: expected[k] for k in values}
    assert_close(actual, expected, tolerance or TOLERANCE[name])


# Options


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask_site", MASK_SITES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_option(
    backend: Any,
    *,
    form: str,
    direction: str,
    activation: str,
    mask_site: str | None,
    padding: str | None,
) -> None:
    for with_v in (True, False):
        check(
            backend,
            random_problem(
                form=form, inputs=7, direction=direction, activation=activation,
                mask_site=mask_site, padding=padding, with_v=with_v,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", LOWER_DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_dtype(backend: Any, form: str, direction: str, dtype: str) -> None:
    options = itertools.product(ACTIVATIONS, MASK_SITES, PADDINGS)
    for seed, (activation, mask_site, padding) in enumerate(options):
        check(
            backend,
            random_problem(
                8, 3, 9, form=form, inputs=11, direction=direction, activation=activation,
                mask_site=mask_site, padding=padding, with_v=seed % 3 != 0,
                with_c0=seed % 4 != 0, dtype=dtype, seed=seed,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("scale_x", [0.0, 1, -2.5, np.float32(1.5), np.float64(3.0)])
def test_scale_x(backend: Any, scale_x: Any) -> None:
    problem = random_problem()
    problem.options["scale_x"] = scale_x
    check(backend, problem)


def test_scale_x_means_nothing_without_x_in_the_skip_term(backend: Any) -> None:
    for form in ("k4", "noskip"):
        problem = random_problem(form=form)
        plain = backend.run(problem)
        problem.options["scale_x"] = 7.0
        scaled = backend.run(problem)
        for name, value in plain.items():
            np.testing.assert_array_equal(scaled[name], value)


def test_x_skip_of_x_adds_up_to_x(backend: Any) -> None:
    for direction in DIRECTIONS:
        problem = random_problem(direction=direction, mask_site="output", padding="both")
        one = backend.run(problem)
        problem.arrays["x_skip"] = problem.arrays["x"]
        two = backend.run(problem)
        for name in ("y", "c_last", "dweight", "dweight_c", "dbias", "dc0", "dmask_c"):
            np.testing.assert_array_equal(two[name], one[name])
        assert error(two["dx"] + two["dx_skip"], one["dx"]) < 1e-14


# Shapes


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("hidden", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 50, 63, 64, 65, 130])
def test_hidden_sizes(backend: Any, hidden: int, dtype: str) -> None:
    for form, direction in zip(FORMS, (*DIRECTIONS, "bidirectional"), strict=True):
        check(
            backend,
            random_problem(
                5, 3, hidden, form=form, inputs=hidden + 3, direction=direction,
                mask_site="output", padding="lengths", dtype=dtype,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("inputs", [0, 1, 2, 3, 8, 63, 64, 65, 100, 300])
def test_input_sizes(backend: Any, inputs: int) -> None:
    for dtype, form in itertools.product(("float64", "float32"), ("k4", "noskip")):
        check(backend, random_problem(9, 2, 12, form=form, inputs=inputs, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("steps", "batch"),
    [(1, 1), (3, 1), (1, 4), (5, 1), (1, 5), (63, 1), (7, 9), (64, 1), (1, 64), (8, 8), (65, 1)],
)
def test_rows_around_thresholds(
    backend: Any, steps: int, batch: int, direction: str, dtype: str
) -> None:
    """Few rows take another product, and from some number of rows on weights are repacked."""
    if backend.is_emulated and steps * batch > 5:
        pytest.skip("large, and the device is emulated")
    for form in ("k4", "k3", "x_skip"):
        check(
            backend,
            random_problem(
                steps, batch, 40, form=form, inputs=33, direction=direction, padding="mask",
                mask_site="state", dtype=dtype,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "form", "direction"),
    [
        (5, 1, 200, "k3", "forward"),
        (63, 1, 256, "k4", "reverse"),
        (64, 1, 200, "k4", "bidirectional"),
        (20, 10, 256, "k3", "reverse"),
        (1, 200, 200, "k3", "bidirectional"),
        (100, 15, 200, "k3", "bidirectional"),
        (1500, 1, 200, "k4", "forward"),
        (750, 2, 130, "k4", "bidirectional"),
        (2, 600, 72, "noskip", "reverse"),
        (30, 20, 136, "x_skip", "bidirectional"),
    ],
)
def test_large(
    backend: Any, *, steps: int, batch: int, hidden: int, form: str, direction: str, dtype: str
) -> None:
    if backend.is_emulated:
        pytest.skip("large, and the device is emulated")
    check(
        backend,
        random_problem(
            steps, batch, hidden, form=form, inputs=170, direction=direction, activation="tanh",
            padding="both", mask_site="output", dtype=dtype,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)])
def test_empty(backend: Any, steps: int, batch: int, direction: str) -> None:
    for form, dtype, padding in itertools.product(FORMS, TOLERANCE, (None, "both")):
        if not backend.has_dtype(dtype):
            continue
        problem = random_problem(
            steps, batch, 50, form=form, direction=direction, dtype=dtype, mask_site="output",
            padding=padding,
        )  # fmt: skip
        check(backend, problem)
        # No step: the state is handed through as it is.
        found = backend.run(problem)
        np.testing.assert_array_equal(found["c_last"], problem.arrays["c0"])
        np.testing.assert_array_equal(found["dc0"], problem.dc_last)
        assert not found["dweight"].astype(np.float64).any()


# What may be left out


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_missing_gradients(backend: Any, dtype: str, direction: str) -> None:
    for has_dy, has_dc in itertools.product((True, False), repeat=2):
        problem = random_problem(direction=direction, dtype=dtype, mask_site="output")
        problem.dy = problem.dy if has_dy else None
        problem.dc_last = problem.dc_last if has_dc else None
        check(backend, problem)


def test_no_initial_state_is_zeros(backend: Any) -> None:
    for direction in DIRECTIONS:
        problem = random_problem(direction=direction)
        problem.arrays["c0"] = np.zeros_like(problem.arrays["c0"])
        zeros = backend.run(problem)
        problem.arrays["c0"] = None
        for name, value in backend.run(problem).items():
            np.testing.assert_array_equal(value, zeros[name])


def test_gradients_of_what_was_not_given_are_none(backend: Any) -> None:
    output = backend.sru(random_problem(with_v=False, with_c0=False))
    grads = output.backprop(output.y)
    assert grads.dweight_c is None
    assert grads.dmask_c is None
    assert grads.dx_skip is None
    assert grads.dc0 is not None, "the initial state is zeros then, and has a gradient"


def test_without_need_grad(backend: Any) -> None:
    """Nothing is kept, so there is no backprop; values do not depend on it, bit for bit."""
    for form, padding in itertools.product(FORMS, PADDINGS):
        problem = random_problem(70, 3, 66, form=form, inputs=9, padding=padding, dtype="float32")
        if backend.is_emulated:
            problem = random_problem(form=form, inputs=9, padding=padding, dtype="float32")
        with_grad = backend.sru(problem)
        without = backend.sru(problem, need_grad=False)
        assert without.backprop is None
        for a, b in zip(with_grad[:2], without[:2], strict=True):
            np.testing.assert_array_equal(backend.to_host(a), backend.to_host(b))


# Padding


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_padded_steps_may_hold_anything(backend: Any, direction: str, dtype: str) -> None:
    if not backend.has_dtype(dtype):
        pytest.skip(f"{dtype} is not available on {backend.name}")
    for form, padding, mask_site in itertools.product(FORMS, PADDINGS[1:], MASK_SITES):
        problem = random_problem(
            7, 4, 6, form=form, inputs=5, direction=direction, padding=padding, dtype=dtype,
            mask_site=mask_site,
        )  # fmt: skip
        expected = problem.solve()
        pad = np.zeros((7, 4), bool)
        if problem.arrays["mask_pad"] is not None:
            pad |= problem.arrays["mask_pad"]
        if problem.arrays["lengths"] is not None:
            pad |= np.arange(7)[:, None] >= problem.arrays["lengths"]
        assert pad.any()
        for junk in (np.nan, np.inf, -np.inf):
            problem.arrays["x"][pad] = junk
            problem.dy[pad] = -junk
            if form == "x_skip":
                problem.arrays["x_skip"][pad] = junk
            actual = backend.run(problem)
            assert_close(actual, expected, TOLERANCE[dtype])
            assert not actual["y"][pad].astype(np.float64).any(), "h is 0 at padded steps"
            for name in actual.keys() & {"dx", "dx_skip"}:
                assert not actual[name][pad].astype(np.float64).any(), name


def test_junk_at_padded_steps_of_a_large_problem(backend: Any) -> None:
    """Products of many rows run on other code, which must not mix rows either."""
    if backend.is_emulated:
        pytest.skip("large, and the device is emulated")
    problem = random_problem(40, 30, 128, padding="both", dtype="float32")
    expected = problem.solve()
    pad = problem.arrays["mask_pad"] | (np.arange(40)[:, None] >= problem.arrays["lengths"])
    problem.arrays["x"][pad] = np.nan
    problem.dy[pad] = np.inf
    assert_close(backend.run(problem), expected, TOLERANCE["float32"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_padded(backend: Any, direction: str) -> None:
    """Sequences without a valid step, and a batch of nothing else."""
    for form in FORMS:
        problem = random_problem(5, 4, 3, form=form, direction=direction, mask_site="state")
        problem.arrays["lengths"] = np.array([0, 5, 0, 2])
        check(backend, problem)
        problem.expected = {}
        problem.arrays["lengths"] = np.zeros(4, int)
        check(backend, problem)
        found = backend.run(problem)
        np.testing.assert_array_equal(found["c_last"], problem.arrays["c0"])
        np.testing.assert_array_equal(found["dc0"], problem.dc_last)
        for name in ("y", "dx", "dweight", "dweight_c", "dbias", "dmask_c"):
            assert not found[name].any(), name


@pytest.mark.parametrize("kind", [list, tuple, "i1", "i4", "i8", "u1", "u2", "u8", ">i4", ">i8"])
def test_lengths_in_every_form(backend: Any, kind: Any) -> None:
    problem = random_problem(6, 4, 3, direction="bidirectional")
    values = [6, 0, 3, 1]
    problem.arrays["lengths"] = np.array(values)
    expected = backend.run(problem)
    given = kind(values) if isinstance(kind, type) else np.array(values, kind)
    output = backend.sru(problem, lengths=given)
    grads = output.backprop(backend.to_device(problem.dy), backend.to_device(problem.dc_last))
    for name, value in backend.collect(output, grads).items():
        np.testing.assert_array_equal(value, expected[name])


def test_lengths_are_read_in_steps(backend: Any) -> None:
    problem = random_problem(6, 4, 3)
    lengths = np.array([6, -9, 0, -9, 3, -9, 1, -9])
    for view in (lengths[::2], lengths[-2::-2]):
        problem.arrays["lengths"] = view
        problem.expected = {}
        check(backend, problem)


def test_lengths_equal_a_mask(backend: Any) -> None:
    for direction in DIRECTIONS:
        problem = random_problem(6, 4, 3, direction=direction, padding="lengths")
        by_lengths = backend.run(problem)
        lengths, problem.arrays["lengths"] = problem.arrays["lengths"], None
        problem.arrays["mask_pad"] = np.arange(6)[:, None] >= lengths
        for name, value in backend.run(problem).items():
            np.testing.assert_array_equal(value, by_lengths[name])


def test_padding_equals_shorter_sequences(backend: Any) -> None:
    """A batch with lengths gives each sequence what it gets alone."""
    problem = random_problem(9, 3, 4, form="k4", inputs=6, direction="bidirectional")
    lengths = np.array([9, 4, 1])
    problem.arrays["lengths"] = lengths
    batch = backend.run(problem)
    for b, n in enumerate(lengths):
        alone = random_problem(9, 3, 4, form="k4", inputs=6, direction="bidirectional")
        alone.arrays["x"] = alone.arrays["x"][:n, b : b + 1]
        alone.arrays["c0"] = alone.arrays["c0"][b : b + 1]
        alone.dy, alone.dc_last = alone.dy[:n, b : b + 1], alone.dc_last[b : b + 1]
        found = backend.run(alone)
        assert error(batch["y"][:n, b : b + 1], found["y"]) < 1e-13
        assert error(batch["c_last"][b : b + 1], found["c_last"]) < 1e-13
        assert error(batch["dx"][:n, b : b + 1], found["dx"]) < 1e-12


# Numbers that are not ordinary


def numpy_float32(problem: Problem) -> dict[str, np.ndarray]:
    """Forward in NumPy float32, by the equations as they stand in the header."""
    a = problem.arrays
    x, w, b = a["x"], a["weight"][0], a["bias"][0]
    hidden = b.shape[1]
    v = np.zeros_like(b) if a["weight_c"] is None else a["weight_c"][0]
    c, ys = a["c0"].copy(), []
    with np.errstate(all="ignore"):
        for x_t in x:
            u0, u1, u2, skip = np.split(x_t @ w.T, [hidden, 2 * hidden, 3 * hidden], axis=1)
            f = 1 / (1 + np.exp(-(u1 + v[0] * c + b[0])))
            r = 1 / (1 + np.exp(-(u2 + v[1] * c + b[1])))
            c = f * c + (1 - f) * u0
            g = {"identity": c, "tanh": np.tanh(c), "relu": np.maximum(c, 0)}
            ys.append(r * (g[problem.options["activation"]] - skip) + skip)
    return {"y": np.stack(ys), "c_last": c}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, 1e37, -1e38, 3e38])
@pytest.mark.parametrize(("steps", "batch", "width"), [(4, 3, 9), (16, 40, 128)])
def test_infinite_and_huge_inputs(
    backend: Any, *, steps: int, batch: int, width: int, value: float, activation: str
) -> None:
    """Where NumPy says finite the result is finite and right; elsewhere it is not finite."""
    if backend.is_emulated and batch > 3:
        pytest.skip("large, and the device is emulated")
    problem = random_problem(
        steps, batch, width, form="k4", inputs=width, dtype="float32", activation=activation
    )
    problem.arrays["x"][1, 0, 3] = value
    if not 1e38 < value < np.inf:  # sums of more would overflow in one order, and not in another
        problem.arrays["x"][2, 1, :] = value
    expected = numpy_float32(problem)
    actual = backend.collect(backend.sru(problem, need_grad=False), None)
    for name in ("y", "c_last"):
        finite = np.isfinite(expected[name])
        np.testing.assert_array_equal(np.isfinite(actual[name]), finite)
        assert finite.any()
        np.testing.assert_allclose(actual[name][finite], expected[name][finite], 1e-3, 1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_in_the_state_reaches_the_output(backend: Any, activation: str) -> None:
    """In the first step the gates do not see it, so only g carries it to h."""
    problem = random_problem(1, 2, 9, form="k4", activation=activation)
    problem.arrays["weight"][0, 4, 2] = np.nan  # a row of the candidate
    y = backend.to_host(backend.sru(problem).y)
    np.testing.assert_array_equal(np.isnan(y), np.arange(9)[None, None] == np.full((1, 2, 1), 4))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("steps", "batch", "width"), [(3, 2, 9), (16, 40, 128)])
def test_tiny_inputs(backend: Any, steps: int, batch: int, width: int, dtype: str) -> None:
    if backend.is_emulated and batch > 2:
        pytest.skip("large, and the device is emulated")
    problem = random_problem(
        steps, batch, width, form="k4", inputs=width, dtype=dtype, with_c0=False
    )
    problem.arrays["x"] *= 1e-36
    problem.dc_last = None
    actual, expected = backend.run(problem), problem.solve()
    for name in ("y", "c_last"):
        assert error(actual[name], expected[name]) <= TOLERANCE[dtype], name
    for name in ("dx", "dbias", "dweight"):
        assert error(actual[name], expected[name]) <= 10 * TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturated_gates(backend: Any, dtype: str) -> None:
    for shift in (-1000.0, -90.0, -30.0, -10.0, 10.0, 30.0, 90.0, 1000.0):
        problem = random_problem(6, 3, 17, dtype=dtype, activation="tanh")
        problem.arrays["bias"] += problem.dtype.type(shift)
        # Gradients of closed gates go with 1 - f, a difference of about 1 and about 1.
        assert_close(backend.run(problem), problem.solve(), TOLERANCE[dtype], floor=1.0)


def test_long_sequence(backend: Any) -> None:
    if backend.is_emulated:
        pytest.skip("large, and the device is emulated")
    problem = random_problem(32768, 1, 8, mask_site="output", dtype="float32")
    # Gates that forget little: errors of many steps add up.
    problem.arrays["bias"][:, 0] += 3
    check(backend, problem, 2e-4)
    # The same with time reversed.
    problem.options["direction"] = "reverse"
    problem.arrays["x"], problem.dy = problem.arrays["x"][::-1], problem.dy[::-1]
    for name in ("y", "dx"):
        problem.expected[name] = problem.expected[name][::-1]
    check(backend, problem, 2e-4)


# Gradients by finite differences


@pytest.mark.parametrize("padding", [None, "both"])
@pytest.mark.parametrize("mask_site", MASK_SITES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_finite_differences(
    backend: Any,
    *,
    form: str,
    direction: str,
    activation: str,
    mask_site: str | None,
    padding: str | None,
) -> None:
    problem = random_problem(
        3, 2, 2, form=form, inputs=3, direction=direction, activation=activation,
        mask_site=mask_site, padding=padding, seed=1,
    )  # fmt: skip

    def loss() -> float:
        output = backend.sru(problem, need_grad=False)
        y, c_last = backend.to_host(output.y), backend.to_host(output.c_last)
        return float((y * problem.dy).sum() + (c_last * problem.dc_last).sum())

    grads = backend.run(problem)
    for name in FLOATS:
        array = problem.arrays[name]
        if array is None:
            continue
        assert "d" + name in grads
        numeric = np.zeros_like(array)
        step = 1e-6
        for at in np.ndindex(array.shape):
            before = array[at]
            array[at] = before + step
            above = loss()
            array[at] = before - step
            below = loss()
            array[at] = before
            numeric[at] = (above - below) / (2 * step)
        np.testing.assert_allclose(grads["d" + name], numeric, rtol=1e-7, atol=1e-7, err_msg=name)


# backprop


def test_backprop_more_than_once_and_out_of_order(backend: Any) -> None:
    problems = [
        random_problem(6, 3, 9, direction=d, mask_site="output", padding="both", seed=s, dtype=t)
        for s, (d, t) in enumerate(itertools.product(DIRECTIONS, ("float64", "float32")))
    ]
    outputs = [backend.sru(p) for p in problems]
    for p, output in list(zip(problems, outputs, strict=True))[::-1] * 2:
        dy, dc = backend.to_device(p.dy), backend.to_device(p.dc_last)
        output.backprop(dy)  # another gradient in between leaves nothing behind
        output.backprop(None, dc)
        actual = backend.collect(output, output.backprop(dy, dc))
        assert_close(actual, p.solve(), TOLERANCE[p.dtype.name])


def test_backprop_is_linear(backend: Any) -> None:
    problem = random_problem(mask_site="output", padding="mask")
    output = backend.sru(problem)
    dy, dc = backend.to_device(problem.dy), backend.to_device(problem.dc_last)
    both, only_y, only_c = output.backprop(dy, dc), output.backprop(dy), output.backprop(None, dc)
    for a, b, c in zip(both, only_y, only_c, strict=True):
        if a is None:
            continue
        total = backend.to_host(b) + backend.to_host(c)
        assert error(backend.to_host(a), total) < 1e-13
    doubled = output.backprop(2 * dy, 2 * dc)
    for a, b in zip(both, doubled, strict=True):
        if a is None:
            continue
        np.testing.assert_array_equal(2 * backend.to_host(a), backend.to_host(b))


def test_backprop_keeps_its_inputs_alive(backend: Any) -> None:
    expected = backend.run(random_problem(40, 8, 33, form="k4", inputs=20, padding="both"))

    def call() -> tuple[Any, Any, Any]:
        problem = random_problem(40, 8, 33, form="k4", inputs=20, padding="both")
        return (
            backend.sru(problem),
            backend.to_device(problem.dy),
            backend.to_device(problem.dc_last),
        )

    output, dy, dc = call()
    gc.collect()
    junk = [np.full((40, 8, 33), np.nan) for _ in range(50)]  # reuse what was freed
    actual = backend.collect(output, output.backprop(dy, dc))
    assert len(junk) == 50
    for name, value in actual.items():
        np.testing.assert_array_equal(value, expected[name])


def test_inputs_are_never_written(backend: Any) -> None:
    for dtype, padding in itertools.product(("float64", "float32", "float16"), PADDINGS):
        problem = random_problem(
            9, 3, 7, direction="bidirectional", mask_site="state", padding=padding, dtype=dtype
        )
        arrays = problem.arrays | {"dy": problem.dy, "dc_last": problem.dc_last}
        copies = {k: v.copy() for k, v in arrays.items() if v is not None}
        if backend.name == "host":
            for name in copies:
                arrays[name].flags.writeable = False
        backend.run(problem)
        for name, copy in copies.items():
            np.testing.assert_array_equal(arrays[name], copy)


def test_results_are_the_callers_own(backend: Any) -> None:
    """Writing to one result changes neither another one nor what backprop returns."""
    problem = random_problem()
    first, second = backend.sru(problem), backend.sru(problem)
    dy = backend.to_device(problem.dy)
    grads = backend.collect(first, first.backprop(dy))
    again = first.backprop(dy)
    for array in (*first[:2], *(g for g in again if g is not None)):
        array[...] = np.nan
    for name, value in backend.collect(second, first.backprop(dy)).items():
        np.testing.assert_array_equal(value, grads[name] if name[0] == "d" else value)
        assert np.isfinite(value).all()


# Processes, threads, memory


def test_same_bits_every_time(backend: Any) -> None:
    for dtype in TOLERANCE:
        if not backend.has_dtype(dtype):
            continue
        size = (12, 6, 20) if backend.is_emulated else (70, 6, 130)
        problem = random_problem(*size, direction="bidirectional", padding="both", dtype=dtype)
        first = backend.run(problem)
        for _ in range(3):
            for name, value in backend.run(problem).items():
                assert value.tobytes() == first[name].tobytes(), (dtype, name)


def test_many_threads_at_once(backend: Any) -> None:
    size = (10, 4, 20) if backend.is_emulated else (60, 10, 96)
    problems = [
        random_problem(*size, direction=d, padding=p, dtype=t, seed=7)
        for d, p, t in itertools.product(DIRECTIONS, (None, "both"), ("float32", "float64"))
    ]
    expected = [backend.run(p) for p in problems]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(backend.run, problems * 6))
    for i, result in enumerate(results):
        for name, value in result.items():
            assert value.tobytes() == expected[i % len(problems)][name].tobytes()


def test_one_backprop_from_many_threads(backend: Any) -> None:
    problem = random_problem(30, 4, 70, padding="mask", dtype="float32")
    output = backend.sru(problem)
    dy, dc = backend.to_device(problem.dy), backend.to_device(problem.dc_last)
    expected = backend.collect(output, output.backprop(dy, dc))
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: output.backprop(dy, dc), range(24)))
    for grads in results:
        for name, value in backend.collect(output, grads).items():
            assert value.tobytes() == expected[name].tobytes()


def _child(problem: Problem, connection: Any) -> None:
    output = penstock.sru(*(problem.arrays[n] for n in FLOATS[:4]), **problem.keywords())
    assert output.backprop is not None
    connection.send((output.y, output.backprop(problem.dy).dweight))
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_work(threads: Any) -> None:
    threads(2)
    problem = random_problem(64, 8, 128, dtype="float32")
    output = penstock.sru(*(problem.arrays[n] for n in FLOATS[:4]), **problem.keywords())
    assert output.backprop is not None
    expected = (output.y, output.backprop(problem.dy).dweight)
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        mine, theirs = context.Pipe()
        child = context.Process(target=_child, args=(problem, theirs))
        child.start()
        assert mine.poll(30), "the child does not answer"
        for a, b in zip(mine.recv(), expected, strict=True):
            np.testing.assert_array_equal(a, b)
        child.join(30)
        assert child.exitcode == 0


def test_memory_does_not_grow(cpu_only: None, resident_bytes: Callable[[], int]) -> None:
    problem = random_problem(50, 4, 64, direction="bidirectional", padding="both", dtype="float32")
    args = [problem.arrays[n] for n in FLOATS[:4]]
    small = random_problem(2, 1, 1)
    small_args = [small.arrays[n] for n in FLOATS[:4]]

    def calls(n: int) -> None:
        for _ in range(n):
            output = penstock.sru(*args, **problem.keywords())
            assert output.backprop is not None
            output.backprop(problem.dy, problem.dc_last)
            for _ in range(20):
                penstock.sru(*small_args, **small.keywords())
            with pytest.raises(ValueError, match="c0"):
                penstock.sru(*small_args, c0=np.zeros((7, 7)))

    calls(50)
    before = resident_bytes()
    calls(300)
    assert resident_bytes() - before < 4 << 20


def test_release_memory(cpu_only: None) -> None:
    problem = random_problem(200, 8, 128, dtype="float32")
    penstock.sru(*(problem.arrays[n] for n in FLOATS[:4]), **problem.keywords())
    assert penstock.release_memory() > 0
    assert penstock.release_memory() == 0


# Instruction sets

ISA_SCRIPT = """
import sys
import numpy as np
import penstock
from reference.problems import FLOATS, TOLERANCE, Problem, assert_close, random_problem

print(penstock.config()["cpu_isa"])
for dtype in sys.argv[1].split(","):
    for steps, batch, hidden, inputs, form, direction, activation in [
        (6, 3, 5, 7, "k4", "bidirectional", "tanh"), (5, 2, 17, 0, "k3", "reverse", "relu"),
        (1, 1, 1, 2, "noskip", "forward", "identity"), (3, 2, 65, 31, "k4", "reverse", "tanh"),
        (24, 3, 98, 100, "k4", "bidirectional", "identity"),
        (10, 60, 96, 0, "k3", "forward", "tanh"),
    ]:
        for mask_site, padding in [("output", "both"), ("state", None), (None, "mask")]:
            p = random_problem(
                steps, batch, hidden, inputs=inputs, form=form, direction=direction,
                activation=activation, mask_site=mask_site, padding=padding, dtype=dtype,
            )
            out = penstock.sru(*(p.arrays[n] for n in FLOATS[:4]), **p.keywords())
            grads = out.backprop(p.dy, p.dc_last)._asdict()
            found = {"y": out.y, "c_last": out.c_last}
            found |= {k: v for k, v in grads.items() if v is not None}
            assert_close(found, p.solve(), TOLERANCE[dtype])
"""


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
def test_every_instruction_set(isa: str, cpu_only: None) -> None:
    """PENSTOCK_ISA caps what the processor has; each has its own compiled kernels."""
    tests = Path(__file__).resolve().parents[1]
    package = Path(penstock.__file__).resolve().parents[1]
    paths = [str(tests), str(package), *sys.path]
    environment = os.environ | {"PENSTOCK_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)}
    dtypes = [d for d in TOLERANCE if d != "bfloat16"]
    try:
        dtype_of("bfloat16")
        dtypes.append("bfloat16")
    except ImportError:
        pass
    done = subprocess.run(
        [sys.executable, "-c", ISA_SCRIPT, ",".join(dtypes)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name = done.stdout.strip()
    order = ["base", "avx2", "avx512"]
    if name in order:
        assert order.index(name) <= order.index(isa)
    else:
        assert name == "neon"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_input_features(backend: Any, dtype: str) -> None:
    """D = 0 leaves the biases and c0; enough rows and channels for every path."""
    problem = random_problem(20, 5, 64, form="k4", inputs=0, dtype=dtype)
    assert_close(backend.run(problem), problem.solve(), TOLERANCE[dtype])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 3e38, 1e-38])
def test_what_stands_at_padding_changes_no_bit(backend: Any, garbage: float) -> None:
    if backend.is_emulated:
        pytest.skip("large, and the device is emulated")
    rng = np.random.default_rng(0)
    steps, batch, width = 64, 8, 256
    x = rng.standard_normal((steps, batch, width), np.float32)
    weight = rng.standard_normal((1, 3 * width, width), np.float32) / 16
    v, bias = (rng.standard_normal((1, 2, width), np.float32) for _ in range(2))
    dy = rng.standard_normal((steps, batch, width), np.float32)
    lengths = np.array([64, 3, 0, 17, 63, 1, 40, 33])
    results = []
    for value in (0.0, garbage):
        filled = x.copy()
        filled[np.arange(steps)[:, None] >= lengths] = value
        arrays = [backend.to_device(a) for a in (filled, weight, v, bias)]
        out = penstock.sru(*arrays, lengths=lengths)
        grads = out.backprop(backend.to_device(dy))
        results.append([backend.to_host(a) for a in (out.y, out.c_last, *grads[:5])])
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, expected)
