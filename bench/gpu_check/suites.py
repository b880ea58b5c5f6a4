"""The project's own tests, Python and C++, on the device or over the emulated backend."""

from __future__ import annotations

import importlib.util
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from bench.gpu_check.build import OUT_OF_TIME, run_to_log, tool
from bench.gpu_check.stages import Context
from bench.gpu_check.worker import Report, Skip

#: More processes than this would mostly wait for the one device.
MOST_PROCESSES = 8
#: Failures that are kept in the file.
MOST_FAILURES = 20
#: pytest's exit status where no test was selected, which the numbers say too.
NO_TESTS = 5


def read_junit(path: Path) -> dict[str, Any]:
    """Numbers of tests, and the names and messages of those that failed, of a JUnit file."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in ET.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}".strip(".")
        problem = case.find("failure")
        if problem is None:
            problem = case.find("error")
        if problem is not None or case.get("status") in ("fail", "timeout"):
            counts["failed"] += 1
            message = "" if problem is None else problem.get("message") or problem.text or ""
            # ctest only says that a program failed; GoogleTest's own lines are in its output.
            output = (case.findtext("system-out") or "").splitlines()
            said = [line for line in output if line.startswith("[  FAILED  ]")]
            words = [message.strip()[:400], *dict.fromkeys(said)]
            failures.append(f"{name}: " + "\n".join(words[:MOST_FAILURES]))
        elif case.find("skipped") is not None:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return {**counts, "failures": failures}


def put_counts(report: Report, found: dict[str, Any], what: str) -> None:
    report.put("counts", {k: found[k] for k in ("passed", "failed", "skipped")})
    report.line(
        f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped ({what})"
    )
    for failure in found["failures"][:MOST_FAILURES]:
        report.fail(failure)
    more = len(found["failures"]) - MOST_FAILURES
    if more > 0:
        report.fail(f"{more} more tests failed; the logs have all of them")
    if not found["passed"] and not found["failed"]:
        report.fail(f"no test ran ({what})")


def ending(program: str, status: int, text: str) -> str:
    """How a program ended, and the end of what it printed."""
    words = "was stopped, out of time" if status == OUT_OF_TIME else f"ended with status {status}"
    return f"{program} {words}: " + "\n".join(text.splitlines()[-15:])


def processes(context: Context) -> int:
    """pytest's processes: each holds a context and a pool of memory on the device."""
    if context.emulated:
        return min(context.jobs, MOST_PROCESSES)
    memory = context.earlier.get("device", {}).get("device", {}).get("memory_bytes", 2**34)
    return max(1, min(context.jobs, MOST_PROCESSES, int(memory // (4 * 2**30))))


def python_tests(context: Context, report: Report) -> None:
    """Stage: pytest over the tests that ``--tests`` selects."""
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed")
    if not context.emulated and importlib.util.find_spec("cupy") is None:
        raise Skip("CuPy is not installed, which the tests on the device use")
    junit = context.logs / "python-tests.xml"
    junit.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", str(context.root / "tests" / "python"), "-q",
        "-k", context.tests, f"--junitxml={junit}", "-p", "no:cacheprovider",
    ]  # fmt: skip
    count = processes(context)
    if count > 1 and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(count)]
    status, text = run_to_log(command, context.logs / "pytest.txt", context.time_left)
    if not junit.exists():
        report.fail(ending("pytest", status, text))
        return
    put_counts(report, read_junit(junit), f"pytest -k {context.tests!r}")
    if status not in (0, 1, NO_TESTS):
        report.fail(ending("pytest", status, text))


def cpp_tests(context: Context, report: Report) -> None:
    """Stage: ctest, where the build has the C++ tests."""
    if not context.earlier.get("build", {}).get("cpp_tests", True):
        raise Skip("the C++ tests were not built, there is no GoogleTest")
    ctest = tool("ctest")
    if ctest is None:
        raise Skip("ctest is not there")
    junit = context.logs / "cpp-tests.xml"
    junit.unlink(missing_ok=True)
    command = [
        ctest, "--test-dir", str(context.build_dir), "-j", str(context.jobs),
        "--output-on-failure", "--output-junit", str(junit),
    ]  # fmt: skip
    if context.cpp_tests:
        command += ["-R", context.cpp_tests]
    status, text = run_to_log(command, context.logs / "ctest.txt", context.time_left)
    if not junit.exists():
        report.fail(ending("ctest", status, text))
        return
    put_counts(report, read_junit(junit), "ctest, programs")
    if status != 0 and not report.failures:
        report.fail(ending("ctest", status, text))
