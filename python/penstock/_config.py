"""What this build is and what it found on this machine."""

from __future__ import annotations

import sys
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
    if c["blas_warning"]:
        lines.append(("warning", c["blas_warning"]))
    for name, value in lines:
        print(f"{name:<9} {value}")


def get_num_threads() -> int:
    """Number of threads that CPU work is spread over."""
    return int(_core.num_threads())


def set_num_threads(n: int) -> None:
    """Spread CPU work over n >= 1 threads; results do not depend on n, bit for bit."""
    _core.set_num_threads(n)


def release_memory() -> int:
    """Give back host memory that is kept for the next call's workspace; returns its bytes."""
    kept = int(_core.host_pool_bytes())
    _core.release_host_pool()
    return kept
