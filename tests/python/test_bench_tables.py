"""Tables of README and docs from given results: what they say and what they leave out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from penstock.bench.cases import parse_cases

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    "processor": "P", "cores": 2, "date": "2025-01-01T10:00:00+00:00",
    "versions": {"penstock": "1", "torch": "2", "jax": "3", "sru": "4"},
}  # fmt: skip
NAMES = {
    "penstock": "penstock", "torch": "torch.nn", "jax": "JAX", "torch-lstm": "torch.nn.LSTM",
    "torch-composed": "composed", "torch-whole-last": "last", "torch-whole": "whole",
    "penstock-whole-last": "ours", "penstock-recompute": "again", "sru": "sru",
}  # fmt: skip
SAME = ("penstock", "torch", "jax", "torch-composed", "penstock-recompute", "sru")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "bench/tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(line: str, threads: int = 2, few: str = "", **ms: float) -> dict[str, Any]:
    """A row with times by contender, whose names have _ for -."""
    (case,) = parse_cases(line)
    times = {}
    for name, value in ms.items():
        key = name.replace("_", "-")
        times[key] = {
            "ms": value, "low": 0.99 * value, "high": 1.01 * value, "few": key == few,
            "name": NAMES[key], "same": key in SAME, "errors": {},
        }  # fmt: skip
    return {
        "case": case.as_json(), "label": case.label, "threads": threads, "times": times,
        "processors_of_others": 0.0,
    }  # fmt: skip


def data(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"machine": MACHINE, "rows": list(rows)}


def test_times_have_a_line_a_row_and_the_fastest_bold(tables: ModuleType) -> None:
    result = data(
        row("gru T=32 B=1 D=4 H=4", penstock=2.0, torch=5.0, jax=1.0, few="torch"),
        row("gru T=7 B=1 D=4 H=4 pass=train", 1, penstock=0.5, torch=0.502),
        row("gru T=8 B=1 D=4 H=4", penstock=0.5, torch=0.499),
        row("sru T=7 B=1 D=4 H=4", penstock=1.0, torch_lstm=0.25),
    )
    lines = tables.times(result, tables.chosen(result, "gru"), ("torch", "jax", "keras"))
    lines = lines.splitlines()
    assert lines[0] == "| network | (T, B, D, H) | pass | threads | penstock | torch.nn | JAX |"
    assert lines[2] == "| GRU | (32, 1, 4, 4) | forward | 2 | 2 | 5~ (2.5×) | **1 (0.5×)** |"
    assert lines[3] == (
        "| GRU | (7, 1, 4, 4) | forward + backward | 1 | **0.5** | 0.502 (1.0×) | – |"
    )
    assert lines[4].endswith("| 2 | **0.5** | **0.499 (1.0×)** | – |")  # within their quartiles
    assert "~: fewer than five" in lines[-1]
    assert lines[-1].endswith("P, 2 cores, 2025-01-01; penstock 1, torch 2, jax 3.")
    lines = tables.times(result, tables.chosen(result, "sru"), ("torch-lstm",)).splitlines()
    assert lines[0] == "| network | (T, B, D, H) | pass | penstock | torch.nn.LSTM \\* |"
    assert lines[2].endswith("| **1** | 0.25 (0.2×) |")  # other work wins nothing
    assert "2 threads" in lines[-1]


def test_rows_are_chosen_by_threads_slices_and_layers(tables: ModuleType) -> None:
    lines = ["gru T=8 B=1 D=4 H=4", "gru T=8 B=1 D=4 H=4 slices=2", "gru T=8 B=1 D=4 H=4 layers=2"]
    result = data(*(row(line, n, penstock=1.0) for n in (1, 2) for line in lines))
    assert len(tables.chosen(result, "gru")) == 4
    assert len(tables.chosen(result, "gru", one_layer=True)) == 2
    assert [r["threads"] for r in tables.chosen(result, "gru", threads=-1)] == [2, 2]
    assert len(tables.chosen(result, "gru", sliced=True, threads=1)) == 1
    result["rows"][0]["processors_of_others"] = 1.0
    text = tables.times(result, tables.chosen(result, "gru"), ())
    assert text.endswith("In 1 of 6 measurements others kept part of it busy.")
    failed = data({**row(lines[0]), "failed": "y differs"})
    del failed["rows"][0]["times"]
    assert tables.chosen(failed, "gru") == []


def test_errors_of_all_that_do_the_same_work(tables: ModuleType) -> None:
    found = row("gru T=8 B=1 D=4 H=4 pass=train", 1, penstock=1.0, torch=2.0)
    found["times"]["penstock"]["errors"] = {
        "y": 1e-7, "dx": 2.04e-7, "dlayers.0.weight_ih": 3e-7, "dlayers.0.weight_hh": 4e-7,
    }  # fmt: skip
    found["times"]["torch"]["errors"] = {"y": 5e-7}
    other = row("gru T=8 B=1 D=4 H=4", 1, penstock=1.0)
    lines = tables.errors(data(found, other, {**found, "threads": 2})).splitlines()
    assert lines[2:-2] == [
        "| GRU | (8, 1, 4, 4) | penstock | 1.0 | 2.0 | 3.0 | 4.0 |",
        "| GRU | (8, 1, 4, 4) | torch.nn | 5.0 | – | – | – |",
    ]


def test_memory_is_held_to_what_must_be_kept(tables: ModuleType) -> None:
    line = "gru T=8 B=2 D=4 H=3 slices=2 pass=train"
    (case,) = parse_cases(line)
    # x and dx, the last state's gradient, and five numbers for each of 8 + 2 steps of 2 rows.
    assert tables.least_kept(case, 5) == 4 * (2 * 8 * 2 * 4 + 2 * 3 + 5 * (8 + 2) * 2 * 3)
    found = row(line, penstock=1.0, penstock_recompute=2.0, torch_whole=3.0)
    for time in found["times"].values():
        time["peak_bytes"] = 2**30
    lines = tables.memory(data(found)).splitlines()[2:-2]
    assert [text.split(" | ")[2] for text in lines] == ["penstock", "again"]
    assert all(text.split(" | ")[3] == "1024" for text in lines)


def test_the_advantage_stands_beside_the_papers(tables: ModuleType) -> None:
    times = {
        "penstock": 2.0, "torch_composed": 4.0, "torch_whole": 20.0, "torch_whole_last": 40.0,
        "penstock_whole_last": 3.0,
    }  # fmt: skip
    line = "gru T=512 B=16 D=4 H=4 slices=8x8 pass=train"
    text = tables.advantage(data(row(line, few="torch-whole-last", **times)))
    assert text.splitlines()[2] == "| 512 | (8, 2) | 16 | 13.5 | 20~ | 10 | 10~ | 1.5 |"


def test_cuts_stand_below_the_plain_network(tables: ModuleType) -> None:
    rows = [
        row(f"gru T=512 B=4 D=4 H=4 pass=train slices={cut}", 1, penstock=ms,
            penstock_whole_last=6.0)
        for cut, ms in (("8x8", 3.0), ("2x2x2x2", 8.0))
    ]  # fmt: skip
    lines = tables.cuts(data(*rows)).splitlines()[2:-2]
    assert lines == [
        "| 512 | 4 | () | 512 | 4 | 6 |  |",
        "| 512 | 4 | (8, 8) | 24 | 256 | 3 | 2.00 |",
        "| 512 | 4 | (2,) * 4 | 40 | 64 | 8 | 0.75 |",
    ]


def test_where_peers_are_faster_is_said(tables: ModuleType) -> None:
    result = data(
        row("gru T=8 B=1 D=4 H=4", penstock=2.0, torch=1.0, jax=1.99),
        row("sru T=8 B=1 D=4 H=4", penstock=1.0, torch_lstm=0.1),
    )
    assert tables.beaten(("all", result)).splitlines()[2:-2] == [
        "| GRU | (8, 1, 4, 4) | forward | 2 | all | torch.nn | 2 | 1 | 2.00 |"
    ]
    assert tables.beaten(("all", data(result["rows"][1]))) == "Nowhere in these results."


def test_a_figure_is_of_one_row(tables: ModuleType) -> None:
    result = data(
        row("gru T=1 B=1 D=4 H=4", 1, penstock=1.0), row("gru T=1 B=1 D=4 H=4", penstock=2)
    )
    assert tables.one_row(result, op="gru")["threads"] == 2
    assert tables.one_row(result, op="gru", threads=1)["times"]["penstock"]["ms"] == 1.0
    with pytest.raises(ValueError, match="expected one row"):
        tables.one_row(result, op="lstm")


def test_other_programs_results(tables: ModuleType) -> None:
    scan = {"T": 5, "B": 3, "H": 2, "pass": "forward", "threads": 1, "ms": 3.0, "memcpy_ms": 2.0}
    text = tables.recurrence({"machine": MACHINE, "rows": [{**scan, "ratio": 1.5}]})
    assert text.splitlines()[2] == "| (5, 3, 2) | forward | 1 | 3 | 2 | 1.50 |"
    runs = [
        {"slices": slices, "seed": seed, "parameters": 16161, "loss": 0.001 * seed}
        for slices in ("8,8", "") for seed in (1, 0)
    ]  # fmt: skip
    lines = tables.adding_problem({"runs": runs}).splitlines()
    assert lines[2] == '| `--slices "8,8"` | 16 161 | 0.0000 | 0.0010 |'
    assert lines[3].startswith('| `--slices ""`, the plain GRU | ')


def test_tables_are_what_was_measured(tables: ModuleType) -> None:
    assert tables.outdated() == []


def test_figures_are_written_between_their_marks(tables: ModuleType) -> None:
    known, values = {"t": lambda: "| new |"}, {"v": lambda: "3 ms"}
    text = (
        "<!-- table: t -->\n| old |\n<!-- end of table -->\n"
        "in <!-- value: v -->?<!-- end of value -->, <!-- value: v --><!-- end of value -->."
    )
    new = tables.written(text, known, values)
    assert new.startswith("<!-- table: t -->\n| new |\n<!-- end of table -->\nin ")
    assert new.count("-->3 ms<!--") == 2
    assert tables.written(new, known, values) == new
    with pytest.raises(ValueError, match=r"expected a mark of t \(actual: 'u'\)"):
        tables.written(text.replace("table: t", "table: u"), known, values)
    with pytest.raises(ValueError, match="expected an end"):
        tables.written(text.replace("<!-- end of table -->", ""), known, values)
