"""Arrays as NumPy users have them: any layout, byte order and subclass gives the same result."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import penstock
import pytest
from penstock._arrays import array_module, caller_of
from reference.problems import FLOATS, KEYWORDS, TOLERANCE, Problem, dtype_of, random_problem

OPTIONS: dict[str, Any] = {
    "inputs": 6, "direction": "bidirectional", "mask_site": "output", "padding": "both",
}  # fmt: skip


def call(arrays: dict[str, Any], options: dict[str, Any], dy: Any, dc_last: Any) -> dict[str, Any]:
    rest = {n: arrays[n] for n in KEYWORDS if arrays[n] is not None}
    output = penstock.sru(*(arrays[n] for n in FLOATS[:4]), **rest, **options)
    assert output.backprop is not None
    grads = output.backprop(dy, dc_last)._asdict()
    return {"y": output.y, "c_last": output.c_last} | grads


def agree(make: Callable[[np.ndarray], Any], dtype: str = "float64", form: str = "x_skip") -> None:
    """``make`` changes how an array lies in memory; alone and for all at once nothing changes."""
    problem = random_problem(**OPTIONS, form=form, dtype=dtype)
    arrays = problem.arrays | {"dy": problem.dy, "dc_last": problem.dc_last}

    def run(given: dict[str, Any]) -> dict[str, Any]:
        inputs = {n: given[n] for n in problem.arrays}
        return call(inputs, problem.options, given["dy"], given["dc_last"])

    expected = run(arrays)
    made = {n: None if a is None else make(a) for n, a in arrays.items()}
    for name in [n for n, a in arrays.items() if a is not None]:
        np.testing.assert_array_equal(np.asarray(made[name]), arrays[name], err_msg=name)
        compare(run(arrays | {name: made[name]}), expected)
    compare(run(made), expected)


def compare(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None
            continue
        assert type(actual[name]) is np.ndarray
        assert actual[name].dtype == value.dtype
        assert actual[name].dtype.isnative
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def reversed_strides(a: np.ndarray) -> np.ndarray:
    return np.flip(np.ascontiguousarray(np.flip(a)))


def wide(a: np.ndarray) -> np.ndarray:
    room = np.zeros((*a.shape[:-1], 3 * a.shape[-1] + 1), a.dtype)
    room[..., 1::3] = a
    return room[..., 1::3]


def misaligned(a: np.ndarray) -> np.ndarray:
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = np.ndarray(a.shape, a.dtype, room, offset=1)
    view[...] = a
    assert view.flags.aligned == (a.dtype.itemsize == 1)
    return view


def packed_field(a: np.ndarray) -> np.ndarray:
    """A field of records of odd size: strides are no multiples of the element's."""
    records = np.zeros(a.shape, [("before", "u1"), ("value", a.dtype), ("after", "u2")])
    records["value"] = a
    return records["value"]


def read_only(a: np.ndarray) -> np.ndarray:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def swapped(a: np.ndarray) -> np.ndarray:
    return a.astype(a.dtype.newbyteorder("S"))


def middle(a: np.ndarray) -> np.ndarray:
    room = np.pad(a, [(1, 2)] * a.ndim)
    return room[(slice(1, -2),) * a.ndim]


def other_axes(a: np.ndarray) -> np.ndarray:
    """Axes in reverse order in memory, and backwards."""
    return np.flip(np.flip(a).transpose().copy().transpose())


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    f.__name__: f
    for f in (
        np.asfortranarray, reversed_strides, wide, misaligned, packed_field, read_only, swapped,
        middle, other_axes,
    )
}  # fmt: skip


@pytest.mark.parametrize("form", ["x_skip", "k3", "k4"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, form: str) -> None:
    agree(LAYOUTS[layout], form=form)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_other_types(layout: str, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
        if layout == "swapped":
            pytest.skip("ml_dtypes has one byte order")
    agree(LAYOUTS[layout], dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("layout", ["asfortranarray", "reversed_strides", "wide", "other_axes"])
def test_layouts_of_large_problems(layout: str, dtype: str, cpu_only: None) -> None:
    """From some number of rows on, weights are repacked by groups of channels."""
    make = LAYOUTS[layout]
    problem = random_problem(
        24,
        10,
        136,
        form="x_skip",
        inputs=96,
        direction="bidirectional",
        padding="both",
        dtype=dtype,
    )
    arrays, dy, dc_last = problem.arrays, problem.dy, problem.dc_last
    made = {n: None if a is None else make(a) for n, a in arrays.items()}
    compare(
        call(made, problem.options, make(dy), make(dc_last)),
        call(arrays, problem.options, dy, dc_last),
    )


class Named(np.ndarray):
    """A subclass with an attribute, as units and labels are made."""

    label = ""

    def __array_finalize__(self, obj: Any) -> None:
        self.label = getattr(obj, "label", "")


@pytest.mark.parametrize("kind", [Named, np.recarray, np.memmap])
def test_subclasses(kind: type[np.ndarray], tmp_path: Path) -> None:
    files = iter(range(1000))

    def make(a: np.ndarray) -> np.ndarray:
        if kind is not np.memmap:
            return a.view(kind)
        path = tmp_path / str(next(files))
        a.tofile(path)
        return np.memmap(path, a.dtype, "r", shape=a.shape)

    agree(make)


def test_broadcast_arrays() -> None:
    """One element in memory for many, on any axis."""
    problem = random_problem(**OPTIONS, form="x_skip")
    for name in (*FLOATS, "mask_pad"):
        array = problem.arrays[name]
        for axis in range(array.ndim):
            view = np.broadcast_to(array.take([0], axis), array.shape)
            assert view.strides[axis] == 0
            runs = [
                call(problem.arrays | {name: v}, problem.options, problem.dy, problem.dc_last)
                for v in (view, view.copy())
            ]
            compare(*runs)
    runs = []
    for one in (np.broadcast_to(1.0, problem.dy.shape), np.ones_like(problem.dy)):
        runs.append(call(problem.arrays, problem.options, one, None))
    compare(*runs)


def test_gradients_of_a_sum_are_broadcast() -> None:
    """What NumPy gives for the gradient of a mean has no memory of its own."""
    problem = random_problem()
    output = penstock.sru(*(problem.arrays[n] for n in FLOATS[:4]))
    assert output.backprop is not None
    scale = np.float64(1 / output.y.size)
    view = np.broadcast_to(scale, output.y.shape)
    np.testing.assert_array_equal(
        output.backprop(view).dx, output.backprop(np.full(output.y.shape, scale)).dx
    )


def test_one_array_in_two_places() -> None:
    """Inputs may overlap each other."""
    problem = random_problem(4, 3, 3, form="k3", mask_site="output")
    shared = problem.arrays["c0"]
    runs = [
        call(problem.arrays | {"mask_c": m}, problem.options, problem.dy, shared)
        for m in (shared, shared.copy())
    ]
    compare(*runs)
    output = penstock.sru(*(problem.arrays[n] for n in FLOATS[:4]))
    assert output.backprop is not None
    np.testing.assert_array_equal(
        output.backprop(output.y, output.c_last).dx,
        output.backprop(output.y.copy(), output.c_last.copy()).dx,
    )


def test_outputs_are_contiguous_and_writable(backend: Any) -> None:
    problem = random_problem(**OPTIONS, form="k4")
    problem.arrays["x"] = np.asfortranarray(problem.arrays["x"])
    output = backend.sru(problem)
    assert output.backprop is not None
    grads = output.backprop(output.y)
    for array in (*output[:2], *(g for g in grads if g is not None)):
        assert array.flags.c_contiguous
        array[...] = 0
    shapes = {
        "dx": "x", "dweight": "weight", "dweight_c": "weight_c", "dbias": "bias", "dc0": "c0",
        "dmask_c": "mask_c",
    }  # fmt: skip
    for name, of in shapes.items():
        assert getattr(grads, name).shape == problem.arrays[of].shape


def test_results_are_named(backend: Any) -> None:
    output = backend.sru(random_problem())
    assert isinstance(output, penstock.SRUOutput)
    assert output._fields == ("y", "c_last", "backprop")
    grads = output.backprop(output.y)
    assert isinstance(grads, penstock.SRUGrads)
    assert grads._fields[:6] == ("dx", "dweight", "dweight_c", "dbias", "dc0", "dmask_c")


@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_padding_masks_of_bytes(dtype: str) -> None:
    problem = random_problem(padding="mask")
    expected = call(problem.arrays, problem.options, problem.dy, None)
    mask = problem.arrays["mask_pad"].astype(dtype)
    if dtype == "uint8":
        mask *= 255
    problem.arrays["mask_pad"] = mask
    compare(call(problem.arrays, problem.options, problem.dy, None), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_extreme_numbers_survive_conversion(dtype: str) -> None:
    """Half types are converted at the edges: values that pass through come out as they went in."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    kind = dtype_of(dtype)
    if kind.itemsize == 2:
        values = np.arange(2**16, dtype=np.uint16).view(kind)
    else:
        info = np.finfo(kind)
        values = np.array([0, -0.0, info.tiny, info.smallest_subnormal, info.max, -info.max, np.inf,
                           -np.inf, np.nan, 1, -1, info.eps], kind)  # fmt: skip
    n = len(values)
    # No valid step, so the state goes straight through, and so does its gradient.
    output = penstock.sru(
        np.zeros((1, n, 1), kind), np.zeros((1, 3, 1), kind), None, np.zeros((1, 2, 1), kind),
        c0=values[:, None], lengths=np.zeros(n, int),
    )  # fmt: skip
    assert output.backprop is not None
    for result in (output.c_last, output.backprop(None, values[:, None]).dc0):
        found, given = result[:, 0], values
        with np.errstate(invalid="ignore"):  # signalling NaN
            number = ~np.isnan(given.astype(np.float64))
            np.testing.assert_array_equal(np.isnan(found.astype(np.float64)), ~number)
        assert found[number].tobytes() == given[number].tobytes()


def test_rounding_to_half_types_is_to_nearest_even() -> None:
    """Against NumPy's own conversion, through y = u3 of an open skip term."""
    rng = np.random.default_rng(3)
    for dtype in ("float16", "bfloat16"):
        if dtype == "bfloat16":
            pytest.importorskip("ml_dtypes")
        kind = dtype_of(dtype)
        a = (rng.standard_normal(4096) * 10.0 ** rng.integers(-6, 4, 4096)).astype(kind)
        b = rng.standard_normal(1).astype(kind)
        zero, closed = np.zeros((1, 1), kind), np.full((1, 2, 1), -1e4, kind)
        weight = np.stack([zero[0], zero[0], zero[0], b]).reshape(1, 4, 1)
        y = penstock.sru(a.reshape(1, -1, 1), weight, None, closed).y.ravel()
        exact = a.astype(np.float32) * b.astype(np.float32)  # two short factors: no rounding
        np.testing.assert_array_equal(y, exact.astype(kind))


def test_inputs_are_held_as_long_as_backprop_needs_them() -> None:
    problem = random_problem(20, 4, 8)
    counts = {n: sys.getrefcount(problem.arrays[n]) for n in FLOATS[:5]}
    output = penstock.sru(*(problem.arrays[n] for n in FLOATS[:4]), c0=problem.arrays["c0"])
    assert all(sys.getrefcount(problem.arrays[n]) > counts[n] for n in counts)
    del output
    gc.collect()
    assert {n: sys.getrefcount(problem.arrays[n]) for n in counts} == counts
    penstock.sru(*(problem.arrays[n] for n in FLOATS[:4]), need_grad=False)
    assert {n: sys.getrefcount(problem.arrays[n]) for n in counts} == counts


def test_offsets_beyond_two_to_the_31() -> None:
    """Strides count bytes far beyond 32 bits; next to nothing of the memory is touched."""
    problem: Problem = random_problem(3, 2, 4)
    x = problem.arrays["x"]
    expected = penstock.sru(*(problem.arrays[n] for n in FLOATS[:4])).y
    step = 1 << 31
    size = 2 * step + x[0].nbytes
    try:
        room = np.zeros(size, np.uint8)
    except MemoryError:
        pytest.skip("no address space for 4 GiB, of which next to nothing is touched")
    strides = (step, x.strides[1], x.strides[2])
    view = np.lib.stride_tricks.as_strided(room[:8].view(np.float64), x.shape, strides)
    view[...] = x
    np.testing.assert_array_equal(
        penstock.sru(view, *(problem.arrays[n] for n in FLOATS[1:4])).y, expected
    )


# Which library an array belongs to


def test_array_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert array_module() is np
    assert array_module(np.zeros(2), 3, None) is np
    stand_in = types.ModuleType("cupy")

    class ndarray:
        pass

    stand_in.ndarray = ndarray  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    assert array_module(np.zeros(2)) is np
    assert array_module(np.zeros(2), ndarray()) is stand_in


def test_a_library_that_is_not_imported_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert array_module(np.zeros(2)) is np
    assert "cupy" not in sys.modules


@pytest.mark.parametrize("value", [None, 3, [1.0], "x", object()])
def test_what_belongs_to_no_library(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"x: .*actual: {type(value).__name__}"):
        caller_of(value)


class ndarray:
    """What CuPy's class looks like to the bindings: made in Python, its module apart from it."""

    class Pointer:
        def __init__(self, address: int) -> None:
            self.ptr = address

    class Device:
        id = 0

    def __init__(self, array: np.ndarray) -> None:
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype
        self.data, self.device = self.Pointer(array.ctypes.data), self.Device()


ndarray.__module__ = "cupy"


def test_arrays_of_cupy_are_recognised() -> None:
    """They go to CUDA by their own attributes, without an export: here, to why it is off."""
    if penstock.config()["cuda_available"]:
        pytest.skip("a GPU would be given an address of the host")
    arrays = [np.zeros(s, np.float32) for s in ((2, 1, 4), (1, 12, 4), (1, 2, 4))]
    x, weight, bias = (ndarray(a) for a in arrays)
    rest = (None,) * 5
    with pytest.raises(RuntimeError, match="CUDA is not available"):
        penstock._core.sru_forward(
            x, weight, None, bias, *rest, "identity", True, 1.0, "output", "forward", False, None,
            None, 0,
        )  # fmt: skip
