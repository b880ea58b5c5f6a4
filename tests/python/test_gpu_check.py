"""bench.gpu_check: all of it that can be shown without a GPU."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import penstock
import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # for `bench`, which is not part of the package

from bench.gpu_check import (  # noqa: E402
    behaviour,
    build,
    measure,
    operations,
    peers,
    results,
    runner,
    sanitizer,
    suites,
    timing,
)
from bench.gpu_check.arrays import Host, Torch  # noqa: E402
from bench.gpu_check.operations import Call, Case  # noqa: E402
from bench.gpu_check.stages import STAGES, Context, Stage, select  # noqa: E402
from bench.gpu_check.worker import Report, Skip, run  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "gpu_check_emulated.json"

# ---- stages ----------------------------------------------------------------------------------

# Stages for these tests, imported by the processes that run them.
MODULE = """
import os, signal, subprocess, sys, time
from bench.gpu_check.worker import Skip

def good(context, report):
    report.put("seconds", context.seconds)
    report.put("earlier", context.earlier)
    report.line("all is well")

def wrong(context, report):
    report.fail("one thing")
    report.fail("another")

def raises(context, report):
    raise ValueError("nonsense")

def skips(context, report):
    raise Skip("nothing to do here")

def crashes(context, report):
    report.append("rows", 1)
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(context, report):
    os._exit(7)

def hangs(context, report):
    report.append("rows", 1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    report.put("child", child.pid)
    time.sleep(60)
"""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """For stages in processes of their own, which find MODULE as `parts`."""
    (tmp_path / "parts.py").write_text(MODULE)
    # The package as these tests have it: installed, or somewhere on the path.
    package = Path(penstock.__file__).resolve().parents[1]
    path = [str(tmp_path), str(ROOT), str(package), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return Context(root=ROOT, build_dir=tmp_path / "build", seconds=30)


def stage(name: str, kind: Any = "check", needs: tuple[str, ...] = ()) -> Stage:
    return Stage(name, kind, f"parts:{name}", limit=30, needs=needs)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("good", "passed", "all is well"),
        ("wrong", "failed", "another"),
        ("raises", "failed", "ValueError: nonsense"),
        ("skips", "skipped", "nothing to do here"),
        ("crashes", "failed", "signal SIGKILL"),
        ("leaves", "failed", "exit status 7"),
        ("missing", "failed", "has no attribute 'missing'"),
    ],
)
def test_stage_outcome(context: Context, name: str, status: str, words: str) -> None:
    outcome = runner.run_stage(stage(name), context)
    assert outcome["status"] == status
    assert any(words in text for text in outcome["lines"] + outcome["failures"])


def test_what_was_found_before_a_crash_is_kept(context: Context) -> None:
    outcome = runner.run_stage(stage("crashes"), context)
    assert outcome["data"] == {"rows": [1]}
    assert "last words" in outcome["failures"]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stage_out_of_time_is_stopped_with_what_it_started(context: Context) -> None:
    start = time.monotonic()
    outcome = runner.run_stage(stage("hangs"), replace(context, seconds=2))
    assert time.monotonic() - start < 20
    assert outcome["status"] == "timed out"
    assert outcome["data"]["rows"] == [1]
    for _ in range(50):
        if not is_alive(outcome["data"]["child"]):
            break
        time.sleep(0.1)
    assert not is_alive(outcome["data"]["child"])


def test_the_others_go_on_after_a_failure(context: Context) -> None:
    chosen = [
        stage("crashes"),
        stage("wrong"),
        stage("skips", needs=("wrong",)),
        stage("good", needs=("leaves",)),
    ]
    seen: list[str] = []
    outcomes = runner.run_stages(chosen, context, 60, lambda s: seen.append(s.name))
    assert [o["status"] for o in outcomes.values()] == ["failed", "failed", "not run", "passed"]
    assert seen == ["crashes", "wrong", "good"]
    # A stage knows what the ones before it found.
    assert outcomes["good"]["data"]["earlier"]["crashes"] == {"rows": [1]}
    assert not runner.succeeded(chosen, outcomes)


def test_budget(context: Context) -> None:
    chosen = [stage("hangs"), stage("good")]
    start = time.monotonic()
    outcomes = runner.run_stages(chosen, context, runner.LEAST_SECONDS + 0.5)
    assert time.monotonic() - start < 20
    assert [o["status"] for o in outcomes.values()] == ["timed out", "not run"]
    assert "budget" in outcomes["good"]["lines"][0]


def test_a_stage_is_told_its_time(context: Context) -> None:
    limited = replace(stage("good"), limit=11.0)
    found = runner.run_stages([limited], context, 100)["good"]["data"]["seconds"]
    assert found == 11
    found = runner.run_stages([limited], context, 8)["good"]["data"]["seconds"]
    assert 7 < found <= 8
    found = runner.run_stages([limited], replace(context, emulated=True), 100)
    assert found["good"]["data"]["seconds"] == 44


@pytest.mark.parametrize(
    ("kind", "status", "good"),
    [
        ("check", "passed", True),
        ("check", "skipped", True),
        ("check", "failed", False),
        ("check", "timed out", False),
        ("check", "not run", False),
        ("setup", "failed", False),
        ("measure", "failed", True),
    ],
)
def test_success(kind: Any, status: str, good: bool) -> None:
    assert runner.succeeded([stage("good", kind)], {"good": {"status": status}}) is good


def test_select() -> None:
    names = [s.name for s in STAGES]
    assert [s.name for s in select([], [])] == names
    assert [s.name for s in select(["graphs"], [])] == ["device", "graphs"]
    assert {s.kind for s in select(["measure"], ["device"])} == {"measure"}
    assert [s.name for s in select(["setup"], ["build"])] == ["device"]
    with pytest.raises(ValueError, match=r"expected one of device, .*'nonsense'"):
        select(["nonsense"], [])


def test_registered_stages_exist() -> None:
    for s in STAGES:
        module, _, function = s.target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert all(need in [other.name for other in STAGES] for need in s.needs)
    assert len({s.name for s in STAGES}) == len(STAGES)


def test_context_survives_the_way_to_a_process(context: Context) -> None:
    told = replace(context, emulated=True, earlier={"device": {"name": "x"}})
    assert Context.load(told.dump()) == told


def test_environment(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("PENSTOCK_HOST_PLUGIN", "another")
    env = runner.environment(context)
    assert "OPENBLAS_CORETYPE" not in env and "PENSTOCK_HOST_PLUGIN" not in env
    assert env["PYTHONPATH"].split(os.pathsep)[:2] == [str(context.site), str(ROOT)]
    emulated = runner.environment(replace(context, emulated=True))
    assert emulated["PENSTOCK_HOST_PLUGIN"] == str(context.emulated_plugin)


# ---- the file, comparison and tables ---------------------------------------------------------


def timing_of(ms: float, noise: float = 0.01) -> dict[str, float]:
    return {"ms": ms, "low": ms * (1 - noise / 2), "high": ms * (1 + noise / 2), "rounds": 9}


def row(label: str = "gru (4, 3, 2, 1) float32", ms: float = 2.0, **changes: Any) -> dict[str, Any]:
    return {
        "label": label,
        "case": {},
        "mode": "forward",
        "times": {"penstock": timing_of(ms), "torch.nn.GRU": timing_of(3 * ms)},
        "graph_times": {"penstock": timing_of(ms / 2)},
        "left_out": {},
        "ratios": {"torch.nn.GRU": 3.0},
        "graph_ratios": {},
        "us_per_step": 5.0,
        "gb_per_s": 123.0,
        "tflop_per_s": 4.5,
        "share": 0.42,
        "scan": {"us": 3.0, "gb_per_s": 100.0, "share": 0.31},
    } | changes


def outcome(status: str = "passed", **changes: Any) -> dict[str, Any]:
    return {"status": status, "seconds": 1.5, "lines": [], "failures": [], "data": {}} | changes


def a_result(
    rows: list[dict[str, Any]] | None = None, status: str = "passed", **changes: Any
) -> Any:
    stages = [STAGES[0], STAGES[4], STAGES[-2]]
    outcomes = {
        stages[0].name: outcome(data={"device": {"name": "Device X"}}),
        stages[1].name: outcome(status, failures=["[0] is wrong"], lines=["12 [calls]"]),
        stages[2].name: outcome(data={"rows": [row()] if rows is None else rows, "more": 1}),
    }
    options: dict[str, Any] = {"emulated": False, "passed": status == "passed", "seconds": 9.0}
    return results.assemble(stages, outcomes, **(options | {"options": {}} | changes))


def test_file(tmp_path: Path) -> None:
    result = a_result()
    results.write(result, tmp_path / "deep" / "x.json")
    assert results.read(tmp_path / "deep" / "x.json") == result
    assert result["rows"] == [row()]
    assert result["stages"][2]["data"] == {"more": 1}
    assert results.device_name(result) == "Device X"
    assert result["measurement"] is True and result["status"] == "passed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: [r], "expected a file"),
        (lambda r: r | {"kind": "other"}, "expected a file"),
        (lambda r: r | {"schema": 0}, "schema 1"),
        (lambda r: {k: v for k, v in r.items() if k != "rows"}, "rows"),
        (lambda r: r | {"seconds": "9"}, "seconds"),
        (lambda r: r | {"stages": [{"name": "x"}]}, "'x' has no data, failures"),
        (lambda r: r | {"rows": [{"label": "x"}]}, "'x' has no case"),
        (lambda r: r | {"measurement": False}, "not a measurement"),
    ],
)
def test_wrong_files_are_refused(change: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(change(a_result())))
    with pytest.raises(ValueError, match=words):
        results.read(path)


def test_paths_are_left_out_of_the_file() -> None:
    value = {"a": ["in /x/y/build/z", 3], "b": {"c": "/x/y"}}
    found = results.without_paths(value, {"/x/y/build": "BUILD", "/x/y": "SOURCE"})
    assert found == {"a": ["in BUILD/z", 3], "b": {"c": "SOURCE"}}


def test_compare() -> None:
    old = a_result([row("a", 2.0), row("b", 2.0), row("c", 2.0), row("gone", 1.0)], "failed")
    noisy = row("c", 2.3)
    noisy["times"]["penstock"] = timing_of(2.3, noise=0.5)
    new = a_result([row("a", 2.02), row("b", 3.0), noisy, row("new", 1.0)])
    found = results.compare(old, new)
    assert found["warnings"] == []
    assert found["stages"] == [("sanitizer", "failed", "passed")]
    changed = {(r["label"], r["how"]): r["ratio"] for r in found["rows"] if r["changed"]}
    assert changed == {
        ("b", "call"): pytest.approx(1.5),
        ("b", "graph"): pytest.approx(1.5),
        ("c", "graph"): pytest.approx(1.15),  # its calls were noisier than that
    }
    assert {r["label"] for r in found["rows"]} == {"a", "b", "c"}


def test_compare_what_cannot_be_compared() -> None:
    other = a_result()
    other["system"] = {"device": {"name": "Device Y"}}
    assert any("Device Y" in w for w in results.compare(a_result(), other)["warnings"])
    plain = {k: v for k, v in row().items() if k not in ("ratios", "graph_ratios", "share")}
    emulated = a_result([plain], emulated=True)
    found = results.compare(a_result(), emulated)
    assert any("not a measurement" in w for w in found["warnings"])
    assert found["rows"] == []


def printed(function: Callable[..., None], *args: Any) -> str:
    stream = io.StringIO()
    function(*args, Console(file=stream, width=240))
    return stream.getvalue()


def test_tables() -> None:
    result = a_result(status="failed")
    text = printed(results.print_stages, result)
    for words in ("sanitizer", "failed", "12 [calls]", "[0] is wrong"):
        assert words in text
    text = printed(results.print_rows, result)
    for words in ("gru (4, 3, 2, 1) float32", "2 ±0 %", "42% (scan 31%)", "torch.nn.GRU 3.00"):
        assert words in text
    old = a_result([row(ms=1.0)])
    text = printed(results.print_comparison, results.compare(old, result), Path("old.json"))
    assert "2 of 2 times changed" in text and "2.00" in text


def test_emulated_table_has_no_ratios() -> None:
    plain = {k: v for k, v in row().items() if k not in ("ratios", "graph_ratios", "share")}
    result = a_result([plain], emulated=True)
    results.check(result)
    text = printed(results.print_rows, result)
    assert "not a measurement" in text and "of the ceiling" not in text and "3.00" not in text


# ---- reading what programs print -------------------------------------------------------------


def test_junit_of_pytest(tmp_path: Path) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_error(nothing): pass\n"
        "def test_skip(): pytest.skip('why')\n"
    )
    junit = tmp_path / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", str(tests), f"--junitxml={junit}"]
    subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, check=False
    )
    found = suites.read_junit(junit)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert any("test_bad: assert 1 == 2" in f for f in found["failures"])


def test_junit_of_ctest(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuite name="x"><testcase name="cpp" classname="cpp" status="run"/>'
        '<testcase name="bad" classname="bad" status="fail"><failure message="Failed"/>'
        "<system-out>[       OK ] One\n[  FAILED  ] Two (0 ms)\n</system-out>"
        "</testcase></testsuite>"
    )
    found = suites.read_junit(junit)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 0)
    assert found["failures"] == ["bad.bad: Failed\n[  FAILED  ] Two (0 ms)"]


def test_many_failures_are_counted() -> None:
    report = Report()
    failures = [f"test {i}" for i in range(suites.MOST_FAILURES + 3)]
    counts = {"passed": 1, "failed": len(failures), "skipped": 0}
    suites.put_counts(report, counts | {"failures": failures}, "x")
    assert report.failures[: suites.MOST_FAILURES] == failures[: suites.MOST_FAILURES]
    assert report.failures[-1].startswith("3 more tests")


def test_no_test_is_a_failure() -> None:
    report = Report()
    suites.put_counts(report, {"passed": 0, "failed": 0, "skipped": 3, "failures": []}, "x")
    assert report.failures == ["no test ran (x)"]


MEMCHECK = """\
========= COMPUTE-SANITIZER
made 12 calls
========= Invalid __global__ write of size 4 bytes
=========     at void penstock::cuda::scan_kernel<float>(Args)+0x120
=========     by thread (3,0,0) in block (0,0,0)
=========     Address 0x7f0000000200 is out of bounds
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at gemm_kernel+0x40
========= ERROR SUMMARY: 2 errors
"""
CLEAN = "========= COMPUTE-SANITIZER\nmade 12 calls\n========= ERROR SUMMARY: 0 errors\n"


def test_sanitizer_records() -> None:
    found = sanitizer.records(MEMCHECK)
    assert len(found) == 2
    assert found[0].startswith("Invalid __global__ write") and "thread (3,0,0)" in found[0]
    assert sanitizer.records(CLEAN) == []


def test_sanitizer_judgement() -> None:
    clean = sanitizer.judge("memcheck", MEMCHECK, 0, CLEAN)
    assert clean["usable"] and clean["control"] == "found" and clean["calls"] == 12
    assert clean["found"] == [] and clean["elsewhere"] == 0
    # Reads by other libraries' kernels are not ours, writes out of bounds may be.
    assert len(sanitizer.judge("memcheck", None, 1, MEMCHECK)["found"]) == 2
    found = sanitizer.judge("initcheck", CLEAN, 1, MEMCHECK)
    assert len(found["found"]) == 1 and found["elsewhere"] == 1 and found["control"] == "missed"
    refused = sanitizer.judge("racecheck", None, 1, "========= Error: Device not supported\n")
    assert not refused["usable"] and "Device not supported" in refused["why"]
    died = sanitizer.judge("racecheck", None, 139, "Segmentation fault\n")
    assert not died["usable"] and "status 139" in died["why"]


def test_sanitizer_planted_faults_cover_every_tool() -> None:
    from bench.gpu_check import small_shapes

    assert set(small_shapes.PLANTED) == set(sanitizer.TOOLS)
    assert {case.dtype for case in small_shapes.cases()} == set(small_shapes.DTYPES)


def test_resource_report() -> None:
    text = (
        "# Resources\n\nsru_cuda.cu\n"
        "sm_90  registers 40  shared 1024  stack 0  spills 0/0  scan_kernel<float, 4>\n"
        "sm_90  registers 255  shared 0  stack 16  spills 8/12  other_kernel<double>\n"
    )
    rows = build.kernels_of(text)
    assert [r["registers"] for r in rows] == [40, 255]
    assert [r["kernel"] for r in rows if r["spills"] != "0/0"] == ["other_kernel<double>"]


def test_build_options_name_the_devices_architecture(context: Context) -> None:
    told = replace(
        context, earlier={"device": {"device": {"compute_major": 9, "compute_minor": 0}}}
    )
    assert build.options_of(told)["PENSTOCK_CUDA_ARCHITECTURES"] == "90-real"
    assert build.options_of(told)["PENSTOCK_CUDA"] == "ON"
    assert build.options_of(replace(context, emulated=True))["PENSTOCK_EMULATED_CUDA"] == "ON"


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake")
def test_a_source_tree_that_does_not_configure(context: Context, tmp_path: Path) -> None:
    report = Report()
    build.build(replace(context, root=tmp_path), report)
    assert len(report.failures) == 1 and "does not configure" in report.failures[0]


def test_a_program_out_of_time(tmp_path: Path) -> None:
    command = [sys.executable, "-uc", "print('begun'); import time; time.sleep(60)"]
    status, text = build.run_to_log(command, tmp_path / "log", 2)
    assert status == build.OUT_OF_TIME and text == "begun\n"
    assert (tmp_path / "log").read_text() == text


# ---- arithmetic and traffic ------------------------------------------------------------------


def test_levels_of_slices() -> None:
    case = Case("sliced", 512, 100, 200, 50, slices=(8, 4))
    assert list(case.levels()) == [
        ("gru", 16, 3200, 200),
        ("gru", 4, 800, 50),
        ("gru", 8, 100, 50),
    ]
    odd = Case("sliced", 13, 2, 3, 4, direction="bidirectional", cell="sru", slices=(2, 3))
    assert list(odd.levels()) == [("sru", 3, 12, 3), ("sru", 3, 4, 8), ("sru", 2, 2, 8)]


def test_operations_are_those_of_the_products() -> None:
    gru = Case("gru", 3, 5, 7, 11, direction="bidirectional")
    assert gru.product_operations() == 2 * 3 * 5 * 2 * (33 * 7 + 33 * 11)
    assert Case("sru", 3, 5, 8, 8).product_operations() == 2 * 3 * 5 * 24 * 8
    assert Case("sru", 3, 5, 7, 8).product_operations() == 2 * 3 * 5 * 32 * 7


def test_scan_traffic() -> None:
    # Elements: 5 for inference; 6 forward and 10 backward in training.
    case = Case("sru", 3, 5, 8, 8)
    assert case.scan_bytes(False) == 3 * 5 * 8 * 4 * 5
    assert case.scan_bytes(True) == 3 * 5 * 8 * 4 * 16
    # The state is kept in float32 for the 16-bit types.
    half = replace(case, dtype="float16")
    assert half.scan_bytes(True) == 3 * 5 * 8 * (14 * 2 + 2 * 4)


def test_least_bytes() -> None:
    case = Case("sru", 6, 2, 4, 4, "float64", initial=False)
    x, weights, y, state = 6 * 2 * 4, 12 * 4 + 8 + 8, 6 * 2 * 4, 2 * 4
    call = Call(case, Host())
    assert call.least_bytes(False) == 8 * (x + weights + y + state)
    assert call.least_bytes(True) == 8 * (3 * (x + weights) + 2 * (y + state))


def test_floor() -> None:
    limits = (1e12, 1e14)  # bytes and operations a second
    assert measure.floor_ms(10**9, 10**9, limits) == pytest.approx(1.0)
    assert measure.floor_ms(10**6, 10**12, limits) == pytest.approx(10.0)


def test_share_of_the_scan() -> None:
    full = "void penstock::cuda::(anonymous namespace)::sru_forward_kernel<float>(ForwardScan)"
    name = measure.kernel_name(full)
    assert name == "sru_forward_kernel<float>(ForwardScan)"
    kernels = [
        {"name": name, "us": 10.0},
        {"name": "cublas_kernel(sru_forward_kernel)", "us": 90.0},
    ]
    case = Case("sru", 100, 10, 50, 50)
    found = measure.scan_share(case, False, kernels, bytes_per_s=1e12)
    assert found is not None
    assert found["us"] == 10
    assert found["gb_per_s"] == pytest.approx(100 * 10 * 50 * 4 * 5 / 10e-6 / 1e9)
    assert found["share"] == pytest.approx(found["gb_per_s"] / 1e3)
    assert measure.scan_share(replace(case, op="gru"), False, kernels, 1e12) is None
    assert measure.scan_share(case, False, kernels[1:], 1e12) is None


def test_values_are_as_the_case_says() -> None:
    case = Case("lstm", 4, 3, 5, 6, direction="bidirectional", lengths=True)
    found = operations.values(case)
    assert {k: v.shape for k, v in found.items()} == {
        "x": (4, 3, 5), "weight_ih": (2, 24, 5), "weight_hh": (2, 24, 6), "bias_ih": (2, 24),
        "bias_hh": (2, 24), "dy": (4, 3, 12), "h0": (3, 12), "dh_last": (3, 12), "c0": (3, 12),
        "dc_last": (3, 12), "lengths": (3,),
    }  # fmt: skip
    again = operations.values(case)
    assert all(np.array_equal(found[k], again[k]) for k in found)
    assert not np.array_equal(found["x"], operations.values(case, seed=1)["x"])


def test_measured_cases() -> None:
    for op in ("sru", "gru", "lstm", "rnn", "sliced"):
        found = measure.cases(op, emulated=False)
        assert len({c.label for c in found}) == len(found) >= 4
        assert {"float32"} < {c.dtype for c in found}
        assert all(c.steps * c.batch <= 100 for c in measure.cases(op, emulated=True))
        assert peers.PEERS[op]


# ---- timing ----------------------------------------------------------------------------------


def test_measure_takes_medians_of_contenders_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 0.01 * next(clock))
    order: list[str] = []

    def contender(name: str, times: Iterator[float]) -> timing.Sampler:
        def sample(n: int) -> float:
            order.append(name)
            return n * next(times)

        return sample

    # Two samples are for the number of calls.
    quick = contender("quick", iter([1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 100.0]))
    slow = contender("slow", iter([50.0] * 7))
    found = timing.measure({"quick": (quick, 1), "slow": (slow, 2)}, seconds=0.05)
    assert found["quick"] == {"ms": 3.0, "low": 2.0, "high": 4.0, "rounds": 5}
    assert found["slow"]["ms"] == 50.0
    assert order[4:] == ["quick", "slow"] * 5


def test_long_calls_are_sampled_twice() -> None:
    def sample(n: int) -> float:
        time.sleep(0.02)
        return 20.0 * n

    found = timing.measure({"x": (sample, 1)}, seconds=0.001)
    assert found["x"]["rounds"] == 2 and found["x"]["low"] == found["x"]["high"] == 20.0


def test_calls_take_turns() -> None:
    made: list[int] = []
    sample = timing.sampler(Host(), [lambda i=i: made.append(i) for i in range(3)])  # type: ignore[misc]
    sample(4)
    assert sample(2) >= 0 and made == [0, 1, 2, 0, 1, 2]
    assert timing.calibrate(lambda n: n * 0.5, 3) == 3
    assert timing.calibrate(lambda n: n * 0.01, 3) == 201


# ---- what callers rely on, over NumPy --------------------------------------------------------

STAGE_FUNCTIONS = (behaviour.agreement, behaviour.determinism, behaviour.memory)


@pytest.fixture
def emulated(context: Context) -> Context:
    return replace(context, emulated=True)


def outcome_of(function: Callable[..., None], context: Context) -> Report:
    report = Report()
    run(f"{function.__module__}:{function.__name__}", context, report)
    return report


@pytest.mark.parametrize("function", STAGE_FUNCTIONS)
def test_checks_pass(function: Callable[..., None], emulated: Context) -> None:
    report = outcome_of(function, emulated)
    assert report.status == "passed", report.failures
    dtypes = ("float32",) if function is behaviour.memory else behaviour.DTYPES
    count = len([c for c in behaviour.cases(True, dtypes) if Host().has_dtype(c.dtype)])
    numbers = re.match(r"(\d+) of (\d+) calls", report.lines[-1])
    assert numbers is not None and numbers[1] == numbers[2]
    # `memory` also takes PyTorch's tensors where they are.
    assert int(numbers[1]) in (count, 2 * count)


def noisy(name: str, calls: Iterator[int]) -> Callable[..., Any]:
    """An operation of penstock whose output gets another bit each time."""
    function = getattr(penstock, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        shift = np.asarray(0.125 * next(calls), found.y.dtype)
        return found._replace(y=found.y + shift)

    return wrapped


@pytest.mark.parametrize("function", STAGE_FUNCTIONS)
def test_checks_find_what_is_wrong(
    function: Callable[..., None], emulated: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(penstock, "sru", noisy("sru", iter(range(1, 1000))))
    monkeypatch.setattr(behaviour, "available", lambda: ["sru"])
    report = outcome_of(function, emulated)
    assert report.status == "failed"
    assert any("y" in failure and "sru" in failure for failure in report.failures)


def test_arrays_of_another_library_are_found(
    emulated: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(Host):
        def owns(self, array: Any) -> bool:
            return array.ndim == 3

    monkeypatch.setattr(behaviour, "libraries", lambda *_: [Picky()])
    monkeypatch.setattr(behaviour, "available", lambda: ["sru"])
    report = outcome_of(behaviour.memory, emulated)
    assert any("c_last" in f and "not an array" in f for f in report.failures)


def test_memory_that_stays_is_found() -> None:
    class Leaky(Host):
        used = 0

        def used_bytes(self) -> int:
            Leaky.used += 16
            return Leaky.used

    call = Call(Case("sru", 2, 2, 3, 3), Leaky())
    assert behaviour.kept(call.library, call) == "16 bytes stay in use after 10 calls"


class Streams(Host):
    """Streams and graphs as a device's, over NumPy: work waits until it is asked for."""

    name = "streams"
    has_streams = True
    waits = False
    replays = True

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        yield

    def stream(self) -> Any:
        return self._stream()

    def busy(self, milliseconds: float) -> None:
        pass

    def is_idle(self) -> bool:
        return self.waits

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        outputs = function()

        def replay() -> None:
            for name, value in function().items():
                if self.replays:
                    outputs[name][...] = value

        return replay, outputs


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    library = Streams()
    monkeypatch.setattr(behaviour, "libraries", lambda *_: [library])
    monkeypatch.setattr(behaviour, "available", lambda: ["sru"])
    monkeypatch.setattr(behaviour, "device_cases", lambda: behaviour.cases(True, ("float32",)))
    return library


def test_graphs_and_streams(streams: Streams, context: Context) -> None:
    for function in (behaviour.graphs, behaviour.streams):
        report = outcome_of(function, context)
        assert report.status == "passed", report.failures
        assert any("1 of 1 calls" in line for line in report.lines)


def test_a_graph_that_does_not_follow_its_inputs_is_found(
    streams: Streams, context: Context
) -> None:
    streams.replays = False
    report = outcome_of(behaviour.graphs, context)
    assert any("a replay differs from a call in" in failure for failure in report.failures)


def test_a_call_that_waits_is_found(streams: Streams, context: Context) -> None:
    streams.waits = True
    report = outcome_of(behaviour.streams, context)
    assert any("waits for the stream" in failure for failure in report.failures)


def test_work_on_another_stream_is_found(
    streams: Streams, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stream whose work is done only after what was put elsewhere: x still holds NaN there.
    original = Call.train
    held: dict[str, Any] = {}

    def busy(milliseconds: float) -> None:
        held["late"] = milliseconds > 1

    def train(self: Call) -> Any:
        if held.pop("late", False):
            self.arrays["x"][...] = np.nan
        return original(self)

    monkeypatch.setattr(streams, "busy", busy)
    monkeypatch.setattr(Call, "train", train)
    report = outcome_of(behaviour.streams, context)
    assert any("on another stream" in failure for failure in report.failures)


def test_stages_that_need_a_device_are_skipped(emulated: Context) -> None:
    for function in (
        behaviour.graphs, behaviour.streams, sanitizer.run_tools, measure.ceilings,
        measure.flash_rnn,
    ):  # fmt: skip
        report = outcome_of(function, emulated)
        assert report.status == "skipped" and report.lines


def test_emulated_rows_are_marked(emulated: Context) -> None:
    report = outcome_of(measure.sru, emulated)
    assert report.status == "passed", report.failures
    assert "not a measurement" in report.lines[0]
    for measured in report.data["rows"]:
        assert measured["times"]["penstock"]["ms"] > 0
        assert not {"ratios", "share", "gb_per_s"} & measured.keys()


def test_an_operation_that_is_missing_is_skipped(
    emulated: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "available", lambda: ["sru"])
    report = outcome_of(measure.gru, emulated)
    assert report.status == "skipped" and "no gru" in report.lines[0]


# ---- with PyTorch ----------------------------------------------------------------------------


def test_rows_with_peers(context: Context) -> None:
    pytest.importorskip("torch")
    limits = {"copy": {"gb_per_s": 10.0}, "products": {"float32": {"tflop_per_s": 0.1}}}
    told = replace(context, earlier={"ceilings": limits})
    case = Case("sru", 8, 2, 6, 6, initial=False)
    others = peers.PEERS["sru"] | {"broken": lambda *_: 1 / 0}  # type: ignore[dict-item]
    forward, both = measure.measure_case(case, told, Torch("cpu"), others, 0.05)
    assert (forward["mode"], both["mode"]) == ("forward", "forward+backward")
    for measured in (forward, both):
        assert {"torch.nn.LSTM", "torch.nn.Conv1d"} <= measured["ratios"].keys()
        assert measured["left_out"]["broken"].startswith("ZeroDivisionError")
        floor = max(measured["bytes"] / 10e9, measured["operations"] / 0.1e12) * 1e3
        assert measured["floor_ms"] == pytest.approx(floor)
        ours = measured["times"]["penstock"]["ms"]
        assert measured["share"] == pytest.approx(floor / ours)
        ratio = measured["times"]["torch.nn.LSTM"]["ms"] / ours
        assert measured["ratios"]["torch.nn.LSTM"] == pytest.approx(ratio)
    assert both["operations"] == 3 * forward["operations"]


def test_torch_slices_as_we_do() -> None:
    torch = pytest.importorskip("torch")
    case = Case("sliced", 16, 3, 6, 5, slices=(2, 4))
    x = torch.randn(16, 3, 6)
    torch.manual_seed(0)
    found = peers.composed(case, Torch("cpu"), x, False)()
    torch.manual_seed(0)
    layers = [torch.nn.GRU(n, 5) for n in (6, 5, 5)]
    with torch.no_grad():
        states = [layers[0](part)[0][-1] for part in x.split(2)]
        states = [layers[1](torch.stack(states[i : i + 4]))[0][-1] for i in (0, 4)]
        expected = layers[2](torch.stack(states))[0][-1]
    torch.testing.assert_close(found, expected)
    assert peers.composed(case, Torch("cpu"), x, True)()[0].shape == x.shape


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_tensors_there_and_back(dtype: str) -> None:
    pytest.importorskip("torch")
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    library = Torch("cpu")
    values = operations.values(Case("sru", 3, 2, 4, 4, dtype))["x"]
    array = library.array(values)
    assert library.numpy(array).tobytes() == values.tobytes()
    library.assign(array, -values)
    assert library.numpy(array).tobytes() == (-values).tobytes()
    assert library.owns(array) and not library.owns(values)


# ---- the command -----------------------------------------------------------------------------


def command(*arguments: str, module: bool = True) -> subprocess.CompletedProcess[str]:
    start = ["-m", "bench.gpu_check"] if module else ["bench/gpu_check"]
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", [True, False])
def test_list(module: bool) -> None:
    found = command("--list", module=module)
    assert found.returncode == 0, found.stderr
    assert [line.split()[0] for line in found.stdout.splitlines()] == [s.name for s in STAGES]


def test_wrong_arguments(tmp_path: Path) -> None:
    found = command("--only", "nonsense")
    assert found.returncode == 2 and "expected one of device" in found.stderr
    other = tmp_path / "other.json"
    other.write_text("{}")
    found = command("--compare", str(other))
    assert found.returncode == 2 and "expected a file of" in found.stderr


def test_a_machine_without_a_device(tmp_path: Path) -> None:
    if penstock.config()["cuda_available"] or Path("/dev/nvidia0").exists():
        pytest.skip("there is a device")
    out = tmp_path / "out.json"
    found = command("--only", "build", "--build-dir", str(tmp_path), "--out", str(out))
    assert found.returncode == 1, found.stderr
    result = results.read(out)
    assert [s["status"] for s in result["stages"]] == ["failed", "not run"]
    assert "--emulated runs the check without a device" in result["stages"][0]["failures"][0]


def test_emulated_command(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--emulated", "--only", "device", "--build-dir", str(tmp_path), "--out", str(out)]
    found = command(*arguments)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "emulated CUDA over the CPU: passed" in found.stdout
    result = results.read(out)
    assert result["emulated"] and not result["measurement"]
    assert str(tmp_path) not in out.read_text() and str(ROOT) not in out.read_text()
    assert "not comp" not in command(*arguments, "--compare", str(out)).stderr


# ---- the project's files ---------------------------------------------------------------------


def test_the_result_that_is_kept() -> None:
    result = results.read(RESULTS)
    assert result["emulated"] and result["note"].startswith("not a measurement")
    assert result["status"] == "passed"
    assert [s["name"] for s in result["stages"]] == [s.name for s in STAGES]
    assert {s["status"] for s in result["stages"]} == {"passed", "skipped"}
    assert {r["case"]["op"] for r in result["rows"]} == {"sru", "gru", "lstm", "rnn", "sliced"}


def test_every_stage_is_documented() -> None:
    text = (ROOT / "docs" / "gpu_check.md").read_text(encoding="utf-8")
    for s in STAGES:
        assert f"`{s.name}`" in text


def test_skip_is_no_failure() -> None:
    with pytest.raises(Skip):
        Host().capture(lambda: None)
