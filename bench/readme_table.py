"""Write the README's table of measured results, from the file that bench/sru_cpu.py wrote.

python bench/readme_table.py            # after bench/sru_cpu.py --out bench/results/sru_cpu.json
python bench/readme_table.py --check    # status 1 if the README says something else
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "bench/results/sru_cpu.json"
BEGIN = f"<!-- table: {RESULTS} -->"
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


def table(data: dict[str, Any]) -> str:
    """The table, in Markdown, of one results file."""
    rows = [row for row in data["results"] if "case" in row and OURS in row["times"]]
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
    machine = data["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version
    )
    lines += [
        "",
        f"Milliseconds, float32, medians; in brackets, times ours. {machine['processor']}, "
        f"{machine['cores']} cores, {machine['date']}; {versions}.",
    ]
    return "\n".join(lines)


def replaced(readme: str, text: str) -> str:
    """The README with `text` between the two marks."""
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.S)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"README.md: expected the marks {BEGIN!r} and {END!r} once, in this order")
    return pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    path = ROOT / "README.md"
    readme = path.read_text()
    new = replaced(readme, table(json.loads((ROOT / RESULTS).read_text())))
    if args.check:
        sys.exit("README.md: the table is out of date" if new != readme else 0)
    path.write_text(new)


if __name__ == "__main__":
    main()
