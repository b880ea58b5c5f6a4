"""The file that a check writes, its comparison with an earlier one, and tables of both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.gpu_check.stages import Stage

KIND = "penstock gpu_check"
SCHEMA = 1
OURS = "penstock"
#: A change of our own time that counts: more than this, and more than both spreads.
LEAST_CHANGE = 0.05
NOT_A_MEASUREMENT = (
    "not a measurement: the emulated CUDA backend on a CPU, tiny shapes; times only show that the "
    "measuring part runs"
)

Result = dict[str, Any]


def assemble(
    stages: list[Stage],
    outcomes: dict[str, dict[str, Any]],
    *,
    emulated: bool,
    passed: bool,
    seconds: float,
    options: dict[str, Any],
) -> Result:
    """The whole file. Measured rows are gathered from all stages under ``rows``."""
    data = {name: dict(outcome["data"]) for name, outcome in outcomes.items()}
    device = data.pop("device", {})
    rows = [row for values in data.values() for row in values.pop("rows", [])]
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "emulated": emulated,
        "measurement": not emulated,
        **({"note": NOT_A_MEASUREMENT} if emulated else {}),
        "status": "passed" if passed else "failed",
        "seconds": round(seconds, 1),
        "options": options,
        "system": device,
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                **{k: outcomes[stage.name][k] for k in ("status", "seconds", "lines", "failures")},
                "data": data.get(stage.name, {}),
            }
            for stage in stages
            if stage.name in outcomes
        ],
        "rows": rows,
    }


def without_paths(value: Any, paths: dict[str, str]) -> Any:
    """A JSON value with folders of this machine replaced by what they are."""
    if isinstance(value, dict):
        return {k: without_paths(v, paths) for k, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v, paths) for v in value]
    if isinstance(value, str):
        for path, word in paths.items():
            value = value.replace(path, word)
    return value


def check(result: Any) -> None:
    """Check that a value is a file of this kind.

    Raises:
        ValueError: it is not, and how.
    """
    if not isinstance(result, dict) or result.get("kind") != KIND:
        raise ValueError(f"expected a file of {KIND} (actual: another one)")
    if result.get("schema") != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA} (actual: {result.get('schema')!r})")
    fields: dict[str, Any] = {
        "emulated": bool, "measurement": bool, "status": str, "seconds": (int, float),
        "options": dict, "system": dict, "stages": list, "rows": list,
    }  # fmt: skip
    for name, kind in fields.items():
        if not isinstance(result.get(name), kind):
            raise ValueError(f"{name}: missing or of a wrong type")
    for stage in result["stages"]:
        missing = {"name", "kind", "status", "seconds", "lines", "failures", "data"} - stage.keys()
        if missing:
            raise ValueError(f"stages: {stage.get('name')!r} has no {', '.join(sorted(missing))}")
    for row in result["rows"]:
        missing = {"label", "case", "mode", "times", "graph_times", "left_out"} - row.keys()
        if missing:
            raise ValueError(f"rows: {row.get('label')!r} has no {', '.join(sorted(missing))}")
        if not result["measurement"] and ("ratios" in row or "share" in row):
            raise ValueError(f"rows: {row['label']!r} has ratios, and is not a measurement")


def write(result: Result, path: Path) -> None:
    check(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)


def read(path: Path) -> Result:
    """Read a file that a check wrote.

    Raises:
        OSError, ValueError: it cannot be read, or is something else.
    """
    result = json.loads(path.read_text())
    check(result)
    return result


def device_name(result: Result) -> str:
    return str(result["system"].get("device", {}).get("name", "unknown device"))


# Comparison


def spread(timing: dict[str, float]) -> float:
    return (timing["high"] - timing["low"]) / timing["ms"]


def compare(old: Result, new: Result) -> Result:
    """What changed from one file to a later one.

    Returns:
        ``warnings``: why the files may not be comparable; ``stages``: (name, status before, after)
        where they differ; ``rows``: label, mode, how ("call" or "graph"), old and new ms, their
        ratio (above 1: slower now), and whether that is more than noise.
    """
    warnings = []
    for result, name in ((old, "earlier"), (new, "new")):
        if not result["measurement"]:
            warnings.append(f"the {name} file is not a measurement, so no times are compared")
    if device_name(old) != device_name(new):
        warnings.append(f"other devices: {device_name(old)}, now {device_name(new)}")
    before = {s["name"]: s["status"] for s in old["stages"]}
    stages = [
        (s["name"], before[s["name"]], s["status"])
        for s in new["stages"]
        if s["name"] in before and before[s["name"]] != s["status"]
    ]
    rows: list[dict[str, Any]] = []
    if old["measurement"] and new["measurement"]:
        earlier = {(r["label"], r["mode"]): r for r in old["rows"]}
        for row in new["rows"]:
            match = earlier.get((row["label"], row["mode"]))
            for how, field in (("call", "times"), ("graph", "graph_times")):
                if match is None or OURS not in row[field] or OURS not in match[field]:
                    continue
                a, b = match[field][OURS], row[field][OURS]
                ratio = b["ms"] / a["ms"]
                noise = max(LEAST_CHANGE, spread(a), spread(b))
                rows.append(
                    {
                        "label": row["label"],
                        "mode": row["mode"],
                        "how": how,
                        "old_ms": a["ms"],
                        "new_ms": b["ms"],
                        "ratio": ratio,
                        "changed": abs(ratio - 1) > noise,
                    }
                )
    return {"warnings": warnings, "stages": stages, "rows": rows}


# Tables

COLOURS = {"passed": "green", "skipped": "yellow"}


def colour(status: str) -> str:
    return f"[{COLOURS.get(status, 'red')}]{status}[/]"


def milliseconds(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def timing_text(timing: dict[str, float] | None) -> str:
    """Median and half the distance of the quartiles."""
    if timing is None:
        return "–"
    return f"{milliseconds(timing['ms'])} ±{50 * spread(timing):.0f} %"


def print_stages(result: Result, console: Console) -> None:
    table = Table(title="Stages", title_justify="left")
    for name in ("stage", "status", "s", "what it says"):
        table.add_column(name, justify="right" if name == "s" else "left")
    for stage in result["stages"]:
        failures = [f"[red]{escape(shortened(f))}[/]" for f in stage["failures"][:3]]
        more = len(stage["failures"]) - len(failures)
        said = [*map(escape, stage["lines"]), *failures, *([f"… {more} more"] if more > 0 else [])]
        table.add_row(
            stage["name"], colour(stage["status"]), f"{stage['seconds']:.1f}", "\n".join(said)
        )
    console.print(table)


def shortened(text: str, most: int = 500) -> str:
    """The beginning of a text; the file has the whole."""
    return text if len(text) <= most else text[: most - 2] + " …"


def escape(text: str) -> str:
    """Text that rich does not read as markup."""
    return text.replace("[", r"\[")


def print_rows(result: Result, console: Console) -> None:
    if not result["rows"]:
        return
    title = "Measured" if result["measurement"] else f"Times — {NOT_A_MEASUREMENT}"
    table = Table(title=title, title_justify="left")
    columns = ["case (T, B, D, H)", "pass", "call, ms", "graph, ms"]
    if result["measurement"]:
        columns += ["µs a step", "GB/s", "TFLOP/s", "of the ceiling", "peers' times over ours"]
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i in (0, 1, 8) else "right")
    for row in result["rows"]:
        values = [
            row["label"],
            row["mode"],
            timing_text(row["times"].get(OURS)),
            timing_text(row["graph_times"].get(OURS)),
        ]
        if result["measurement"]:
            share = f"{row['share']:.0%}" if "share" in row else "–"
            if row.get("scan"):
                share += f" (scan {row['scan']['share']:.0%})"
            ratios = row["graph_ratios"] | {
                k: v for k, v in row["ratios"].items() if k not in row["graph_ratios"]
            }
            values += [
                f"{row['us_per_step']:.2f}",
                f"{row['gb_per_s']:.0f}",
                f"{row['tflop_per_s']:.1f}",
                share,
                ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()) or "–",
            ]
        table.add_row(*map(escape, values))
    console.print(table)


def print_comparison(found: Result, earlier: Path, console: Console) -> None:
    for words in found["warnings"]:
        console.print(f"[yellow]{escape(words)}[/]")
    for name, before, after in found["stages"]:
        console.print(f"{name}: {colour(before)} before, {colour(after)} now")
    changed = [row for row in found["rows"] if row["changed"]]
    if found["rows"]:
        console.print(
            f"{len(changed)} of {len(found['rows'])} times changed by more than noise "
            f"since {escape(str(earlier))}"
        )
    if changed:
        table = Table(title="Changed", title_justify="left")
        for name in ("case", "pass", "how", "before, ms", "now, ms", "now / before"):
            table.add_column(name, justify="right" if "ms" in name or "/" in name else "left")
        for row in sorted(changed, key=lambda r: -r["ratio"]):
            table.add_row(
                row["label"], row["mode"], row["how"], milliseconds(row["old_ms"]),
                milliseconds(row["new_ms"]), f"[{'red' if row['ratio'] > 1 else 'green'}]"
                f"{row['ratio']:.2f}[/]",
            )  # fmt: skip
        console.print(table)
