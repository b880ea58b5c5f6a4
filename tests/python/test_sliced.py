"""penstock.sliced: values and gradients against a float64 reference, over every cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import penstock
import pytest
from penstock._arrays import array_module
from reference.problems import DIRECTIONS, TOLERANCE, error
from reference.recurrent_problems import (
    BIASES,
    VARIANTS,
    SlicedProblem,
    assert_close,
    flat,
    random_sliced,
)
from reference.sliced import sliced as reference

HALF_DTYPES = ("float16", "bfloat16")
CELLS = ("rnn", "gru", "lstm", "sru")
ALL_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **VARIANTS,
    "sru": ("sru", {}),
    "sru-tanh": ("sru", {"activation": "tanh"}),
    "sru-relu": ("sru", {"activation": "relu"}),
    "sru-noskip": ("sru", {"skip": False}),
    "sru-scaled": ("sru", {"scale_x": 1.25}),
}
CUTS = ((), (2,), (4,), (2, 2), (3, 2, 2))
PADDING = tuple(itertools.product(("left", "right"), ("skip", "none"), (False, True)))


def problem_of(variant: str, *sizes: Any, **options: Any) -> SlicedProblem:
    cell, own = ALL_VARIANTS.get(variant, (variant, {}))
    return random_sliced(cell, *sizes, **own, **options)


def is_output(name: str) -> bool:
    return name[0] != "d"


def check(
    backend: Any, problem: SlicedProblem, tolerance: float | None = None, **changes: Any
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
        actual = {k: v for k, v in actual.items() if is_output(k)}
        expected = {k: v for k, v in expected.items() if is_output(k)}
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


# Options


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_every_option(backend: Any, variant: str, direction: str) -> None:
    for seed, (pad, mask, with_lengths) in enumerate(PADDING):
        problem = problem_of(
            variant, CUTS[seed % len(CUTS)], direction=direction, pad=pad, mask=mask,
            with_lengths=with_lengths, biases=BIASES[seed % 4], seed=seed,
        )  # fmt: skip
        for recompute in (False, True):
            check(backend, problem, recompute=recompute)


@pytest.mark.parametrize("dtype", ["float32", *HALF_DTYPES])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_every_dtype(backend: Any, variant: str, direction: str, dtype: str) -> None:
    for seed, (pad, mask, with_lengths) in enumerate(PADDING):
        if seed % 3 and backend.is_emulated:
            continue
        problem = problem_of(
            variant, CUTS[(seed + 1) % len(CUTS)], 11, 2, 9, inputs=7, direction=direction, pad=pad,
            mask=mask, with_lengths=with_lengths, dtype=dtype, seed=seed,
        )  # fmt: skip
        check(backend, problem, recompute=seed % 2 == 0)


@pytest.mark.parametrize("mask", ["skip", "none"])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("steps", "slices"),
    [
        (1, ()), (1, (1,)), (1, (2,)), (1, (2, 2)), (3, (2, 2)), (5, (3, 2, 2)), (2, (16,)),
        (8, (2, 2, 2)), (12, (3, 2, 2)), (13, (3, 2, 2)), (24, (3, 2)), (6, (1, 1)), (9, (5,)),
        (10, (1, 4)), (10, (4, 1)), (100, (8, 8)),
    ],
)  # fmt: skip
def test_cuts(
    backend: Any, *, cell: str, steps: int, slices: tuple[int, ...], pad: str, mask: str
) -> None:
    """Ends that do not divide, one step to a part, more parts than steps."""
    if steps == 100:
        skip_emulated(backend)
    for seed, direction in enumerate(DIRECTIONS):
        problem = problem_of(
            cell, slices, steps, 3, 4, direction=direction, pad=pad, mask=mask,
            with_lengths=seed > 0, seed=seed,
        )  # fmt: skip
        check(backend, problem, recompute=seed == 1)


def test_many_levels(backend: Any) -> None:
    for cell in CELLS:
        check(backend, problem_of(cell, (1,) * 15, 3, 2, 3, dtype="float64"))
    skip_emulated(backend)
    for cell in CELLS:
        check(backend, problem_of(cell, (2,) * 10, 1000, 1, 3, dtype="float32", inputs=2))


# Shapes


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("hidden", [1, 2, 7, 8, 15, 16, 17, 33, 50, 64, 130])
def test_hidden_sizes(backend: Any, hidden: int, dtype: str) -> None:
    for i, cell in enumerate(CELLS):
        check(
            backend,
            problem_of(
                cell, (2, 2), 7, 3, hidden, inputs=hidden + 3, direction=DIRECTIONS[i % 3],
                with_lengths=True, dtype=dtype,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("inputs", [0, 1, 8, 65, 300])
def test_input_sizes(backend: Any, inputs: int) -> None:
    for dtype, cell in itertools.product(("float64", "float32"), CELLS):
        check(backend, problem_of(cell, (3,), 8, 2, 12, inputs=inputs, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden", "slices", "direction"),
    [
        (130, 20, 100, 50, (8, 4), "forward"),
        (40, 33, 40, 150, (4, 4), "reverse"),
        (125, 16, 70, 33, (8, 8), "bidirectional"),
        (30, 8, 200, 256, (4,), "reverse"),
    ],
)
def test_large(
    backend: Any,
    *,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    slices: tuple[int, ...],
    direction: str,
    dtype: str,
) -> None:
    skip_emulated(backend)
    for i, cell in enumerate(CELLS):
        problem = problem_of(
            cell, slices, steps, batch, hidden, inputs=inputs, direction=direction,
            with_lengths=i % 2 == 0, pad=("left", "right")[i // 2], dtype=dtype,
        )  # fmt: skip
        check(backend, problem, recompute=i % 2 == 1)


@pytest.mark.parametrize(("steps", "slices"), [(4096, (8, 8)), (32768, (8, 8, 8)), (4096, (2,))])
@pytest.mark.parametrize("cell", CELLS)
def test_long_sequence(backend: Any, cell: str, steps: int, slices: tuple[int, ...]) -> None:
    skip_emulated(backend)
    problem = problem_of(cell, slices, steps, 1, 12, inputs=5, dtype="float32")
    check(backend, problem, 2e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)])
def test_empty(backend: Any, steps: int, batch: int, direction: str) -> None:
    for cell, dtype, slices, mask in itertools.product(
        CELLS, TOLERANCE, ((), (2, 3)), ("skip", "none")
    ):
        if not backend.has_dtype(dtype):
            continue
        for with_lengths in (False, True):
            problem = problem_of(
                cell, slices, steps, batch, 6, direction=direction, dtype=dtype, mask=mask,
                with_lengths=with_lengths,
            )  # fmt: skip
            check(backend, problem)
            for name, value in backend.outcome(problem).items():
                assert not value.astype(np.float64).any(), name


def outcome_of_views(
    backend: Any, problem: SlicedProblem, view: Callable[[Any], Any]
) -> dict[str, np.ndarray]:
    """The outcome with views of all arrays, made on the device, in the place of the arrays."""

    def seen(a: Any) -> Any:
        return None if a is None else view(backend.to_device(a))

    levels = [[seen(a) for a in level] for level in problem.levels]
    output = penstock.sliced(problem.cell, seen(problem.x), levels, **problem.keywords())
    dlevels = [seen(d) for d in problem.dlevels or ()]
    return backend.named(output, output.backprop(seen(problem.dy), dlevels))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("cell", CELLS)
def test_any_strides(backend: Any, cell: str, dtype: str) -> None:
    """Views that are reversed, transposed and stepped give what their copies give."""
    xp = array_module(backend.to_device(np.zeros(1)))

    def backwards(a: Any) -> Any:
        return xp.ascontiguousarray(xp.flip(a))[(slice(None, None, -1),) * a.ndim]

    def stepped(a: Any) -> Any:
        wide = xp.full([2 * n for n in a.shape], xp.nan, a.dtype)
        wide[tuple(slice(1, None, 2) for _ in a.shape)] = a
        return wide[tuple(slice(1, None, 2) for _ in a.shape)]

    def batch_outermost(a: Any) -> Any:
        return xp.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1) if a.ndim > 1 else a

    for steps, pad in ((8, "left"), (7, "left"), (7, "right")):
        problem = problem_of(
            cell, (2, 2), steps, direction="bidirectional", pad=pad, mask="none", dtype=dtype
        )
        expected = backend.outcome(problem)
        for view in (backwards, stepped, batch_outermost, xp.asfortranarray):
            assert_same_bits(outcome_of_views(backend, problem, view), expected, view)


# What may be left out


@pytest.mark.parametrize("cell", CELLS)
def test_missing_gradients(backend: Any, cell: str) -> None:
    for seed, direction in enumerate(DIRECTIONS):
        whole = problem_of(cell, direction=direction, with_lengths=True, seed=seed)
        assert whole.dlevels is not None
        for has_dy, *has in itertools.product((True, False), repeat=1 + len(whole.dlevels)):
            some = [d if h else None for d, h in zip(whole.dlevels, has, strict=True)]
            problem = replace(whole, dy=whole.dy if has_dy else None, dlevels=some, expected={})
            check(backend, problem)
        for dy in (whole.dy, None):
            check(backend, replace(whole, dy=dy, dlevels=None, expected={}))


def test_gradients_of_y_and_of_the_last_level_add_up(backend: Any) -> None:
    for dtype in ("float64", "float32", "float16"):
        problem = problem_of("gru", dtype=dtype)
        output = backend.call(problem)
        dy = backend.to_device(problem.dy)
        by_y = backend.named(output.backprop(dy))
        assert_same_bits(backend.named(output.backprop(None, [None, None, dy[None]])), by_y)
        twice = backend.named(output.backprop(dy, (None, None, dy[None])))
        assert_same_bits(twice, backend.named(output.backprop(2 * dy)))


def test_y_is_the_last_level(backend: Any) -> None:
    for cell, slices in itertools.product(CELLS, CUTS):
        output = backend.call(problem_of(cell, slices, with_lengths=True))
        assert len(output.levels) == len(slices) + 1
        found = backend.named(output)
        np.testing.assert_array_equal(found["y"], found[f"levels_{len(slices)}"][0])


def test_biases_may_be_left_off(backend: Any) -> None:
    for cell, keep in itertools.product(("rnn", "gru", "lstm"), (2, 3, 4)):
        biases = {2: "none", 3: "ih", 4: "both"}[keep]
        problem = problem_of(cell, biases=biases)
        expected = backend.outcome(problem)
        short = replace(problem, levels=[tuple(level[:keep]) for level in problem.levels])
        output = backend.call(short)
        grads = output.backprop(**backend.moved(problem.gradients))
        assert_same_bits(backend.named(output, grads), expected)
        for level in grads.dlevels:
            assert [g is None for g in level] == [False, False, keep < 3, keep < 4]


def test_levels_may_differ_in_what_they_have(backend: Any) -> None:
    for cell in ("rnn", "gru", "lstm"):
        problem = problem_of(cell, (2, 2))
        for i, j in ((0, 2), (1, 3), (2, 2), (2, 3)):
            problem.levels[i][j] = None
        check(backend, problem)
    problem = problem_of("sru", (2, 2))
    problem.levels[1][1] = None
    check(backend, problem)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_levels_may_differ_in_width(backend: Any, cell: str, direction: str) -> None:
    dirs = 2 if direction == "bidirectional" else 1
    widths = (5, 17, 3)
    for dtype in ("float64", "float32"):
        problem = problem_of(cell, (2, 2), direction=direction, with_lengths=True, dtype=dtype)
        features = 4
        assert problem.dlevels is not None
        for i, hidden in enumerate(widths):
            own = problem_of(
                cell, (), hidden=hidden, inputs=features, direction=direction, dtype=dtype, seed=i
            )
            problem.levels[i] = own.levels[0]
            state = problem.dlevels[i]
            assert state is not None
            problem.dlevels[i] = np.resize(state, (*state.shape[:2], dirs * hidden))
            features = dirs * hidden
        problem.dy = problem.dlevels[-1][0] / 2
        check(backend, problem)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cell", CELLS)
def test_need_grad_and_recompute_change_no_value(backend: Any, cell: str, dtype: str) -> None:
    if not backend.has_dtype(dtype):
        pytest.skip(f"{dtype} is not available on {backend.name}")
    sizes = [(9, 3, 5)] if backend.is_emulated else [(21, 3, 66), (40, 40, 33)]
    for size, direction, mask in itertools.product(sizes, DIRECTIONS, ("skip", "none")):
        problem = problem_of(
            cell, (2, 4), *size, direction=direction, with_lengths=True, mask=mask, dtype=dtype
        )
        kept = backend.outcome(problem)
        again = backend.outcome(problem, recompute=True)
        outputs = {n: v for n, v in kept.items() if is_output(n)}
        for recompute in (False, True):
            without = backend.call(problem, need_grad=False, recompute=recompute)
            assert without.backprop is None
            assert_same_bits(backend.named(without), outputs)
        assert_same_bits({n: again[n] for n in outputs}, outputs)
        if dtype in ("float32", "float64") and backend.is_cpu:
            assert_same_bits(again, kept)
        else:
            wide = {n: v.astype(np.float64) for n, v in kept.items()}
            assert_close(again, wide, TOLERANCE[dtype])


def test_sliced_gru(backend: Any) -> None:
    problem = problem_of("gru-before-identity", (2, 2), with_lengths=True, pad="right")
    expected = backend.outcome(problem)
    _, x, levels = backend.moved(problem.positional())
    output = penstock.sliced_gru(x, levels, **backend.moved(problem.keywords()))
    grads = output.backprop(**backend.moved(problem.gradients))
    assert_same_bits(backend.named(output, grads), expected)


@pytest.mark.parametrize(
    ("cell", "default"), [("rnn", "tanh"), ("gru", "tanh"), ("lstm", "tanh"), ("sru", "identity")]
)
def test_default_activation(backend: Any, cell: str, default: str) -> None:
    problem = problem_of(cell)
    expected = backend.outcome(problem)
    if cell == "lstm":  # its only one
        assert_same_bits(backend.outcome(problem, activation="tanh"), expected)
        return
    for activation in ("identity", "tanh", "relu"):
        same = backend.outcome(problem, activation=activation)["y"].tobytes()
        assert (same == expected["y"].tobytes()) == (activation == default)


def test_sru_with_x_in_the_skip_term_of_level_0(backend: Any) -> None:
    for direction, scale_x in itertools.product(DIRECTIONS, (1.0, -0.5)):
        width = 10 if direction == "bidirectional" else 5
        problem = problem_of(
            "sru", (2, 2), inputs=width, direction=direction, scale_x=scale_x, with_lengths=True
        )
        problem.levels[0][0] = problem.levels[0][0][:, :15].copy()
        check(backend, problem)


# Slicing against plain cells


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_slices_is_the_plain_cell(backend: Any, variant: str, direction: str) -> None:
    problem = problem_of(variant, (), 7, 4, 9, direction=direction, with_lengths=True, pad="right")
    found = backend.outcome(replace(problem, dlevels=None))
    options = {k: v for k, v in problem.keywords().items() if k not in ("slices", "pad")}
    plain = getattr(penstock, problem.cell)(
        *backend.moved([problem.x, *problem.levels[0]]), **backend.moved(options)
    )
    grads = plain.backprop(None, backend.to_device(problem.dy))
    expected = {"y": plain.h_last, "levels_0": plain.h_last[None], "dx": grads.dx}
    expected |= {f"dlevels_0_{i}": g for i, g in enumerate(grads[1:5])}
    expected = {n: backend.to_host(v) for n, v in expected.items()}
    assert_close(found, expected, 1e-13)


@pytest.mark.parametrize("slices", [(2,), (4,), (2, 2), (3, 2, 2)])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_linear_rnn_theorem(backend: Any, slices: tuple[int, ...], direction: str) -> None:
    """A plain linear RNN equals a sliced one whose upper levels take their state's step at once.

    Level i + 1 has W = I and R = (R of level i) ** (steps of level i), and no bias.
    """
    hidden, length = 6, 3
    problem = problem_of(
        "rnn-identity", slices, length * math.prod(slices), 3, hidden, direction=direction
    )
    # So that what comes from the first part is not lost by the last one.
    rng = np.random.default_rng(0)
    r = np.linalg.qr(rng.standard_normal((hidden, hidden)))[0] * 0.98
    problem.levels[0][1] = r[None]
    steps = length
    for level, n in zip(problem.levels[1:], reversed(slices), strict=True):
        r = np.linalg.matrix_power(r, steps)
        steps = n
        level[:] = [np.eye(hidden)[None], r[None], None, None]
    options = {"direction": direction, "activation": "identity"}
    arrays = backend.moved([problem.x, *problem.levels[0]])
    plain = penstock.rnn(*arrays, **options)
    sliced = backend.call(problem)
    assert error(backend.to_host(sliced.y), backend.to_host(plain.h_last)) < 1e-12
    dy = backend.to_device(problem.dy)
    dx = backend.to_host(sliced.backprop(dy).dx)
    assert error(dx, backend.to_host(plain.backprop(None, dy).dx)) < 1e-12


# Padding


def dead_parts(problem: SlicedProblem) -> list[np.ndarray]:
    """Of each level, (parts, B) bool: which have no step that counts."""
    counted = problem.counted()
    slices = problem.options["slices"]
    parts = math.prod(slices)
    missing = -len(counted) % parts
    before = missing if problem.options.get("pad", "left") == "left" else 0
    whole = np.pad(counted, ((before, missing - before), (0, 0)))
    found = []
    for i in range(len(slices) + 1):
        count = math.prod(slices[: len(slices) - i])
        alive = whole.reshape(count, len(whole) // count, -1).any(axis=1)
        found.append(~alive)
    return found


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pad", ["left", "right"])
def test_padding_may_hold_anything(backend: Any, pad: str, direction: str, dtype: str) -> None:
    """Steps that do not count, and gradients of parts that have no other, change no bit."""
    if not backend.has_dtype(dtype):
        pytest.skip(f"{dtype} is not available on {backend.name}")
    for cell, slices, recompute in itertools.product(CELLS, ((2, 2), (4,)), (False, True)):
        problem = problem_of(
            cell, slices, 11, 4, 6, direction=direction, pad=pad, with_lengths=True, dtype=dtype
        )
        problem.lengths[:] = (11, 2, 0, 7)
        assert problem.dlevels is not None
        assert problem.dy is not None
        expected = backend.outcome(problem, recompute=recompute)
        if not recompute:
            assert_close(expected, problem.solve(), TOLERANCE[dtype])
        outside = ~problem.counted()
        dead = dead_parts(problem)
        for i, parts in enumerate(dead):
            assert parts.any()
            state = expected[f"levels_{i}"]
            assert not state[parts].astype(np.float64).any(), "0 where nothing counts"
            assert state[~parts].astype(np.float64).any()
        for junk in (np.nan, np.inf, 1e4):
            problem.x[outside] = junk
            for parts, gradient in zip(dead, problem.dlevels, strict=True):
                gradient[parts] = -junk
            problem.dy[2] = junk
            with np.errstate(all="ignore"):
                actual = backend.outcome(problem, recompute=recompute)
            assert_same_bits(actual, expected, (cell, slices, junk))
            assert not actual["dx"][outside].astype(np.float64).any()


@pytest.mark.parametrize("cell", CELLS)
def test_junk_at_padding_of_a_large_problem(backend: Any, cell: str) -> None:
    skip_emulated(backend)
    for direction, pad in zip(DIRECTIONS, ("left", "right", "left"), strict=True):
        problem = problem_of(
            cell, (4, 8), 100, 20, 50, inputs=30, direction=direction, pad=pad, with_lengths=True,
            dtype="float32",
        )  # fmt: skip
        expected = backend.outcome(problem)
        problem.x[~problem.counted()] = np.nan
        assert_same_bits(backend.outcome(problem), expected)


def test_lengths_do_not_count_without_a_mask(backend: Any) -> None:
    for cell, pad in itertools.product(CELLS, ("left", "right")):
        problem = problem_of(cell, (2, 2), mask="none", pad=pad)
        expected = backend.outcome(problem)
        lengths = np.array([0, 3, 9])
        assert_same_bits(backend.outcome(replace(problem, lengths=lengths)), expected)


def test_without_a_mask_padding_is_data(backend: Any) -> None:
    """mask="none" equals a sequence that is written out with zeros."""
    for cell, pad in itertools.product(CELLS, ("left", "right")):
        problem = problem_of(cell, (3, 2), 10, mask="none", pad=pad)
        zeros = np.zeros((2, *problem.x.shape[1:]))
        parts = [zeros, problem.x] if pad == "left" else [problem.x, zeros]
        whole = replace(problem, x=np.concatenate(parts), expected={})
        assert_close(backend.outcome(problem), problem.solve(), 1e-12)
        expected = backend.outcome(whole)
        expected["dx"] = expected["dx"][2:] if pad == "left" else expected["dx"][:-2]
        assert_close(backend.outcome(problem), expected, 1e-13)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("cell", CELLS)
def test_all_padded(backend: Any, cell: str, pad: str) -> None:
    for direction, recompute in itertools.product(DIRECTIONS, (False, True)):
        problem = problem_of(cell, (2, 2), direction=direction, pad=pad)
        for name, value in backend.outcome(
            replace(problem, lengths=np.zeros(3, int)), recompute=recompute
        ).items():
            assert not value.any(), name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "slices"),
    [(9, 4, 5, (2, 2)), (21, 5, 33, (4,)), (50, 6, 64, (4, 2)), (40, 20, 50, (8,))],
)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_does_not_depend_on_others(
    backend: Any,
    cell: str,
    *,
    steps: int,
    batch: int,
    hidden: int,
    slices: tuple[int, ...],
    dtype: str,
) -> None:
    """A batch gives each sequence what it gets alone: on the CPU, bit for bit."""
    if not backend.has_dtype(dtype):
        pytest.skip(f"{dtype} is not available on {backend.name}")
    if hidden > 5:
        skip_emulated(backend)
    for pad, direction in (("left", "bidirectional"), ("right", "forward")):
        problem = problem_of(
            cell, slices, steps, batch, hidden, inputs=17, direction=direction, pad=pad,
            with_lengths=True, dtype=dtype,
        )  # fmt: skip
        problem.lengths[:3] = (steps, 0, 1)
        whole = backend.outcome(problem)
        for b in range(min(batch, 6)):
            here = slice(b, b + 1)
            alone = replace(
                problem,
                x=problem.x[:, here],
                lengths=problem.lengths[here],
                dy=problem.dy[here],
                dlevels=[d[:, here] for d in problem.dlevels],
            )
            names = [n for n in whole if is_output(n) or n == "dx"]
            found = {n: whole[n][here] if n == "y" else whole[n][:, here] for n in names}
            expected = backend.outcome(alone)
            expected = {n: expected[n] for n in names}
            if backend.is_cpu:
                assert_same_bits(found, expected, b)
            else:
                wide = {n: v.astype(np.float64) for n, v in expected.items()}
                assert_close(found, wide, TOLERANCE[dtype])


def test_lengths_equal_shorter_sequences(backend: Any) -> None:
    """Where whole parts are left out in front, the others are cut as those of a shorter one."""
    for cell in CELLS:
        problem = problem_of(cell, (4,), 12, 3)
        problem.lengths = np.array([6, 6, 6])  # the last two of four parts
        found = backend.outcome(replace(problem, dlevels=None))
        short = replace(
            problem, x=problem.x[6:], lengths=None, dlevels=None,
            options=problem.options | {"slices": (2,)},
        )  # fmt: skip
        expected = backend.outcome(short)
        assert error(found["y"], expected["y"]) < 1e-13
        assert error(found["dx"][6:], expected["dx"]) < 1e-12
        assert not found["dx"][:6].any()


# Gradients by finite differences


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_finite_differences(backend: Any, variant: str, direction: str) -> None:
    for seed, (pad, mask, with_lengths) in enumerate(PADDING):
        if with_lengths == (direction == "reverse"):  # half of them for each direction
            continue
        problem = problem_of(
            variant, ((2, 2), (2,))[seed // 2 % 2], 5, 2, 2, inputs=2, direction=direction,
            pad=pad, mask=mask, with_lengths=with_lengths, seed=seed,
        )  # fmt: skip

        def loss(problem: SlicedProblem = problem) -> float:
            return problem.loss(backend.named(backend.call(problem, need_grad=False)))

        grads = backend.outcome(problem)
        floats = problem.floats()
        assert grads.keys() >= floats.keys()
        for name, array in floats.items():
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


# backprop, memory, threads


@pytest.mark.parametrize("recompute", [False, True])
def test_backprop_more_than_once_and_out_of_order(backend: Any, recompute: bool) -> None:
    problems = [
        problem_of(c, direction=d, with_lengths=True, seed=s, dtype=t)
        for s, (c, d, t) in enumerate(
            itertools.product(CELLS, DIRECTIONS, ("float64", "float32", "float16"))
        )
    ]
    outputs = [backend.call(p, recompute=recompute) for p in problems]
    for p, output in list(zip(problems, outputs, strict=True))[::-1] * 2:
        gradients = backend.moved(p.gradients)
        output.backprop(gradients["dy"])  # another gradient in between leaves nothing behind
        output.backprop(None, [gradients["dlevels"][0], None, None])
        actual = backend.named(output, output.backprop(**gradients))
        assert_close(actual, p.solve(), TOLERANCE[p.dtype.name])


def test_backprop_keeps_its_inputs_alive(backend: Any) -> None:
    """Lists of levels and slices may be changed after the call; arrays are held."""
    for cell in CELLS:
        problem = problem_of(cell, with_lengths=True)
        expected = backend.outcome(problem)
        _, x, levels = backend.moved(problem.positional())
        slices = list(problem.options["slices"])
        output = penstock.sliced(cell, x, levels, **problem.keywords() | {"slices": slices})
        del x
        levels.clear()
        slices[:] = [7, 7]
        junk = [np.full((9, 3, 4), np.nan) for _ in range(100)]  # reuse what was freed
        grads = output.backprop(**backend.moved(problem.gradients))
        assert len(junk) == 100
        assert_same_bits(backend.named(output, grads), expected)


def test_inputs_are_never_written(backend: Any) -> None:
    for dtype, cell in itertools.product(("float64", "float32", "float16"), CELLS):
        problem = problem_of(cell, direction="bidirectional", with_lengths=True, dtype=dtype)
        arrays = flat(
            {"x": problem.x, "levels": problem.levels, "lengths": problem.lengths,
             **problem.gradients}
        )  # fmt: skip
        copies = {k: v.copy() for k, v in arrays.items()}
        if backend.name == "host":
            for array in arrays.values():
                array.flags.writeable = False
        for recompute in (False, True):
            backend.outcome(problem, recompute=recompute)
        for name, copy in copies.items():
            np.testing.assert_array_equal(arrays[name], copy)


def test_results_are_the_callers_own(backend: Any) -> None:
    """Writing to results changes nothing of what backprop returns."""
    for cell in CELLS:
        problem = problem_of(cell)
        output = backend.call(problem)
        gradients = backend.moved(problem.gradients)
        expected = backend.named(output.backprop(**gradients))
        again = output.backprop(**gradients)
        for array in (output.y, *output.levels, again.dx, *(g for lv in again.dlevels for g in lv)):
            array[...] = np.nan
        assert_same_bits(backend.named(output.backprop(**gradients)), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "slices"),
    [(9, 2, 40, (2, 2)), (130, 3, 64, (4, 4)), (64, 40, 50, (8, 2)), (30, 100, 33, (5,))],
)
@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_threads(
    threads: Callable[[int], None],
    cpu_only: None,
    backend: Any,
    *,
    cell: str,
    steps: int,
    batch: int,
    hidden: int,
    slices: tuple[int, ...],
    dtype: str,
) -> None:
    problem = problem_of(
        cell, slices, steps, batch, hidden, inputs=70, direction=DIRECTIONS[steps % 3],
        with_lengths=True, dtype=dtype,
    )  # fmt: skip
    for recompute in (False, True):
        threads(1)
        expected = backend.outcome(problem, recompute=recompute)
        for n in (2, 3, 8):
            threads(n)
            assert_same_bits(backend.outcome(problem, recompute=recompute), expected, n)


def test_many_threads_at_once(backend: Any) -> None:
    problems = [
        problem_of(c, (2, 3), 20, 4, 12, direction=d, with_lengths=True, dtype=t)
        for c, d, t in itertools.product(CELLS, DIRECTIONS, ("float32", "float64"))
    ]
    expected = [backend.outcome(p) for p in problems]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(backend.outcome, problems * 3))
    for i, result in enumerate(results):
        assert_same_bits(result, expected[i % len(problems)])


def test_reference_against_hand_cut_parts() -> None:
    """Semantics in the open, for one case: six steps, the first two of which are padding."""
    problem = random_sliced("gru", (3,), 5, 1, 2)
    problem.lengths = np.array([4])
    y, states, _ = reference(*problem.positional(), **problem.keywords())
    lower, upper = problem.levels
    options = {"slices": ()}
    parts = [reference("gru", problem.x[t : t + 2], [lower], **options)[0] for t in (1, 3)]
    np.testing.assert_array_equal(states[0][0], np.zeros((1, 2)))
    np.testing.assert_allclose(states[0][1:], parts, rtol=1e-14)
    expected = reference("gru", np.stack(parts), [upper], **options)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-14)
