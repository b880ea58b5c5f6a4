"""Every operation on small shapes, to be run under compute-sanitizer.

``python -m bench.gpu_check.small_shapes`` ends by printing how many calls it made.
``python -m bench.gpu_check.small_shapes TOOL`` runs a kernel with a fault that the tool must find.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

from bench.gpu_check.arrays import CuPy, Library, libraries
from bench.gpu_check.operations import Call, Case, available
from bench.gpu_check.worker import Report

DTYPES = ("float32", "float64", "float16", "bfloat16")

# A kernel for each tool, over 64 threads, with the fault that it looks for.
PLANTED = {
    "memcheck": "y[n + threadIdx.x] = x[0];",
    "racecheck": """__shared__ float s[64];
        s[threadIdx.x] = x[0];
        y[threadIdx.x] = s[63 - threadIdx.x];""",
    "initcheck": "y[threadIdx.x] = x[threadIdx.x] + 1;",
    "synccheck": "if (threadIdx.x < 16) __syncthreads(); y[threadIdx.x] = x[0];",
}


def cases() -> list[Case]:
    """Few of them, since tools slow kernels down; odd sizes, so that no tile is full."""
    found = []
    for op, dtype in itertools.product(available(), DTYPES):
        # With and without room for vector loads; the second also with padding.
        sizes: dict[str, Any] = {"slices": (2, 2)} if op == "sliced" else {}
        found.append(Case(op, 9, 5, 7, 13, dtype, direction="bidirectional", lengths=True, **sizes))
        found.append(Case(op, 6, 3, 32, 32, dtype, **sizes))
        if op == "gru":
            found.append(Case(op, 5, 3, 8, 17, dtype, reset="before"))
    return found


def run_all(library: Library) -> int:
    count = 0
    for case in cases():
        if library.has_dtype(case.dtype):
            Call(case, library).train()
            library.synchronize()
            count += 1
    return count


def run_planted(tool: str) -> None:
    import cupy

    source = (
        'extern "C" __global__ void planted(const float* x, float* y, int n) {'
        + PLANTED[tool]
        + "}"
    )
    kernel = cupy.RawKernel(source, "planted")
    x = cupy.empty(64, cupy.float32)
    if tool != "initcheck":
        x.fill(1)
    y = cupy.zeros(64, cupy.float32)
    kernel((1,), (64,), (x, y, 64))
    cupy.cuda.Device().synchronize()


def main() -> None:
    library = libraries(False, Report())[0]
    if isinstance(library, CuPy):
        library.cupy.cuda.set_allocator(None)  # an array's bounds are its allocation's
    if sys.argv[1:]:
        run_planted(sys.argv[1])
    else:
        print(f"made {run_all(library)} calls")


if __name__ == "__main__":
    main()
