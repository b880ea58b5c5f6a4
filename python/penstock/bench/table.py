"""Results on screen."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock.bench.cases import Case
from penstock.bench.machine import in_words
from penstock.bench.peers import OURS_KEY
from penstock.bench.runner import BUSY, threads_in_words

_PASSES = {"forward": "forward", "train": "forward + backward"}


def milliseconds(ms: float) -> str:
    """With three digits."""
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def title(row: dict[str, Any]) -> str:
    """What a row measures, for somebody who has not seen one before."""
    case = Case.from_json(row["case"])
    words = [
        case.network,
        f"{case.T} step{'s' if case.T > 1 else ''}, batch {case.B}",
        f"{case.D} → {case.H} features",
        case.dtype,
        _PASSES[case.mode],
        threads_in_words(row["threads"]),
    ]
    if case.cache == "cold":
        words.append("cold caches")
    return ", ".join(words)


def faster_peers(row: dict[str, Any]) -> list[str]:
    """Keys of others' versions that do the same work and whose quartiles lie below ours."""
    times = row.get("times", {})
    if OURS_KEY not in times:
        return []
    ours = times[OURS_KEY]
    return [
        key
        for key, time in times.items()
        if not key.startswith(OURS_KEY)
        and time["same"]
        and time["ms"] < ours["ms"]
        and time["high"] < ours["low"]
    ]


def _row_table(row: dict[str, Any]) -> RenderableType:
    times = row["times"]
    fast = faster_peers(row)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("who", no_wrap=True, min_width=27)
    columns = ["ms", "±", "× ours", "GFLOP/s", "ceiling"]
    columns += ["MiB"] if any("peak_bytes" in time for time in times.values()) else []
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for key, time in times.items():
        peak = time.get("peak_bytes")
        spread = 50 * (time["high"] - time["low"]) / time["ms"]
        ratio = "" if key == OURS_KEY else f"{time['ratio']:.2f}"
        cells = {
            "ms": milliseconds(time["ms"]) + ("~" if time["few"] else " "),
            "±": f"{spread:.0f} %" if time["rounds"] > 1 else "",
            "× ours": f"{ratio} !" if key in fast else f"{ratio}  ",
            "GFLOP/s": f"{time['gflop_per_s']:.3g}" if "gflop_per_s" in time else "",
            "ceiling": f"{100 * time['share']:.0f} %" if time.get("share") else "",
            "MiB": "" if peak is None else f"{peak / 2**20:.0f}",
        }
        style = "bold" if key == OURS_KEY else ("yellow" if key in fast else "")
        name = time["name"] if time["same"] else f"{time['name']} *"
        table.add_row(Text(name), *(cells[name] for name in columns), style=style)
    return table


def show(result: dict[str, Any], console: Console) -> None:
    """Print a result: a table for each case, what they mean, and where a peer is faster."""

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    machine = result["machine"]
    if machine:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        line(f"{in_words(machine)}; {machine['system']}")
        line(f"{versions}; Python {machine['python']}; {machine['date']}")
    line(
        "ms: median time of one call, less is better; ±: half the distance of the quartiles; × "
        "ours: 2.00 takes twice as long as penstock; ceiling: share of what this machine's memory "
        "and BLAS would allow; MiB: peak of memory. *: does other work than penstock; ~: few "
        "rounds; !: faster than penstock."
    )
    unknown = {key: peer["unavailable"] for key, peer in result["peers"].items()}
    for row in result["rows"]:
        console.print()
        others = row.get("processors_of_others")
        busy = f" (others kept {others:.1f} processors busy)" if others and others > BUSY else ""
        line(title(row) + busy, "bold cyan")
        if "failed" in row:
            line(f"penstock FAILED: {row['failed']}", "bold red")
            continue
        console.print(Group(_row_table(row)))
        for key, why in row["skipped"].items():
            if not unknown.get(key):  # those that are not on this machine are named once
                line(f"left out: {_name(result, key)}: {why}", "dim")
    console.print()
    for key, why in unknown.items():
        if why:
            line(f"not measured: {_name(result, key)}: {why}", "dim")
    for text in summary(result):
        line(text, "bold")


def _name(result: dict[str, Any], key: str) -> str:
    return str(result["peers"].get(key, {}).get("name", key))


def summary(result: dict[str, Any]) -> list[str]:
    """In words: how often penstock was fastest, and where it was not."""
    rows = [row for row in result["rows"] if "times" in row]
    failed = len(result["rows"]) - len(rows)
    compared = [
        row
        for row in rows
        if any(t["same"] for k, t in row["times"].items() if not k.startswith(OURS_KEY))
    ]
    beaten = [row for row in compared if faster_peers(row)]
    words = []
    if compared:
        words.append(
            f"penstock against peers that do the same work: faster or level in "
            f"{len(compared) - len(beaten)} of {len(compared)} measurements."
        )
    for row in beaten:
        names = ", ".join(
            f"{row['times'][key]['name']} ({1 / row['times'][key]['ratio']:.2f} times as fast)"
            for key in faster_peers(row)
        )
        words.append(f"A peer is faster: {title(row)}: {names}")
    if failed:
        words.append(f"{failed} measurement{'s' if failed > 1 else ''} FAILED")
    busy = [row for row in rows if (row["processors_of_others"] or 0) > BUSY]
    if busy:
        words.append(
            f"In {len(busy)} of {len(rows)} measurements others kept part of the machine busy."
        )
    if not result["complete"]:
        words.append("The run was not finished.")
    return words
