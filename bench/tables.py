"""Write the measured figures in README and docs, from what the benchmarks wrote.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``, a figure in a
sentence between ``<!-- value: NAME -->`` and ``<!-- end of value -->``. NAME is a key of TABLES or
VALUES here or in one of OTHERS, whose functions take no arguments and return what stands there.

python bench/tables.py            # after bench/sru_cpu.py --out bench/results/sru_cpu.json
                                  # or bench/recurrent_cpu.py, likewise
python bench/tables.py --check    # status 1 if a table says something else
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SRU_RESULTS = "bench/results/sru_cpu.json"
RECURRENT_RESULTS = "bench/results/recurrent_cpu.json"
OVERHEAD_RESULTS = "bench/results/overhead_cpu.json"
OURS = "penstock.SRU"
FLOOR = "matrix products"


def _milliseconds(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def _cell(name: str, row: dict[str, Any], ours: str = OURS) -> str:
    """Time of a contender and how many times ours it is."""
    if name not in row["times"]:
        return "–"
    ms = row["times"][name]["ms"]
    if name == ours:
        return f"**{_milliseconds(ms)}**"
    return f"{_milliseconds(ms)} ({ms / row['times'][ours]['ms']:.1f}×)"


def _origin(data: dict[str, Any]) -> str:
    machine = data["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version
    )
    return f"{machine['processor']}, {machine['cores']} cores, {machine['date']}; {versions}."


def layer(data: dict[str, Any], threads: int | None = None) -> str:
    """Times of the layer and its peers, in Markdown; of all numbers of threads or of one."""
    rows = [
        row
        for row in data["results"]
        if "case" in row and OURS in row["times"] and threads in (None, row["threads"])
    ]
    peers: list[str] = []
    for row in rows:
        peers += [name for name in row["times"] if name not in (OURS, FLOOR, *peers)]
    names = [OURS, *peers, FLOOR]
    lines = [
        f"| (T, B, D, H) | pass | threads | {' | '.join(names)} |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        case = ", ".join(map(str, row["case"]))
        values = " | ".join(_cell(name, row) for name in names)
        mode = row["mode"].replace("+", " + ")
        lines.append(f"| ({case}) | {mode} | {row['threads']} | {values} |")
    return "\n".join(
        [*lines, "", f"Milliseconds, float32, medians; in brackets, times ours. {_origin(data)}"]
    )


def layer_most_threads(data: dict[str, Any]) -> str:
    return layer(data, max(row["threads"] for row in data["results"] if "threads" in row))


def recurrence(data: dict[str, Any]) -> str:
    """The scans beside memcpy, in Markdown."""
    lines = [
        "| (T, B, H) | pass | threads | scan | memcpy of as many bytes | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in data["recurrence"]:
        lines.append(
            f"| ({row['T']}, {row['B']}, {row['H']}) | {row['pass']} | {row['threads']} "
            f"| {_milliseconds(row['ms'])} | {_milliseconds(row['memcpy_ms'])} "
            f"| {row['ratio']:.2f} |"
        )
    return "\n".join([*lines, "", f"Milliseconds, float32, medians. {_origin(data)}"])


# Contenders of each network in bench/recurrent_cpu.py, ours first.
GRU = ("penstock.GRU", "torch.nn.GRU", "JAX")
LSTM = ("penstock.LSTM", "torch.nn.LSTM")
SLICED = (
    "penstock.SlicedRNN",
    "composed of torch.nn.GRU",
    "torch.nn.GRU, not sliced",
    "torch.nn.GRU, not sliced (last)",
    "penstock.GRU, not sliced",
    "penstock.GRU, not sliced (last)",
)


def _shape(row: dict[str, Any]) -> str:
    return f"({', '.join(map(str, row['case']))})"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _with(data: dict[str, Any], matrix_unit: bool, *networks: str) -> list[dict[str, Any]]:
    """Rows of these networks, measured with or without the matrix unit of this machine."""
    own = data["machine"]["penstock"]["cpu_isa"]
    return [
        row
        for row in data["results"]
        if row["network"] in networks and (row["isa"] == own) == matrix_unit
    ]


def _cells_in_turn(
    data: dict[str, Any], gru: tuple[str, ...], matrix_unit: bool, threads: int | None = None
) -> str:
    """GRU and LSTM side by side."""
    rows = []
    found = _with(data, matrix_unit, "GRU", "LSTM")
    pairs = {(tuple(r["case"]), r["mode"], r["threads"], r["network"]): r for r in found}
    for row in found:
        if row["network"] != "GRU" or threads not in (None, row["threads"]):
            continue
        lstm = pairs[tuple(row["case"]), row["mode"], row["threads"], "LSTM"]
        rows.append(
            [_shape(row), row["mode"].replace("+", " + "), str(row["threads"])]
            + [_cell(name, row, gru[0]) for name in gru]
            + [_cell(name, lstm, LSTM[0]) for name in LSTM]
        )
    lines = _table(["(T, B, D, H)", "pass", "threads", *gru, *LSTM], rows)
    end = f"Milliseconds, float32, medians; in brackets, times ours. {_origin(data)}"
    return "\n".join([*lines, "", end])


def recurrent(data: dict[str, Any]) -> str:
    """GRU and LSTM and their peers, in Markdown."""
    return _cells_in_turn(data, GRU, matrix_unit=True)


def recurrent_most_threads(data: dict[str, Any]) -> str:
    return _cells_in_turn(
        data, GRU, matrix_unit=True, threads=max(row["threads"] for row in data["results"])
    )


def recurrent_no_matrix_unit(data: dict[str, Any]) -> str:
    return _cells_in_turn(data, GRU[:2], matrix_unit=False)


def sliced(data: dict[str, Any]) -> str:
    """The sliced GRU beside what does without penstock, or without slicing, in Markdown."""
    rows = [
        [_shape(row), f"({', '.join(map(str, row['slices']))})"]
        + [row["mode"].replace("+", " + "), str(row["threads"]), unit]
        + [_cell(name, row, SLICED[0]) for name in SLICED]
        for matrix_unit, unit in ((True, "yes"), (False, "no"))
        for row in _with(data, matrix_unit, "sliced GRU")
    ]
    head = ["(T, B, D, H)", "slices", "pass", "threads", "matrix unit", *SLICED]
    end = f"Milliseconds, float32, medians; in brackets, times ours. {_origin(data)}"
    return "\n".join([*_table(head, rows), "", end])


def recurrent_errors(data: dict[str, Any]) -> str:
    """Errors of all contenders, in Markdown; a cell: y, dx, dweight_ih, dweight_hh."""
    found = [
        row
        for row in _with(data, True, "GRU", "LSTM", "sliced GRU")
        if row["mode"] == "forward" and row["threads"] == 1
    ]
    values = ("y", "dx", "dweight_ih", "dweight_hh")
    rows = []
    for row in found:
        for name, error in row["errors"].items():
            cells = [f"{error[v] * 1e7:.1f}" if v in error else "–" for v in values]
            rows.append([row["network"], _shape(row), name, *cells])
    lines = _table(["network", "(T, B, D, H)", "by", *values], rows)
    end = (
        "max|a − b| / max|b| against torch.nn in float64, in units of 10⁻⁷; float32, "
        f"random weights and inputs. {_origin(data)}"
    )
    return "\n".join([*lines, "", end])


def sliced_memory(data: dict[str, Any]) -> str:
    """Peak memory of a training call beside what it must keep, in Markdown."""
    rows = [
        [
            row["contender"],
            f"{row['peak'] / 2**20:.0f}",
            f"{row['must_keep'] / 2**20:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['formula'].replace('*', '·')}: {row['meaning']}",
        ]
        for row in data["memory"]
    ]
    lines = _table(["by", "peak, MiB", "must keep, MiB", "ratio", "what must be kept"], rows)
    row = data["memory"][0]
    slices = ", ".join(map(str, row["slices"]))
    end = f"One training call, (T, B, D, H) = {_shape(row)}, slices ({slices}). {_origin(data)}"
    return "\n".join([*lines, "", end])


def overhead(data: dict[str, Any]) -> str:
    """What calls cost beside their kernels, in Markdown."""
    rows = [
        [row["function"], who, f"{time['us']:.1f}", f"{time['over_kernel_us']:.1f}"]
        for row in data["results"]
        for who, time in row["times"].items()
    ]
    lines = _table(["function", "arrays of", "µs per call", "over the kernel"], rows)
    alone = ", ".join(f"{row['function']} {row['kernel_us']:.1f}" for row in data["results"])
    end = f"The kernels alone: {alone} µs. Medians. {_origin(data)}"
    return "\n".join([*lines, "", end])


def _results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _of(name: str, make: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    return lambda: make(_results(name))


#: What writes a table, by its name in the marks.
TABLES: dict[str, Callable[[], str]] = {
    "layer, most threads": _of(SRU_RESULTS, layer_most_threads),
    "layer": _of(SRU_RESULTS, layer),
    "recurrence": _of(SRU_RESULTS, recurrence),
    "recurrent, most threads": _of(RECURRENT_RESULTS, recurrent_most_threads),
    "recurrent": _of(RECURRENT_RESULTS, recurrent),
    "sliced": _of(RECURRENT_RESULTS, sliced),
    "no matrix unit": _of(RECURRENT_RESULTS, recurrent_no_matrix_unit),
    "errors": _of(RECURRENT_RESULTS, recurrent_errors),
    "sliced memory": _of(RECURRENT_RESULTS, sliced_memory),
    "overhead": _of(OVERHEAD_RESULTS, overhead),
}
#: What writes a figure in a sentence, by its name in the marks.
VALUES: dict[str, Callable[[], str]] = {}
#: Modules with TABLES, and VALUES if they like, of their own: functions without arguments.
OTHERS = ("bench/experiments/tables.py",)

_TABLE = re.compile(r"<!-- table: (.+?) -->\n(.*?)<!-- end of table -->", re.S)
_VALUE = re.compile(r"<!-- value: (.+?) -->(.*?)<!-- end of value -->", re.S)


def _all(kind: str) -> dict[str, Callable[[], str]]:
    """TABLES or VALUES, of this module and of the others."""
    found = dict(globals()[kind])
    for name in OTHERS:
        path = ROOT / name
        if path.exists():
            spec = importlib.util.spec_from_file_location(f"tables_of_{path.parent.name}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found |= getattr(module, kind, {})
    return found


def written(text: str, tables: Mapping[str, Callable[[], str]],
            values: Mapping[str, Callable[[], str]]) -> str:  # fmt: skip
    """The text with what stands between marks made anew.

    Raises:
        ValueError: a mark has a name that nothing is known for, or no end.
    """

    def made(known: Mapping[str, Callable[[], str]], name: str) -> str:
        if name not in known:
            raise ValueError(f"expected a mark of {', '.join(sorted(known))} (actual: {name!r})")
        return known[name]()

    for mark, pattern in (("<!-- table: ", _TABLE), ("<!-- value: ", _VALUE)):
        if text.count(mark) != len(pattern.findall(text)):
            raise ValueError(f"expected an end for each mark {mark}NAME -->")
    text = _TABLE.sub(
        lambda m: f"<!-- table: {m[1]} -->\n{made(tables, m[1])}\n<!-- end of table -->", text
    )
    return _VALUE.sub(
        lambda m: f"<!-- value: {m[1]} -->{made(values, m[1])}<!-- end of value -->", text
    )


def documents() -> list[Path]:
    """The files that have figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def outdated(write: bool = False) -> list[str]:
    """Files whose figures differ from the results; they are rewritten if `write`."""
    differing = []
    tables, values = _all("TABLES"), _all("VALUES")
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = written(old, tables, values)
        if new != old:
            differing.append(str(path.relative_to(ROOT)))
            if write:
                path.write_text(new, encoding="utf-8")
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    files = outdated(write=not args.check)
    if args.check and files:
        sys.exit(f"tables are out of date in {', '.join(files)}")


if __name__ == "__main__":
    main()
