"""Times of calls: contenders in turn, medians and quartiles."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from penstock.bench.machine import busy_seconds, own_seconds

#: A sample is this long at least, so that neither the clock nor a launch matters.
SAMPLE_SECONDS = 0.02
MOST_CALLS = 2000
ROUNDS = 5
#: Contenders whose ROUNDS would take longer than this many budgets get fewer, and are marked.
PATIENCE = 1.0
FEWEST_ROUNDS = 3
#: Before a turn: OpenMP's threads look for new work for up to 15 ms after the last, on processors
#: that the next contender needs.
SETTLE_SECONDS = 0.03
#: Calls that take longer are not warmed up again at their turn, for the time that it takes. Shorter
#: ones are: others' arrays have taken the place of this one's in the caches, which a long call
#: fills again in a thousandth of its time.
LONG_SECONDS = 0.2
#: Systems account for running threads only every few milliseconds.
_SLEEP_SECONDS = 0.015


@dataclass
class Call:
    """What is timed: ``run`` makes one call, ``wait`` waits for what it started on a device."""

    run: Callable[[], Any]
    wait: Callable[[], None] = lambda: None


@dataclass
class Times:
    """Milliseconds a call."""

    samples: list[float] = field(default_factory=list)
    wanted: int = ROUNDS
    calls: int = 1

    def as_json(self) -> dict[str, Any]:
        low, median, high = quartiles(self.samples)
        return {
            "ms": median, "low": low, "high": high, "best": min(self.samples),
            "rounds": len(self.samples), "few": len(self.samples) < ROUNDS,
        }  # fmt: skip


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; of one value, three times that."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def sample(call: Call, count: int) -> float:
    """Seconds a call, over ``count`` of them."""
    start = time.perf_counter()
    for _ in range(count):
        call.run()
    call.wait()
    return (time.perf_counter() - start) / count


def settle(most: float = 0.2) -> None:
    """Wait until the threads that a call has left waiting in a loop are asleep.

    OpenMP's wait so for some milliseconds, OpenBLAS' for some tens, on processors that the next
    contender needs.
    """
    end = time.perf_counter() + most
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(_SLEEP_SECONDS)
        if time.process_time() - before < 0.2 * _SLEEP_SECONDS:
            return


def measure(
    calls: dict[str, Call], budget: float, flush: Callable[[], None] | None = None
) -> tuple[dict[str, dict[str, Any]], float | None]:
    """Sample the contenders in turn, round after round, so that a drift of the machine hits all.

    Args:
        calls: contenders by name, each called before at least once.
        budget: seconds after which no new round begins, if each has had its least rounds.
        flush: called before each sample, which then is a single call: empties the caches.

    Returns:
        Milliseconds by name (ms, the median; low and high, the quartiles; best; rounds; few, if
        rounds are fewer than wished), and how many processors others kept busy meanwhile, None
        where the system does not say.
    """
    found: dict[str, Times] = {}
    for name, call in calls.items():
        seconds = sample(call, 1)
        if seconds < LONG_SECONDS:  # otherwise once more would cost more than it tells
            seconds = sample(call, 1)
        times = Times()
        if flush is None:
            times.calls = max(1, min(MOST_CALLS, int(SAMPLE_SECONDS / max(seconds, 1e-7))))
        if ROUNDS * seconds > PATIENCE * budget:
            times.wanted = max(FEWEST_ROUNDS, int(PATIENCE * budget / seconds))
        if FEWEST_ROUNDS * seconds > 4 * PATIENCE * budget:
            times.wanted = 1
            if flush is None and seconds >= LONG_SECONDS:
                times.samples.append(seconds * 1e3)  # the call just made
        found[name] = times
    start = time.perf_counter()
    busy, own = busy_seconds(), own_seconds()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while True:
            over = time.perf_counter() - start >= budget
            # Those with few rounds stop at them: time goes to the others.
            turn = [
                name
                for name, times in found.items()
                if len(times.samples) < times.wanted or (times.wanted == ROUNDS and not over)
            ]
            if not turn:
                break
            for name in turn:
                call, times = calls[name], found[name]
                time.sleep(SETTLE_SECONDS)
                settle()
                if flush is not None:
                    flush()
                elif not times.samples or times.samples[-1] < LONG_SECONDS * 1e3:
                    sample(call, max(1, times.calls // 4))
                times.samples.append(sample(call, times.calls) * 1e3)
    finally:
        if collecting:
            gc.enable()
    wall = time.perf_counter() - start
    others = ((busy_seconds() - busy) - (own_seconds() - own)) / max(wall, 1e-9)
    return (
        {name: times.as_json() for name, times in found.items()},
        None if math.isnan(others) else round(max(0.0, others), 2),
    )
