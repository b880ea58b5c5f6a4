"""Runs stages one after the other, each in a process of its own, within a budget of time."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.gpu_check.stages import EMULATED_LIMIT_FACTOR, Context, Stage

#: With less than this left, a stage is not started.
LEAST_SECONDS = 3.0
#: Statuses of a setup or check stage that make the whole check fail.
BAD = ("failed", "timed out", "not run")

Outcome = dict[str, Any]


def environment(context: Context) -> dict[str, str]:
    """Of a stage's process: the package from the build, and nothing that slows OpenBLAS down."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    folders = [str(context.site), str(context.root), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(f for f in folders if f)
    env["PYTHONUNBUFFERED"] = "1"
    env.pop("PENSTOCK_HOST_PLUGIN", None)
    if context.emulated:
        env["PENSTOCK_HOST_PLUGIN"] = str(context.emulated_plugin)
    else:
        library = find_cublas()
        if library is not None:
            env.setdefault("PENSTOCK_CUBLAS", str(library))
    return env


def find_cublas() -> Path | None:
    """cuBLAS among Python's packages, which a plugin in a build folder would not look through."""
    for folder in sys.path:
        for pattern in ("nvidia/cu13/lib/libcublas.so.13", "nvidia/cublas/lib/libcublas.so.12"):
            path = Path(folder) / pattern
            if path.is_file():
                return path
    return None


def stop(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def tail(path: Path, lines: int = 15) -> list[str]:
    text = path.read_text(errors="replace") if path.exists() else ""
    return [line for line in text.splitlines() if line.strip()][-lines:]


def run_stage(stage: Stage, context: Context) -> Outcome:
    """Run one stage in a new process for at most ``context.seconds``.

    Returns:
        status ("passed", "failed", "skipped" or "timed out"), seconds, lines, failures and data.
    """
    context.logs.mkdir(parents=True, exist_ok=True)
    log = context.logs / f"{stage.name}.log"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        told, found = Path(folder, "context.json"), Path(folder, "outcome.json")
        told.write_text(context.dump())
        command = [sys.executable, "-m", "bench.gpu_check.worker", stage.target]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(told), str(found)],
                cwd=context.root,
                env=environment(context),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            timed_out = False
            try:
                process.wait(timeout=context.seconds)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                stop(process)
        outcome: Outcome = {"status": "running", "lines": [], "failures": [], "data": {}}
        if found.exists():
            outcome = json.loads(found.read_text())
    outcome["seconds"] = round(time.monotonic() - start, 2)
    if timed_out:
        outcome["status"] = "timed out"
        outcome["failures"].append(f"stopped after {context.seconds:.0f} s")
    elif outcome["status"] == "running" or process.returncode != 0:
        code = process.returncode
        reason = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        outcome["status"] = "failed"
        outcome["failures"].append(f"the stage's process ended with {reason}")
        outcome["failures"] += tail(log)
    return outcome


def not_run(reason: str) -> Outcome:
    return {"status": "not run", "seconds": 0.0, "lines": [reason], "failures": [], "data": {}}


def run_stages(
    stages: Iterable[Stage],
    context: Context,
    budget: float,
    started: Callable[[Stage], None] = lambda stage: None,
    finished: Callable[[Stage, Outcome], None] = lambda stage, outcome: None,
) -> dict[str, Outcome]:
    """Run stages in order; returns their outcomes by name."""
    end = time.monotonic() + budget
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        left = end - time.monotonic()
        failed = [n for n in stage.needs if n in outcomes and outcomes[n]["status"] in BAD]
        if failed:
            outcome = not_run(f"the stage {failed[0]!r} did not succeed")
        elif left < LEAST_SECONDS:
            outcome = not_run(f"the budget of {budget:.0f} s is spent")
        else:
            limit = stage.limit * (EMULATED_LIMIT_FACTOR if context.emulated else 1)
            started(stage)
            told = dataclasses.replace(
                context,
                seconds=min(limit, left),
                start=time.time(),
                earlier={name: o["data"] for name, o in outcomes.items()},
            )
            outcome = run_stage(stage, told)
        outcomes[stage.name] = outcome
        finished(stage, outcome)
    return outcomes


def succeeded(stages: Iterable[Stage], outcomes: dict[str, Outcome]) -> bool:
    """Whether every setup and check stage passed, or had nothing to work on here."""
    return not any(s.kind != "measure" and outcomes[s.name]["status"] in BAD for s in stages)
