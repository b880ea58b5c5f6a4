"""The base class of every layer with parameters, and composition of layers.

The protocol: ``layer(x, ..., training=False)`` returns a named tuple whose first field is ``y``
and whose last field is ``backprop``. ``backprop(dy, ...)`` returns a named tuple whose first
field is ``dx`` and which has a field ``dparameters``: a dict with exactly the keys of
``layer.parameters()``. Nothing is recorded anywhere else, so the same layer can be called many
times before its gradients are taken, and gradients of several calls are added by the caller.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from penstock._arrays import aligned, array_module
from penstock.nn._random import rng_state, set_rng_state

Array = Any  #: numpy.ndarray or cupy.ndarray
LayerT = TypeVar("LayerT", bound="Layer")

_FLOATS = ("float32", "float64", "float16", "bfloat16")


def resolve_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the NumPy dtype of one of the four floating types, bfloat16 included.

    Raises ValueError for any other dtype.
    """
    name: str = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in _FLOATS:
        raise ValueError(f"dtype: expected one of {', '.join(_FLOATS)}, got {dtype!r}")
    if name == "bfloat16":
        try:
            import ml_dtypes  # NumPy itself has no bfloat16
        except ImportError as error:
            raise ImportError(
                "dtype: bfloat16 needs ml_dtypes; install it with pip install ml_dtypes"
            ) from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def wide_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which sums over ``dtype`` are taken: float32 for half types, else itself."""
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def parse_device(device: str) -> int | None:
    """Return the CUDA device number of ``"cuda"`` / ``"cuda:1"``, or None for ``"cpu"``."""
    if device == "cpu":
        return None
    if isinstance(device, str):
        kind, _, number = device.partition(":")
        if kind == "cuda" and (number.isdecimal() or ":" not in device):
            return int(number) if number else 0
    raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}")


def to_device(array: Array, device: str) -> Array:
    """Return ``array`` on the device; the same object if it is already there.

    Raises ValueError for an unknown device, ImportError if CuPy is needed and missing.
    """
    number = parse_device(device)
    if number is None:
        return array if isinstance(array, np.ndarray) else array.get()
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f"device: {device!r} needs CuPy, which cannot be imported; "
            "install it with pip install '.[cuda13]' (or [cuda12]) in a clone of penstock"
        ) from error
    if isinstance(array, cupy.ndarray) and array.device.id == number:
        return array
    with cupy.cuda.Device(number):
        return cupy.asarray(array)


def to_host(array: Array) -> npt.NDArray[Any]:
    """Return ``array`` as a NumPy array, copied from the device if it lies there."""
    return array if isinstance(array, np.ndarray) else array.get()


def check_array(name: str, x: Any, like: Array) -> Any:
    """Raise TypeError unless ``x`` is of the same array library as ``like``; return the library."""
    xp = array_module(like)
    if not isinstance(x, xp.ndarray):
        raise TypeError(
            f"{name}: expected a {xp.__name__}.ndarray as the layer's parameters are, "
            f"got {type(x).__module__}.{type(x).__name__}"
        )
    return xp


def check_input(name: str, x: Any, like: Array, width: int) -> Any:
    """Check library, dtype and last axis of a layer's input; return the array library."""
    xp = check_array(name, x, like)
    if x.dtype != like.dtype:
        raise TypeError(
            f"{name}: expected dtype {like.dtype}, that of the parameters, got {x.dtype}"
        )
    if x.ndim < 1 or x.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (..., {width}), got {tuple(x.shape)}")
    return xp


def check_gradient(name: str, dy: Any, like: Array, shape: tuple[int, ...]) -> Array:
    """Check that an incoming gradient matches the output's shape; return it in its dtype."""
    check_array(name, dy, like)
    if tuple(dy.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(dy.shape)}")
    if dy.dtype != like.dtype:
        raise TypeError(f"{name}: expected dtype {like.dtype}, got {dy.dtype}")
    return dy


def positive_int(name: str, value: Any) -> int:
    """Return ``value`` as an int after checking that it is one and at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a positive int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value}")
    return int(value)


def non_negative_int(name: str, value: Any) -> int:
    """Return ``value`` as an int after checking that it is one and not below 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int >= 0, got {value!r}")
    if value < 0:
        raise ValueError(f"{name}: expected an int >= 0, got {value}")
    return int(value)


def no_backprop(*_: Any, **__: Any) -> Any:
    """The ``backprop`` of a call that was told to keep nothing."""
    raise RuntimeError(
        "backprop: this output was computed with need_grad=False (the default unless "
        "training=True); pass training=True or need_grad=True to the layer"
    )


class Layer:
    """Base class of layers: named parameters, devices, state dictionaries, files.

    Subclasses register arrays with :meth:`_add_parameter` (trained), :meth:`_add_buffer` (saved,
    moved, not trained) and generators with :meth:`_add_rng`; layers assigned to attributes
    become children, and their names are prefixed with the attribute's name and a dot.
    """

    def __init__(self) -> None:
        self._parameters: dict[str, Array] = {}
        self._buffers: dict[str, Array] = {}
        self._constants: dict[str, float] = {}
        self._rngs: dict[str, np.random.Generator] = {}
        self._children: dict[str, Layer] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Layer):
            if "_children" not in self.__dict__:
                raise RuntimeError("call super().__init__() before assigning layers")
            self._children[name] = value
        elif "_children" in self.__dict__:
            self._children.pop(name, None)
        object.__setattr__(self, name, value)

    def __call__(self, x: Array, *, training: bool = False, need_grad: bool | None = None) -> Any:
        """Compute the layer's output; see the class for the fields of the result."""
        raise NotImplementedError

    # -- registration, for subclasses ---------------------------------------------------------

    def _add_parameter(self, name: str, array: Array) -> None:
        self._parameters[name] = aligned(array)

    def _add_buffer(self, name: str, array: Array) -> None:
        self._buffers[name] = array

    def _add_rng(self, name: str, rng: np.random.Generator) -> None:
        self._rngs[name] = rng

    def _refresh(self) -> None:
        """Called after arrays were replaced or constants changed: renew anything derived."""

    # -- names and arrays ---------------------------------------------------------------------

    def children(self) -> dict[str, Layer]:
        """The layers directly below this one, by name."""
        return dict(self._children)

    def _walk(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        yield prefix, self
        for name, child in self._children.items():
            yield from child._walk(f"{prefix}{name}.")

    def parameters(self) -> dict[str, Array]:
        """Trained arrays by name. They are the live arrays: writing to them changes the layer.

        ``to`` replaces them, so create optimisers afterwards.
        """
        return {f"{p}{n}": a for p, layer in self._walk() for n, a in layer._parameters.items()}

    def buffers(self) -> dict[str, Array]:
        """Arrays that are saved and moved with the layer, but not trained."""
        return {f"{p}{n}": a for p, layer in self._walk() for n, a in layer._buffers.items()}

    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(int(a.size) for a in self.parameters().values())

    def to(self: LayerT, device: str) -> LayerT:
        """Move parameters and buffers to ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; return self."""
        parse_device(device)
        moved = [
            (table, name, to_device(array, device))
            for _, layer in self._walk()
            for table in (layer._parameters, layer._buffers)
            for name, array in table.items()
        ]
        for table, name, array in moved:
            table[name] = aligned(array)
        for _, layer in self._walk():
            layer._refresh()
        return self

    # -- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Copies, on the host, of all parameters, buffers and constants, by name."""
        state: dict[str, npt.NDArray[Any]] = {}
        for prefix, layer in self._walk():
            for table in (layer._parameters, layer._buffers):
                for name, array in table.items():
                    host = to_host(array)
                    state[f"{prefix}{name}"] = host.copy() if host is array else host
            for name, value in layer._constants.items():
                state[f"{prefix}{name}"] = np.asarray(value, dtype=np.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy values into this layer's arrays, which stay the same objects.

        Args:
            state: name -> array, as :meth:`state_dict` returns; floating types are converted.
            strict: raise ValueError about missing and unexpected names, too; otherwise load
                the names that match.

        Raises ValueError or TypeError, before anything is written, if names or shapes differ.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
        arrays: list[tuple[str, Array]] = []
        constants: list[tuple[str, Layer, str]] = []
        for prefix, layer in self._walk():
            for table in (layer._parameters, layer._buffers):
                arrays += [(f"{prefix}{name}", array) for name, array in table.items()]
            constants += [(f"{prefix}{name}", layer, name) for name in layer._constants]
        known = {name for name, _ in arrays} | {name for name, _, _ in constants}
        if strict:
            missing = sorted(known - set(state))
            unexpected = sorted(set(state) - known)
            if missing or unexpected:
                raise ValueError(
                    f"state: expected the names of this layer; missing: {missing or 'none'}, "
                    f"unexpected: {unexpected or 'none'}"
                )
        writes: list[tuple[Array, npt.NDArray[Any]]] = []
        for name, target in arrays:
            if name not in state:
                continue
            value = np.asarray(to_host(state[name]) if hasattr(state[name], "get") else state[name])
            if value.dtype.kind not in "fV" or (value.dtype.kind == "V" and value.dtype.fields):
                raise TypeError(f"state[{name!r}]: expected a floating dtype, got {value.dtype}")
            if value.shape != tuple(target.shape):
                raise ValueError(
                    f"state[{name!r}]: expected shape {tuple(target.shape)}, got {value.shape}"
                )
            writes.append((target, value))
        scalars: list[tuple[Layer, str, float]] = []
        for name, layer, key in constants:
            if name in state:
                value = np.asarray(state[name])
                if value.size != 1:
                    raise ValueError(f"state[{name!r}]: expected one value, got {value.shape}")
                scalars.append((layer, key, float(value.reshape(()))))
        for target, value in writes:
            if isinstance(target, np.ndarray):
                target[...] = value
            else:
                target.set(np.ascontiguousarray(value, dtype=target.dtype))
        for layer, key, scalar in scalars:
            layer._constants[key] = scalar
        for _, layer in self._walk():
            layer._refresh()

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write :meth:`state_dict` to a safetensors file, atomically.

        Args:
            path: the file, replaced if it exists.
            metadata: strings to keep in the file's header, where they stand with others as a
                JSON object under the key ``penstock``.
        """
        from safetensors.numpy import save

        header = {"format": "penstock", "layer": type(self).__name__, **(metadata or {})}
        # One key, since safetensors writes several in an order that differs between processes.
        header = {"penstock": json.dumps(header, sort_keys=True)}
        state = {name: np.ascontiguousarray(a) for name, a in self.state_dict().items()}
        _write_atomically(Path(path), save(state, metadata=header))

    def load(self: LayerT, path: str | os.PathLike[str], strict: bool = True) -> LayerT:
        """Read a file that :meth:`save` wrote into this layer; return self.

        Raises ValueError naming the file if it is no safetensors file, and what
        :meth:`load_state_dict` raises; OSError if it cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        with Path(path).open("rb"):
            pass  # an OSError of Python's own names the file
        try:
            state = load_file(os.fspath(path))
        except SafetensorError as error:
            raise ValueError(
                f"path: expected a safetensors file, got {os.fspath(path)!r} ({error})"
            ) from error
        self.load_state_dict(state, strict=strict)
        return self

    def rng_state(self) -> dict[str, dict[str, Any]]:
        """State of every random generator by name, as plain values for a checkpoint."""
        return {
            f"{p}{n}": rng_state(g) for p, layer in self._walk() for n, g in layer._rngs.items()
        }

    def set_rng_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what :meth:`rng_state` returned. Raises ValueError if names differ."""
        rngs = {f"{p}{n}": g for p, layer in self._walk() for n, g in layer._rngs.items()}
        if set(rngs) != set(state):
            raise ValueError(f"state: expected the names {sorted(rngs)}, got {sorted(state)}")
        for name, rng in rngs.items():
            set_rng_state(rng, state[name])

    def __repr__(self) -> str:
        inner = ", ".join(f"{n}={c!r}" for n, c in self._children.items())
        return f"{type(self).__name__}({inner})"


def _write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def prefix_gradients(**groups: Mapping[str, Array]) -> dict[str, Array]:
    """Join gradients of child layers under their names: ``prefix_gradients(linear=grads)``."""
    return {f"{name}.{key}": g for name, group in groups.items() for key, g in group.items()}


class SequentialOutput(NamedTuple):
    """``y``: the last layer's output. ``backprop(dy)`` -> :class:`SequentialGrads`."""

    y: Array
    backprop: Callable[..., SequentialGrads]


class SequentialGrads(NamedTuple):
    """``dx``: gradient of the input. ``dparameters``: gradients by parameter name."""

    dx: Array
    dparameters: dict[str, Array]


class Sequential(Layer):
    """Layers applied one after another; layer i's parameters are named ``"i.name"``.

    Each layer sees the previous one's ``y``. Recurrent layers work too, with their defaults.
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}]: expected a Layer, got {type(layer).__name__}")
            setattr(self, str(i), layer)

    def __len__(self) -> int:
        return len(self._children)

    def __getitem__(self, index: int) -> Layer:
        return list(self._children.values())[index]

    def __call__(
        self, x: Array, *, training: bool = False, need_grad: bool | None = None
    ) -> SequentialOutput:
        """Apply the layers in order."""
        need = training if need_grad is None else need_grad
        steps: list[tuple[str, Callable[..., Any]]] = []
        y = x
        for name, layer in self._children.items():
            output = layer(y, training=training, need_grad=need)
            y = output.y
            if need:
                steps.append((name, output.backprop))
        if not need:
            return SequentialOutput(y, no_backprop)

        def backprop(dy: Array) -> SequentialGrads:
            gradients: dict[str, Array] = {}
            for name, step in reversed(steps):
                grads = step(dy)
                dy = grads.dx
                gradients.update(prefix_gradients(**{name: grads.dparameters}))
            return SequentialGrads(dy, {key: gradients[key] for key in self.parameters()})

        return SequentialOutput(y, backprop)
