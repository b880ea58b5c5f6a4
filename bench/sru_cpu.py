"""SRU layer on the CPU against torch.nn.LSTM and the `sru` package, in one run.

Per case and thread count: forward without gradients and forward + backward, every contender's
result in turn, round after round (so that a drift of the machine hits all alike), medians and
quartiles. Beside them the floor: the matrix products alone, by PyTorch's BLAS. With --scan, also
the elementwise recurrence alone, beside the time that memcpy takes for the bytes it must move.

    cmake --preset cpu -DPENSTOCK_BENCHMARKS=ON && cmake --build --preset cpu
    python bench/sru_cpu.py --scan build/cpu/bench_sru_scan --out bench/results/sru_cpu.json
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)  # either halves OpenBLAS

import numpy as np
import penstock
import torch
from machine import describe

CASES = [(32, 32, 256, 256), (128, 32, 512, 512), (512, 100, 200, 200), (1, 1, 256, 256)]
RNG = np.random.default_rng(0)


def sru_package() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import sru
    except Exception as error:
        print(f"sru: skipped, it does not import here ({error})", file=sys.stderr)
        return None
    return sru


def random_array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


class Penstock:
    name = "penstock.SRU"

    def __init__(self, d: int, h: int) -> None:
        self.layer = penstock.SRU(d, h, 1, seed=0)

    def forward(self, x: np.ndarray) -> Callable[[], Any]:
        return lambda: self.layer(x)

    def train(self, x: np.ndarray, dy: np.ndarray) -> Callable[[], Any]:
        return lambda: self.layer(x, training=True).backprop(dy)


class Torch:
    def __init__(self, name: str, layer: torch.nn.Module) -> None:
        self.name = name
        self.layer = layer

    def forward(self, x: np.ndarray) -> Callable[[], Any]:
        xt = torch.from_numpy(x)
        layer = self.layer.eval()

        def run() -> Any:
            with torch.no_grad():
                return layer(xt)

        return run

    def train(self, x: np.ndarray, dy: np.ndarray) -> Callable[[], Any]:
        xt = torch.from_numpy(x).requires_grad_()
        dyt = torch.from_numpy(dy)
        layer = self.layer.train()

        def run() -> Any:
            xt.grad = None
            layer.zero_grad(set_to_none=True)
            y, _ = layer(xt)
            y.backward(dyt)
            return xt.grad

        return run


def product_floor(rows: int, d: int, h: int, backward: bool) -> Callable[[], Any]:
    """The matrix products of a layer with K = 3 alone, by PyTorch's BLAS."""
    x, w, du = random_array(rows, d), random_array(3 * h, d), random_array(rows, 3 * h)
    xt, wt, dut = map(torch.from_numpy, (x, w, du))

    def run() -> None:
        torch.mm(xt, wt.T)
        if backward:
            torch.mm(dut.T, xt)
            torch.mm(dut, wt)

    return run


def calibrate(fn: Callable[[], Any], seconds: float = 0.02) -> int:
    fn()
    start = time.perf_counter()
    fn()
    once = time.perf_counter() - start
    return max(1, min(2000, int(seconds / max(once, 1e-7))))


def measure(contenders: dict[str, Callable[[], Any]], budget: float) -> dict[str, dict[str, float]]:
    """Alternate the contenders until the budget (seconds) is spent; milliseconds per call."""
    loops = {name: calibrate(fn) for name, fn in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + budget
    gc.disable()
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for name, fn in contenders.items():
            n = loops[name]
            start = time.perf_counter()
            for _ in range(n):
                fn()
            times[name].append((time.perf_counter() - start) / n * 1e3)
    gc.enable()
    out = {}
    for name, ts in times.items():
        low, median, high = statistics.quantiles(ts, n=4)
        out[name] = {"ms": median, "low": low, "high": high, "rounds": len(ts)}
    return out


def scans(program: Path) -> list[dict[str, Any]]:
    """The recurrence alone beside memcpy, by the C++ program bench_sru_scan (one JSON a line)."""
    run = subprocess.run([program], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per measurement")
    parser.add_argument("--scan", type=Path, help="the program bench_sru_scan")
    parser.add_argument("--case", type=str, help="T,B,D,H instead of the built-in cases")
    args = parser.parse_args()
    cases = [tuple(map(int, args.case.split(",")))] if args.case else CASES
    package = sru_package()
    results: list[dict[str, Any]] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        penstock.set_num_threads(threads)
        for t, b, d, h in cases:
            contenders: list[Any] = [Penstock(d, h), Torch("torch.nn.LSTM", torch.nn.LSTM(d, h))]
            if package is not None:
                contenders.append(Torch("sru", package.SRU(d, h, num_layers=1)))
            x, dy = random_array(t, b, d), random_array(t, b, h)
            for mode in ("forward", "forward+backward"):
                back = mode != "forward"
                fns = {c.name: c.train(x, dy) if back else c.forward(x) for c in contenders}
                fns["matrix products"] = product_floor(t * b, d, h, back)
                times = measure(fns, args.budget)
                ours = times["penstock.SRU"]["ms"]
                ratios = {name: v["ms"] / ours for name, v in times.items()}
                results.append(
                    {
                        "threads": threads,
                        "case": [t, b, d, h],
                        "mode": mode,
                        "times": times,
                        "ratios": ratios,
                    }
                )
                print(f"{threads} thread(s), T,B,D,H = {t},{b},{d},{h}, {mode}:", flush=True)
                for name, v in times.items():
                    print(f"    {name:<16} {v['ms']:9.3f} ms   {ratios[name]:6.2f} times ours")
    recurrence = scans(args.scan) if args.scan else []
    for r in recurrence:
        print(
            f"{r['threads']} thread(s) recurrence alone, {r['pass']}: {r['ms']:.1f} ms, "
            f"{r['ratio']:.2f} times memcpy"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        machine = describe("penstock", "torch", "sru", "numpy")
        config = penstock.config()
        machine["penstock"] = {k: config[k] for k in ("cpu_isa", "blas", "blas_core", "compiler")}
        args.out.write_text(
            json.dumps({"machine": machine, "results": results, "recurrence": recurrence}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
