"""Write the tables of measured results in README and docs, from the file bench/sru_cpu.py wrote.

python bench/tables.py            # after bench/sru_cpu.py --out bench/results/sru_cpu.json
python bench/tables.py --check    # status 1 if a table says something else
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "bench/results/sru_cpu.json"
END = "<!-- end of table -->"
OURS = "penstock.SRU"
FLOOR = "matrix products"


def _milliseconds(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def _cell(name: str, row: dict[str, Any]) -> str:
    """Time of a contender and how many times ours it is."""
    if name not in row["times"]:
        return "–"
    ms = row["times"][name]["ms"]
    if name == OURS:
        return f"**{_milliseconds(ms)}**"
    return f"{_milliseconds(ms)} ({ms / row['times'][OURS]['ms']:.1f}×)"


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


# File, name of the table in its marks, what writes it.
TABLES: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    ("README.md", "layer, most threads", layer_most_threads),
    ("docs/performance.md", "layer", layer),
    ("docs/performance.md", "recurrence", recurrence),
]


def replaced(text: str, name: str, table: str) -> str:
    """`text` with `table` between the marks of that name."""
    begin = f"<!-- table: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(END)}", re.S)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"expected the marks {begin!r} and {END!r} once, in this order")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{END}", text)


def outdated(data: dict[str, Any], write: bool = False) -> list[str]:
    """Files whose tables differ from the data; they are rewritten if `write`."""
    differing = []
    for file in sorted({file for file, _, _ in TABLES}):
        path = ROOT / file
        old = new = path.read_text(encoding="utf-8")
        for owner, name, make in TABLES:
            if owner == file:
                new = replaced(new, name, make(data))
        if new != old:
            differing.append(file)
            if write:
                path.write_text(new, encoding="utf-8")
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    data = json.loads((ROOT / RESULTS).read_text())
    files = outdated(data, write=not args.check)
    if args.check and files:
        sys.exit(f"tables are out of date in {', '.join(files)}")


if __name__ == "__main__":
    main()
