"""One interface to the array libraries that a check runs over: NumPy, CuPy, PyTorch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from bench.gpu_check.worker import Report, Skip

Array = Any


class Host:
    """NumPy arrays: the emulated backend's memory. There are no streams and no graphs."""

    name = "numpy"
    has_streams = False

    def array(self, value: np.ndarray) -> Array:
        """A copy of a host array in this library, on the device."""
        return value.copy()

    def numpy(self, array: Array) -> np.ndarray:
        """A copy of an array on the host, in its own element type."""
        return np.array(array)

    def assign(self, array: Array, value: np.ndarray) -> None:
        """Overwrite an array in place, ordered on the current stream."""
        array[...] = value

    def owns(self, array: Array) -> bool:
        """Whether an array is this library's own, on the device."""
        return type(array) is np.ndarray

    def has_dtype(self, name: str) -> bool:
        try:
            dtype_of(name)
        except ImportError:
            return False
        return True

    def poison(self) -> None:
        """Fill memory that was freed, and that the next arrays may be made of, with NaN."""
        for size in (2**10, 2**14, 2**18):
            np.full(size, np.nan)

    def synchronize(self) -> None:
        pass

    def used_bytes(self) -> int | None:
        """Device memory that this library's arrays occupy; None where it does not count it."""
        return None

    def stream(self) -> AbstractContextManager[Any]:
        """Make a new stream current that does not wait for the default one."""
        raise Skip("there are no streams")

    def lent_stream(self) -> AbstractContextManager[Any] | None:
        """The same, for a stream of another library; None where there is no such thing."""
        return None

    def busy(self, milliseconds: float) -> None:
        """Keep the current stream busy for about this long."""
        raise Skip("there are no streams")

    def is_idle(self) -> bool:
        """Whether all work on the current stream is done."""
        raise Skip("there are no streams")

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Capture what a function puts on the current stream; returns replay and its outputs."""
        raise Skip("there are no graphs")

    def elapsed(self, function: Callable[[], Any]) -> float:
        """Milliseconds between an event before a function's work and one after it."""
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) * 1e3


class Lent:
    """Somebody else's stream, known by the CUDA stream protocol alone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.ptr


class CuPy(Host):
    name = "cupy"
    has_streams = True

    def __init__(self) -> None:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
        self.cupy = cupy
        self._filler: tuple[Any, Any, float] | None = None

    def array(self, value: np.ndarray) -> Array:
        return self.cupy.asarray(value)

    def numpy(self, array: Array) -> np.ndarray:
        return array.get()

    def assign(self, array: Array, value: np.ndarray) -> None:
        array.set(value)

    def owns(self, array: Array) -> bool:
        return type(array) is self.cupy.ndarray

    def has_dtype(self, name: str) -> bool:
        try:
            self.cupy.empty(1, dtype_of(name))
        except (ImportError, TypeError, ValueError):
            return False
        return True

    def poison(self) -> None:
        for size in (2**12, 2**16, 2**20, 2**24):
            self.cupy.full(size, np.nan, np.float32)

    def synchronize(self) -> None:
        self.cupy.cuda.Device().synchronize()

    def used_bytes(self) -> int | None:
        return int(self.cupy.get_default_memory_pool().used_bytes())

    def stream(self) -> AbstractContextManager[Any]:
        return self.cupy.cuda.Stream(non_blocking=True)

    def lent_stream(self) -> AbstractContextManager[Any] | None:
        kind = self.cupy.cuda.Stream
        if not hasattr(kind, "from_external"):  # CuPy before 14
            return None
        self._owner = Lent(self.stream())  # lives as long as its stream may be used
        return kind.from_external(self._owner)

    def busy(self, milliseconds: float) -> None:
        if self._filler is None:
            a = self.cupy.ones(2**26, np.float32)
            b = self.cupy.empty_like(a)
            self.cupy.copyto(b, a)
            each = min(self.elapsed(lambda: self.cupy.copyto(b, a)) for _ in range(3))
            self._filler = (a, b, each)
            self.synchronize()
        a, b, each = self._filler
        for _ in range(1 + int(milliseconds / each)):
            self.cupy.copyto(b, a)

    def is_idle(self) -> bool:
        return bool(self.cupy.cuda.get_current_stream().done)

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        cuda = self.cupy.cuda
        stream = cuda.Stream(non_blocking=True)
        # A pool of the graph's own: what it frees while it is captured, replays still write to.
        pool = cuda.MemoryPool()
        with stream, cuda.using_allocator(pool.malloc):
            for _ in range(2):  # so that the pool need not grow, nor anything be loaded, in capture
                function()
            stream.synchronize()
            stream.begin_capture(mode=cuda.runtime.streamCaptureModeGlobal)
            try:
                outputs = function()
            except Exception:
                with contextlib.suppress(Exception):
                    stream.end_capture()
                raise
            graph = stream.end_capture()

        def replay() -> None:
            graph.launch(cuda.get_current_stream())

        replay.keep = (pool, stream)  # type: ignore[attr-defined]
        return replay, outputs

    def elapsed(self, function: Callable[[], Any]) -> float:
        events = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        events[0].record()
        function()
        events[1].record()
        events[1].synchronize()
        return float(self.cupy.cuda.get_elapsed_time(*events))


class Torch(Host):
    """PyTorch tensors, on its CUDA device or, for the emulated backend, on the host."""

    name = "torch"

    def __init__(self, device: str = "cuda") -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise Skip("PyTorch finds no CUDA device")
        self.torch = torch
        self.device = device
        self.has_streams = device == "cuda"

    def array(self, value: np.ndarray) -> Array:
        return self._host(value).to(self.device, copy=True)

    def _host(self, value: np.ndarray) -> Array:
        value = np.ascontiguousarray(value)
        if value.dtype.name == "bfloat16":  # which torch.from_numpy does not know
            return self.torch.from_numpy(value.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(value)

    def numpy(self, array: Array) -> np.ndarray:
        array = array.detach().cpu()
        if array.dtype == self.torch.bfloat16:
            return array.view(self.torch.int16).numpy().view(dtype_of("bfloat16"))
        return array.numpy().copy()

    def assign(self, array: Array, value: np.ndarray) -> None:
        array.copy_(self._host(value))

    def owns(self, array: Array) -> bool:
        return isinstance(array, self.torch.Tensor) and array.device.type == self.device

    def poison(self) -> None:
        for size in (2**12, 2**16, 2**20, 2**24 if self.has_streams else 2**20):
            self.torch.full((size,), float("nan"), device=self.device)

    def synchronize(self) -> None:
        if self.has_streams:
            self.torch.cuda.synchronize()

    def used_bytes(self) -> int | None:
        return int(self.torch.cuda.memory_allocated()) if self.has_streams else None

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        with self.torch.cuda.stream(self.torch.cuda.Stream()):
            yield

    def stream(self) -> AbstractContextManager[Any]:
        return self._stream() if self.has_streams else super().stream()

    def busy(self, milliseconds: float) -> None:
        if not self.has_streams:
            super().busy(milliseconds)
        # Cycles; 2 GHz is about the clock of such devices, and longer does no harm.
        self.torch.cuda._sleep(int(milliseconds * 2e6))

    def is_idle(self) -> bool:
        if not self.has_streams:
            return super().is_idle()
        return bool(self.torch.cuda.current_stream().query())

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if not self.has_streams:
            return super().capture(function)
        cuda = self.torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(2):
                function()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            outputs = function()
        return graph.replay, outputs

    def elapsed(self, function: Callable[[], Any]) -> float:
        if not self.has_streams:
            return super().elapsed(function)
        events = [self.torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        function()
        events[1].record()
        events[1].synchronize()
        return float(events[0].elapsed_time(events[1]))


Library = Host


def dtype_of(name: str) -> np.dtype:
    """An element type by name.

    Raises:
        ImportError: bfloat16, without ml_dtypes.
    """
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def libraries(emulated: bool, report: Report) -> list[Library]:
    """The libraries with arrays on the device; those that are missing become lines.

    Raises:
        Skip: there is none.
    """
    if emulated:
        return [Host()]
    found: list[Library] = []
    for kind in (CuPy, Torch):
        try:
            found.append(kind())
        except Exception as error:
            report.line(f"{kind.name}: left out ({error})")
    if not found:
        raise Skip("neither CuPy nor PyTorch has the device")
    return found
