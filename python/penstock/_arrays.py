"""Array libraries: which one an array belongs to, and how outputs are allocated in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

Array = Any


def array_module(*arrays: Any) -> ModuleType:
    """Return ``cupy`` if any argument is a CuPy array, otherwise ``numpy``.

    CuPy is looked up among the modules that are already imported: an array of a library that
    nobody imported cannot have been passed.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def aligned(array: Array) -> Array:
    """A NumPy array itself or a copy of it that starts at a multiple of 64 bytes.

    NumPy aligns to 16 bytes, so that every full-width vector load of a matrix may straddle two
    cache lines: a single step reads its weight once, and takes a quarter longer. Other arrays are
    returned as they are.
    """
    if type(array) is not np.ndarray or array.ctypes.data % 64 == 0:
        return array
    buffer = np.empty(array.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Caller:
    """How to allocate outputs in the library of the caller's arrays, and on which stream to work.

    ``empty`` and ``empty_bytes`` return None where the extension module allocates by itself.
    """

    def empty(self, x: Array) -> Callable[[tuple[int, ...]], Array] | None:
        """A function from a shape to an uninitialised array of x's type on x's device."""
        return None

    def empty_bytes(self, x: Array) -> Callable[[int], Array] | None:
        """A function from a number of bytes to a buffer on x's device."""
        return None

    def stream(self, x: Array) -> int:
        """The library's current stream on x's device, a cudaStream_t as an integer."""
        return 0

    def call(self, x: Array, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the extension module with x's device current."""
        return function(*args)

    def hand_over(self, output: Array) -> Array:
        """Turn what was allocated into an array of the caller's library."""
        return output

    def from_numpy(self, array: np.ndarray, x: Array) -> Array:
        """Copy a host array to x's device."""
        return array


class _CuPy(Caller):
    def empty(self, x: Array) -> Callable[[tuple[int, ...]], Array]:
        import cupy

        def make(shape: tuple[int, ...]) -> Array:
            with x.device:
                return cupy.empty(shape, x.dtype)

        return make

    def empty_bytes(self, x: Array) -> Callable[[int], Array]:
        import cupy

        def make(n: int) -> Array:
            with x.device:
                return cupy.empty(n, cupy.uint8)

        return make

    def stream(self, x: Array) -> int:
        import cupy

        with x.device:
            return int(cupy.cuda.get_current_stream().ptr)

    def from_numpy(self, array: np.ndarray, x: Array) -> Array:
        import cupy

        with x.device:
            return cupy.asarray(array)

    def call(self, x: Array, function: Callable[..., Any], *args: Any) -> Any:
        with x.device:
            return function(*args)


class _Torch(Caller):
    def empty(self, x: Array) -> Callable[[tuple[int, ...]], Array]:
        import torch

        return lambda shape: torch.empty(shape, dtype=x.dtype, device=x.device)

    def empty_bytes(self, x: Array) -> Callable[[int], Array]:
        import torch

        return lambda n: torch.empty(n, dtype=torch.uint8, device=x.device)

    def stream(self, x: Array) -> int:
        if x.device.type != "cuda":
            return 0
        import torch

        return int(torch.cuda.current_stream(x.device).cuda_stream)

    def call(self, x: Array, function: Callable[..., Any], *args: Any) -> Any:
        if x.device.type != "cuda":
            return function(*args)
        import torch

        with torch.cuda.device(x.device):
            return function(*args)

    def from_numpy(self, array: np.ndarray, x: Array) -> Array:
        import torch

        return torch.from_numpy(array).to(x.device)


class _AnyDLPack(Caller):
    """Any other library: outputs are NumPy's, handed over through DLPack where that is possible."""

    def empty(self, x: Array) -> Callable[[tuple[int, ...]], Array] | None:
        if not _on_host(x):
            raise TypeError(
                f"x: expected an array of CuPy or PyTorch for work on a GPU (actual: "
                f"{type(x).__module__}.{type(x).__name__})"
            )
        return None


class _ArrayApi(_AnyDLPack):
    def __init__(self, namespace: Any) -> None:
        self._from_dlpack = namespace.from_dlpack

    def hand_over(self, output: Array) -> Array:
        return None if output is None else self._from_dlpack(output)


def _on_host(x: Array) -> bool:
    """Whether an array with DLPack lies in memory of the CPU (1) or pinned for CUDA (3)."""
    return int(x.__dlpack_device__()[0]) in (1, 3)


_NUMPY = Caller()
_CUPY = _CuPy()
_TORCH = _Torch()


def caller_of(x: Array) -> Caller:
    """The library that x belongs to.

    Raises:
        TypeError: x is not an array.
    """
    if type(x) is np.ndarray:
        return _NUMPY
    library = type(x).__module__.partition(".")[0]
    if library == "cupy":
        return _CUPY
    if library == "torch":
        return _TORCH
    if isinstance(x, np.ndarray):
        return _NUMPY
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        if hasattr(x, "__array_namespace__"):
            return _ArrayApi(x.__array_namespace__())
        return _AnyDLPack()
    raise TypeError(
        "x: expected an array of NumPy, CuPy or any library with __dlpack__ "
        f"(actual: {type(x).__name__})"
    )


def host_lengths(lengths: Any, x: Array, caller: Caller) -> Array:
    """Check the lengths of a batch of x.shape[1] sequences and put them on x's device.

    x: (T, B, features).

    Lengths that are already on a GPU are passed on as they are: reading them here would wait for
    the GPU.

    Raises:
        TypeError: lengths are not integers.
        ValueError: not one per sequence, or not from 0 to T.
    """
    if hasattr(lengths, "__dlpack_device__") and not _on_host(lengths):
        return lengths
    if not isinstance(lengths, np.ndarray) and hasattr(lengths, "__dlpack__"):
        lengths = np.from_dlpack(lengths)
    try:
        values = np.asarray(lengths)
    except ValueError as e:
        raise ValueError(f"lengths: expected shape (B,) (actual: {e})") from None
    if values.dtype.kind not in "iu" and values.size:
        raise TypeError(f"lengths: expected integers (actual: {values.dtype})")
    shape: tuple[int, ...] = tuple(getattr(x, "shape", ()))
    if len(shape) != 3:
        # The extension module knows the shape that DLPack tells, or finds x wrong itself.
        return caller.from_numpy(np.ascontiguousarray(values, dtype=np.int64), x)
    steps, batch = int(shape[0]), int(shape[1])
    if values.shape != (batch,):
        raise ValueError(f"lengths: expected shape (B,) = ({batch},) (actual: {values.shape})")
    if values.size and (int(values.min()) < 0 or int(values.max()) > steps):
        bad = int(np.flatnonzero((values < 0) | (values > steps))[0])
        raise ValueError(
            f"lengths: expected values from 0 to T = {steps} (actual: {values[bad]} at index {bad})"
        )
    return caller.from_numpy(np.ascontiguousarray(values, dtype=np.int64), x)
