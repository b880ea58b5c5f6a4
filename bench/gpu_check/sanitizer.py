"""compute-sanitizer's four tools over every operation on small shapes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.gpu_check.build import OUT_OF_TIME, run_to_log
from bench.gpu_check.stages import Context
from bench.gpu_check.worker import Report, Skip

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PROGRAM = "bench.gpu_check.small_shapes"
#: Records of a tool that mention this are about our kernels.
OURS = "penstock"


def find_sanitizer() -> str | None:
    """compute-sanitizer on PATH, in the toolkit, or in the toolkit that Python packages make."""
    found = shutil.which("compute-sanitizer")
    if found:
        return found
    tops = [os.environ.get(v, "") for v in ("PENSTOCK_CUDA_ROOT", "CUDA_HOME", "CUDA_PATH")]
    tops += ["/usr/local/cuda", *(f"{folder}/nvidia/cu13" for folder in sys.path)]
    for top in filter(None, tops):
        for part in ("bin", "compute-sanitizer"):
            path = Path(top, part, "compute-sanitizer")
            if os.access(path, os.X_OK):
                return str(path)
    return None


def records(text: str) -> list[str]:
    """What a tool found, one record each, out of its output.

    A record starts with a line that is not indented behind the mark "=========", and goes on with
    indented ones.
    """
    found: list[list[str]] = []
    for line in text.splitlines():
        match = re.match(r"^=========(?: (?P<words>.*))?$", line)
        if match is None:
            continue
        words = match["words"] or ""
        if not words.strip():
            continue
        if words.startswith("    "):
            if found:
                found[-1].append(words.strip())
        else:
            found.append([words.strip()])
    heads = ("COMPUTE-SANITIZER", "ERROR SUMMARY", "RACECHECK SUMMARY", "LEAK SUMMARY")
    noise = (
        "Target application",
        "Warning: ",
        "Host Frame",
        "Saved host backtrace",
        "No attachable",
    )
    return ["\n".join(r) for r in found if not r[0].startswith((*heads, *noise))]


def unusable(text: str) -> str | None:
    """Why the tool does not work on this device at all, if its output says so."""
    for words in ("Device not supported", "Unable to launch", "not supported on this", "Internal"):
        for line in text.splitlines():
            if line.startswith("=========") and words.lower() in line.lower():
                return line.strip("= ")
    return None


def run_tool(sanitizer: str, tool: str, context: Context, planted: bool) -> tuple[int, str]:
    command = [
        sanitizer, "--tool", tool, "--report-api-errors", "no", "--print-limit", "200",
        sys.executable, "-m", PROGRAM, *([tool] if planted else []),
    ]  # fmt: skip
    name = f"{tool}-planted.txt" if planted else f"{tool}.txt"
    return run_to_log(command, context.logs / name, context.time_left)


def judge(tool: str, planted: str | None, status: int, text: str) -> dict[str, Any]:
    """What a tool's two outputs mean. ``planted``: that of the planted fault; None without one.

    Returns:
        usable, why (not), control ("found", "missed" or "none"), calls, found (records about our
        kernels, and for memcheck all), elsewhere (number of the other records).
    """
    result: dict[str, Any] = {"usable": True, "why": "", "found": [], "elsewhere": 0, "calls": 0}
    result["control"] = "none"
    if planted is not None:
        result["control"] = "found" if records(planted) else "missed"
    why = unusable(text)
    calls = re.search(r"made (\d+) calls", text)
    if why is not None:
        return result | {"usable": False, "why": why}
    every = records(text)
    # A write outside in someone else's kernel may well be by a pointer or a size that we gave.
    result["found"] = [r for r in every if tool == "memcheck" or OURS in r]
    result["elsewhere"] = len(every) - len(result["found"])
    if calls is not None:
        result["calls"] = int(calls[1])
    elif not result["found"]:
        last = "\n".join(text.splitlines()[-8:])
        words = "was stopped" if status == OUT_OF_TIME else f"ended with status {status}"
        result |= {"usable": False, "why": f"the program {words}: {last}"}
    return result


def run_tools(context: Context, report: Report) -> None:
    """Stage: each tool over small shapes, and over a planted fault, which it must find."""
    if context.emulated:
        raise Skip(
            "needs a device; over the emulated backend the address and undefined-behaviour "
            "sanitizers take its place (the preset asan)"
        )
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise Skip("compute-sanitizer is not there")
    has_cupy = importlib.util.find_spec("cupy") is not None
    jobs = [
        (tool, planted) for tool in TOOLS for planted in ((True, False) if has_cupy else (False,))
    ]
    with ThreadPoolExecutor(max(1, min(len(jobs), context.jobs // 2))) as pool:
        found = pool.map(lambda job: run_tool(sanitizer, job[0], context, planted=job[1]), jobs)
        outputs = dict(zip(jobs, found, strict=True))
    usable = 0
    for tool in TOOLS:
        planted = outputs[tool, True][1] if has_cupy else None
        result = judge(tool, planted, *outputs[tool, False])
        report.put(tool, result)
        if not result["usable"]:
            report.line(f"{tool}: does not work here ({result['why']})")
            continue
        usable += 1
        words = f"{tool}: {result['calls']} calls, {len(result['found'])} errors"
        if result["elsewhere"]:
            words += f", {result['elsewhere']} in other libraries' kernels"
        if result["control"] != "found":
            words += f"; planted fault: {result['control']}, so no error says little"
        report.line(words)
        for record in result["found"][:5]:
            report.fail(f"{tool}: {record[:800]}")
    if not usable:
        raise Skip("none of the tools works on this device")
