"""What a call costs beside its arithmetic: microseconds per call over the kernel, on the CPU.

    python bench/overhead.py --out bench/results/overhead_cpu.json

Every array has the smallest shape there is, T = B = D = H = 1, float32, one thread, without
gradients: penstock.sru with four inputs and two outputs, penstock.gru with five and two. Contenders
run in turn, round after round, so that a drift of the machine hits all alike; figures are medians.

- NumPy, torch: arrays of that library, taken by the fast path for their type.
- plain __dlpack__: the same tensors as instances of a subclass, which are taken through the Python
  protocol.
- penstock.torch: its functions, of tensors without gradients, and its module under no_grad.
- torch.nn.GRU: its own call under no_grad, kernel included. torch has no SRU.
- "trained": a forward and a backward pass of a module, the gradients of its parameters included.
- kernel: the same C++ call with ready arguments (bench/overhead_kernel.cc, compiled by this script
  against the headers and library of the penstock that is measured; --include and --library say
  where they are otherwise).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import penstock
from penstock.bench.machine import describe

ROUNDS = 15
HERE = Path(__file__).resolve().parent


def kernels(include: Path, library: Path) -> dict[str, float]:
    """Microseconds of the C++ calls alone, by function."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "overhead_kernel")
        subprocess.run(
            [
                *compiler, "-std=c++17", "-O2", f"-I{include}", str(HERE / "overhead_kernel.cc"),
                f"-L{library}", "-lpenstock", f"-Wl,-rpath,{library}", "-o", program,
            ],
            check=True,
        )  # fmt: skip
        done = subprocess.run([program], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def call_of(function: Callable[..., Any], arguments: list[Any], options: str = "") -> timeit.Timer:
    """A call as one writes it, with every argument by a name; a lambda's call would count too."""
    names = {f"a{i}": argument for i, argument in enumerate(arguments)}
    return timeit.Timer(f"f({', '.join(names)}{options})", globals={"f": function, **names})


def contenders() -> dict[str, dict[str, timeit.Timer]]:
    """Calls by function and by who makes them."""
    shapes = {
        "sru": ((1, 1, 1), (1, 4, 1), (1, 2, 1), (1, 2, 1)),
        "gru": ((1, 1, 1), (1, 3, 1), (1, 3, 1), (1, 3), (1, 3)),
    }
    calls: dict[str, dict[str, timeit.Timer]] = {}
    try:
        import torch
        from penstock import torch as penstock_torch
    except ImportError:
        torch = None
    for name, of in shapes.items():
        function = getattr(penstock, name)
        arrays = [np.full(shape, 0.1, np.float32) for shape in of]
        calls[name] = {"NumPy": call_of(function, arrays, ", need_grad=False")}
        if torch is None:
            continue

        class Tensor(torch.Tensor):  # type: ignore[name-defined, misc]
            """A tensor whose type has no fast path."""

        tensors = [torch.from_numpy(a) for a in arrays]
        others = [t.as_subclass(Tensor) for t in tensors]
        calls[name]["torch"] = call_of(function, tensors, ", need_grad=False")
        calls[name]["plain __dlpack__"] = call_of(function, others, ", need_grad=False")
        differentiable = getattr(penstock_torch, name)
        calls[name]["penstock.torch"] = call_of(differentiable, tensors)
    if torch is not None:
        x, dy = torch.full((1, 1, 1), 0.1), torch.ones(1, 1, 1)
        for who, layer in {
            "penstock.torch.GRU": penstock_torch.GRU(1, 1),
            "torch.nn.GRU": torch.nn.GRU(1, 1),
        }.items():

            def infer(layer: Any = layer) -> Any:
                with torch.no_grad():
                    return layer(x)

            def train(layer: Any = layer) -> None:
                layer(x)[0].backward(dy)

            calls["gru"][who] = timeit.Timer(infer)
            calls["gru"][f"{who}, trained"] = timeit.Timer(train)
    return calls


def measure() -> dict[str, dict[str, list[float]]]:
    """Microseconds per call of every round, by function and contender."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, calls in contenders().items():
        counts = {}
        for who, call in calls.items():
            seconds = min(call.repeat(number=200, repeat=3)) / 200
            counts[who] = max(200, int(0.05 / seconds))
        times: dict[str, list[float]] = {who: [] for who in calls}
        for _ in range(ROUNDS):
            for who, call in calls.items():
                seconds = call.timeit(number=counts[who])
                times[who].append(seconds / counts[who] * 1e6)
        found[name] = times
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--include", type=Path, help="folder of penstock/penstock.h")
    parser.add_argument("--library", type=Path, help="folder of libpenstock")
    args = parser.parse_args()
    include = args.include or Path(penstock.get_include())
    library = args.library or Path(penstock.__file__).parent / "lib"

    penstock.set_num_threads(1)
    try:
        import torch

        torch.set_num_threads(1)
    except ImportError:
        pass
    alone = kernels(include, library)
    results = []
    for name, times in measure().items():
        row: dict[str, Any] = {"function": name, "kernel_us": alone[name], "times": {}}
        for who, rounds in times.items():
            low, middle, high = statistics.quantiles(rounds, n=4)
            row["times"][who] = {
                "us": middle, "quartiles": [low, high], "over_kernel_us": middle - alone[name]
            }  # fmt: skip
            print(
                f"{name:4} {who:27} {middle:7.2f} us, {middle - alone[name]:7.2f} over the kernel"
            )
        results.append(row)
    if args.out:
        machine = describe(packages=("torch", "numpy"))
        config = penstock.config()
        machine["penstock"] = {k: config[k] for k in ("cpu_isa", "blas", "compiler")}
        text = json.dumps({"machine": machine, "results": results}, indent=1)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
