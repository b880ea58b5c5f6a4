"""Arrays and files that other packages' state dictionaries come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HostArray = npt.NDArray[Any]


def to_numpy(name: str, value: Any) -> HostArray:
    """A NumPy array from a NumPy array, a CuPy array or a torch tensor, bfloat16 included.

    Raises TypeError, saying ``name``, for anything else.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            import ml_dtypes

            return np.asarray(value.float().numpy().astype(ml_dtypes.bfloat16))
        value = value.numpy()
    elif hasattr(value, "get") and hasattr(value, "device"):
        value = value.get()
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected a NumPy array or a torch tensor, got {type(value).__name__}"
        )
    return value


def read_state(path: Path, known: Callable[[str], object]) -> Mapping[str, Any]:
    """Read a state dictionary from a file.

    Args:
        path: ``.safetensors``, ``.npz``, or any other suffix for what ``torch.save`` wrote, which
            needs PyTorch and is read with ``weights_only``.
        known: tells whether a name belongs to the state that is sought; a dictionary inside the
            file's dictionary is found, too.

    Raises ImportError without PyTorch where it is needed, ValueError if there is no dictionary.
    """
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        loaded: Mapping[str, Any] = load_file(path)
        return loaded
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"source: {path} needs PyTorch to be read; install it, or save the state dictionary "
            "as .safetensors or .npz"
        ) from error
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"source: expected a state dictionary in {path}, got {type(content).__name__}"
        )
    if not any(known(str(k)) for k in content):
        inner = [
            v for v in content.values() if isinstance(v, Mapping) and any(known(str(k)) for k in v)
        ]
        if len(inner) == 1:
            return inner[0]
    return content
