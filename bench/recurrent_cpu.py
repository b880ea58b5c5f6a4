"""GRU, LSTM and sliced GRU on the CPU against PyTorch and JAX: speed, error and memory.

    python bench/recurrent_cpu.py --out bench/results/recurrent_cpu.json

Speed. One process for each number of threads, held to as many processors, and in it all contenders
in turn, round after round (so that a drift of the machine hits all alike), each warmed up at every
turn: forward without gradients, and forward + backward to x and every parameter. The contenders
have the same weights.

- torch.nn.GRU, torch.nn.LSTM: as they are, under no_grad for forward.
- JAX: a GRU as one writes it for speed: the product with all inputs before the scan, biases that
  can be added there added there, one product a step for the three gates, reset after the product as
  in PyTorch, all under jit; backward is its vjp, in one jit with forward. Arrays are JAX's own
  already, and results are waited for.
- composed of torch.nn.GRU: the sliced network, each level one torch.nn.GRU over all its parts at
  once, its input cut by reshape and transpose.
- The sliced GRU gives one vector for a sequence. The unsliced ones beside it get a gradient of
  every step's output; "(last)": of the last state only, the same task. That gradient fades over the
  steps, and arithmetic on the denormal numbers it becomes is slow.

The last process runs penstock at most with AVX-512 (PENSTOCK_ISA), as on a machine without a matrix
unit.

Error. max|a - b| / max|b| against torch.nn in float64, of the output and of gradients.

Memory. A fresh process for each contender: its peak above what it had before x was made, beside the
bytes that one training call must keep.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import penstock
from machine import describe

Case = tuple[int, int, int, int]  # T, B, D, H
CASES: list[Case] = [
    (32, 32, 256, 256),
    (128, 32, 512, 512),
    (512, 100, 200, 50),
    (4096, 16, 200, 50),
    (1, 1, 256, 256),
]
SLICED: list[tuple[Case, tuple[int, ...]]] = [
    ((512, 100, 200, 50), (8, 8)),
    ((4096, 16, 200, 50), (8, 8, 8)),
]
MEMORY: tuple[Case, tuple[int, ...]] = ((32768, 4, 200, 50), (8, 8, 8))
MEMORY_CONTENDERS = ("penstock", "penstock, recompute=True", "composed of torch.nn.GRU")
MODES = ("forward", "forward+backward")
RNG = np.random.default_rng(0)

Run = Callable[[], Any]


def random_array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


# ---- contenders: `forward(x)` and `train(x, dy)` return what is timed ------------------------


class Penstock:
    """A layer of penstock. `last`: dy has the gradient of the last state only."""

    def __init__(self, layer: Any, last: bool = False) -> None:
        self.layer = layer
        self.last = last

    def forward(self, x: np.ndarray) -> Run:
        return lambda: self.layer(x)

    def train(self, x: np.ndarray, dy: np.ndarray) -> Run:
        if self.last:
            dh_last = dy[None]
            return lambda: self.layer(x, training=True).backprop(dh_last=dh_last)
        return lambda: self.layer(x, training=True).backprop(dy)

    def values(self, x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
        out = self.layer(x, training=True)
        grads = out.backprop(dy)
        weights = [v for k, v in grads.dparameters.items() if "0.weight_" in k]
        return dict(zip(VALUES, (out.y, grads.dx, *weights), strict=True))


VALUES = ("y", "dx", "dweight_ih", "dweight_hh")


class Torch:
    """A module of torch, or the sliced network composed of torch.nn.GRU calls."""

    def __init__(self, module: Any, last: bool = False, slices: Sequence[int] | None = None):
        import torch

        self.torch = torch
        self.module = module
        self.last = last
        self.slices = slices

    def output(self, x: Any) -> Any:
        if self.slices is not None:
            return self.sliced(x)
        y, h = self.module(x)
        return h[0] if self.last else y

    def sliced(self, x: Any) -> Any:
        batch = x.shape[1]
        parts = math.prod(self.slices or ())
        steps = (x.shape[0] // parts, *reversed(self.slices or ()))
        for i, level in enumerate(self.module):
            # Rows are (part, sequence); a part's steps are next to each other in time.
            rows = x.reshape(parts, steps[i], batch, -1).transpose(0, 1)
            _, h = level(rows.reshape(steps[i], parts * batch, -1))
            x = h[0].reshape(parts, batch, -1)
            parts //= steps[i + 1] if i + 1 < len(steps) else 1
        return x[0]

    def forward(self, x: np.ndarray) -> Run:
        xt = self.torch.from_numpy(x)

        def run() -> Any:
            with self.torch.no_grad():
                return self.output(xt)

        return run

    def train(self, x: np.ndarray, dy: np.ndarray) -> Run:
        xt = self.torch.from_numpy(x).requires_grad_()
        dyt = self.torch.from_numpy(dy)

        def run() -> Any:
            xt.grad = None
            self.module.zero_grad(set_to_none=True)
            y = self.output(xt)
            y.backward(dyt)
            return y, xt.grad

        return run

    def values(self, x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
        y, dx = self.train(x, dy)()
        first = self.module[0] if self.slices is not None else self.module
        arrays = (y.detach(), dx, first.weight_ih_l0.grad, first.weight_hh_l0.grad)
        return dict(zip(VALUES, (a.numpy() for a in arrays), strict=True))


class Jax:
    """A GRU by jax.lax.scan, with the weights of a torch.nn.GRU."""

    def __init__(self, module: Any) -> None:
        import jax
        import jax.numpy as jnp

        self.jax = jax
        p = {k: jnp.asarray(v.detach().numpy()) for k, v in module.named_parameters()}
        self.parameters = tuple(
            p[f"{k}_l0"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )

        def gru(parameters: Any, x: Any) -> Any:
            w, r, b, c = parameters
            hidden = r.shape[1]
            reset_update, candidate = c[: 2 * hidden], c[2 * hidden :]
            u = x @ w.T + (b + jnp.pad(reset_update, (0, hidden)))
            rt = r.T

            def step(h: Any, u_t: Any) -> Any:
                q = h @ rt
                ur, uz, un = jnp.split(u_t, 3, axis=-1)
                qr, qz, qn = jnp.split(q, 3, axis=-1)
                z = jax.nn.sigmoid(uz + qz)
                n = jnp.tanh(un + jax.nn.sigmoid(ur + qr) * (qn + candidate))
                h = n + z * (h - n)
                return h, h

            return jax.lax.scan(step, jnp.zeros((x.shape[1], hidden), x.dtype), u)[1]

        def both(parameters: Any, x: Any, dy: Any) -> Any:
            y, vjp = jax.vjp(gru, parameters, x)
            return y, *vjp(dy)

        self.gru = jax.jit(gru)
        self.both = jax.jit(both)

    def forward(self, x: np.ndarray) -> Run:
        xj = self.jax.numpy.asarray(x)
        return lambda: self.gru(self.parameters, xj).block_until_ready()

    def train(self, x: np.ndarray, dy: np.ndarray) -> Run:
        xj, dyj = self.jax.numpy.asarray(x), self.jax.numpy.asarray(dy)
        return lambda: self.jax.block_until_ready(self.both(self.parameters, xj, dyj))

    def values(self, x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
        y, parameters, dx = self.train(x, dy)()
        return dict(zip(VALUES, map(np.asarray, (y, dx, *parameters[:2])), strict=True))


def cell_contenders(cell: str, d: int, h: int, with_jax: bool) -> tuple[dict[str, Any], Torch]:
    """The contenders for one cell, and the same network in float64."""
    import torch

    module = getattr(torch.nn, cell)(d, h)
    reference = getattr(torch.nn, cell)(d, h).double()
    reference.load_state_dict(module.state_dict())
    contenders: dict[str, Any] = {
        f"penstock.{cell}": Penstock(penstock.convert.load_torch_rnn(module)),
        f"torch.nn.{cell}": Torch(module),
    }
    if with_jax and cell == "GRU":
        contenders["JAX"] = Jax(module)
    return contenders, Torch(reference)


def torch_levels(d: int, h: int, slices: Sequence[int]) -> Any:
    import torch

    return torch.nn.ModuleList(torch.nn.GRU(h if i else d, h) for i in range(len(slices) + 1))


def sliced_contenders(d: int, h: int, slices: tuple[int, ...]) -> tuple[dict[str, Any], Torch]:
    levels = torch_levels(d, h, slices)
    reference = torch_levels(d, h, slices).double()
    reference.load_state_dict(levels.state_dict())
    layer = penstock.SlicedRNN(d, h, slices)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    layer.load_state_dict(
        {
            f"levels.{i}.{name}": getattr(level, f"{name}_l0").detach().numpy()[None]
            for i, level in enumerate(levels)
            for name in names
        }
    )
    plain, _ = cell_contenders("GRU", d, h, with_jax=False)
    contenders = {
        "penstock.SlicedRNN": Penstock(layer),
        "composed of torch.nn.GRU": Torch(levels, slices=slices),
        "torch.nn.GRU, not sliced": plain["torch.nn.GRU"],
        "torch.nn.GRU, not sliced (last)": Torch(plain["torch.nn.GRU"].module, last=True),
        "penstock.GRU, not sliced": plain["penstock.GRU"],
        "penstock.GRU, not sliced (last)": Penstock(plain["penstock.GRU"].layer, last=True),
    }
    return contenders, Torch(reference, slices=slices)


# ---- measuring -------------------------------------------------------------------------------


def busy_seconds() -> float:
    """Processor time spent on this machine so far, by anyone; nan where it cannot be known."""
    try:
        with open("/proc/stat") as f:
            user, nice, system, _, _, irq, soft, steal = map(int, f.readline().split()[1:9])
    except OSError:
        return math.nan
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def calibrate(fn: Run, seconds: float = 0.02) -> int:
    """How many calls take about `seconds`; also compiles, fills caches and pools."""
    fn()
    fn()
    start = time.perf_counter()
    fn()
    once = time.perf_counter() - start
    return max(1, min(2000, int(seconds / max(once, 1e-7))))


def measure(contenders: dict[str, Run], budget: float) -> dict[str, Any]:
    """Alternate the contenders until the budget (seconds) is spent; milliseconds per call."""
    loops = {name: calibrate(fn) for name, fn in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    busy, own = busy_seconds(), own_seconds()
    gc.disable()
    while time.perf_counter() < start + budget or min(map(len, times.values())) < 5:
        for name, fn in contenders.items():
            n = loops[name]
            for _ in range(max(1, n // 4)):  # another's threads may spin yet, its own sleep
                fn()
            begin = time.perf_counter()
            for _ in range(n):
                fn()
            times[name].append((time.perf_counter() - begin) / n * 1e3)
    gc.enable()
    wall = time.perf_counter() - start
    others = (busy_seconds() - busy) - (own_seconds() - own)
    out: dict[str, Any] = {}
    for name, ts in times.items():
        low, median, high = statistics.quantiles(ts, n=4)
        out[name] = {
            "ms": median, "best": min(ts), "low": low, "high": high, "rounds": len(ts),
        }  # fmt: skip
    return {"times": out, "processors_of_others": round(others / wall, 2)}


def errors(contenders: dict[str, Any], reference: Torch, x: Any, dy: Any) -> dict[str, Any]:
    """max|a - b| / max|b| of each contender's values against the reference's."""
    right = reference.values(x.astype(np.float64), dy.astype(np.float64))
    found = {}
    for name, contender in contenders.items():
        if "not sliced" in name:
            continue
        values = contender.values(x, dy)
        found[name] = {
            key: float(np.abs(values[key].reshape(b.shape) - b).max() / np.abs(b).max())
            for key, b in right.items()
            if b.any()  # after one step from zeros, the gradient of weight_hh is zero
        }
    return found


def speed(threads: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases on that many threads, in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    penstock.set_num_threads(threads)
    isa = penstock.config()["cpu_isa"]
    capped = "PENSTOCK_ISA" in os.environ
    with_jax = not capped and importlib.util.find_spec("jax") is not None
    runs: list[tuple[str, Case, tuple[int, ...]]] = [("GRU", case, ()) for case in CASES]
    runs += [("LSTM", case, ()) for case in CASES]
    runs += [("sliced GRU", case, slices) for case, slices in SLICED]
    results = []
    for network, (t, b, d, h), slices in runs:
        if args.only and args.only not in f"{network} {t},{b},{d},{h}":
            continue
        x = random_array(t, b, d)
        if slices:
            contenders, reference = sliced_contenders(d, h, slices)
            dy = random_array(b, h)
        else:
            contenders, reference = cell_contenders(network, d, h, with_jax)
            dy = random_array(t, b, h)
        title = f"{threads} thread(s), {isa}, {network} {t},{b},{d},{h} {slices or ''}"
        row: dict[str, Any] = {
            "threads": threads, "isa": isa, "network": network, "case": [t, b, d, h],
            "slices": slices,
        }  # fmt: skip
        found = errors(contenders, reference, x, dy)
        for name, value in found.items():
            words = ", ".join(f"{k} {v:.1e}" for k, v in value.items())
            print(f"{title}: error of {name}: {words}", file=sys.stderr)
        for mode in MODES:
            back = mode != "forward"
            every_step = random_array(t, b, h) if slices and back else dy
            fns = {}
            for name, contender in contenders.items():
                gradient = every_step if name.endswith("not sliced") else dy
                if back:
                    fns[name] = contender.train(x, gradient)
                elif not name.endswith("(last)"):
                    fns[name] = contender.forward(x)
            measured = measure(fns, args.budget)
            results.append({**row, "mode": mode, **measured, "errors": found})
            others = measured["processors_of_others"]
            print(f"{title}, {mode} (others: {others:.2f}):", file=sys.stderr)
            first = next(iter(measured["times"].values()))
            for name, v in measured["times"].items():
                print(
                    f"    {name:<32} {v['ms']:9.4g} ms, best {v['best']:9.4g}; times ours: "
                    f"{v['ms'] / first['ms']:5.2f}, best {v['best'] / first['best']:5.2f}",
                    file=sys.stderr,
                    flush=True,
                )
    return results


# ---- memory ----------------------------------------------------------------------------------


def own_memory(field: str) -> int:
    """VmRSS (resident) or VmHWM (its peak) of this process, in bytes."""
    with open("/proc/self/status") as f:
        line = next(line for line in f if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory(contender: str) -> dict[str, Any]:
    """Peak of one training call of the sliced GRU, in this (fresh) process."""
    (t, b, d, h), slices = MEMORY
    recompute = contender.endswith("recompute=True")
    runner: Any
    if contender.startswith("penstock"):
        runner = Penstock(penstock.SlicedRNN(d, h, slices, seed=0, recompute=recompute))
    else:
        runner = Torch(torch_levels(d, h, slices), slices=slices)
    small = random_array(math.prod(slices), 1, d), random_array(1, h)
    runner.train(*small)()  # starts threads, loads code
    penstock.release_memory()
    gc.collect()
    before = own_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    x, dy = random_array(t, b, d), random_array(b, h)
    result = runner.train(x, dy)()
    peak = own_memory("VmHWM") - before
    del result
    # Steps of a level and the parts that it has; r, z, n, R_n h + b_n and h of each, or h alone.
    entries, parts = [t], math.prod(slices)
    for n in reversed(slices):
        entries.append(parts)
        parts //= n
    kept = 1 if recompute else 5
    must = 4 * b * (2 * t * d + kept * h * sum(entries))
    formula = f"4 bytes * B * (2 T D + {kept} H (T + {' + '.join(map(str, entries[1:]))}))"
    meaning = "x and dx; of every level's steps " + (
        "h" if recompute else "r, z, n, R_n h + b_n and h"
    )
    return {
        "contender": contender, "case": [t, b, d, h], "slices": slices, "peak": peak,
        "must_keep": must, "formula": formula, "meaning": meaning, "ratio": peak / must,
    }  # fmt: skip


# ---- processes -------------------------------------------------------------------------------


def child(arguments: Sequence[str], **environment: str) -> Any:
    """What this program prints in a fresh process with those arguments."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per measurement")
    parser.add_argument("--only", default="", help="cases whose name, as printed, has this in it")
    parser.add_argument("--skip", nargs="*", default=[], choices=["speed", "isa", "memory"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, _, value = args.child.partition(":")
        result = speed(int(value), args) if kind == "speed" else memory(value)
        json.dump(result, sys.stdout)
        return
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)  # either halves OpenBLAS in the processes started here
    options = ["--budget", str(args.budget), "--only", args.only]
    results: list[dict[str, Any]] = []
    plans: list[tuple[int, dict[str, str]]] = (
        [] if "speed" in args.skip else [(n, {}) for n in args.threads]
    )
    if "isa" not in args.skip and "amx" in penstock.config()["cpu_isa"]:
        plans.append((max(args.threads), {"PENSTOCK_ISA": "avx512"}))
    for threads, environment in plans:
        eigen = str(threads > 1).lower()
        environment["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={eigen}"
        environment["NPROC"] = environment["OMP_NUM_THREADS"] = str(threads)
        results += child(["--child", f"speed:{threads}", *options], **environment)
    peaks = []
    for contender in [] if "memory" in args.skip else MEMORY_CONTENDERS:
        peaks.append(child(["--child", f"memory:{contender}"]))
        p = peaks[-1]
        print(
            f"memory, {contender}: peak {p['peak'] / 2**20:.0f} MiB, must keep "
            f"{p['must_keep'] / 2**20:.0f} MiB = {p['formula']} ({p['meaning']}), "
            f"ratio {p['ratio']:.2f}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        machine = describe("penstock", "torch", "jax", "numpy")
        config = penstock.config()
        machine["penstock"] = {k: config[k] for k in ("cpu_isa", "blas", "blas_core", "compiler")}
        text = json.dumps({"machine": machine, "results": results, "memory": peaks}, indent=1)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
