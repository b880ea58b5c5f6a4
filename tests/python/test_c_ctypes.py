"""The C interface as another language binds it: through ctypes, from the header's words alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import penstock
import pytest

MAX_RANK = 4
FLOAT32, UINT8 = 0, 7
VALUE_ERROR = 1
Check = Callable[[int], None]


class Tensor(ctypes.Structure):
    """penstock_tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("read_only", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
    )


INPUTS = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "lengths")
GRADIENTS = ("dx", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh", "dh0")


class GruForward(ctypes.Structure):
    """penstock_gru_forward_args."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("activation", ctypes.c_int32),
        ("reset", ctypes.c_int32),
        ("direction", ctypes.c_int32),
        ("recompute", ctypes.c_int32),
        ("need_grad", ctypes.c_int32),
        *((name, Tensor) for name in (*INPUTS, "y", "h_last", "workspace", "reserve")),
    )


class GruBackward(ctypes.Structure):
    """penstock_gru_backward_args."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("forward", ctypes.POINTER(GruForward)),
        *((name, Tensor) for name in ("dy", "dh_last", *GRADIENTS, "workspace")),
    )


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """The library that penstock itself has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/libpenstock." in line}
    assert len(paths) == 1
    lib = ctypes.CDLL(paths.pop())
    lib.penstock_last_error.restype = ctypes.c_char_p
    lib.penstock_version.restype = ctypes.c_char_p
    lib.penstock_context_destroy.restype = None
    return lib


@pytest.fixture
def check(library: ctypes.CDLL) -> Check:
    def ok(status: int) -> None:
        assert status == 0, library.penstock_last_error().decode()

    return ok


def tensor(array: np.ndarray, dtype: int = FLOAT32) -> Tensor:
    """Any strides, as NumPy has them."""
    t = Tensor(data=array.ctypes.data, dtype=dtype, rank=array.ndim)
    for axis, (length, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        t.shape[axis] = length
        t.strides[axis] = stride // array.itemsize
    return t


def aligned_bytes(n: int) -> np.ndarray:
    memory = np.empty(n + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + n]


def test_version(library: ctypes.CDLL) -> None:
    assert library.penstock_version().decode() == penstock.__version__


def test_gru_has_the_bits_of_python(library: ctypes.CDLL, check: Check) -> None:
    rng = np.random.default_rng(3)
    steps, batch, features, hidden = 7, 3, 5, 6
    x = rng.standard_normal((batch, steps, features)).astype(np.float32).transpose(1, 0, 2)
    weight_ih = rng.standard_normal((1, 3 * hidden, features)).astype(np.float32) / 3
    weight_hh = rng.standard_normal((1, 3 * hidden, hidden)).astype(np.float32) / 3
    bias_ih, bias_hh = rng.standard_normal((2, 1, 3 * hidden)).astype(np.float32)
    h0 = rng.standard_normal((batch, hidden)).astype(np.float32)
    dy = rng.standard_normal((steps, batch, hidden)).astype(np.float32)
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, h0)

    context = ctypes.c_void_p()
    check(library.penstock_context_create_cpu(ctypes.byref(context)))
    keep: list[np.ndarray] = []

    def scratch(query: str, args: ctypes.Structure) -> Tensor:
        n = ctypes.c_size_t()
        function = getattr(library, f"penstock_gru_{query}_bytes")
        check(function(context, ctypes.byref(args), ctypes.byref(n)))
        keep.append(aligned_bytes(n.value))
        return tensor(keep[-1], UINT8)

    args = GruForward()
    check(
        library.penstock_gru_forward_init(ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
    )
    assert (args.size, args.activation, args.need_grad) == (ctypes.sizeof(args), 1, 1)
    for name, array in zip(INPUTS[:-1], inputs, strict=True):
        setattr(args, name, tensor(array))
    y, h_last = np.empty((steps, batch, hidden), np.float32), np.empty((batch, hidden), np.float32)
    args.y, args.h_last = tensor(y), tensor(h_last)
    args.workspace, args.reserve = scratch("forward_workspace", args), scratch("reserve", args)
    check(library.penstock_gru_forward(context, ctypes.byref(args)))

    back = GruBackward()
    check(
        library.penstock_gru_backward_init(ctypes.byref(back), ctypes.c_size_t(ctypes.sizeof(back)))
    )
    back.forward = ctypes.pointer(args)
    back.dy = tensor(dy)
    gradients = [np.empty(array.shape, np.float32) for array in inputs]
    for name, array in zip(GRADIENTS, gradients, strict=True):
        setattr(back, name, tensor(array))
    back.workspace = scratch("backward_workspace", back)
    check(library.penstock_gru_backward(context, ctypes.byref(back)))
    library.penstock_context_destroy(context)

    expected = penstock.gru(*inputs[:5], h0=h0)
    np.testing.assert_array_equal(y, expected.y)
    np.testing.assert_array_equal(h_last, expected.h_last)
    for got, wanted in zip(gradients, expected.backprop(dy), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_errors_are_those_of_python(library: ctypes.CDLL, check: Check) -> None:
    context = ctypes.c_void_p()
    check(library.penstock_context_create_cpu(ctypes.byref(context)))
    args = GruForward()
    check(
        library.penstock_gru_forward_init(ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
    )
    x, weight_ih = np.zeros((2, 3, 4), np.float32), np.zeros((1, 15, 7), np.float32)
    weight_hh = np.zeros((1, 15, 5), np.float32)
    args.x, args.weight_ih, args.weight_hh = tensor(x), tensor(weight_ih), tensor(weight_hh)
    assert library.penstock_gru_forward(context, ctypes.byref(args)) == VALUE_ERROR
    words = library.penstock_last_error().decode()
    library.penstock_context_destroy(context)
    assert words.startswith("gru: weight_ih: expected shape")
    with pytest.raises(ValueError, match="weight_ih") as caught:
        penstock.gru(x, weight_ih, weight_hh)
    assert str(caught.value) == words
