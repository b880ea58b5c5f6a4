"""The command."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.gpu_check import results
from bench.gpu_check.runner import Outcome, run_stages, succeeded
from bench.gpu_check.stages import STAGES, Context, Stage, select

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for everything; the emulated backend has few cores and runs fewer tests.
BUDGET = 450
EMULATED_BUDGET = 1500
#: What pytest's -k selects: on a device all tests over it; emulated, a cross-section of those of
#: the operations (layers are made of these).
TESTS = "cuda"
EMULATED_TESTS = (
    "(test_every_dtype or test_empty or test_missing_gradients or test_same_bits) and not layer"
)
#: What ctest's -R selects; empty for all.
CPP_TESTS = ""
EMULATED_CPP_TESTS = r"^cpp\.(headers|emulation|cuda_emulated\.seed7)$"


def parser() -> argparse.ArgumentParser:
    names = ", ".join(stage.name for stage in STAGES)
    p = argparse.ArgumentParser(
        prog="python -m bench.gpu_check",
        description="Build the CUDA plugin, check it on this machine's GPU and measure it.",
        epilog=f"Stages: {names}; or a group of them: setup, check, measure.",
    )
    p.add_argument("--emulated", action="store_true", help="over the emulated backend, with no GPU")
    p.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="run these stages alone")
    p.add_argument("--skip", nargs="+", default=[], metavar="STAGE", help="leave these stages out")
    p.add_argument("--list", action="store_true", help="print the stages and stop")
    p.add_argument("--budget", type=float, help=f"seconds for everything (default {BUDGET})")
    p.add_argument("--tests", help=f"pytest's -k expression (default {TESTS!r})")
    p.add_argument("--cpp-tests", help="ctest's -R expression (default: all)")
    p.add_argument("--build-dir", type=Path, help="default: build/gpu_check[_emulated]")
    p.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    p.add_argument("--out", type=Path, help="the JSON file (default: gpu_check.json in the build)")
    p.add_argument("--compare", type=Path, metavar="FILE", help="an earlier JSON file")
    return p


def print_list(console: Console, stages: list[Stage]) -> None:
    for stage in stages:
        console.print(f"{stage.name:<18} {stage.kind:<8} at most {stage.limit:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 if a check failed, 2 for wrong arguments."""
    p = parser()
    args = p.parse_args(arguments)
    console = Console(width=None if Console().is_terminal else 160)
    try:
        stages = select(args.only, args.skip)
        earlier = results.read(args.compare) if args.compare else None
    except (OSError, ValueError) as error:
        p.error(str(error))
    if args.list:
        print_list(console, stages)
        return 0
    name = "gpu_check_emulated" if args.emulated else "gpu_check"
    build_dir = (args.build_dir or ROOT / "build" / name).resolve()
    budget = args.budget or (EMULATED_BUDGET if args.emulated else BUDGET)
    context = Context(
        root=ROOT,
        build_dir=build_dir,
        emulated=args.emulated,
        tests=args.tests or (EMULATED_TESTS if args.emulated else TESTS),
        cpp_tests=args.cpp_tests or (EMULATED_CPP_TESTS if args.emulated else CPP_TESTS),
        jobs=max(1, args.jobs),
    )
    options: dict[str, Any] = {
        "budget": budget,
        "tests": context.tests,
        "cpp_tests": context.cpp_tests,
        "only": args.only,
        "skip": args.skip,
        "jobs": context.jobs,
    }
    folders = {str(build_dir): "BUILD", str(ROOT): "SOURCE", sys.prefix: "PYTHON"}
    out = args.out or build_dir / "gpu_check.json"
    start = time.monotonic()
    outcomes: dict[str, Outcome] = {}

    def started(stage: Stage) -> None:
        console.print(f"[dim]{time.monotonic() - start:5.0f} s[/]  {stage.name} …")

    def finished(stage: Stage, outcome: Outcome) -> None:
        # Written after every stage, so that nothing is lost if the command itself is stopped.
        outcomes[stage.name] = outcome
        console.print(f"         {stage.name}: {results.colour(outcome['status'])}")
        result = results.assemble(
            stages, outcomes, emulated=args.emulated, options=options,
            passed=succeeded([s for s in stages if s.name in outcomes], outcomes),
            seconds=time.monotonic() - start,
        )  # fmt: skip
        results.write(results.without_paths(result, folders), out)

    run_stages(stages, context, budget, started, finished)
    result = results.read(out)
    results.print_stages(result, console)
    results.print_rows(result, console)
    if earlier is not None:
        results.print_comparison(results.compare(earlier, result), args.compare, console)
    console.print(
        f"{results.device_name(result)}: {results.colour(result['status'])} "
        f"in {result['seconds']:.0f} s; {out}"
    )
    return 0 if result["status"] == "passed" else 1
