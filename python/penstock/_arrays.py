"""Which array library an array belongs to."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np


def array_module(*arrays: Any) -> ModuleType:
    """Return ``cupy`` if any argument is a CuPy array, otherwise ``numpy``.

    CuPy is looked up among the modules that are already imported: an array of a library that
    nobody imported cannot have been passed.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np
