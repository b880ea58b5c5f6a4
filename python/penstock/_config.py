"""What this build is and what it found on this machine."""

from __future__ import annotations

import operator
import sys
from pathlib import Path
from typing import Any

from penstock import _core


def config() -> dict[str, Any]:
    """Describe the library: version, instruction set, BLAS, threads, CUDA and why it is off."""
    values: dict[str, Any] = _core.config()
    values["python"] = sys.version.split()[0]
    return values


def show_config() -> None:
    """Print :func:`config`, one line each."""
    c = config()
    lines = [
        ("penstock", f"{c['version']} (Python {c['python']}, {c['compiler']})"),
        ("CPU", f"{c['cpu_isa']}, {c['num_threads']} threads"),
        ("BLAS", f"{c['blas'].strip()}, kernels for {c['blas_core']}"),
        ("CUDA", f"{'on' if c['cuda_available'] else 'off'}: {c['cuda_status']}"),
    ]
    lines += [("warning", c[name]) for name in ("cpu_warning", "blas_warning") if c[name]]
    for name, value in lines:
        print(f"{name:<9} {value}")


def get_num_threads() -> int:
    """Number of threads that CPU work is spread over."""
    return int(_core.num_threads())


def set_num_threads(n: int) -> None:
    """Spread CPU work over n >= 1 threads; results do not depend on n, bit for bit.

    Raises:
        TypeError: n is not an integer.
        ValueError: n is less than 1, or more than a C++ int holds.
    """
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(
            f"set_num_threads: n: expected an integer (actual: {type(n).__name__})"
        ) from None
    if not -(2**31) <= count < 2**31:
        raise ValueError(f"set_num_threads: n: expected a number of threads (actual: {count})")
    _core.set_num_threads(count)


def get_batch_invariant() -> bool:
    """Whether a sequence's result never depends on what else is in the batch."""
    return bool(_core.batch_invariant())


def set_batch_invariant(enabled: bool) -> None:
    """Give each sequence, on the CPU, the same bits alone as in any batch, at some cost in time.

    Without it, so are those of RNN, GRU, LSTM and sliced networks, unless a call has a single step,
    fewer than 16 sequences and large weights; the SRU rounds by the number of steps and sequences.
    The environment's PENSTOCK_BATCH_INVARIANT=1 sets it, too. Without effect on CUDA.

    Raises:
        TypeError: enabled is not a bool.
    """
    if not isinstance(enabled, bool):
        raise TypeError(
            f"set_batch_invariant: enabled: expected a bool (actual: {type(enabled).__name__})"
        )
    _core.set_batch_invariant(enabled)


def release_memory() -> int:
    """Give back host memory that is kept for the next call's workspace; returns its bytes."""
    kept = int(_core.host_pool_bytes())
    _core.release_host_pool()
    return kept


def get_cmake_dir() -> str:
    """The folder for C++ programs that call ``find_package(penstock)``: their ``penstock_DIR``.

    Raises:
        FileNotFoundError: this package was not installed, but runs out of a build tree.
    """
    return str(_beside_extension("lib", "cmake", "penstock"))


def get_include() -> str:
    """The folder of the C++ headers, for compilers that are called without CMake.

    Raises:
        FileNotFoundError: this package was not installed, but runs out of a build tree.
    """
    return str(_beside_extension("include"))


def _beside_extension(*parts: str) -> Path:
    # Not beside this file: in an editable install that lies in the source tree.
    path = Path(_core.__file__).resolve().parent.joinpath(*parts)
    if not path.is_dir():
        raise FileNotFoundError(
            f"expected an installed penstock with a folder {path} (actual: there is none; "
            "install penstock with pip)"
        )
    return path
