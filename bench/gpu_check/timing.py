"""Times of calls on a device: events around many calls, contenders in turn, medians and spread."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.gpu_check.arrays import Library

#: Milliseconds for n calls.
Sampler = Callable[[int], float]
#: A sample is long enough that an event's resolution (0.5 µs) does not matter.
SAMPLE_MS = 2.0
LEAST_ROUNDS = 5
#: Where calls are so long that this many times the time is over, two rounds must do.
MOST_OVERTIME = 3


def sampler(library: Library, calls: Sequence[Callable[[], Any]]) -> Sampler:
    """Make n calls, the given ones in turn, between two events.

    Several calls with arrays of their own keep one's inputs from being in the cache from last time.
    """
    turn = itertools.cycle(calls)

    def many(n: int) -> None:
        for call in itertools.islice(turn, n):
            call()

    return lambda n: library.elapsed(lambda: many(n))


def calibrate(sample: Sampler, count: int) -> int:
    """Calls per sample, after a warm-up; a multiple of the number of distinct calls."""
    sample(count)
    each = sample(count) / count
    rounds = max(1, round(SAMPLE_MS / max(each, 1e-6) / count))
    return count * min(rounds, 1000)


def measure(
    contenders: dict[str, tuple[Sampler, int]], seconds: float
) -> dict[str, dict[str, float]]:
    """Sample each contender in turn until the time is spent, and LEAST_ROUNDS times if possible.

    ``contenders``: a sampler and its number of distinct calls, by name.

    Returns:
        Milliseconds a call, by name: ms (median), low and high (quartiles), and rounds.
    """
    loops = {name: calibrate(sample, count) for name, (sample, count) in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    rounds = 0
    while contenders:
        spent = time.perf_counter() - start
        least = LEAST_ROUNDS if spent < MOST_OVERTIME * seconds else 2
        if spent >= seconds and rounds >= least:
            break
        rounds += 1
        for name, (sample, _) in contenders.items():
            times[name].append(sample(loops[name]) / loops[name])
    found = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        found[name] = {"ms": median, "low": low, "high": high, "rounds": len(values)}
    return found
