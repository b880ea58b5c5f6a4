"""penstock.rnn, gru and lstm: values and gradients against a float64 reference."""

from __future__ import annotations

import gc
import itertools
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
from penstock._arrays import array_module
from reference.problems import DIRECTIONS, TOLERANCE, dtype_of, error
from reference.recurrent_problems import (
    BIASES,
    VARIANTS,
    RecurrentProblem,
    assert_close,
    random_recurrent,
)

HALF_DTYPES = ("float16", "bfloat16")
# One of each way of computing a step, where all activations would say nothing more.
STEPS = ("rnn-tanh", "gru-after-tanh", "gru-before-tanh", "lstm")
OUTPUTS = ("y", "h_last", "c_last")


def problem_of(variant: str, *sizes: int, **options: Any) -> RecurrentProblem:
    cell, own = VARIANTS[variant]
    return random_recurrent(cell, *sizes, **own, **options)


def check(
    backend: Any, problem: RecurrentProblem, tolerance: float | None = None, **changes: Any
) -> None:
    name = problem.dtype.name
    if not backend.has_dtype(name):
        pytest.skip(f"{name} is not available on {backend.name}")
    actual = backend.outcome(problem, **changes)
    for array in actual.values():
        assert array.dtype == problem.dtype
    expected = problem.solve()
    if name in HALF_DTYPES and problem.options.get("activation") == "relu" and not backend.is_cpu:
        # A GPU keeps sums in the half type, so a state beside relu's kink may come to lie on its
        # other side, where the gradient is another one.
        actual = {k: v for k, v in actual.items() if k in OUTPUTS}
        expected = {k: v for k, v in expected.items() if k in OUTPUTS}
    assert_close(actual, expected, tolerance or TOLERANCE[name])


def assert_same_bits(
    actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], note: Any = ""
) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.tobytes() == expected[name].tobytes(), (name, note)


def skip_emulated(backend: Any) -> None:
    if backend.is_emulated:
        pytest.skip("large, and the device is emulated")


def padding_of(problem: RecurrentProblem) -> np.ndarray:
    return np.arange(problem.arrays["x"].shape[0])[:, None] >= problem.arrays["lengths"]


# Options


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option(backend: Any, variant: str, direction: str) -> None:
    options = itertools.product((False, True), BIASES, (True, False))
    for with_lengths, biases, with_state in options:
        problem = problem_of(
            variant, direction=direction, with_lengths=with_lengths, biases=biases,
            with_state=with_state,
        )  # fmt: skip
        for recompute in (False, True):
            check(backend, problem, recompute=recompute)


@pytest.mark.parametrize("dtype", ["float32", *HALF_DTYPES])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_dtype(backend: Any, variant: str, direction: str, dtype: str) -> None:
    for seed, biases in enumerate(BIASES):
        problem = problem_of(
            variant, 8, 3, 9, inputs=11, direction=direction, with_lengths=seed % 2 == 0,
            biases=biases, with_state=seed != 1, dtype=dtype, seed=seed,
        )  # fmt: skip
        for recompute in (False, True):
            check(backend, problem, recompute=recompute)


# Shapes


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("hidden", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 50, 63, 64, 65, 130])
def test_hidden_sizes(backend: Any, hidden: int, dtype: str) -> None:
    for i, variant in enumerate(STEPS):
        check(
            backend,
            problem_of(
                variant, 5, 3, hidden, inputs=hidden + 3, direction=DIRECTIONS[i % 3],
                with_lengths=True, dtype=dtype,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("inputs", [0, 1, 2, 3, 8, 63, 64, 65, 100, 300])
def test_input_sizes(backend: Any, inputs: int) -> None:
    for dtype, variant in itertools.product(("float64", "float32"), STEPS):
        check(backend, problem_of(variant, 9, 2, 12, inputs=inputs, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("steps", "batch"),
    [(1, 1), (3, 1), (1, 4), (5, 1), (1, 5), (63, 1), (7, 9), (2, 64), (9, 8), (2, 65), (2, 23)],
)
def test_rows_around_thresholds(
    backend: Any, steps: int, batch: int, direction: str, dtype: str
) -> None:
    if steps * batch > 5:
        skip_emulated(backend)
    for variant in STEPS:
        check(
            backend,
            problem_of(
                variant, steps, batch, 40, inputs=33, direction=direction, with_lengths=True,
                dtype=dtype,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize(
    ("batch", "inputs", "hidden", "direction"),
    [
        (1, 256, 256, "forward"),
        (1, 30, 150, "bidirectional"),
        (5, 300, 80, "reverse"),
        (15, 150, 150, "forward"),
        (16, 150, 150, "forward"),
    ],
)
@pytest.mark.parametrize("variant", STEPS)
def test_single_steps_of_large_weights(
    backend: Any, *, variant: str, batch: int, inputs: int, hidden: int, direction: str, dtype: str
) -> None:
    """Few rows read the weights as they lie, and have only their biases brought in order."""
    problem = problem_of(
        variant, 1, batch, hidden, inputs=inputs, direction=direction, dtype=dtype
    )  # fmt: skip
    check(backend, problem)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden", "direction"),
    [
        (40, 37, 70, 150, "forward"),
        (16, 64, 256, 256, "reverse"),
        (30, 20, 130, 72, "bidirectional"),
        (90, 1, 50, 200, "bidirectional"),
        (3, 600, 100, 50, "reverse"),
        (12, 530, 20, 33, "forward"),
        (5, 2, 300, 520, "forward"),
    ],
)
def test_large(
    backend: Any, *, steps: int, batch: int, inputs: int, hidden: int, direction: str, dtype: str
) -> None:
    skip_emulated(backend)
    for i, variant in enumerate(STEPS):
        problem = problem_of(
            variant, steps, batch, hidden, inputs=inputs, direction=direction, with_lengths=True,
            dtype=dtype,
        )  # fmt: skip
        check(backend, problem, recompute=i % 2 == 0)
        check(backend, problem, recompute=i % 2 == 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)])
def test_empty(backend: Any, steps: int, batch: int, direction: str) -> None:
    for variant, dtype, with_lengths in itertools.product(STEPS, TOLERANCE, (False, True)):
        if not backend.has_dtype(dtype):
            continue
        problem = problem_of(
            variant, steps, batch, 50, direction=direction, dtype=dtype, with_lengths=with_lengths
        )
        for recompute in (False, True):
            check(backend, problem, recompute=recompute)
            # No step: the state is handed through as it is.
            found = backend.outcome(problem, recompute=recompute)
            np.testing.assert_array_equal(found["h_last"], problem.arrays["h0"])
            np.testing.assert_array_equal(found["dh0"], problem.gradients["dh_last"])
            if problem.cell == "lstm":
                np.testing.assert_array_equal(found["c_last"], problem.arrays["c0"])
                np.testing.assert_array_equal(found["dc0"], problem.gradients["dc_last"])
            for name in ("dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh"):
                assert not found[name].astype(np.float64).any(), name


def outcome_of_views(
    backend: Any, problem: RecurrentProblem, view: Callable[[Any], Any]
) -> dict[str, np.ndarray]:
    """The outcome with views of all arrays, made on the device, in the place of the arrays."""
    arrays = {
        name: a if a is None or name == "lengths" else view(backend.to_device(a))
        for name, a in problem.arrays.items()
    }
    views = RecurrentProblem(problem.cell, arrays, problem.options, {})
    output = getattr(penstock, problem.cell)(*views.positional(), **views.keywords())
    gradients = {n: view(backend.to_device(g)) for n, g in problem.gradients.items()}
    return backend.named(output, output.backprop(**gradients))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("variant", STEPS)
def test_any_strides(backend: Any, variant: str, dtype: str) -> None:
    """Views that are reversed, transposed, stepped and broadcast give what their copies give."""
    xp = array_module(backend.to_device(np.zeros(1)))
    problem = problem_of(variant, 5, 4, 9, direction="bidirectional", inputs=6, dtype=dtype)

    def backwards(a: Any) -> Any:
        return xp.ascontiguousarray(xp.flip(a))[(slice(None, None, -1),) * a.ndim]

    def last_backwards(a: Any) -> Any:
        return xp.ascontiguousarray(a[..., ::-1])[..., ::-1]

    def stepped(a: Any) -> Any:
        wide = xp.full([2 * n for n in a.shape], xp.nan, a.dtype)
        wide[tuple(slice(1, None, 2) for _ in a.shape)] = a
        return wide[tuple(slice(1, None, 2) for _ in a.shape)]

    expected = backend.outcome(problem)
    for view in (backwards, last_backwards, stepped, xp.asfortranarray):
        assert_same_bits(outcome_of_views(backend, problem, view), expected, view)

    for group in (problem.arrays, problem.gradients):
        for a in group.values():
            if a is not None:
                a[:] = a[:1]
    expected = backend.outcome(problem)
    assert_same_bits(
        outcome_of_views(backend, problem, lambda a: xp.broadcast_to(a[:1], a.shape)), expected
    )


# What may be left out


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("variant", STEPS)
def test_missing_gradients(backend: Any, variant: str, dtype: str, direction: str) -> None:
    whole = problem_of(variant, direction=direction, dtype=dtype, with_lengths=True)
    names = list(whole.gradients)
    for given in itertools.product((True, False), repeat=len(names)):
        problem = problem_of(variant, direction=direction, dtype=dtype, with_lengths=True)
        for name, keep in zip(names, given, strict=True):
            if not keep:
                problem.gradients[name] = None
        check(backend, problem)


@pytest.mark.parametrize("variant", STEPS)
def test_left_out_is_zeros(backend: Any, variant: str) -> None:
    for direction, names in itertools.product(
        DIRECTIONS, (("h0",), ("c0",), ("bias_ih",), ("bias_hh",), ("bias_ih", "bias_hh"))
    ):
        problem = problem_of(variant, direction=direction)
        names_here = [n for n in names if n in problem.arrays]
        for name in names_here:
            problem.arrays[name] = np.zeros_like(problem.arrays[name])
        zeros = backend.outcome(problem)
        for name in names_here:
            problem.arrays[name] = None
        found = backend.outcome(problem)
        assert found.keys() == zeros.keys() - {"d" + n for n in names_here if n[0] == "b"}
        for name, value in found.items():
            np.testing.assert_array_equal(value, zeros[name], err_msg=name)


def test_gradients_of_what_was_not_given_are_none(backend: Any) -> None:
    for variant in STEPS:
        output = backend.call(problem_of(variant, biases="none", with_state=False))
        grads = output.backprop(output.y)
        assert grads.dbias_ih is None
        assert grads.dbias_hh is None
        assert grads.dh0 is not None, "the initial state is zeros then, and has a gradient"
        assert (variant == "lstm") == hasattr(grads, "dc0")
        only_one = backend.call(problem_of(variant, biases="hh")).backprop(output.y)
        assert only_one.dbias_ih is None
        assert only_one.dbias_hh is not None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_need_grad(backend: Any, variant: str, dtype: str) -> None:
    """Nothing is kept, so there is no backprop; values do not depend on it, bit for bit."""
    if not backend.has_dtype(dtype):
        pytest.skip(f"{dtype} is not available on {backend.name}")
    sizes = [(6, 3, 5)] if backend.is_emulated else [(20, 3, 66), (4, 40, 50), (3, 1, 130)]
    for size, direction, with_lengths in itertools.product(sizes, DIRECTIONS, (False, True)):
        problem = problem_of(
            variant, *size, inputs=9, direction=direction, with_lengths=with_lengths, dtype=dtype
        )
        expected = backend.named(backend.call(problem))
        for recompute in (False, True):
            without = backend.call(problem, need_grad=False, recompute=recompute)
            assert without.backprop is None
            assert_same_bits(backend.named(without), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_recompute_changes_no_value(backend: Any, variant: str, dtype: str) -> None:
    if not backend.has_dtype(dtype):
        pytest.skip(f"{dtype} is not available on {backend.name}")
    sizes = [(6, 3, 5)] if backend.is_emulated else [(20, 3, 66), (4, 40, 50), (3, 1, 130)]
    for size, direction, with_lengths in itertools.product(sizes, DIRECTIONS, (False, True)):
        problem = problem_of(
            variant, *size, inputs=9, direction=direction, with_lengths=with_lengths, dtype=dtype
        )
        kept = backend.outcome(problem)
        again = backend.outcome(problem, recompute=True)
        if dtype in ("float32", "float64") and backend.is_cpu:
            assert_same_bits(again, kept)
            continue
        outputs = [n for n in OUTPUTS if n in kept]
        assert_same_bits({n: again[n] for n in outputs}, {n: kept[n] for n in outputs})
        if VARIANTS[variant][1].get("activation") == "relu":
            continue  # gates in a half type may come to lie on the other side of the kink
        wide = {n: v.astype(np.float64) for n, v in kept.items()}
        assert_close(again, wide, TOLERANCE[dtype])


# Padding


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_padded_steps_may_hold_anything(backend: Any, direction: str, dtype: str) -> None:
    if not backend.has_dtype(dtype):
        pytest.skip(f"{dtype} is not available on {backend.name}")
    for variant in STEPS:
        problem = problem_of(
            variant, 7, 4, 6, inputs=5, direction=direction, with_lengths=True, dtype=dtype
        )
        pad = padding_of(problem)
        assert pad.any()
        expected = {r: backend.outcome(problem, recompute=r) for r in (False, True)}
        assert_close(expected[False], problem.solve(), TOLERANCE[dtype])
        for junk, recompute in itertools.product((np.nan, np.inf, -np.inf, 1e4), (False, True)):
            problem.arrays["x"][pad] = junk
            problem.gradients["dy"][pad] = -junk
            actual = backend.outcome(problem, recompute=recompute)
            assert_same_bits(actual, expected[recompute], (variant, junk))
            for name in ("y", "dx"):
                assert not actual[name][pad].astype(np.float64).any(), f"{name} is 0 at padding"


@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"),
    [(20, 30, 128, 128), (12, 530, 24, 50), (64, 2, 96, 200)],
)
@pytest.mark.parametrize("variant", STEPS)
def test_junk_at_padded_steps_of_a_large_problem(
    backend: Any, variant: str, *, steps: int, batch: int, inputs: int, hidden: int
) -> None:
    """Products of many rows run on other code, which must not mix rows either."""
    skip_emulated(backend)
    problem = problem_of(
        variant, steps, batch, hidden, inputs=inputs, with_lengths=True, dtype="float32"
    )
    pad = padding_of(problem)
    expected = backend.outcome(problem)
    problem.arrays["x"][pad] = np.nan
    problem.gradients["dy"][pad] = np.inf
    assert_same_bits(backend.outcome(problem), expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_padded(backend: Any, variant: str, direction: str) -> None:
    """Sequences without a valid step, and a batch of nothing else."""
    for lengths in ([0, 5, 0, 2], [0, 0, 0, 0]):
        problem = problem_of(variant, 5, 4, 3, direction=direction)
        problem.arrays["lengths"] = np.array(lengths)
        for recompute in (False, True):
            check(backend, problem, recompute=recompute)
    found = backend.outcome(problem)
    np.testing.assert_array_equal(found["h_last"], problem.arrays["h0"])
    np.testing.assert_array_equal(found["dh0"], problem.gradients["dh_last"])
    for name in ("y", "dx", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh"):
        assert not found[name].any(), name


@pytest.mark.parametrize("kind", [list, tuple, "i1", "i4", "i8", "u1", "u2", "u8", ">i4", ">i8"])
def test_lengths_in_every_form(backend: Any, kind: Any) -> None:
    for variant in STEPS:
        problem = problem_of(variant, 6, 4, 3, direction="bidirectional")
        values = [6, 0, 3, 1]
        problem.arrays["lengths"] = np.array(values)
        expected = backend.outcome(problem)
        given = kind(values) if isinstance(kind, type) else np.array(values, kind)
        arrays = backend.moved(problem.positional())
        keywords = backend.moved(problem.keywords()) | {"lengths": given}
        output = getattr(penstock, problem.cell)(*arrays, **keywords)
        grads = output.backprop(**backend.moved(problem.gradients))
        assert_same_bits(backend.named(output, grads), expected)


def alone(problem: RecurrentProblem, b: int) -> RecurrentProblem:
    """Sequence b by itself, cut to its length."""
    n = int(problem.arrays["lengths"][b])
    arrays = dict(problem.arrays, lengths=None)
    arrays["x"] = arrays["x"][:n, b : b + 1]
    for name in ("h0", "c0"):
        if arrays.get(name) is not None:
            arrays[name] = arrays[name][b : b + 1]
    gradients = {
        n_: g[:n, b : b + 1] if n_ == "dy" else g[b : b + 1] for n_, g in problem.gradients.items()
    }
    return RecurrentProblem(problem.cell, arrays, problem.options, gradients)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"),
    [
        (9, 3, 6, 4),
        (7, 5, 40, 33),
        (12, 9, 64, 64),
        (5, 20, 17, 130),
        (21, 4, 100, 50),
        (8, 4, 60, 200),
    ],
)
@pytest.mark.parametrize("variant", STEPS)
def test_padding_equals_shorter_sequences(
    backend: Any, variant: str, *, steps: int, batch: int, inputs: int, hidden: int, dtype: str
) -> None:
    """A batch with lengths gives each sequence what it gets alone: on the CPU, bit for bit."""
    if not backend.has_dtype(dtype):
        pytest.skip(f"{dtype} is not available on {backend.name}")
    if steps * batch > 40:
        skip_emulated(backend)
    problem = problem_of(
        variant, steps, batch, hidden, inputs=inputs, direction="bidirectional",
        with_lengths=True, dtype=dtype,
    )  # fmt: skip
    problem.arrays["lengths"][:3] = (steps, 0, 1)
    if hidden > 140:
        # Alone, a single step is a call that does not pack weights so large, and rounds otherwise.
        lengths = problem.arrays["lengths"]
        lengths[lengths == 1] = 2
    for recompute in (False, True):
        whole = backend.outcome(problem, recompute=recompute)
        for b, n in enumerate(problem.arrays["lengths"]):
            found = backend.outcome(alone(problem, b), recompute=recompute)
            here = {
                name: value[:n, b : b + 1] if name in ("y", "dx") else value[b : b + 1]
                for name, value in whole.items()
                if name in (*OUTPUTS, "dx", "dh0", "dc0")
            }
            found = {name: found[name] for name in here}
            if backend.is_cpu:
                assert_same_bits(here, found, b)
            else:
                wide = {name: value.astype(np.float64) for name, value in found.items()}
                assert_close(here, wide, TOLERANCE[dtype])


# Numbers that are not ordinary


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, -1e30, 1e37])
@pytest.mark.parametrize(("steps", "batch", "width"), [(4, 3, 9), (6, 40, 64)])
@pytest.mark.parametrize("variant", STEPS)
def test_infinite_and_huge_inputs(
    backend: Any, variant: str, *, steps: int, batch: int, width: int, value: float
) -> None:
    """Gates and states saturate; NaN reaches what comes later in its own sequence alone."""
    if batch > 3:
        skip_emulated(backend)
    problem = problem_of(variant, steps, batch, width, inputs=width, dtype="float32")
    problem.arrays["x"][1, 0, 3] = value
    with np.errstate(all="ignore"):
        expected = problem.solve()
    actual = backend.named(backend.call(problem, need_grad=False))
    for name, array in actual.items():
        finite = np.isfinite(expected[name])
        assert finite.any()
        assert finite.all() != np.isnan(value)
        np.testing.assert_array_equal(np.isfinite(array), finite)
        np.testing.assert_allclose(array[finite], expected[name][finite], 1e-4, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", STEPS)
def test_saturated_gates(backend: Any, variant: str, dtype: str) -> None:
    for shift in (-1000.0, -90.0, -30.0, -10.0, 10.0, 30.0, 90.0, 1000.0):
        problem = problem_of(variant, 6, 3, 17, dtype=dtype)
        problem.arrays["bias_ih"] += problem.dtype.type(shift)
        # Gradients of closed gates go with 1 - f, a difference of about 1 and about 1.
        for recompute in (False, True):
            found = backend.outcome(problem, recompute=recompute)
            assert_close(found, problem.solve(), TOLERANCE[dtype], floor=1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", STEPS)
def test_tiny_inputs(backend: Any, variant: str, dtype: str) -> None:
    """Relative precision holds near zero too, where gates are halves and tanh is the identity."""
    problem = problem_of(variant, 4, 2, 9, dtype=dtype, biases="none", with_state=False)
    problem.arrays["x"] *= problem.dtype.type(1e-30)
    check(backend, problem)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("variant", STEPS)
def test_long_sequence(backend: Any, variant: str, direction: str) -> None:
    skip_emulated(backend)
    problem = problem_of(
        variant, 4096, 1, 8, direction=direction, inputs=3, dtype="float32", with_lengths=False
    )
    check(backend, problem, 2e-4)


# Gradients by finite differences


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_finite_differences(backend: Any, variant: str, direction: str) -> None:
    for with_lengths, biases in itertools.product((False, True), BIASES):
        problem = problem_of(
            variant, 3, 2, 2, inputs=3, direction=direction, with_lengths=with_lengths,
            biases=biases, seed=1,
        )  # fmt: skip

        def loss(problem: RecurrentProblem = problem) -> float:
            return problem.loss(backend.named(backend.call(problem, need_grad=False)))

        grads = backend.outcome(problem, recompute=with_lengths)
        for name, array in problem.floats().items():
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
            np.testing.assert_allclose(grads[name], numeric, rtol=1e-7, atol=1e-7, err_msg=name)


# backprop


@pytest.mark.parametrize("recompute", [False, True])
def test_backprop_more_than_once_and_out_of_order(backend: Any, recompute: bool) -> None:
    problems = [
        problem_of(v, 6, 3, 9, direction=d, with_lengths=True, seed=s, dtype=t)
        for s, (v, d, t) in enumerate(
            itertools.product(STEPS, DIRECTIONS, ("float64", "float32", "float16"))
        )
    ]
    outputs = [backend.call(p, recompute=recompute) for p in problems]
    for p, output in list(zip(problems, outputs, strict=True))[::-1] * 2:
        gradients = backend.moved(p.gradients)
        output.backprop(gradients["dy"])  # another gradient in between leaves nothing behind
        output.backprop(None, gradients["dh_last"])
        actual = backend.named(output, output.backprop(**gradients))
        assert_close(actual, p.solve(), TOLERANCE[p.dtype.name])


@pytest.mark.parametrize("variant", STEPS)
def test_backprop_is_linear(backend: Any, variant: str) -> None:
    problem = problem_of(variant, with_lengths=True)
    output = backend.call(problem)
    gradients = backend.moved(problem.gradients)
    both = backend.named(output.backprop(**gradients))
    single = [backend.named(output.backprop(**{n: g})) for n, g in gradients.items()]
    doubled = backend.named(output.backprop(**{n: 2 * g for n, g in gradients.items()}))
    for name, value in both.items():
        assert error(value, np.sum([s[name] for s in single], axis=0)) < 1e-13
        np.testing.assert_array_equal(2 * value, doubled[name])


def test_backprop_keeps_its_inputs_alive(backend: Any) -> None:
    for variant in STEPS:
        sizes = (6, 3, 5) if backend.is_emulated else (20, 8, 33)

        def make(variant: str = variant, sizes: tuple[int, ...] = sizes) -> RecurrentProblem:
            return problem_of(variant, *sizes, inputs=20, with_lengths=True)

        expected = backend.outcome(make())
        output, gradients = backend.call(make()), backend.moved(make().gradients)
        gc.collect()
        junk = [np.full((40, 8, 33), np.nan) for _ in range(50)]  # reuse what was freed
        actual = backend.named(output, output.backprop(**gradients))
        assert len(junk) == 50
        assert_same_bits(actual, expected)


def test_inputs_are_never_written(backend: Any) -> None:
    for dtype, variant in itertools.product(("float64", "float32", "float16"), STEPS):
        problem = problem_of(
            variant, 9, 3, 7, direction="bidirectional", with_lengths=True, dtype=dtype
        )
        arrays = {k: v for k, v in (problem.arrays | problem.gradients).items() if v is not None}
        copies = {k: v.copy() for k, v in arrays.items()}
        if backend.name == "host":
            for array in arrays.values():
                array.flags.writeable = False
        for recompute in (False, True):
            backend.outcome(problem, recompute=recompute)
        for name, copy in copies.items():
            np.testing.assert_array_equal(arrays[name], copy)


def test_results_are_the_callers_own(backend: Any) -> None:
    """Writing to one result changes neither another one nor what backprop returns."""
    for variant in STEPS:
        problem = problem_of(variant)
        first, second = backend.call(problem), backend.call(problem)
        expected = backend.named(second)
        gradients = backend.moved(problem.gradients)
        grads = backend.named(first.backprop(**gradients))
        again = first.backprop(**gradients)
        for array in (*first[:-1], *(g for g in again if g is not None)):
            array[...] = np.nan
        assert_same_bits(backend.named(first.backprop(**gradients)), grads)
        assert_same_bits(backend.named(second), expected)


# Processes, threads, memory

# Below and above what is worth handing to other threads, few rows and many, one chunk and several.
THREAD_SHAPES = [(1, 1, 64), (5, 1, 256), (40, 4, 100), (3, 64, 50), (2, 600, 40), (30, 33, 130)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("steps", "batch", "hidden"), THREAD_SHAPES)
@pytest.mark.parametrize("variant", STEPS)
def test_bits_do_not_depend_on_threads(
    threads: Callable[[int], None],
    cpu_only: None,
    backend: Any,
    *,
    variant: str,
    steps: int,
    batch: int,
    hidden: int,
    dtype: str,
) -> None:
    problem = problem_of(
        variant, steps, batch, hidden, inputs=70, direction=DIRECTIONS[steps % 3],
        with_lengths=True, dtype=dtype,
    )  # fmt: skip
    for recompute in (False, True):
        threads(1)
        expected = backend.outcome(problem, recompute=recompute)
        for n in (2, 3, 5, 8):
            threads(n)
            assert_same_bits(backend.outcome(problem, recompute=recompute), expected, n)


def test_same_bits_every_time(backend: Any) -> None:
    for dtype, variant in itertools.product(TOLERANCE, STEPS):
        if not backend.has_dtype(dtype):
            continue
        size = (6, 3, 20) if backend.is_emulated else (30, 16, 130)
        problem = problem_of(
            variant, *size, direction="bidirectional", with_lengths=True, dtype=dtype
        )
        first = backend.outcome(problem)
        for _ in range(2):
            assert_same_bits(backend.outcome(problem), first, dtype)


def test_many_threads_at_once(backend: Any) -> None:
    size = (6, 3, 12) if backend.is_emulated else (20, 10, 96)
    problems = [
        problem_of(v, *size, direction=d, with_lengths=True, dtype=t, seed=7)
        for v, d, t in itertools.product(STEPS, DIRECTIONS, ("float32", "float64"))
    ]
    expected = [backend.outcome(p) for p in problems]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(backend.outcome, problems * 3))
    for i, result in enumerate(results):
        assert_same_bits(result, expected[i % len(problems)])


def test_one_backprop_from_many_threads(backend: Any) -> None:
    for variant in STEPS:
        size = (6, 3, 12) if backend.is_emulated else (20, 4, 70)
        problem = problem_of(variant, *size, with_lengths=True, dtype="float32")
        output = backend.call(problem)
        gradients = backend.moved(problem.gradients)
        expected = backend.named(output.backprop(**gradients))
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(lambda _: output.backprop(**gradients), range(12)))  # noqa: B023
        for grads in results:
            assert_same_bits(backend.named(grads), expected)


def test_memory_does_not_grow(
    backend: Any, cpu_only: None, resident_bytes: Callable[[], int]
) -> None:
    problems = [
        problem_of(v, 20, 4, 48, direction="bidirectional", with_lengths=True, dtype=t)
        for v, t in itertools.product(STEPS, ("float32", "float16"))
    ]

    def calls(n: int) -> None:
        for _ in range(n):
            for problem in problems:
                backend.outcome(problem)
                with pytest.raises(ValueError, match="h0"):
                    backend.call(problem, h0=np.zeros((7, 7), problem.dtype))

    calls(5)
    before = resident_bytes()
    calls(40)
    assert resident_bytes() - before < 4 << 20


# Instruction sets

ISA_SCRIPT = """
import itertools, sys
import penstock
from reference.problems import TOLERANCE
from reference.recurrent_problems import VARIANTS, assert_close, flat, random_recurrent

print(penstock.config()["cpu_isa"])
sizes = [(6, 3, 5, 7), (3, 2, 17, 31), (1, 1, 1, 2), (4, 1, 65, 31), (5, 9, 98, 20), (2, 70, 33, 8)]
directions = itertools.cycle(("bidirectional", "forward", "reverse"))
for dtype in sys.argv[1].split(","):
    for (cell, own), (steps, batch, hidden, inputs) in itertools.product(VARIANTS.values(), sizes):
        p = random_recurrent(
            cell, steps, batch, hidden, inputs=inputs, direction=next(directions),
            with_lengths=True, dtype=dtype, **own,
        )
        for recompute in (False, True):
            out = getattr(penstock, cell)(*p.positional(), **p.keywords(), recompute=recompute)
            found = out._asdict() | out.backprop(**p.gradients)._asdict()
            del found["backprop"]
            assert_close(flat(found), p.solve(), TOLERANCE[dtype])
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
