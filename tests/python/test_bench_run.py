"""Checks, timing and the runs of ``penstock bench``: that they work, never how fast."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import penstock
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from penstock.bench import ceilings, checks, machine, reference, table, timing, worker
from penstock.bench.cases import Case, parse_cases
from penstock.bench.ours import Ours
from penstock.bench.peer import Peer
from penstock.bench.peers import BY_KEY, CONTENDERS
from penstock.bench.problem import Problem
from penstock.cli import main

TINY = ["--budget", "0.01", "--threads", "1", "--quiet"]
LINES = [
    "gru T=5 B=3 D=4 H=6",
    "gru T=5 B=3 D=4 H=6 layers=2 direction=bidirectional",
    "lstm T=5 B=3 D=4 H=6",
    "rnn T=5 B=3 D=4 H=6 layers=2",
    "sru T=5 B=3 D=6 H=6",
    "sru T=5 B=3 D=4 H=6 layers=2 direction=bidirectional",
    "gru T=12 B=3 D=4 H=6 slices=2x3",
    "lstm T=12 B=3 D=4 H=6 slices=2x3 direction=bidirectional",
    "rnn T=12 B=3 D=4 H=6 slices=3",
    "sru T=12 B=3 D=4 H=6 slices=2x2",
    "gru T=5 B=3 D=4 H=6 direction=reverse",
    "lstm T=5 B=3 D=4 H=6 direction=reverse layers=2",
    "sru T=5 B=3 D=6 H=6 direction=reverse",
    "gru T=12 B=3 D=4 H=6 slices=2x3 direction=reverse",
]


def one(line: str, **changes: Any) -> Case:
    (case,) = parse_cases(line)
    return Case.from_json({**case.as_json(), **changes})


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_our_results_are_those_of_plain_loops(line: str, dtype: str) -> None:
    problem = Problem(one(line, dtype=dtype, mode="train"))
    run = Ours()
    run.prepare(problem, "cpu")
    values = run.values()
    errors = checks.check_ours(problem, values, checks.right_results(problem))
    assert set(errors) == set(values)
    assert {"y", "dx"} < set(errors)


@pytest.mark.parametrize("name", ["y", "dx", "dlayers.0.weight_hh"])
def test_a_wrong_result_is_found(name: str) -> None:
    problem = Problem(one("gru T=5 B=3 D=4 H=6 pass=train"))
    run = Ours()
    run.prepare(problem, "cpu")
    values = {key: np.array(value) for key, value in run.values().items()}
    right = checks.right_results(problem)
    values[name].flat[0] += 0.01 * np.abs(values[name]).max()
    with pytest.raises(checks.WrongResult, match=f"^{name} differs from float64 by "):
        checks.check_ours(problem, values, right)
    values[name].flat[0] = np.nan
    with pytest.raises(checks.WrongResult, match="by inf"):
        checks.check_ours(problem, values, right)


def test_of_large_cases_the_first_sequences_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_MOST_NUMBERS", 2 * 5 * (4 + 6))
    for line in ("gru T=5 B=3 D=4 H=6 pass=train", "gru T=5 B=3 D=4 H=6 slices=5 pass=train"):
        problem = Problem(one(line))
        assert checks.rows_checked(problem.case) == 2
        run = Ours()
        run.prepare(problem, "cpu")
        values, right = run.values(), checks.right_results(problem)
        assert set(checks.check_ours(problem, values, right)) == {"y", "dx"}
        # A peer is held to ours in all sequences.
        wrong = values["dx"].copy()
        wrong[:, 2] *= 2
        with pytest.raises(checks.WrongResult, match=r"^dx differs from ours"):
            checks.check_peer(problem, {**values, "dx": wrong}, values, right)


def test_reference_takes_one_step_as_the_equations_say() -> None:
    case = one("rnn T=1 B=1 D=2 H=1", dtype="float64")
    parameters = {
        "layers.0.weight_ih": np.array([[[1.0, 2.0]]]),
        "layers.0.weight_hh": np.array([[[5.0]]]),
        "layers.0.bias_ih": np.array([[0.25]]),
        "layers.0.bias_hh": np.array([[0.5]]),
    }
    x = np.array([[[0.1, -0.3]]])
    np.testing.assert_allclose(
        reference.forward(case, parameters, x), np.tanh(0.1 - 0.6 + 0.75)[None, None, None]
    )


def peers_here() -> list[type[Peer]]:
    return [kind for kind in CONTENDERS if kind.available("cpu")[0]]


@pytest.mark.parametrize("kind", CONTENDERS, ids=lambda kind: kind.key)
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_peers_run_and_agree_where_they_do_the_same(kind: type[Peer], mode: str) -> None:
    available, why = kind.available("cpu")
    if not available:
        pytest.skip(why)
    cases = [case for line in LINES if not kind.applies(case := one(line, mode=mode))]
    if not cases:
        backward_only = ("penstock-recompute", "penstock-whole-last", "torch-whole-last")
        assert kind.key in ("numpy", *backward_only)
    for case in cases:
        problem = Problem(case)
        ours, peer = Ours(), kind()
        ours.prepare(problem, "cpu")
        peer.prepare(problem, "cpu")
        peer.run()
        peer.wait()
        if kind.same:
            values = peer.values()
            assert ("dx" in values) == case.training
            right = checks.right_results(problem)
            errors = checks.check_peer(problem, values, ours.values(), right)
            assert set(errors) == set(values)


def test_the_scan_of_a_package_for_gpus_makes_an_sru_without_v(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")

    def scan(gates: Any, tokens: Any) -> Any:
        states = [torch.zeros_like(tokens[..., 0])]
        for t in range(tokens.shape[-1]):
            states.append(gates[..., t] * states[-1] + tokens[..., t])
        return torch.stack(states[1:], dim=-1)

    # The package needs a GPU to import; its scan is this one over (B, H, T).
    stand_in = types.ModuleType("accelerated_scan.warp")
    stand_in.scan = scan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "accelerated_scan", types.ModuleType("accelerated_scan"))
    monkeypatch.setitem(sys.modules, "accelerated_scan.warp", stand_in)
    problem = Problem(one("sru T=32 B=3 D=6 H=6 pass=train"))
    peer = BY_KEY["accelerated-scan"]()
    assert type(peer).applies(problem.case) == ""
    peer.prepare(problem, "cpu")
    weights = [problem.parameters[f"layers.0.{name}"] for name in ("weight", "bias")]
    scale = float(problem.parameters["layers.0.scale_x"])
    out = penstock.sru(problem.x, weights[0], None, weights[1], scale_x=scale)
    assert out.backprop is not None
    values = peer.values()
    np.testing.assert_allclose(values["y"], out.y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values["dx"], out.backprop(problem.dy).dx, rtol=1e-4, atol=1e-5)


def test_contenders_are_chosen_by_options_case_and_availability() -> None:
    case = one("gru T=5 B=3 D=4 H=6", peers=("numpy", "flashrnn"))
    skipped: dict[str, str] = {}
    found = worker.contenders_for(case, None, "cpu", skipped)
    assert [kind.key for kind in found] == ["penstock", "numpy"]
    assert skipped == {"flashrnn": "not on the CPU"}
    assert [k.key for k in worker.contenders_for(case, [], "cpu", {})] == ["penstock"]


def test_what_others_lack_is_said_and_what_is_for_other_networks_is_not() -> None:
    skipped: dict[str, str] = {}
    found = worker.contenders_for(
        one("gru T=5 B=3 D=4 H=6 direction=reverse"), None, "cpu", skipped
    )
    assert {"penstock", "numpy"} <= {kind.key for kind in found}
    assert skipped["torch"] == "torch.nn runs backwards only beside forwards"
    assert "sru" not in skipped
    assert "dilated-cnn" not in skipped
    assert not any(kind.on_request for kind in found)


def test_ways_of_ours_that_a_case_names(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "gru T=12 B=3 D=4 H=6 pass=train peers=penstock-recompute,penstock-invariant"
    for case in (one(line), one(f"{line} slices=2x3")):
        row = worker.measure_case(case, None, "cpu", 0.01)
        assert list(row["times"]) == ["penstock", "penstock-recompute", "penstock-invariant"]
        assert all(time["same"] for time in row["times"].values())
        assert table.faster_peers(row) == []  # they are ours
    set_while_called = []
    monkeypatch.setattr(
        Ours, "call", lambda *args: set_while_called.append(penstock.get_batch_invariant())
    )
    run = BY_KEY["penstock-invariant"]()
    run.prepare(Problem(one(line)), "cpu")
    run.run()
    assert set_while_called == [True]
    assert not penstock.get_batch_invariant()


def test_a_failing_peer_is_left_out_and_a_wrong_penstock_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(BY_KEY["numpy"]):  # type: ignore[misc]
        def run(self) -> Any:
            raise RuntimeError("no such\nthing")

    class Wrong(BY_KEY["numpy"]):  # type: ignore[misc]
        def run(self) -> Any:
            return 2 * super().run()

    case = one("gru T=5 B=3 D=4 H=6", peers=("numpy",))
    for kind, why in ((Broken, "RuntimeError: no such thing"), (Wrong, "y differs from ours by")):
        monkeypatch.setattr(worker, "CONTENDERS", (Ours, kind))
        row = worker.measure_case(case, None, "cpu", 0.01)
        assert list(row["times"]) == ["penstock"]
        assert row["skipped"]["numpy"].startswith(why)

    monkeypatch.setattr(worker, "CONTENDERS", (Ours,))
    monkeypatch.setattr(Ours, "call", lambda self, x, dy: (np.zeros((5, 3, 6)), None, []))
    row = worker.measure_case(case, None, "cpu", 0.01)
    assert "times" not in row
    assert row["failed"].startswith("y differs from float64")


def test_measuring_takes_turns_and_marks_those_with_few_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    order: list[str] = []

    def takes(name: str, seconds: float) -> timing.Call:
        def run() -> None:
            clock[0] += seconds
            order.append(name)

        return timing.Call(run)

    times, _ = timing.measure(
        {"a": takes("a", 0.2), "slow": takes("slow", 0.5), "b": takes("b", 0.05)}, budget=2.0
    )
    assert times["a"]["ms"] == pytest.approx(200)
    assert times["slow"]["few"]
    assert times["slow"]["rounds"] == 4
    assert not times["a"]["few"]
    assert times["a"]["rounds"] == times["b"]["rounds"] >= 5
    timed = order[order.index("slow") :]
    assert timed.index("b") < len(timed) - 1 - timed[::-1].index("a")  # in turn, not one by one
    order.clear()
    times, _ = timing.measure({"a": takes("a", 100.0)}, budget=1.0)
    assert order == ["a"]
    assert times["a"]["rounds"] == 1
    assert times["a"]["low"] == times["a"]["ms"] == times["a"]["high"]


def test_short_calls_are_made_many_times_a_sample_but_once_with_cold_caches() -> None:
    counts = {"warm": 0, "cold": 0}

    def counting(name: str) -> timing.Call:
        def run() -> None:
            counts[name] += 1

        return timing.Call(run)

    warm, _ = timing.measure({"warm": counting("warm")}, budget=0.0)
    flushes = []
    cold, _ = timing.measure({"cold": counting("cold")}, 0.0, lambda: flushes.append(1))
    assert counts["warm"] > 100
    assert counts["cold"] == 2 + cold["cold"]["rounds"] == 2 + len(flushes)
    assert warm["warm"]["low"] <= warm["warm"]["ms"] <= warm["warm"]["high"]


def test_waiting_for_others_ends_when_they_do_or_with_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, busy = [0.0], [0.0]
    rates = iter([1.0, 1.0, 0.0, 1.0])

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        busy[0] += seconds * next(rates)

    monkeypatch.setattr(worker.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(worker.time, "sleep", sleep)
    monkeypatch.setattr(worker.machine, "busy_seconds", lambda: busy[0])
    monkeypatch.setattr(worker.machine, "own_seconds", lambda: 0.0)
    worker.wait_for_quiet(0.0)
    assert clock[0] == 0.0
    worker.wait_for_quiet(60.0)
    assert clock[0] == 1.5  # the third time they were gone
    worker.wait_for_quiet(0.5)
    assert clock[0] == 2.0  # they were there, and patience was over


def test_rates_and_shares() -> None:
    row = {
        "case": {"dtype": "float32"}, "operations": 2_000_000, "bytes": 8_000_000,
        "times": {
            "penstock": {"ms": 2.0, "same": True}, "other": {"ms": 3.0, "same": False},
        },
    }  # fmt: skip
    found = {"copy_gb_per_s": 8.0, "gflop_per_s": {"float32": {"a": 1.0, "b": 2.0}}}
    again = {"copy_gb_per_s": 2.0, "gflop_per_s": {"float32": {"b": 4.0}}}
    best = ceilings.highest(found, again)
    assert best == {"copy_gb_per_s": 8.0, "gflop_per_s": {"float32": {"a": 1.0, "b": 4.0}}}
    ceilings.add_rates(row, best)
    ours = row["times"]["penstock"]
    assert ours["gflop_per_s"] == pytest.approx(1.0)
    assert ours["gb_per_s"] == pytest.approx(4.0)
    assert row["floor_ms"] == pytest.approx(1.0)  # memory, at 8 GB/s; products take half of it
    assert ours["share"] == pytest.approx(0.5)
    assert row["times"]["other"] == {"ms": 3.0, "same": False, "ratio": 1.5}


def test_peak_memory_is_that_of_the_call() -> None:
    if machine.resident_bytes() is None:
        pytest.skip("the system does not say what memory a process has")
    # In a process of its own: this one has memory to spare, which a call would take first.
    code = """
from penstock.bench import cases, worker
case, = cases.parse_cases("gru T=64 B=64 D=256 H=16")
print(worker.peak_memory(case, "penstock", "cpu"))
"""
    paths = [str(Path(penstock.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=240, check=True,
    ).stdout  # fmt: skip
    x = 64 * 64 * 256 * 4
    assert x <= int(said) < 4 * x


def test_the_machine_is_described() -> None:
    found = machine.describe()
    assert found["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert machine.differences(found, found) == []
    assert machine.differences(found, {**found, "cores": -1}) == [
        f"cores: {found['cores']} and -1"
    ]  # fmt: skip


# ---- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of three widths and a sliced network, beside NumPy."""
    folder = tmp_path_factory.mktemp("bench")
    out = folder / "deep" / "r.json"
    arguments = [
        "bench", "--case", "gru T=4 B=2 D=H H=4,6,8", "--case",
        "rnn T=8 B=2 D=3 H=4 slices=2 pass=train memory=yes", "--peers", "numpy",
        "--out", str(out), "--csv", str(folder / "r.csv"), *TINY,
    ]  # fmt: skip
    assert main(arguments) == 0
    return out


def test_a_run_writes_what_it_measured(measured: Path) -> None:
    data = json.loads(measured.read_text())
    assert data["complete"]
    assert data["settings"]["threads"] == [1]
    assert [row["case"]["H"] for row in data["rows"]] == [4, 6, 8, 4]
    assert data["ceilings"]["1"]["copy_gb_per_s"] > 0
    for row in data["rows"][:3]:
        assert set(row["times"]) == {"penstock", "numpy"}
        for time in row["times"].values():
            assert 0 < time["best"] <= time["low"] <= time["ms"] <= time["high"]
            assert time["errors"]["y"] < 1e-4
    sliced = data["rows"][3]
    assert sliced["times"]["penstock"]["peak_bytes"] >= 0
    assert sliced["skipped"] == {"numpy": "it has no backward pass"}
    lines = list(csv.DictReader((measured.parents[1] / "r.csv").open()))
    assert [(r["op"], r["H"], r["by"]) for r in lines[:2]] == [
        ("gru", "4", "penstock"), ("gru", "4", "numpy"),
    ]  # fmt: skip
    assert lines[-1]["remark"] == "left out: it has no backward pass"
    assert float(lines[0]["ms"]) == data["rows"][0]["times"]["penstock"]["ms"]


def test_fewer_instructions_are_asked_for_and_noted(tmp_path: Path) -> None:
    suite = tmp_path / "s.txt"
    suite.write_text("suite isa=avx2\ngru T=4 B=2 D=3 H=4\n")
    found = []
    for options in ([], ["--isa", "base"]):
        out = tmp_path / "r.json"
        arguments = ["bench", "--suite", str(suite), "--peers", "none", "--out", str(out)]
        assert main([*arguments, *options, *TINY]) == 0
        data = json.loads(out.read_text())
        found.append((data["settings"]["isa"], data["machine"]["penstock"]["cpu_isa"]))
    assert [asked for asked, _ in found] == ["avx2", "base"]
    assert found[0][1] in ("base", "avx2")
    assert found[1][1] == "base"


def test_mending_measures_again_what_was_disturbed(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    lines = ["gru T=4 B=2 D=H H=4,6,8", "rnn T=8 B=2 D=3 H=4 slices=2 pass=train memory=yes"]
    arguments = ["bench", "--peers", "numpy", "--out", str(out), "--mend", *TINY]
    for line in lines:
        arguments += ["--case", line]
    assert main(arguments) == 2
    assert "--mend: expected a result at --out" in capsys.readouterr().err
    old = json.loads(measured.read_text())
    for row in old["rows"]:
        row["processors_of_others"] = 0.0
        row["times"]["penstock"]["ms"] = 1e6
    old["rows"][1]["processors_of_others"] = 1.0
    old["rows"][3]["processors_of_others"] = 1.0
    old["rows"][3]["times"]["penstock"]["peak_bytes"] = 12345
    del old["rows"][2]
    out.write_text(json.dumps(old))
    assert main(arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"]["H"] for row in rows] == [4, 6, 8, 4]
    assert [row["times"]["penstock"]["ms"] == 1e6 for row in rows] == [True, False, False, False]
    assert rows[3]["times"]["penstock"]["peak_bytes"] == 12345
    out.write_text(json.dumps({**old, "machine": {**old["machine"], "processor": "Abacus 9"}}))
    assert main(arguments) == 2
    assert "processor: Abacus 9 and" in capsys.readouterr().err


def test_show_prints_the_tables_again(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "show", str(measured)]) == 0
    text = capsys.readouterr().out
    assert "GRU, 4 steps, batch 2, 8 → 8 features, float32, forward, 1 thread" in text
    assert "NumPy loop" in text
    assert "of 3 measurements" in text


def test_titles_name_what_is_not_usual() -> None:
    case = one("sru T=1 B=3 D=6 H=6 direction=bidirectional layers=2 cache=cold pass=train")
    row = {"case": case.as_json(), "threads": 0}
    assert table.title(row) == (
        "2-layer bidirectional SRU, 1 step, batch 3, 6 → 6 features, float32, forward + backward, "
        "on the GPU, cold caches"
    )


def test_a_peer_is_faster_only_beyond_the_spread_and_in_the_same_work() -> None:
    ours = {"ms": 2.0, "low": 1.9, "high": 2.1, "same": True}
    times = {
        "penstock": ours,
        "torch": {**ours, "ms": 1.95, "low": 1.85, "high": 2.0},
        "jax": {**ours, "ms": 1.0, "low": 0.9, "high": 1.1},
        "torch-lstm": {**ours, "ms": 1.0, "low": 0.9, "high": 1.1, "same": False},
    }
    assert table.faster_peers({"times": times}) == ["jax"]


def changed(path: Path, to: Path, **changes: Any) -> Path:
    """A copy of a result with our times multiplied, or its machine changed."""
    data = json.loads(path.read_text())
    for row in data["rows"]:
        for key in ("ms", "low", "high", "best"):
            row["times"]["penstock"][key] *= changes.get("factor", 1.0)
    data["machine"].update(changes.get("machine", {}))
    data["rows"] = data["rows"][: changes.get("rows")]
    if changes.get("fails"):
        del data["rows"][0]["times"]
        data["rows"][0]["failed"] = "y differs"
    to.write_text(json.dumps(data))
    return to


def test_compare_says_what_changed(
    measured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["bench", "compare", str(measured), str(measured)]) == 0
    assert "0 faster, 0 slower, 4 within spread" in capsys.readouterr().out
    slow = changed(
        measured, tmp_path / "slow.json", factor=1000.0, machine={"penstock": {"cpu_isa": "base"}}
    )
    assert main(["bench", "compare", str(measured), str(slow)]) == 1
    text = capsys.readouterr().out
    assert "0 faster, 4 slower" in text
    assert "not the same: cpu_isa: " in text
    assert "peers: median new / old 1.00" in text
    assert main(["bench", "compare", str(slow), str(measured), "--all"]) == 0
    text = capsys.readouterr().out
    assert "4 faster, 0 slower" in text
    assert "NumPy loop" in text
    fewer = changed(measured, tmp_path / "fewer.json", rows=2)
    assert main(["bench", "compare", str(measured), str(fewer)]) == 0
    assert "only in the old file: gru T=4 B=2 D=8 H=8" in capsys.readouterr().out
    broken = changed(measured, tmp_path / "broken.json", fails=True)
    assert main(["bench", "compare", str(measured), str(broken)]) == 1
    assert "FAILS NOW: gru T=4 B=2 D=4 H=4" in capsys.readouterr().out


def test_compare_refuses_other_machines_unless_told(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(
        measured, tmp_path / "other.json", machine={"processor": "Abacus 9"}, factor=1000.0
    )
    assert main(["bench", "compare", str(measured), str(other)]) == 2
    error = capsys.readouterr().err
    assert "different machines" in error
    assert "Abacus 9" in error
    assert main(["bench", "compare", str(measured), str(other), "--across"]) == 0
    assert "DIFFERENT MACHINES: processor" in capsys.readouterr().out


def test_pictures_are_drawn(measured: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, options in (
        ("time.png", []),
        ("h.svg", ["--kind", "time", "--x", "H", "--title", "By width"]),
        ("bars.pdf", ["--kind", "bars", "--only", "H=8"]),
    ):
        out = tmp_path / name
        assert main(["bench", "plot", str(measured), "--out", str(out), *options]) == 0
        assert out.stat().st_size > 2000
    png = (tmp_path / "time.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert png[25] == 3  # a palette, which takes a third of the bytes
    assert "By width" in (tmp_path / "h.svg").read_text()  # in a comment beside the outlines


def test_the_advantage_is_drawn_beside_the_papers(measured: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = json.loads(measured.read_text())
    row = data["rows"][3]
    row["case"] |= {"T": 512, "slices": [8, 8]}
    time = row["times"]["penstock"]
    for key in ("torch-whole-last", "torch-whole", "torch-composed", "penstock-whole-last"):
        row["times"][key] = {**time, "name": key, "ms": 10 * time["ms"]}
    (tmp_path / "r.json").write_text(json.dumps({**data, "plot": "advantage"}))
    out = tmp_path / "a.svg"
    assert main(["bench", "plot", str(tmp_path / "r.json"), "--out", str(out)]) == 0
    assert out.stat().st_size > 2000


def test_panels_are_of_fields_over_which_there_are_values(measured: Path) -> None:
    from penstock.bench.plots import panels_of

    rows = json.loads(measured.read_text())["rows"][:3]
    assert [panel.x_field for panel in panels_of(rows, rows, None, "ms")] == ["H"]
    assert panels_of(rows, rows, None, "peak_bytes") == []
    for i, row in enumerate(rows):
        row["times"]["penstock"]["peak_bytes"] = (i + 1) * 2**20
    (panel,) = panels_of(rows, rows, None, "peak_bytes")
    assert [point[:2] for point in panel.curves["penstock"]] == [(4, 1.0), (6, 2.0), (8, 3.0)]
    # On more threads peaks are not measured: nothing to draw over threads.
    more = [{**row, "threads": 2, "times": {"penstock": {"ms": 1.0}}} for row in rows]
    assert panels_of([*rows, *more], rows, "threads", "peak_bytes") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.gif"], "--out: expected a file ending in .png"),
        (["--out", "x.png", "--kind", "pie"], "--kind: expected time"),
        (["--out", "x.png", "--x", "D"], "--x: expected T, B, H, threads"),
        (["--out", "x.png", "--x", "B"], "no cases differ in one field alone"),
        (["--out", "x.png", "--kind", "memory"], "no series of peaks"),
        (["--out", "x.png", "--kind", "advantage"], "no advantage to draw"),
        (["--out", "x.png", "--threads", "64"], "--threads: expected a number"),
        (["--out", "x.png", "--only", "lstm"], "no times to draw of cases with 'lstm'"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], options: list[str], message: str,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "plot", str(measured), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--case", "gru T=1"], "--case: field B: missing"),
        (["--case", " "], "--case: expected an operation"),
        (["--suite", "quick", "--case", "gru T=1 B=1 D=1 H=1"], "not both"),
        (["--suite", "none.txt"], "--suite: expected"),
        (["--peers", "cudnn"], "--peers: expected peers of"),
        (["--threads", "0"], "--threads: expected positive integers"),
        (["--threads", "100000"], "--threads: expected at most"),
        (["--sweep", "H"], "--sweep: expected FIELD"),
        (["--sweep", "G=1"], "--sweep: expected a field of"),
        (["--only", "tpu"], "--only: expected a part of a case's line"),
        (["--budget", "0"], "--budget: expected a positive number"),
        (["--patience", "-1"], "--patience: expected seconds"),
        (["--isa", "sse"], "--isa: expected base, avx2, avx512"),
        (["--device", "tpu"], "--device: expected cpu or cuda"),
        (["--out", "."], "is a folder"),
    ],
)
def test_mistakes_in_options_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("penstock: error: ")
    assert message in error


def test_files_that_are_no_results_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    for text in ("{", "[]", '{"format": "other"}', '{"format": "penstock-bench-1"}'):
        path.write_text(text)
        assert main(["bench", "show", str(path)]) == 2
        assert "expected a result of penstock bench" in capsys.readouterr().err
    assert main(["bench", "show", str(tmp_path / "missing")]) == 2


def test_list_names_suites_and_peers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "list"]) == 0
    text = capsys.readouterr().out
    for name in ("quick", "srnn-table3", "torch-composed", "accelerated-scan"):
        assert name in text
    here = importlib.util.find_spec("jax") is not None
    line = next(line for line in text.splitlines() if line.strip().startswith("jax "))
    assert ("yes" in line) == here


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_run_that_is_terminated_ends_what_it_started(tmp_path: Path) -> None:
    paths = [str(Path(penstock.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    line = "gru T=64 B=16 D=64 H=64"
    command = [sys.executable, "-m", "penstock.cli", "bench", "--case", line, "--peers", "none"]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--budget", "100"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("ceilings")  # it measures from here on
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.terminate()
    assert process.wait(timeout=30) == 143
    process.stderr.close()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_worker_that_dies_costs_one_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from penstock.bench import runner

    # Stands in for a case that takes more memory than there is.
    code = (
        "import os\nfrom penstock.bench import worker\nreal = worker.measure_case\n"
        "def measure(case, *rest):\n"
        "    os.kill(os.getpid(), 9) if case.H == 6 else None\n"
        "    return real(case, *rest)\n"
        "worker.measure_case = measure\nworker.main()\n"
    )
    monkeypatch.setattr(runner, "_CODE", "import sys; sys.path[:] = {path!r}\n" + code)
    out = tmp_path / "r.json"
    line = "gru T=4 B=2 D=H H=4,6,8"
    assert main(["bench", "--case", line, "--peers", "none", "--out", str(out), *TINY]) == 1
    data = json.loads(out.read_text())
    assert [row["case"]["H"] for row in data["rows"]] == [4, 6, 8]
    assert ["failed" in row for row in data["rows"]] == [False, True, False]
    assert "signal 9" in data["rows"][1]["failed"]
    assert "1 measurement FAILED" in capsys.readouterr().out
