"""Inputs and weights of a case, the same for all contenders, and where their arrays live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from penstock.bench.cases import Case

Array = Any
_LAYERS = {"sru": "SRU", "gru": "GRU", "lstm": "LSTM", "rnn": "RNN"}


class Problem:
    """A case with arrays, all on the host and in the case's element type.

    ``x`` (T, B, D) is normal, ``dy`` (the output's shape) too, ``layer`` is a penstock layer with
    its usual initial values, ``parameters`` are its arrays by name; all from one seed.
    """

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        self.layer = make_layer(case, case.dtype, seed)
        self.parameters = self.layer.state_dict()
        rng = np.random.default_rng(seed)
        self.dtype = next(iter(self.layer.parameters().values())).dtype
        self.x = self._normal(rng, case.T, case.B, case.D)
        self.dy = self._normal(rng, *case.output_shape)
        self._dy_whole: np.ndarray | None = None

    def in_float64(self, rows: int) -> Problem:
        """The same problem in float64, of the first ``rows`` sequences."""
        part = Problem.__new__(Problem)
        part.case = replace(self.case, B=rows, dtype="float64")
        part.layer = self.layer
        part.parameters = {k: np.asarray(v, np.float64) for k, v in self.parameters.items()}
        part.dtype = np.dtype(np.float64)
        part.x = self.x[:, :rows].astype(np.float64)
        part.dy = (self.dy[:rows] if self.case.slices else self.dy[:, :rows]).astype(np.float64)
        part._dy_whole = None
        return part

    def _normal(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        kind = np.float64 if self.case.dtype == "float64" else np.float32
        return rng.standard_normal(shape, kind).astype(self.dtype, copy=False)

    @property
    def dy_whole(self) -> np.ndarray:
        """A gradient for every step's output (T, B, dirs · H), for networks that are not sliced."""
        if self._dy_whole is None:
            shape = self.case.T, self.case.B, self.case.width
            self._dy_whole = self._normal(np.random.default_rng(1), *shape)
        return self._dy_whole


def make_layer(case: Case, dtype: str, seed: int = 0) -> Any:
    """The penstock layer of a case."""
    import penstock

    bidirectional = case.direction == "bidirectional"
    if case.slices:
        return penstock.SlicedRNN(
            case.D, case.H, case.slices, case.op,  # type: ignore[arg-type]
            bidirectional=bidirectional, dtype=dtype, seed=seed,
        )  # fmt: skip
    kind: Any = getattr(penstock, _LAYERS[case.op])
    return kind(
        case.D, case.H, case.layers, bidirectional=bidirectional, dtype=dtype, seed=seed
    )  # fmt: skip


class Library(Protocol):
    """An array library on a device."""

    name: str

    def array(self, host: np.ndarray) -> Array:
        """A copy on the device."""

    def host(self, array: Array) -> np.ndarray:
        """As a NumPy array."""

    def synchronize(self) -> None:
        """Wait for the device."""

    def empty(self, size: int) -> Array:
        """``size`` bytes, written once."""

    def fill(self, array: Array, value: int) -> None:
        """Write a value to every byte."""


class NumpyLibrary:
    """NumPy, on the host."""

    name = "numpy"

    def array(self, host: np.ndarray) -> Array:
        return np.ascontiguousarray(host)

    def host(self, array: Array) -> np.ndarray:
        return np.asarray(array)

    def synchronize(self) -> None:
        pass

    def empty(self, size: int) -> Array:
        return np.ones(size, np.uint8)

    def fill(self, array: Array, value: int) -> None:
        array[...] = value


class TorchLibrary:
    """PyTorch, on the host or on the current CUDA device."""

    name = "torch"

    def __init__(self, device: str) -> None:
        import torch

        self.torch = torch
        self.device = device
        if device == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("torch finds no CUDA device")
            # float32 means float32 for everybody: cuDNN would otherwise round products to TF32.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False

    def array(self, host: np.ndarray) -> Array:
        if host.dtype.name == "bfloat16":  # which torch does not read from NumPy
            wide = self.torch.from_numpy(np.ascontiguousarray(host.astype(np.float32)))
            return wide.to(self.device, self.torch.bfloat16)
        # On the host the memory is shared: contenders do not write to their inputs.
        return self.torch.from_numpy(np.ascontiguousarray(host)).to(self.device)

    def host(self, array: Array) -> np.ndarray:
        array = array.detach().cpu()
        if array.dtype == self.torch.bfloat16:
            array = array.float()
        found: np.ndarray = array.numpy()
        return found

    def synchronize(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def empty(self, size: int) -> Array:
        return self.torch.ones(size, dtype=self.torch.uint8, device=self.device)

    def fill(self, array: Array, value: int) -> None:
        array.fill_(value)


class CupyLibrary:
    """CuPy, on the current CUDA device."""

    name = "cupy"

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        cupy.cuda.runtime.getDeviceCount()

    def array(self, host: np.ndarray) -> Array:
        return self.cupy.asarray(host)

    def host(self, array: Array) -> np.ndarray:
        found: np.ndarray = self.cupy.asnumpy(array)
        return found

    def synchronize(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def empty(self, size: int) -> Array:
        return self.cupy.ones(size, self.cupy.uint8)

    def fill(self, array: Array, value: int) -> None:
        array.fill(value)


def our_library(device: str) -> Library:
    """Where our arrays live: NumPy, or on a GPU PyTorch, whose allocator peers share, or CuPy.

    Raises:
        RuntimeError: ``device`` is "cuda" and neither finds one.
    """
    if device == "cpu":
        return NumpyLibrary()
    reasons = []
    makers: tuple[Callable[[], Library], ...] = (lambda: TorchLibrary("cuda"), CupyLibrary)
    for make in makers:
        try:
            return make()
        except Exception as error:  # whatever a driver or a broken installation raises
            reasons.append(f"{type(error).__name__}: {error}")
    raise RuntimeError("no GPU through PyTorch or CuPy: " + "; ".join(reasons))
