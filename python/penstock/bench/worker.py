"""The process that measures: one for each number of threads, and one for each peak of memory.

It reads a job as JSON from standard input and writes events, one JSON a line, to what was its
standard output; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import sys
import time
import traceback
import warnings
from dataclasses import replace
from typing import Any

from penstock.bench import formulas, machine
from penstock.bench.cases import Case
from penstock.bench.ceilings import cache_flusher, measure_ceilings
from penstock.bench.checks import WrongResult, check_ours, check_peer, right_results
from penstock.bench.peer import Peer, one_line
from penstock.bench.peers import BY_KEY, CONTENDERS, OURS_KEY
from penstock.bench.problem import Problem
from penstock.bench.timing import Call, measure

#: Processors that others may keep busy where somebody waits for a quiet machine.
QUIET = 0.1


def contenders_for(
    case: Case, keys: list[str] | None, device: str, skipped: dict[str, str]
) -> list[type[Peer]]:
    """The contenders that a case is measured with, ours first.

    ``keys``: peers that are wanted at all; None for every one. Why others are left out is noted in
    ``skipped``, unless they are just made for other cases.
    """
    found = []
    for kind in CONTENDERS:
        if kind.key != OURS_KEY:
            if keys is not None and kind.key not in keys:
                continue
            if case.peers is not None and kind.key not in case.peers:
                continue
            if kind.on_request and kind.key not in (*(keys or ()), *(case.peers or ())):
                continue
        why = kind.applies(case)
        if why:
            # Those for other networks go without words, unless somebody has named them.
            if keys is not None or not kind.applies(_plainer(case)):
                skipped[kind.key] = why
            continue
        available, why = kind.available(device)
        if available:
            found.append(kind)
        else:
            skipped[kind.key] = why
    return found


def _plainer(case: Case) -> Case:
    """The same network in its most usual form."""
    return replace(case, layers=1, direction="forward", dtype="float32")


def measure_case(case: Case, keys: list[str] | None, device: str, budget: float) -> dict[str, Any]:
    """Check and time one case: the row of results, without its threads and ceilings."""
    skipped: dict[str, str] = {}
    row: dict[str, Any] = {"case": case.as_json(), "label": case.label, "skipped": skipped}
    problem = Problem(case)
    ready: dict[str, Peer] = {}
    errors: dict[str, dict[str, float]] = {}
    right: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for kind in contenders_for(case, keys, device, skipped):
        try:
            peer = kind()
            peer.prepare(problem, device)
            if kind.key == OURS_KEY:
                ours, right = peer.values(), right_results(problem)
                errors[kind.key] = check_ours(problem, ours, right)
            elif kind.same:
                errors[kind.key] = check_peer(problem, peer.values(), ours, right)
            else:
                peer.run()
                peer.wait()
            ready[kind.key] = peer
        except Exception as error:
            # Peers raise anything; a wrong result of ours is a failure, not a gap.
            text = str(error) if isinstance(error, WrongResult) else None
            text = text or one_line(f"{type(error).__name__}: {error}")
            if kind.key == OURS_KEY:
                row["failed"] = text
                if not isinstance(error, WrongResult):
                    traceback.print_exc()
                return row
            skipped[kind.key] = text
    del ours, right
    gc.collect()
    flush = cache_flusher(device) if case.cache == "cold" else None
    calls = {key: Call(peer.run, peer.wait) for key, peer in ready.items()}
    times, others = measure(calls, budget, flush)
    for key, peer in ready.items():
        times[key] |= {"name": peer.name, "same": peer.same, "errors": errors.get(key, {})}
    row["times"] = times
    row["processors_of_others"] = others
    row["operations"] = formulas.operations(case)
    row["bytes"] = formulas.least_bytes(case)
    return row


def _small(case: Case) -> Case:
    """A case of the same kind that takes no time and no memory worth counting."""
    return replace(case, T=max(2, math.prod(case.slices)), B=1)


def peak_memory(case: Case, key: str, device: str) -> int | None:
    """Bytes that a contender takes for one call at most, in this (fresh) process.

    What it takes to load code and start threads is not in it, inputs and weights are.
    """
    import penstock

    kind = BY_KEY[key]
    available, _ = kind.available(device)  # which also chooses what a peer runs over
    if not available:
        return None

    def call(problem: Problem) -> Peer:
        peer = kind()
        peer.prepare(problem, device)
        peer.run()
        peer.wait()
        return peer

    call(Problem(_small(case)))
    penstock.release_memory()
    gc.collect()
    if device == "cuda":
        return _peak_on_device(case, call)
    before = machine.resident_bytes()
    if before is None:  # not Linux: the peak of the whole life, which the small case hardly moved
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        call(Problem(case))
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before)
    machine.forget_peak()
    call(Problem(case))
    peak = machine.peak_bytes()
    return None if peak is None else max(0, peak - before)


def _peak_on_device(case: Case, call: Any) -> int | None:
    """By PyTorch's allocator, which only sees what is taken through it."""
    try:
        import torch
    except ImportError:
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(Problem(case))
    peak = torch.cuda.max_memory_allocated() - before
    return int(peak) if peak > 0 else None


def wait_for_quiet(patience: float) -> None:
    """Wait until others leave the processors alone, at most so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        start, busy, own = time.monotonic(), machine.busy_seconds(), machine.own_seconds()
        time.sleep(min(0.5, patience))
        others = (machine.busy_seconds() - busy) - (machine.own_seconds() - own)
        if not others / (time.monotonic() - start) > QUIET:
            return


def _hold_to(threads: int) -> None:
    """Have every library use that many threads, and run on as many processors."""
    import penstock

    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:threads])
    penstock.set_num_threads(threads)
    try:
        import torch

        torch.set_num_threads(threads)
    except ImportError:
        pass


def _run(job: dict[str, Any], emit: Any) -> None:
    device = job["device"]
    described = machine.describe(device)  # before it is held to fewer processors
    if device == "cpu":
        _hold_to(job["threads"])
    if job["kind"] == "memory":
        emit({"peak": peak_memory(Case.from_json(job["case"]), job["key"], device)})
        return
    emit({"machine": described})
    emit({"peers": describe_peers(device, job["peers"])})
    cases = [Case.from_json(case) for case in job["cases"]]
    dtypes = {case.dtype for case in cases}
    ceilings = measure_ceilings(device, job["threads"], dtypes)
    emit({"ceilings": ceilings})
    for number, case in enumerate(cases):
        emit({"begin": number})
        wait_for_quiet(job.get("patience", 0.0))
        row = measure_case(case, job["peers"], device, job["budget"])
        emit({"row": {"threads": job["threads"], **row}})
        gc.collect()
    # Once more: others may have been at work the first time, and what can be had is the most.
    emit({"ceilings": measure_ceilings(device, job["threads"], dtypes)})


def describe_peers(device: str, keys: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Of every contender: name, note, whether it does the same work, and why it is not there."""
    found = {}
    for kind in CONTENDERS:
        if keys is None or kind.key in keys or kind.key == OURS_KEY:
            _, why = kind.available(device)
            found[kind.key] = {
                "name": kind.name, "note": kind.note, "same": kind.same, "unavailable": why,
            }  # fmt: skip
    return found


def main() -> None:
    """Do the job on standard input."""
    job = json.load(sys.stdin)
    # Libraries that print must not get between the events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    _run(job, emit)


if __name__ == "__main__":
    main()
