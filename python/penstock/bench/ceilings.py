"""What the machine itself can do, measured in the same run: a copy, and a matrix product."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from penstock.bench.peers import OURS_KEY
from penstock.bench.problem import CupyLibrary, TorchLibrary, our_library

_SECONDS = 0.5
_COPIED = {"cpu": 2**28, "cuda": 2**30}
_SIZE = {"cpu": 2048, "cuda": 8192}


def _rate(call: Callable[[], Any], wait: Callable[[], None], work: float, seconds: float) -> float:
    """The best rate of a call in units of work a nanosecond: a ceiling is what can be had."""
    call()
    wait()
    best = float("inf")
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < 3:
        start = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - start)
        rounds += 1
    return work / best / 1e9


def copy_rate(
    device: str, threads: int, size: int | None = None, seconds: float = _SECONDS
) -> float:
    """GB/s of a copy in memory, read and written bytes together."""
    size = size or _COPIED[device]
    if device == "cuda":
        library = our_library(device)
        source, target = library.empty(size), library.empty(size)

        def on_device() -> None:
            if isinstance(library, TorchLibrary):
                target.copy_(source)
            else:
                target[...] = source

        return _rate(on_device, library.synchronize, 2 * size, seconds)
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    edges = [size * i // threads for i in range(threads + 1)]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]

    def copy(part: slice) -> None:
        np.copyto(target[part], source[part])  # without the interpreter's lock

    with ThreadPoolExecutor(threads) as pool:
        return _rate(lambda: list(pool.map(copy, parts)), lambda: None, 2 * size, seconds)


def product_rates(
    device: str, dtype: str, size: int | None = None, seconds: float = _SECONDS
) -> dict[str, float]:
    """GFLOP/s of a square matrix product, by who makes it."""
    n = size or _SIZE[device]
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    found: dict[str, float] = {}
    if device == "cpu" and dtype in ("float32", "float64"):
        x, y = a.astype(dtype), b.astype(dtype)
        out = np.empty_like(x)
        found["numpy"] = _rate(
            lambda: np.matmul(x, y, out=out), lambda: None, 2.0 * n**3, seconds
        )  # fmt: skip
    try:
        torch_library = TorchLibrary(device)
        torch = torch_library.torch
        p, q = (torch_library.array(m).to(getattr(torch, dtype)) for m in (a, b))
        result = torch.empty_like(p)
        found["torch"] = _rate(
            lambda: torch.mm(p, q, out=result), torch_library.synchronize, 2.0 * n**3, seconds
        )
    except Exception:  # not there, broken, or without this type: then the other's counts
        pass
    if device == "cuda" and not found and dtype != "bfloat16":
        library = CupyLibrary()
        s, t = (library.array(m.astype(dtype)) for m in (a, b))
        found["cupy"] = _rate(lambda: s @ t, library.synchronize, 2.0 * n**3, seconds)
    return found


def measure_ceilings(device: str, threads: int, dtypes: Iterable[str]) -> dict[str, Any]:
    """The copy's GB/s, and by element type the GFLOP/s of each who makes products."""
    return {
        "copy_gb_per_s": copy_rate(device, threads),
        "gflop_per_s": {dtype: product_rates(device, dtype) for dtype in sorted(set(dtypes))},
    }


def cache_flusher(device: str) -> Callable[[], None]:
    """A function that writes over more memory than all caches hold."""
    library = our_library(device)
    buffer = library.empty(2**29 if device == "cuda" else 2 * _last_cache_bytes())
    turn = [0]

    def flush() -> None:
        turn[0] = (turn[0] + 1) % 256
        library.fill(buffer, turn[0])
        library.synchronize()

    return flush


def _last_cache_bytes() -> int:
    """The largest cache's size, within 32 MiB and 512 MiB; 64 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
            unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
            sizes.append(int(text.rstrip("KMG")) * unit)
        except (OSError, ValueError):
            continue
    return min(2**29, max(2**25, max(sizes, default=2**26)))


def highest(found: dict[str, Any], also: dict[str, Any]) -> dict[str, Any]:
    """The better of two measurements of the same machine, rate by rate."""
    products = dict(found["gflop_per_s"])
    for dtype, rates in also["gflop_per_s"].items():
        before = products.get(dtype, {})
        products[dtype] = {
            who: max(rate, before.get(who, 0.0)) for who, rate in {**before, **rates}.items()
        }
    copy = max(found["copy_gb_per_s"], also["copy_gb_per_s"])
    return {"copy_gb_per_s": copy, "gflop_per_s": products}


def add_rates(row: dict[str, Any], ceilings: dict[str, Any]) -> None:
    """Add to each contender GFLOP/s, GB/s, the share of the ceiling, and times ours.

    The rates are those of the case's work; a contender that does other work has none.
    """
    if "times" not in row:
        return
    floor = math.nan
    rates = ceilings["gflop_per_s"].get(row["case"]["dtype"], {})
    if rates:
        floor = 1e3 * max(
            row["operations"] / max(rates.values()) / 1e9,
            row["bytes"] / ceilings["copy_gb_per_s"] / 1e9,
        )
    ours = row["times"][OURS_KEY]["ms"]
    for found in row["times"].values():
        found["ratio"] = found["ms"] / ours
        if found["same"]:
            found["gflop_per_s"] = row["operations"] / found["ms"] / 1e6
            found["gb_per_s"] = row["bytes"] / found["ms"] / 1e6
            found["share"] = None if math.isnan(floor) else floor / found["ms"]
    row["floor_ms"] = None if math.isnan(floor) else floor
