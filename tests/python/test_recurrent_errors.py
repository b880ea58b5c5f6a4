"""Errors of rnn, gru, lstm and sliced: the argument, what was expected, and what came."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import penstock
import pytest
from reference.recurrent_problems import (
    GATES,
    RecurrentProblem,
    SlicedProblem,
    random_recurrent,
    random_sliced,
)

CELLS = ("rnn", "gru", "lstm")
T, B, D, H = 4, 3, 5, 2
FLOATS = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0")
BAD_TYPES = (
    "int8", "int32", "int64", "uint8", "uint16", "bool", "complex64", "longdouble", "object", "U3",
    "M8[s]", ">c8", ">i4",
)  # fmt: skip
NO_ARRAYS = (3.5, "text", object(), [[1.0]], {}, (1.0, 2.0))

Error = type[Exception] | tuple[type[Exception], ...]


def problem_of(cell: str) -> RecurrentProblem:
    return random_recurrent(cell, T, B, H, inputs=D, with_lengths=True, dtype="float32")


def call(p: RecurrentProblem, **changes: Any) -> Any:
    arrays = {n: changes.pop(n, a) for n, a in p.arrays.items()}
    given = RecurrentProblem(p.cell, arrays, p.options, {})
    return getattr(penstock, p.cell)(*given.positional(), **given.keywords() | changes)


def raises(error: Error, words: tuple[str, ...], function: Callable[[], Any]) -> None:
    with pytest.raises(error) as raised:
        function()
    message = str(raised.value)
    for word in words:
        assert word in message, message


def fails(cell: str, error: Error, *words: str, **changes: Any) -> None:
    """The call raises ``error`` with all words, and leaves what it was given unchanged."""
    p = problem_of(cell)
    before = {n: a.copy() for n, a in p.arrays.items() if a is not None}
    raises(error, words, lambda: call(p, **changes))
    for n, copy in before.items():
        np.testing.assert_array_equal(p.arrays[n], copy)


def names_of(cell: str) -> tuple[str, ...]:
    return FLOATS if cell == "lstm" else FLOATS[:-1]


def test_the_problems_themselves_are_right() -> None:
    for cell in CELLS:
        assert call(problem_of(cell)).y.shape == (T, B, H)


@pytest.mark.parametrize("value", NO_ARRAYS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_no_array(cell: str, value: Any) -> None:
    for name in names_of(cell):
        words = (f"{name}:", "expected an array", type(value).__name__)
        fails(cell, TypeError, *words, **{name: value})


@pytest.mark.parametrize("cell", CELLS)
def test_none_where_an_array_is_needed(cell: str) -> None:
    for name in ("x", "weight_ih", "weight_hh"):
        fails(cell, (TypeError, ValueError), f"{name}:", "expected an array", **{name: None})


@pytest.mark.parametrize("dtype", BAD_TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_element_types_that_are_no_floats(cell: str, dtype: str) -> None:
    for name in names_of(cell):
        array = np.zeros(problem_of(cell).arrays[name].shape, dtype)
        fails(cell, TypeError, f"{name}:", "expected", "actual", **{name: array})


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("cell", CELLS)
def test_mixed_element_types(cell: str, dtype: str) -> None:
    for name in names_of(cell)[1:]:
        array = problem_of(cell).arrays[name].astype(dtype)
        words = (f"{name}:", "expected float32", f"actual: {dtype}")
        fails(cell, TypeError, *words, **{name: array})
    x = problem_of(cell).arrays["x"].astype(dtype)
    fails(cell, TypeError, f"expected {dtype}", "actual: float32", x=x)


@pytest.mark.parametrize("cell", CELLS)
def test_wrong_ranks(cell: str) -> None:
    for name in names_of(cell):
        array = problem_of(cell).arrays[name]
        words = (f"{name}:", "expected shape", "actual")
        fails(cell, ValueError, *words, **{name: array[..., None]})
        fails(cell, ValueError, *words, **{name: array[0]})
        fails(cell, ValueError, *words, **{name: np.zeros((), array.dtype)})
        five = np.zeros((1,) * 5, array.dtype)
        fails(cell, ValueError, f"{name}:", "axes", "actual: 5", **{name: five})


@pytest.mark.parametrize("cell", CELLS)
def test_wrong_lengths_of_axes(cell: str) -> None:
    for name in names_of(cell)[1:]:
        array = problem_of(cell).arrays[name]
        for axis in range(array.ndim):
            for change in (-1, 1):
                shape = list(array.shape)
                shape[axis] += change
                words = (f"{name}:", "expected shape", "actual: (" + ", ".join(map(str, shape)))
                if name == "weight_hh" and axis == 2:
                    words = ("weight_", "expected shape")  # another H: other arrays are wrong
                fails(cell, ValueError, *words, **{name: np.zeros(shape, array.dtype)})


@pytest.mark.parametrize("cell", CELLS)
def test_wrong_lengths_of_the_axes_of_x(cell: str) -> None:
    rows = GATES[cell] * H
    wide = np.zeros((T, B, D + 1), "f4")
    fails(cell, ValueError, "weight_ih:", f"(1, {rows}, {D + 1})", f"(1, {rows}, {D})", x=wide)
    taller = np.zeros((T, B + 1, D), "f4")
    fails(cell, ValueError, "h0:", f"({B + 1}, {H})", f"({B}, {H})", x=taller, lengths=None)
    fails(cell, ValueError, "lengths:", f"({B + 1},)", f"({B},)", x=taller)


@pytest.mark.parametrize("cell", CELLS)
def test_the_number_of_directions(cell: str) -> None:
    fails(cell, ValueError, "weight_", "(2, ", "actual: (1, ", direction="bidirectional")
    p = random_recurrent(cell, T, B, H, direction="bidirectional")
    raises(ValueError, ("weight_", "(1, ", "actual: (2, "), lambda: call(p, direction="reverse"))


@pytest.mark.parametrize("cell", CELLS)
def test_no_hidden_features(cell: str) -> None:
    empty = {
        "weight_ih": np.zeros((1, 0, D), "f4"), "weight_hh": np.zeros((1, 0, 0), "f4"),
        "bias_ih": None, "bias_hh": None, "h0": None,
    }  # fmt: skip
    fails(cell, ValueError, "weight_hh:", "at least one", "(1, 0, 0)", **empty)


@pytest.mark.parametrize("cell", CELLS)
def test_lengths(cell: str) -> None:
    for wrong in ([1.0, 2.0, 3.0], ["1", "2", "3"], [None] * 3, [True, False, True], object()):
        fails(cell, TypeError, "lengths:", "expected integers", "actual", lengths=wrong)
    for short, actual in (([1, 2], "(2,)"), ([[1, 2, 3]], "(1, 3)"), (2, "()"), ([], "(0,)")):
        fails(cell, ValueError, "lengths:", "(3,)", f"actual: {actual}", lengths=short)
    for outside, actual in (([0, -1, 2], "-1 at index 1"), ([0, 1, 5], "5 at index 2")):
        fails(cell, ValueError, "lengths:", f"from 0 to T = {T}", actual, lengths=outside)
    fails(cell, ValueError, "x:", "(T, B, D)", x=np.zeros((T, B), "f4"))


def test_words_and_flags() -> None:
    for cell in CELLS:
        names = {"rnn": ("activation",), "gru": ("activation", "reset"), "lstm": ()}[cell]
        for name in (*names, "direction"):
            for word in ("", "Tanh", "sigmoid", "forwards", "ä"):
                fails(
                    cell, ValueError, f"{name}:", "expected one of '", f"'{word}'", **{name: word}
                )
            for value in (None, 3, ["tanh"]):
                fails(cell, TypeError, f"{name}:", "expected one of '", "actual", **{name: value})
        for name in ("recompute", "need_grad"):
            for value in (1, "yes", None, [True]):
                fails(cell, TypeError, f"{name}:", "expected True or False", **{name: value})


@pytest.mark.parametrize(
    ("cell", "name"),
    [("rnn", "reset"), ("rnn", "c0"), ("gru", "c0"), ("lstm", "activation"), ("gru", "hidden")],
)
def test_arguments_that_a_cell_does_not_have(cell: str, name: str) -> None:
    fails(cell, TypeError, name, **{name: None})


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_outputs(cell: str) -> None:
    p = problem_of(cell)
    output = call(p)
    before = [None if g is None else g.copy() for g in output.backprop(**p.gradients)]
    for name, right in p.gradients.items():
        assert right is not None
        wrong: list[tuple[type[Exception], Any, str]] = [
            (ValueError, right[..., :1], "actual: ("),
            (ValueError, right[0], "actual: ("),
            (ValueError, right[None], "actual: "),
            (TypeError, right.astype(np.float64), "actual: float64"),
            (TypeError, right.astype(int), "actual: int64"),
            (TypeError, right.tolist(), "actual: list"),
            (TypeError, 1.0, "actual: float"),
        ]
        for error, value, words in wrong:
            raises(error, (f"{name}:", words), lambda n=name, v=value: output.backprop(**{n: v}))
    for a, b in zip(before, output.backprop(**p.gradients), strict=True):
        assert (a is None) == (b is None)
        np.testing.assert_array_equal(a, b)


class Elsewhere:
    """An array in memory that is neither the host's nor CUDA's."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 8, 0  # Metal

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("refused by its device alone")


def test_other_devices(backend: Any) -> None:
    for cell in CELLS:
        for name in names_of(cell)[1:]:
            fails(cell, BufferError, f"{name}:", "device type 8", **{name: Elsewhere()})
        for name in problem_of(cell).gradients:
            back = call(problem_of(cell)).backprop
            words = (f"{name}:", "device type 8")
            raises(BufferError, words, lambda b=back, n=name: b(**{n: Elsewhere()}))
    p = sliced_problem()
    for i, level in enumerate(p.levels):
        for j in range(len(level)):
            words = (f"levels[{i}].{PARAMETERS['gru'][j]}:", "device type 8")
            sliced_fails("gru", BufferError, *words, levels=changed(p.levels, i, j, Elsewhere()))
    if backend.name != "cuda":
        return
    q = problem_of("gru")
    for name in names_of("gru"):
        arrays = {n: backend.to_device(a) for n, a in q.arrays.items() if a is not None}
        arrays[name] = q.arrays[name]
        raises(BufferError, ("expected an array on",), lambda a=arrays: call(q, **a))
    x, levels = backend.to_device(p.x), backend.moved(p.levels)
    for i, level in enumerate(p.levels):
        for j, array in enumerate(level):
            words = (f"levels[{i}].{PARAMETERS['gru'][j]}:", "expected an array on")
            mixed = changed(levels, i, j, array)
            raises(BufferError, words, lambda m=mixed: call_sliced(p, x=x, levels=m))
    output = call_sliced(p, x=x, levels=levels)
    raises(BufferError, ("dy:", "x's device"), lambda: output.backprop(p.dy))
    raises(BufferError, ("dlevels[0]:", "x's device"), lambda: output.backprop(None, p.dlevels))


class Weighty(np.ndarray):
    """An array that can be watched: arrays of NumPy's own class have no weak references."""


def test_errors_keep_nothing_alive() -> None:
    for cell in CELLS:
        p = problem_of(cell)
        x = p.arrays["x"].view(Weighty)
        alive = weakref.ref(x)
        raises(ValueError, ("bias_hh",), lambda p=p, x=x: call(p, x=x, bias_hh=p.arrays["h0"]))
        raises(ValueError, ("direction",), lambda p=p, x=x: call(p, x=x, direction="up"))
        del x
        gc.collect()
        assert alive() is None


def test_backprop_holds_its_inputs_no_longer_than_it_lives() -> None:
    for cell in CELLS:
        p = problem_of(cell)
        x = p.arrays["x"].view(Weighty)
        alive = weakref.ref(x)
        output = call(p, x=x)
        del x
        gc.collect()
        assert alive() is not None
        del output
        gc.collect()
        assert alive() is None


# Sliced


def sliced_problem(cell: str = "gru") -> SlicedProblem:
    return random_sliced(cell, (2,), T, B, H, inputs=D, with_lengths=True, dtype="float32")


def call_sliced(p: SlicedProblem, **changes: Any) -> Any:
    positional = {"cell": p.cell, "x": p.x, "levels": p.levels}
    args = [changes.pop(n, value) for n, value in positional.items()]
    return penstock.sliced(*args, **p.keywords() | changes)


def sliced_fails(of: str, error: Error, *words: str, **changes: Any) -> None:
    p = sliced_problem(of)
    before = p.x.copy(), [[None if a is None else a.copy() for a in lv] for lv in p.levels]
    raises(error, words, lambda: call_sliced(p, **changes))
    np.testing.assert_array_equal(p.x, before[0])
    for level, copies in zip(p.levels, before[1], strict=True):
        for a, copy in zip(level, copies, strict=True):
            np.testing.assert_array_equal(a, copy)


def changed(levels: list[list[Any]], i: int, j: int, value: Any) -> list[list[Any]]:
    copy = [list(level) for level in levels]
    copy[i][j] = value
    return copy


PARAMETERS = {cell: ("weight_ih", "weight_hh", "bias_ih", "bias_hh") for cell in CELLS} | {
    "sru": ("weight", "weight_c", "bias")
}


def test_the_sliced_problems_themselves_are_right() -> None:
    for cell in PARAMETERS:
        assert call_sliced(sliced_problem(cell)).y.shape == (B, H)


@pytest.mark.parametrize("cell", PARAMETERS)
def test_parameters_of_levels(cell: str) -> None:
    """Named by their level and their cell's own words."""
    p = sliced_problem(cell)
    for i, level in enumerate(p.levels):
        for j, (name, array) in enumerate(zip(PARAMETERS[cell], level, strict=True)):
            full = f"levels[{i}].{name}:"
            for value in NO_ARRAYS:
                words = (full, "expected an array", type(value).__name__)
                sliced_fails(cell, TypeError, *words, levels=changed(p.levels, i, j, value))
            for dtype in ("float64", "float16"):
                words = (full, "expected float32", f"actual: {dtype}")
                levels = changed(p.levels, i, j, array.astype(dtype))
                sliced_fails(cell, TypeError, *words, levels=levels)
            for wrong in (array[..., None], array[0], np.zeros((), "f4")):
                levels = changed(p.levels, i, j, wrong)
                sliced_fails(cell, ValueError, full, "expected shape", "actual", levels=levels)
            shape = list(array.shape)
            shape[1] += 1
            levels = changed(p.levels, i, j, np.zeros(shape, "f4"))
            words = (full, "expected shape", "actual: (" + ", ".join(map(str, shape)))
            sliced_fails(cell, ValueError, *words, levels=levels)
            if name in ("weight_ih", "weight_hh", "weight") or (cell == "sru" and name == "bias"):
                levels = changed(p.levels, i, j, None)
                sliced_fails(cell, ValueError, full, "expected an array", levels=levels)


@pytest.mark.parametrize("cell", PARAMETERS)
def test_inputs_of_levels(cell: str) -> None:
    p = sliced_problem(cell)
    weight = PARAMETERS[cell][0]
    rows = p.levels[1][0].shape[1]
    for i, features in ((0, D), (1, H)):
        levels = changed(p.levels, i, 0, np.zeros((1, p.levels[i][0].shape[1], features + 1), "f4"))
        words = (f"levels[{i}].{weight}:", f", {features})", f", {features + 1})")
        sliced_fails(cell, ValueError, *words, levels=levels)
    assert rows == (3 * H if cell == "sru" else GATES[cell] * H)


@pytest.mark.parametrize("cell", PARAMETERS)
def test_the_number_of_levels(cell: str) -> None:
    p = sliced_problem(cell)
    for levels in ([], p.levels[:1], p.levels * 2):
        words = ("levels:", "len(slices) + 1 = 2", f"actual: {len(levels)}")
        sliced_fails(cell, ValueError, *words, levels=levels)
    most = len(PARAMETERS[cell])
    for level in ([], p.levels[1][:1], [*p.levels[1], None]):
        words = ("levels[1]:", PARAMETERS[cell][0], f"actual: {len(level)}")
        sliced_fails(cell, ValueError, *words, levels=[p.levels[0], level])
    assert most == len(p.levels[1])
    for wrong in (None, 3, "gru", {}, p.x, iter(p.levels)):
        words = ("levels:", "a list or tuple", type(wrong).__name__)
        sliced_fails(cell, TypeError, *words, levels=wrong)
        words = ("levels[0]:", PARAMETERS[cell][0], type(wrong).__name__)
        sliced_fails(cell, TypeError, *words, levels=[wrong, p.levels[1]])


def test_slices() -> None:
    for wrong, actual in (((0,), "0"), ((-3,), "-3"), ((-(2**70),), str(-(2**70)))):
        sliced_fails("gru", ValueError, "slices", "at least 1", f"actual: {actual}", slices=wrong)
    sliced_fails("gru", ValueError, "slices[0]", "64 bits", str(2**63), slices=(2**63,))
    level = sliced_problem().levels[1]
    levels = [sliced_problem().levels[0], *[level] * 2]
    words = ("slices[1]", "at least 1", "actual: 0")
    sliced_fails("gru", ValueError, *words, slices=(2, 0), levels=levels)
    for value in (None, 2, "2", {2}, np.array([2]), iter([2])):
        words = ("slices:", "a list or tuple", type(value).__name__)
        sliced_fails("gru", TypeError, *words, slices=value)
    for item in (2.0, "2", None, [2]):
        words = ("slices[0]:", "an integer", type(item).__name__)
        sliced_fails("gru", TypeError, *words, slices=(item,))


@pytest.mark.parametrize("slices", [(2**40, 2**40), (2**62, 2), (2**31, 2**31, 4), (2**62, 4)])
def test_more_parts_than_can_be_counted(slices: tuple[int, ...]) -> None:
    p = sliced_problem()
    levels = [p.levels[0], *[p.levels[1]] * len(slices)]
    sliced_fails("gru", ValueError, "slices", "actual", slices=slices, levels=levels)


def test_more_levels_than_there_may_be() -> None:
    p = sliced_problem()
    levels = [p.levels[0], *[p.levels[1]] * 16]
    words = ("slices:", "at most 15", "actual: 16")
    sliced_fails("gru", ValueError, *words, slices=(1,) * 16, levels=levels)


def test_integers_of_numpy_are_integers() -> None:
    p = sliced_problem()
    expected = call_sliced(p).y
    for two in (np.int64(2), np.uint8(2), np.int32(2)):
        np.testing.assert_array_equal(call_sliced(p, slices=[two]).y, expected)


def test_options_of_sliced() -> None:
    for name in ("pad", "mask", "direction", "activation", "reset", "cell"):
        for word in ("", "Left", "elman", "ä"):
            words = (f"{name}:", "expected one of '", f"'{word}'")
            sliced_fails("gru", ValueError, *words, **{name: word})
        for value in (None, 3, ["gru"]):
            if name == "activation" and value is None:
                continue  # the cell's default
            words = (f"{name}:", "expected one of '", type(value).__name__)
            sliced_fails("gru", TypeError, *words, **{name: value})
    for name in ("recompute", "need_grad", "skip"):
        sliced_fails("gru", TypeError, f"{name}:", "True or False", "int", **{name: 1})
    sliced_fails("sru", TypeError, "scale_x:", "a number", "str", scale_x="1")
    for word in ("relu", "identity"):
        sliced_fails("lstm", ValueError, "activation:", "'tanh'", f"'{word}'", activation=word)
    sliced_fails("gru", TypeError, "hidden", hidden=3)


def test_x_and_lengths_of_sliced() -> None:
    for value in (*NO_ARRAYS, None):
        sliced_fails("gru", TypeError, "x:", "expected an array", type(value).__name__, x=value)
    for wrong in (np.zeros((T, B), "f4"), np.zeros(3, "f4"), np.zeros((T, B, D, 1), "f4")):
        sliced_fails("gru", ValueError, "x:", "(T, B, D)", x=wrong)
    sliced_fails("gru", TypeError, "x:", "int64", x=np.zeros((T, B, D), int))
    sliced_fails("gru", ValueError, "lengths:", "(3,)", "actual: (2,)", lengths=[1, 2])
    sliced_fails("gru", ValueError, "lengths:", "from 0 to T = 4", "5 at", lengths=[1, 2, 5])
    sliced_fails("gru", TypeError, "lengths:", "integers", lengths=[1.0, 2.0, 3.0])


def test_sru_of_sliced() -> None:
    """Level 0 has x in the skip term only where it is as wide as the output."""
    p = sliced_problem("sru")
    levels = changed(p.levels, 0, 0, np.zeros((1, 3 * H, D), "f4"))
    sliced_fails("sru", ValueError, "levels[0].weight:", f"{4 * H}", f"{3 * H}", levels=levels)
    sliced_fails("sru", ValueError, "levels[0].weight:", f"{3 * H}", f"{4 * H}", skip=False)


@pytest.mark.parametrize("cell", PARAMETERS)
def test_gradients_of_the_outputs_of_sliced(cell: str) -> None:
    p = sliced_problem(cell)
    output = call_sliced(p)
    assert p.dlevels is not None
    assert p.dy is not None
    before = output.backprop(p.dy, p.dlevels)
    rights = {"dy": p.dy, "dlevels[0]": p.dlevels[0], "dlevels[1]": p.dlevels[1]}
    for name, right in rights.items():
        assert right is not None
        wrong: list[tuple[type[Exception], Any, str]] = [
            (ValueError, right[..., :1], "actual: ("),
            (ValueError, right[0], "actual: ("),
            (ValueError, right[None], "actual: "),
            (TypeError, right.astype(np.float64), "actual: float64"),
            (TypeError, right.astype(int), "actual: int64"),
            (TypeError, right.tolist(), "actual: list"),
            (TypeError, 1.0, "actual: float"),
        ]
        for error, value, words in wrong:
            # With the other gradients there, too: those of y and of the last level are added.
            for others in (None, [p.dlevels[0], p.dlevels[1]]):

                def run(name: str = name, value: Any = value, others: Any = others) -> None:
                    given = [None, None] if others is None else list(others)
                    if name == "dy":
                        output.backprop(value, given)
                    else:
                        given[int(name[-2])] = value
                        output.backprop(None if others is None else p.dy, given)

                raises(error, (f"{name}:", words), run)
    for count in (0, 1, 3):
        wrong_count = lambda n=count: output.backprop(None, [None] * n)  # noqa: E731
        raises(ValueError, ("dlevels:", "expected 2", f"actual: {count}"), wrong_count)
    for value in (3, "dy", p.dy, iter([])):
        words = ("dlevels:", "a list or tuple", type(value).__name__)
        raises(TypeError, words, lambda v=value: output.backprop(None, v))
    after = output.backprop(p.dy, p.dlevels)
    np.testing.assert_array_equal(before.dx, after.dx)
    for a, b in zip(before.dlevels, after.dlevels, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


def test_errors_of_sliced_keep_nothing_alive() -> None:
    for cell in PARAMETERS:
        p = sliced_problem(cell)
        x = p.x.view(Weighty)
        alive = weakref.ref(x)
        raises(ValueError, ("pad",), lambda p=p, x=x: call_sliced(p, x=x, pad="up"))
        bad = changed(p.levels, 1, 2, p.x)
        raises(ValueError, ("levels[1]",), lambda p=p, x=x, lv=bad: call_sliced(p, x=x, levels=lv))
        output = call_sliced(p, x=x)
        del x
        gc.collect()
        assert alive() is not None
        del output
        gc.collect()
        assert alive() is None
