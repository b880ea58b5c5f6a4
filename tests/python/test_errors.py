"""What is wrong with a call is said in words: the argument, what was expected, and what came."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import penstock
import pytest
from reference.problems import FLOATS, Problem, random_problem

OTHERS = ("mask_pad", "lengths")
T, B, D, H = 4, 3, 5, 2


def problem() -> Problem:
    return random_problem(
        T, B, H, form="x_skip", inputs=D, mask_site="output", padding="both", dtype="float32"
    )


def call(p: Problem, **changes: Any) -> Any:
    arrays = p.arrays | {k: v for k, v in changes.items() if k in p.arrays}
    options = p.options | {k: v for k, v in changes.items() if k not in p.arrays}
    rest = {n: arrays[n] for n in (*FLOATS[4:], *OTHERS) if arrays[n] is not None}
    return penstock.sru(*(arrays[n] for n in FLOATS[:4]), **rest, **options)


def fails(
    error: type[Exception] | tuple[type[Exception], ...], *words: str, **changes: Any
) -> None:
    """The call raises ``error`` with all words, and leaves what it was given unchanged."""
    p = problem()
    before = {n: a.copy() for n, a in p.arrays.items() if a is not None}
    with pytest.raises(error) as raised:
        call(p, **changes)
    message = str(raised.value)
    for word in words:
        assert word in message, message
    for n, copy in before.items():
        np.testing.assert_array_equal(p.arrays[n], copy)


def test_the_problem_itself_is_right() -> None:
    assert call(problem()).y.shape == (T, B, H)


@pytest.mark.parametrize("name", [*FLOATS, "mask_pad"])
@pytest.mark.parametrize(
    "value", [3.5, "text", object(), [[1.0]], {}, (1.0, 2.0)], ids=lambda v: type(v).__name__
)
def test_what_is_no_array(name: str, value: Any) -> None:
    fails(TypeError, f"{name}:", "expected an array", type(value).__name__, **{name: value})


@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_none_where_an_array_is_needed(name: str) -> None:
    fails((TypeError, ValueError), f"{name}:", "expected an array", "actual", **{name: None})


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    "dtype",
    ["int8", "int32", "int64", "uint8", "uint16", "bool", "complex64", "complex128", "longdouble",
     "object", "U3", "M8[s]", ">c8", ">i4"],
)  # fmt: skip
def test_element_types_that_are_no_floats(name: str, dtype: str) -> None:
    array = np.zeros(problem().arrays[name].shape, dtype)
    fails(TypeError, f"{name}:", "expected", "actual", **{name: array})


def test_structured_and_empty_element_types() -> None:
    shape = problem().arrays["bias"].shape
    for dtype in (np.dtype([("a", "f4")]), np.dtype("V4"), np.dtype("S4")):
        fails(TypeError, "bias:", "expected", "actual", bias=np.zeros(shape, dtype))


@pytest.mark.parametrize("name", FLOATS[1:])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_mixed_element_types(name: str, dtype: str) -> None:
    array = problem().arrays[name].astype(dtype)
    fails(TypeError, f"{name}:", "expected float32", f"actual: {dtype}", **{name: array})


def test_x_decides_the_element_type() -> None:
    x = problem().arrays["x"].astype(np.float64)
    fails(TypeError, "expected float64", "actual: float32", x=x)


SHAPES = {
    "x": "(T, B, D)",
    "weight": "(dirs, 3*H, D)",
    "weight_c": "(dirs, 2, H)",
    "bias": "(dirs, 2, H)",
    "c0": "(B, dirs*H)",
    "mask_c": "(B, dirs*H)",
    "x_skip": "(T, B, dirs*H)",
    "mask_pad": "(T, B)",
}


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_ranks(name: str) -> None:
    array = problem().arrays[name]
    fails(ValueError, f"{name}:", "expected shape", "actual", **{name: array[..., None]})
    fails(ValueError, f"{name}:", "expected shape", "actual", **{name: array[0]})
    scalar = np.zeros((), array.dtype)
    fails(ValueError, f"{name}:", "expected shape", "actual: ()", **{name: scalar})
    fails(ValueError, f"{name}:", "axes", "actual: 5", **{name: np.zeros((1,) * 5, array.dtype)})


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "x"])
def test_wrong_lengths_of_axes(name: str) -> None:
    array = problem().arrays[name]
    for axis in range(array.ndim):
        for change in (-1, 1):
            shape = list(array.shape)
            shape[axis] += change
            if name == "bias" and axis == 2 and change < 0:
                continue  # another H: then another array is wrong
            text = ", ".join(map(str, shape))
            words = (f"actual: ({text})",) if name != "bias" or axis < 2 else ("expected",)
            named = f"{name}:" if name != "bias" or axis < 2 else "weight"
            fails(ValueError, named, *words, **{name: np.zeros(shape, array.dtype)})


def test_wrong_lengths_of_the_axes_of_x() -> None:
    fails(ValueError, "weight:", f"actual: (1, {3 * H}, {D})", x=np.zeros((T, B, D + 1), "f4"))
    taller, longer = np.zeros((T, B + 1, D), "f4"), np.zeros((T + 2, B, D), "f4")
    fails(ValueError, "x_skip:", f"({T}, {B + 1}, {H})", f"({T}, {B}, {H})", lengths=None, x=taller)
    fails(ValueError, "x_skip:", f"({T + 2}, {B}, {H})", f"({T}, {B}, {H})", x=longer)
    fails(ValueError, "lengths:", f"({B + 1},)", f"({B},)", x=taller)


def test_the_number_of_directions() -> None:
    fails(ValueError, "bias:", "(2, 2, 2)", "actual: (1, 2, 2)", direction="bidirectional")
    p = random_problem(T, B, H, direction="bidirectional")
    with pytest.raises(ValueError, match=r"bias: .*\(1, 2, 2\).*actual: \(2, 2, 2\)"):
        call(p, direction="reverse")


def test_x_can_only_be_the_skip_term_if_it_is_as_wide() -> None:
    fails(ValueError, "weight:", f"4*H = {4 * H}", f"{D} features", f"dirs*H = {H}", x_skip=None)
    p = random_problem(T, B, H, form="k3", direction="bidirectional")
    half = p.arrays["x"][:, :, :H], p.arrays["weight"][:, :, :H]
    with pytest.raises(ValueError, match=r"weight: .*2 features are not dirs\*H = 4"):
        call(p, x=half[0], weight=half[1])


def test_rows_of_the_weight_without_a_skip_term() -> None:
    weight = np.zeros((1, 4 * H, D), "f4")
    fails(ValueError, "weight:", "3*H", f"{4 * H}", weight=weight, x_skip=None, skip=False)
    fails(ValueError, "x_skip:", "actual", skip=False)
    fails(ValueError, "x_skip:", "actual", weight=weight)


def test_no_hidden_features() -> None:
    empty = {"weight": np.zeros((1, 0, D), "f4"), "bias": np.zeros((1, 2, 0), "f4")}
    fails(ValueError, "bias:", "at least one", "(1, 2, 0)", **empty)


# Lengths and masks


@pytest.mark.parametrize(
    "lengths",
    [[1.0, 2.0, 3.0], np.array([1, 2, np.nan]), ["1", "2", "3"], [None] * 3, [True, False, True],
     np.array([1, 2, 3], complex), object()],
)  # fmt: skip
def test_lengths_that_are_no_integers(lengths: Any) -> None:
    fails(TypeError, "lengths:", "expected integers", "actual", lengths=lengths)


@pytest.mark.parametrize(
    ("lengths", "actual"),
    [([1, 2], "(2,)"), ([1, 2, 3, 4], "(4,)"), ([[1, 2, 3]], "(1, 3)"), (2, "()"), ([], "(0,)")],
)
def test_shapes_of_lengths(lengths: Any, actual: str) -> None:
    fails(ValueError, "lengths:", "(3,)", f"actual: {actual}", lengths=lengths)


@pytest.mark.parametrize(
    ("lengths", "actual"),
    [([0, -1, 2], "-1 at index 1"), ([0, 1, 5], "5 at index 2"), ([2**40, 1, 2], "index 0"),
     (np.array([1, 2**64 - 1, 2], np.uint64), "18446744073709551615 at index 1"),
     (np.array([-128, 0, 0], np.int8), "-128 at index 0")],
)  # fmt: skip
def test_values_of_lengths(lengths: Any, actual: str) -> None:
    fails(ValueError, "lengths:", f"from 0 to T = {T}", actual, lengths=lengths)


def test_ragged_lengths() -> None:
    fails((TypeError, ValueError), "lengths", lengths=[[1], [1, 2], 3])


def test_lengths_with_a_wrong_x() -> None:
    """x is what is wrong, and so what is named, though lengths are looked at first."""
    for x in (np.zeros(3, "f4"), np.zeros((T, B), "f4"), np.zeros((), "f4")):
        fails(ValueError, "x:", "(T, B, D)", x=x, lengths=np.array([1, 1, 1]))


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64", "complex64", "int8"])
def test_masks_that_are_no_booleans(dtype: str) -> None:
    fails(TypeError, "mask_pad:", "actual", mask_pad=np.zeros((T, B), dtype))


# Options


@pytest.mark.parametrize("name", ["activation", "direction", "mask_site"])
@pytest.mark.parametrize("value", ["", "Tanh", "sigmoid", "out put", "forwards", "ä"])
def test_words_that_are_no_choice(name: str, value: str) -> None:
    fails(ValueError, f"{name}:", "expected one of '", f"'{value}'", **{name: value})


@pytest.mark.parametrize("name", ["activation", "direction", "mask_site"])
@pytest.mark.parametrize("value", [None, 3, ["tanh"]])
def test_choices_that_are_no_words(name: str, value: Any) -> None:
    fails((TypeError, ValueError), name, "expected", "actual", **{name: value})


@pytest.mark.parametrize("value", ["two", None, [1.0], 1j, object()])
def test_scale_x_must_be_a_number(value: Any) -> None:
    fails(TypeError, "scale_x", "expected", "actual", scale_x=value)


def test_unknown_options_are_refused() -> None:
    fails(TypeError, "hidden", hidden=3)


# backprop


@pytest.mark.parametrize("name", ["dy", "dc_last"])
def test_gradients_of_outputs(name: str) -> None:
    p = problem()
    output = call(p)
    right = {"dy": p.dy, "dc_last": p.dc_last}[name]
    before = [None if g is None else g.copy() for g in output.backprop(p.dy, p.dc_last)]
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
        with pytest.raises(error) as raised:
            output.backprop(**{name: value})
        assert f"{name}:" in str(raised.value)
        assert words in str(raised.value)
    for a, b in zip(before, output.backprop(p.dy, p.dc_last), strict=True):
        assert (a is None) == (b is None)
        np.testing.assert_array_equal(a, b)


def test_errors_keep_nothing_alive() -> None:
    class Weighty(np.ndarray):
        """An array that can be watched: arrays of NumPy's own class have no weak references."""

    p = problem()
    x = p.arrays["x"].view(Weighty)
    alive = weakref.ref(x)
    with pytest.raises(ValueError, match="bias"):
        call(p, x=x, bias=np.zeros((1, 3, H), "f4"))
    with pytest.raises(ValueError, match="activation"):
        call(p, x=x, activation="none")
    del x
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("name", ["skip", "need_grad"])
@pytest.mark.parametrize("value", [1, "yes", None, [True]], ids=lambda v: type(v).__name__)
def test_flag_of_another_type(name: str, value: Any) -> None:
    fails(TypeError, f"{name}:", "expected True or False", **{name: value})


def test_masked_array() -> None:
    x = np.ma.masked_array(problem().arrays["x"], mask=False)
    fails(TypeError, "x:", "expected an array without a mask", "MaskedArray", x=x)
