"""Runs suites: starts the processes that measure, and puts their events together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from penstock.bench.cases import Case, Suite
from penstock.bench.ceilings import add_rates, highest
from penstock.bench.peers import OURS_KEY
from penstock.training.errors import RunError

FORMAT = "penstock-bench-1"
#: Processors that others kept busy, above which a measurement is marked.
BUSY = 0.25
Progress = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]
_CODE = "import sys; sys.path[:] = {path!r}; from penstock.bench.worker import main; main()"


def _environment(threads: int, isa: str | None = None) -> dict[str, str]:
    """What every library must see before it is loaded."""
    environment = dict(os.environ)
    if isa:
        environment["PENSTOCK_ISA"] = isa
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        environment.pop(name, None)  # either halves OpenBLAS
    if threads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC",
                     "PENSTOCK_NUM_THREADS"):  # fmt: skip
            environment[name] = str(threads)
        eigen = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {eigen}".strip()
    # JAX would take most of a GPU's memory from the others.
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return environment


def _start(job: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        # The same penstock as here, wherever this one was found.
        [sys.executable, "-c", _CODE.format(path=sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=_environment(job["threads"] if job["device"] == "cpu" else 0, job["isa"]),
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already, which its exit status tells
    return process


class Run:
    """One run of a suite.

    Args:
        suite: what is measured.
        threads: numbers of threads, one after the other; on a GPU only 0.
        device: "cpu" or "cuda".
        budget: seconds for each measurement.
        peers: keys of those to measure; None for all.
        isa: the most that penstock may use of the processor's instructions; None for all.
        memory: measure peaks of memory: of every case, of none, or (None) where the suite says so.
        patience: seconds to wait before each case for others to leave the machine alone.
        before: an earlier result of the same suite and machine, whose rows are kept unless others
            were at work then, or they failed.
        progress: is told a line about each thing done.
        save: is given the result so far after each row.
    """

    def __init__(
        self,
        suite: Suite,
        *,
        threads: Sequence[int],
        device: str,
        budget: float,
        peers: Sequence[str] | None = None,
        memory: bool | None = None,
        isa: str | None = None,
        patience: float = 0.0,
        before: dict[str, Any] | None = None,
        progress: Progress = lambda line: None,
        save: Save = lambda result: None,
    ) -> None:
        self.suite = suite
        self.threads = list(threads)
        self.device = device
        self.budget = budget
        self.peers = None if peers is None else list(peers)
        self.memory = memory
        self.isa = isa
        self.patience = patience
        self.progress = progress
        self.save = save
        self.result: dict[str, Any] = {
            "format": FORMAT,
            "suite": Path(suite.name).name,
            "description": suite.description,
            "plot": suite.plot,
            "settings": {
                "device": device, "threads": self.threads, "budget": budget, "peers": self.peers,
                "memory": memory, "isa": isa,
            },
            "machine": {},
            "peers": {},
            "ceilings": {},
            "rows": [],
            "complete": False,
        }  # fmt: skip
        self.kept: set[tuple[str, int]] = set()
        if before is not None:
            wanted = {(case.label, n) for case in suite.cases for n in self.threads}
            self.result["rows"] = [row for row in before["rows"] if _key(row) in wanted]
            self.kept = {_key(row) for row in self.result["rows"] if _sound(row)}
            # What all of it takes in one go, which mending does not change.
            for name in ("machine", "peers", "ceilings", "seconds"):
                if name in before:
                    self.result[name] = before[name]
        self.mending = before is not None

    def run(self) -> dict[str, Any]:
        """Measure everything; the result is as ``docs/benchmarks.md`` describes it.

        Raises:
            RunError: a process that measures ended before its first case.
        """
        start = time.monotonic()
        for threads in self.threads:
            self._with_threads(threads)
        self._peaks()
        self.result["complete"] = True
        if not self.mending:
            self.result["seconds"] = round(time.monotonic() - start, 1)
        self.save(self.result)
        return self.result

    def _with_threads(self, threads: int) -> None:
        cases = [case for case in self.suite.cases if (case.label, threads) not in self.kept]
        # A process that dies takes one case with it; another goes on behind it.
        while cases:
            done = self._one_process(cases, threads)
            cases = cases[done:]

    def _one_process(self, cases: list[Case], threads: int) -> int:
        """Measure cases in one process; return how many of them are done with."""
        process = _start(
            {
                "kind": "measure",
                "cases": [case.as_json() for case in cases],
                "threads": threads,
                "device": self.device,
                "peers": self.peers,
                "budget": self.budget,
                "isa": self.isa,
                "patience": self.patience,
            }
        )
        begun, rows = -1, 0
        try:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if "begin" in event:
                    begun = event["begin"]
                elif "row" in event:
                    rows += 1
                    self._add(event["row"])
                elif "ceilings" in event:
                    self._take_ceilings(event["ceilings"], threads)
                else:
                    self.result.update(event)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if rows == len(cases):
            return rows
        why = f"the process that measured it ended with status {status}"
        if status < 0:
            why = f"the process that measured it was ended by signal {-status}"
            why += " (out of memory?)" if status == -9 else ""
        if begun < 0:
            raise RunError(f"{why} before the first case; see what it printed above")
        failed = cases[begun]
        self._add(
            {
                "threads": threads, "case": failed.as_json(), "label": failed.label,
                "skipped": {}, "failed": why,
            }
        )  # fmt: skip
        return begun + 1

    def _take_ceilings(self, ceilings: dict[str, Any], threads: int) -> None:
        """Keep the best that the machine has done, and hold all rows to it."""
        known = self.result["ceilings"].get(str(threads))
        ceilings = ceilings if known is None else highest(known, ceilings)
        self.result["ceilings"][str(threads)] = ceilings
        for row in self.result["rows"]:
            if row["threads"] == threads:
                add_rates(row, ceilings)
        self.progress(_ceilings_in_words(ceilings, threads))

    def _add(self, row: dict[str, Any]) -> None:
        known = self.result["ceilings"].get(str(row["threads"]))
        if known is not None:
            add_rates(row, known)
        rows = self.result["rows"]
        for old in [old for old in rows if _key(old) == _key(row)]:
            rows.remove(old)
            for key, found in row.get("times", {}).items():
                if "peak_bytes" in old.get("times", {}).get(key, {}):
                    # Others' work does not change it.
                    found["peak_bytes"] = old["times"][key]["peak_bytes"]
        rows.append(row)
        self.kept.add(_key(row))
        total = len(self.suite.cases) * len(self.threads)
        self.progress(f"[{len(self.kept)}/{total}] {row_in_words(row)}")
        order = {case.label: i for i, case in enumerate(self.suite.cases)}
        rows.sort(key=lambda row: (self.threads.index(row["threads"]), order[row["label"]]))
        self.save(self.result)

    def _peaks(self) -> None:
        """Peaks of memory, each in a process of its own, with the most threads."""
        for row in self.result["rows"]:
            if "times" not in row or row["threads"] != self.threads[-1]:
                continue
            wanted = row["case"]["memory"] if self.memory is None else self.memory
            if not wanted:
                continue
            missing = [key for key, found in row["times"].items() if "peak_bytes" not in found]
            if not missing:
                continue
            for key in missing:
                row["times"][key]["peak_bytes"] = self._peak(row, key)
            peaks = ", ".join(
                f"{key} {found['peak_bytes'] / 2**20:.0f} MiB"
                for key, found in row["times"].items()
                if found["peak_bytes"] is not None
            )
            self.progress(f"memory: {row['label']}: {peaks or 'not known here'}")
            self.save(self.result)

    def _peak(self, row: dict[str, Any], key: str) -> int | None:
        process = _start(
            {
                "kind": "memory", "case": row["case"], "key": key, "threads": row["threads"],
                "device": self.device, "isa": self.isa,
            }
        )  # fmt: skip
        try:
            assert process.stdout is not None
            events = [json.loads(line) for line in process.stdout]
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        return events[-1]["peak"] if events else None


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["label"], row["threads"]


def _sound(row: dict[str, Any]) -> bool:
    """Whether a row has times, which others did not disturb."""
    return "times" in row and (row["processors_of_others"] or 0.0) <= BUSY


def _ceilings_in_words(ceilings: dict[str, Any], threads: int) -> str:
    rates = ", ".join(
        f"{dtype} product {max(rates.values()):.0f} GFLOP/s"
        for dtype, rates in ceilings["gflop_per_s"].items()
        if rates
    )
    words = f"ceilings, {threads_in_words(threads)}: copy {ceilings['copy_gb_per_s']:.1f} GB/s"
    return f"{words}, {rates}" if rates else words


def threads_in_words(threads: int) -> str:
    """``2 threads``; for 0, which stands for a GPU, ``on the GPU``."""
    if not threads:
        return "on the GPU"
    return f"{threads} thread{'s' if threads > 1 else ''}"


def row_in_words(row: dict[str, Any]) -> str:
    """A row on one line."""
    where = f"{row['label']}, {threads_in_words(row['threads'])}"
    if "failed" in row:
        return f"{where}: FAILED: {row['failed']}"
    times = ", ".join(
        f"{key} {found['ms']:.4g} ms" + ("" if key == OURS_KEY else f" ({found['ratio']:.2f}x)")
        for key, found in row["times"].items()
    )
    return f"{where}: {times}"
