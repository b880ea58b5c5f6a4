"""Array libraries: which one an array belongs to, and how outputs are allocated in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from penstock import _core

Array = Any

# A named tuple from a tuple of its fields, in half the time that its own constructor takes.
new_tuple = tuple.__new__


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

    hands_over = False
    """Whether ``hand_over`` does anything."""

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

    def forward(self, x: Array, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, ready to be called: it is told how to allocate, and the stream.

        Itself, which passes nothing on, where it can do without.
        """
        return lambda *args: self.call(
            x, function, *args, self.empty(x), self.empty_bytes(x), self.stream(x)
        )

    def backward(self, x: Array, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, ready to be called: it is told the stream."""
        return lambda *args: self.call(x, function, *args, self.stream(x))

    def hold(self, **arrays: Any) -> Any:
        """Where these arrays lie, for ``check``; None where arrays never move."""
        return None

    def check(self, held: Any) -> None:
        """Check that what ``hold`` saw lies where it did.

        Raises:
            BufferError: an array has been given other memory.
        """

    def hand_over(self, output: Array) -> Array:
        """Turn what was allocated into an array of the caller's library."""
        return output

    def from_numpy(self, array: np.ndarray, x: Array) -> Array:
        """Copy a host array to x's device."""
        return array


class _NumPy(Caller):
    def forward(self, x: Array, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def backward(self, x: Array, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


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
    """For arrays that come from a module of this name, so it is imported: by its first use here."""

    def __init__(self) -> None:
        self._torch: Any = None
        self._tensor: Any = None

    def _plain_tensor(self) -> Any:
        """The type whose arrays the extension module makes by DLPack's exchange in C."""
        tensor = self._module().Tensor
        # Before PyTorch 2.10 there is none, and no array has this type.
        self._tensor = tensor if hasattr(tensor, "__dlpack_c_exchange_api__") else type(None)
        return self._tensor

    def _module(self) -> Any:
        if self._torch is None:
            import torch

            self._torch = torch
        return self._torch

    def empty(self, x: Array) -> Callable[[tuple[int, ...]], Array]:
        torch = self._torch or self._module()
        if type(x) is torch.Tensor:
            return x.new_empty
        # Of a subclass, new_empty would make one, too.
        return lambda shape: torch.empty(shape, dtype=x.dtype, device=x.device)

    def empty_bytes(self, x: Array) -> Callable[[int], Array]:
        torch = self._torch or self._module()
        return lambda n: torch.empty(n, dtype=torch.uint8, device=x.device)

    def forward(self, x: Array, function: Callable[..., Any]) -> Callable[..., Any]:
        if x.is_cuda:
            return super().forward(x, function)
        if type(x) is (self._tensor or self._plain_tensor()):
            return function
        empty = self.empty(x)
        return lambda *args: function(*args, empty)

    def backward(self, x: Array, function: Callable[..., Any]) -> Callable[..., Any]:
        return super().backward(x, function) if x.is_cuda else function

    def stream(self, x: Array) -> int:
        if not x.is_cuda:
            return 0
        return int(self._module().cuda.current_stream(x.device).cuda_stream)

    def call(self, x: Array, function: Callable[..., Any], *args: Any) -> Any:
        if not x.is_cuda:
            return function(*args)
        with self._module().cuda.device(x.device):
            return function(*args)

    def hold(self, **arrays: Any) -> Any:
        # A tensor keeps its memory alive, but `tensor.data = other` gives it other memory, and then
        # not even a tensor that was made from its export keeps the old one.
        kind = (self._torch or self._module()).Tensor
        return [(n, a, a.data_ptr()) for n, a in arrays.items() if isinstance(a, kind)]

    def check(self, held: Any) -> None:
        for name, array, address in held:
            if array.data_ptr() != address:
                raise BufferError(
                    f"{name}: expected the memory that the forward pass read (actual: the tensor "
                    "has been given other memory since)"
                )

    def from_numpy(self, array: np.ndarray, x: Array) -> Array:
        return self._module().from_numpy(array).to(x.device)


class _AnyDLPack(Caller):
    """Any other library: outputs are NumPy's."""

    def empty(self, x: Array) -> Any:
        if not _on_host("x", x):
            raise TypeError(
                f"x: expected an array of CuPy or PyTorch for work on a GPU (actual: "
                f"{type(x).__module__}.{type(x).__name__})"
            )
        return None


class _ArrayApi(_AnyDLPack):
    """Libraries that import through DLPack: outputs are made for that, and handed over."""

    hands_over = True

    def __init__(self, namespace: Any) -> None:
        self._from_dlpack = namespace.from_dlpack

    def empty(self, x: Array) -> Any:
        super().empty(x)
        return _core.HostArray

    def hand_over(self, output: Array) -> Array:
        return None if output is None else self._from_dlpack(output)


def _on_host(name: str, array: Array) -> bool:
    """Whether an array with DLPack lies in memory of the CPU (1) or pinned for CUDA (3).

    Raises:
        BufferError: what it tells of its device is no device.
    """
    try:
        kind, _ = array.__dlpack_device__()
        return int(kind) in (1, 3)
    except Exception as e:
        raise BufferError(
            f"{name}: expected an array whose device can be told (actual: {e})"
        ) from e


_NUMPY = _NumPy()
_CUPY = _CuPy()
_TORCH = _Torch()
# Callers of the types that have been seen; looking one up must cost nothing.
_CALLERS: dict[type, Caller] = {np.ndarray: _NUMPY}


def caller_of(x: Array) -> Caller:
    """The library that x belongs to.

    Raises:
        TypeError: x is not an array.
    """
    kind = type(x)
    known = _CALLERS.get(kind)
    if known is not None:
        return known
    library = kind.__module__.partition(".")[0]
    if library in ("cupy", "torch"):
        return _CALLERS.setdefault(kind, _CUPY if library == "cupy" else _TORCH)
    if isinstance(x, np.ndarray):
        return _NUMPY
    for name, base, caller in (("torch", "Tensor", _TORCH), ("cupy", "ndarray", _CUPY)):
        bases = getattr(sys.modules.get(name), base, None)
        if bases is not None and isinstance(x, bases):
            return caller
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        if hasattr(x, "__array_namespace__"):
            return _ArrayApi(x.__array_namespace__())
        return _AnyDLPack()
    raise TypeError(
        "x: expected an array of NumPy, CuPy or any library with __dlpack__ "
        f"(actual: {kind.__name__})"
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
    if type(lengths) is not np.ndarray and hasattr(lengths, "__dlpack_device__"):
        if not _on_host("lengths", lengths):
            return lengths
        try:
            lengths = np.from_dlpack(lengths)
        except (BufferError, RuntimeError, TypeError, ValueError) as e:
            raise BufferError(f"lengths: expected an array to read (actual: {e})") from e
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
