"""Files that a kill leaves whole, and the state of a training run in one of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.training.errors import UserError, require

_ARRAY_KEY = "__array__"
#: Written into every checkpoint; raised when its layout changes.
FORMAT = 1


def _replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new file beside `path`, then put it in `path`'s place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes the file private; a result may be read by whoever may read its folder.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the new one, never a part."""
    _replace_atomically(path, lambda temporary: _write_bytes(temporary, text.encode("utf-8")))


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Numbers that are not finite are refused."""
    write_text_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def to_numpy(array: Any) -> np.ndarray:
    """Copy a NumPy or CuPy array to host memory."""
    return np.asarray(array.get() if hasattr(array, "get") else array)


def _pack(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return `value` with every array in it replaced by a reference into `arrays`."""
    if isinstance(value, np.generic):
        return value.item()
    if _is_array(value):
        # safetensors stores the bytes in C order and takes no view's word for it.
        arrays[name] = np.ascontiguousarray(to_numpy(value)).reshape(value.shape)
        return {_ARRAY_KEY: name}
    if isinstance(value, Mapping):
        return {str(key): _pack(item, f"{name}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name}: cannot be stored in a checkpoint, got {type(value).__name__}")


def _unpack(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_ARRAY_KEY}:
            return arrays[value[_ARRAY_KEY]]
        return {key: _unpack(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    return value


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of arrays, numbers, strings and None as one file, atomically.

    The file is safetensors: the arrays as they are, everything else as JSON in its header, so
    that nothing in it can run code when read. Keys become strings and tuples lists.
    """
    numpy_format = require("safetensors.numpy")
    arrays: dict[str, np.ndarray] = {}
    packed = {key: _pack(value, key, arrays) for key, value in state.items()}
    # One key, since safetensors writes several in an order that differs between processes.
    metadata = {"penstock": json.dumps({"checkpoint": FORMAT, "state": packed})}
    _replace_atomically(
        path, lambda temporary: numpy_format.save_file(arrays, str(temporary), metadata)
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        UserError: the file is missing, damaged, or no checkpoint of this format.
    """
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as stream:
            metadata = stream.metadata() or {}
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        if metadata.get("penstock_checkpoint") == "1":  # as the first versions wrote it
            header = {"checkpoint": 1, "state": json.loads(metadata["state"])}
        else:
            header = json.loads(metadata.get("penstock", "null"))
        if not isinstance(header, dict) or header.get("checkpoint") != FORMAT:
            raise UserError(f"{path} is not a checkpoint of format {FORMAT}")
        state: dict[str, Any] = _unpack(header["state"], arrays)
        return state
    except (OSError, safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error
