"""Write the measured figures in README and docs, from what the benchmarks wrote.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``, a figure in a
sentence between ``<!-- value: NAME -->`` and ``<!-- end of value -->``. NAME is a key of TABLES or
VALUES here or in one of OTHERS, whose functions take no arguments and return what stands there.

python bench/tables.py            # after bench/publish.sh, or one of the programs that it runs
python bench/tables.py --check    # status 1 if a figure says something else
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.bench.cases import Case
from penstock.bench.plots import PAPER_ADVANTAGE, advantages
from penstock.bench.runner import BUSY, threads_in_words
from penstock.bench.table import faster_peers

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
PASSES = {"forward": "forward", "train": "forward + backward"}
Row = dict[str, Any]


def results(name: str) -> dict[str, Any]:
    """What is in bench/results under a name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


# ---- words -----------------------------------------------------------------------------------


def _milliseconds(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def _origin(data: dict[str, Any], keys: Iterable[str] = ()) -> str:
    """Machine, date and versions: of everything, or of what the contenders ``keys`` are."""
    machine = data["machine"]
    used = {"penstock", *(_package(key) for key in keys)}
    versions = ", ".join(
        f"{name} {version}"
        for name, version in machine["versions"].items()
        if version and (not keys or name.partition("-")[0] in used)
    )
    words = f"{machine['processor']}, {machine['cores']} cores, {machine['date'][:10]}; {versions}."
    busy = sum((row.get("processors_of_others") or 0) > BUSY for row in data.get("rows", []))
    if busy:
        words += f" In {busy} of {len(data['rows'])} measurements others kept part of it busy."
    return words


def _package(key: str) -> str:
    """What a contender comes with."""
    name = key.partition("-")[0]
    return "torch" if name in ("conv2", "conv3", "products", "dilated") else name


def _shape(case: Case) -> str:
    return f"({case.T}, {case.B}, {case.D}, {case.H})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- times -----------------------------------------------------------------------------------


def chosen(
    data: dict[str, Any], *ops: str, sliced: bool = False, threads: int | None = None,
    one_layer: bool = False,
) -> list[Row]:  # fmt: skip
    """Rows of these operations; ``threads``: of so many, or -1 for the most there are."""
    most = max(row["threads"] for row in data["rows"])
    found = []
    for row in data["rows"]:
        case = Case.from_json(row["case"])
        if case.op not in ops or bool(case.slices) != sliced or "times" not in row:
            continue
        if one_layer and (case.layers > 1 or case.direction != "forward"):
            continue
        if threads in (None, row["threads"]) or (threads == -1 and row["threads"] == most):
            found.append(row)
    return found


def _cell(row: Row, key: str, best: Sequence[str]) -> str:
    if key not in row["times"]:
        return "–"
    time = row["times"][key]
    text = _milliseconds(time["ms"]) + ("~" if time["few"] else "")
    if key != "penstock":
        text += f" ({time['ms'] / row['times']['penstock']['ms']:.1f}×)"
    return f"**{text}**" if key in best else text


def _level(row: Row, keys: Sequence[str]) -> list[str]:
    """penstock, and the others whose medians are no higher though their quartiles overlap."""
    times = row["times"]
    others = [key for key in keys if key in times and not key.startswith("penstock")]
    level = (k for k in others if times[k]["same"] and times[k]["ms"] <= times["penstock"]["ms"])
    return ["penstock", *level]


def times(data: dict[str, Any], rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Milliseconds of penstock and of the contenders ``keys``, a line for each row."""
    names = {key: time for row in rows for key, time in row["times"].items()}
    shown = ["penstock", *(key for key in keys if key in names)]
    heads = [names[key]["name"] + ("" if names[key]["same"] else " \\*") for key in shown]
    several = len({row["threads"] for row in rows}) > 1
    lines = []
    for row in rows:
        case = Case.from_json(row["case"])
        best = [key for key in faster_peers(row) if key in shown] or _level(row, shown)
        line = [case.network, _shape(case), PASSES[case.mode]]
        line += [str(row["threads"])] if several else []
        lines.append([*line, *(_cell(row, key, best) for key in shown)])
    head = ["network", "(T, B, D, H)", "pass", *(["threads"] if several else []), *heads]
    count = "" if several else f" {threads_in_words(rows[0]['threads'])},"
    words = [f"Milliseconds a call,{count} float32, medians; in brackets, times penstock's"]
    words.append(
        "bold: the fastest of those that do the same work, several where their quartiles overlap"
    )
    if any(not names[key]["same"] for key in shown):
        words.append("\\*: does other work")
    if any(row["times"][key]["few"] for row in rows for key in shown if key in row["times"]):
        words.append("~: fewer than five rounds")
    return f"{_table(head, lines)}\n\n{'; '.join(words)}. {_origin(data, shown)}"


SRU = ("sru", "torch-lstm", "conv2", "conv3", "products")
RECURRENT = ("torch", "onednn", "jax", "keras", "numpy")
SLICED = (
    "torch-composed", "numpy", "dilated-cnn", "torch-whole", "torch-whole-last", "penstock-whole",
    "penstock-whole-last",
)  # fmt: skip
CPU, NO_AMX = "cpu", "cpu_no_amx"


def sru(threads: int | None, keys: Sequence[str], name: str = CPU) -> str:
    data = results(name)
    return times(data, chosen(data, "sru", threads=threads), keys)


def recurrent(threads: int | None, keys: Sequence[str], name: str = CPU) -> str:
    data = results(name)
    return times(data, chosen(data, "gru", "lstm", "rnn", threads=threads), keys)


def recurrent_in_short() -> str:
    data = results(CPU)
    return times(data, chosen(data, "gru", "lstm", threads=-1, one_layer=True), RECURRENT[:4])


def sliced(keys: Sequence[str], name: str = CPU) -> str:
    data = results(name)
    return times(data, chosen(data, "gru", sliced=True), keys)


def beaten(*found: tuple[str, dict[str, Any]]) -> str:
    """Where a peer that does the same work is faster, of results with a name for each."""
    rows = []
    for name, data in found:
        for row in data["rows"]:
            case = Case.from_json(row["case"])
            for key in faster_peers(row):
                time, ours = row["times"][key]["ms"], row["times"]["penstock"]["ms"]
                line = [case.network, _shape(case), PASSES[case.mode], str(row["threads"]), name]
                ms = [_milliseconds(ours), _milliseconds(time), f"{ours / time:.2f}"]
                rows.append([*line, row["times"][key]["name"], *ms])
    if not rows:
        return "Nowhere in these results."
    head = ["network", "(T, B, D, H)", "pass", "threads", "instructions", "peer", "penstock, ms"]
    head += ["peer, ms", "times as fast"]
    return f"{_table(head, rows)}\n\nBeyond the quartiles of both."


# ---- errors and memory -----------------------------------------------------------------------

_ERRORS = {
    "y": ("y",), "dx": ("dx",),
    "dW": ("dlayers.0.weight_ih", "dlevels.0.weight_ih", "dlayers.0.weight"),
    "dR": ("dlayers.0.weight_hh", "dlevels.0.weight_hh"),
}  # fmt: skip


_WITH_ERRORS = ("penstock", "torch", "torch-composed", "onednn", "jax", "sru")


def errors(data: dict[str, Any]) -> str:
    """Errors of training in one thread, of all that do the same work."""
    rows = []
    for row in data["rows"]:
        case = Case.from_json(row["case"])
        if "times" not in row or row["threads"] != 1 or not case.training or case.T == 1:
            continue
        for key, time in row["times"].items():
            if key in _WITH_ERRORS and time["errors"]:
                cells = []
                for names in _ERRORS.values():
                    found = [time["errors"][name] for name in names if name in time["errors"]]
                    cells.append(f"{found[0] * 1e7:.1f}" if found else "–")
                rows.append([case.network, _shape(case), time["name"], *cells])
    table = _table(["network", "(T, B, D, H)", "by", *_ERRORS], rows)
    return (
        f"{table}\n\nmax|a − b| / max|b| against float64, in units of 10⁻⁷; W and R are the first "
        f"layer's or level's weights. {_origin(data, (*RECURRENT[:3], 'sru'))}"
    )


def least_kept(case: Case, kept: int) -> int:
    """Bytes that training must hold: x, dx, the output's gradient, and ``kept`` numbers of each
    feature and step of every layer or level."""
    numbers = 2 * case.T * case.B * case.D + math.prod(case.output_shape)
    numbers += sum(kept * steps * rows * case.width for steps, rows, _ in case.parts())
    return 4 * numbers


def memory(data: dict[str, Any]) -> str:
    """Peaks of a training call of GRUs beside what it must hold."""
    rows = []
    for row in data["rows"]:
        case = Case.from_json(row["case"])
        if "times" not in row or not case.training or case.op != "gru":
            continue
        for key, time in row["times"].items():
            if time.get("peak_bytes") and time["same"]:
                must = least_kept(case, 1 if key == "penstock-recompute" else 5)
                sizes = [f"{size / 2**20:.0f}" for size in (time["peak_bytes"], must)]
                ratio = f"{time['peak_bytes'] / must:.2f}"
                rows.append([case.network, _shape(case), time["name"], *sizes, ratio])
    table = _table(["network", "(T, B, D, H)", "by", "peak, MiB", "least, MiB", "ratio"], rows)
    return (
        f"{table}\n\nOne training call. Least: x, dx, the output's gradient, and of each step of "
        "every level r, z, n, R_n h + b_n and h; with recompute=True h alone. "
        f"{_origin(data, (*RECURRENT, 'torch'))}"
    )


# ---- slicing ---------------------------------------------------------------------------------


def steps_in_a_row(case: Case) -> int:
    """How many steps of a sliced network follow each other."""
    return sum(steps for steps, _, _ in case.parts())


def cuts(data: dict[str, Any]) -> str:
    """One sliced GRU cut in many ways, beside the plain one with the same task."""
    rows = []
    plain: dict[tuple[int, int], list[float]] = {}
    for row in data["rows"]:
        shape = row["case"]["T"], row["case"]["B"]
        plain.setdefault(shape, []).append(row["times"]["penstock-whole-last"]["ms"])
    for row in data["rows"]:
        case, (time, whole) = (
            Case.from_json(row["case"]),
            (row["times"][key]["ms"] for key in ("penstock", "penstock-whole-last")),
        )
        if plain.get((case.T, case.B)):
            found = sorted(plain.pop((case.T, case.B)))
            ms = _milliseconds(found[len(found) // 2])
            rows.append([str(case.T), str(case.B), "()", str(case.T), str(case.B), ms, ""])
        n = case.slices
        name = f"({n[0]},) * {len(n)}" if len(n) > 3 else str(n)
        counts = [str(steps_in_a_row(case)), str(case.B * math.prod(n))]
        figures = [_milliseconds(time), f"{whole / time:.2f}"]
        rows.append([str(case.T), str(case.B), name, *counts, *figures])
    head = ["T", "B", "slices", "steps in a row", "rows at once", "ms", "times as fast"]
    case = Case.from_json(data["rows"][0]["case"])
    return (
        f"{_table(head, rows)}\n\nForward + backward, D = {case.D}, H = {case.H}, float32, one "
        "thread, medians; times as fast as the plain GRU with a gradient of its last state, "
        f"measured in turn with it. {_origin(data, ['penstock'])}"
    )


def advantage(data: dict[str, Any]) -> str:
    """The sliced GRU's advantage over plain ones beside Table 3 of the paper."""
    rows, heads = [], []
    for row in data["rows"]:
        case = Case.from_json(row["case"])
        found = advantages(row)
        heads = [words for words, *_ in found] if len(found) > len(heads) else heads
        paper = PAPER_ADVANTAGE.get((case.T, case.slices))
        name = f"({case.slices[0]}, {len(case.slices)})"
        cells = [f"{value:.3g}" + ("~" if few else "") for _, _, few, value in found]
        rows.append([str(case.T), name, str(case.B), str(paper or "–"), *cells])
    few = " ~: fewer than five rounds of either." if "~" in str(rows) else ""
    return (
        f"{_table(['T', 'SRNN', 'batch', 'the paper, on its GPU', *heads], rows)}\n\n"
        f"Times as fast, forward + backward, {threads_in_words(data['rows'][0]['threads'])}, "
        f"float32.{few} "
        f"{_origin(data, ['torch'])}"
    )


# ---- other programs' results -----------------------------------------------------------------


def recurrence(data: dict[str, Any]) -> str:
    """The SRU's scans beside memcpy."""
    rows = []
    for row in data["rows"]:
        ms = [_milliseconds(row[name]) for name in ("ms", "memcpy_ms")]
        shape = f"({row['T']}, {row['B']}, {row['H']})"
        rows.append([shape, row["pass"], str(row["threads"]), *ms, f"{row['ratio']:.2f}"])
    head = ["(T, B, H)", "pass", "threads", "scan", "memcpy of as many bytes", "ratio"]
    return f"{_table(head, rows)}\n\nMilliseconds, float32, medians. {_origin(data, ['penstock'])}"


def overhead(data: dict[str, Any]) -> str:
    """What calls cost beside their kernels."""
    rows = [
        [row["function"], who, f"{time['us']:.1f}", f"{time['over_kernel_us']:.1f}"]
        for row in data["results"]
        for who, time in row["times"].items()
    ]
    table = _table(["function", "arrays of", "µs per call", "over the kernel"], rows)
    alone = ", ".join(f"{row['function']} {row['kernel_us']:.1f}" for row in data["results"])
    return f"{table}\n\nThe kernels alone: {alone} µs. Medians. {_origin(data)}"


def adding_problem(data: dict[str, Any]) -> str:
    """Losses of examples/sliced_gru.py, sliced and plain, by seed."""
    seeds = sorted({run["seed"] for run in data["runs"]})
    rows = []
    for slices in dict.fromkeys(run["slices"] for run in data["runs"]):
        found = {run["seed"]: run for run in data["runs"] if run["slices"] == slices}
        words = f'`--slices "{slices}"`' + ("" if slices else ", the plain GRU")
        count = f"{next(iter(found.values()))['parameters']:,}".replace(",", " ")
        rows.append([words, count, *(f"{found[seed]['loss']:.4f}" for seed in seeds)])
    return _table(["", "parameters", *(f"seed {seed}" for seed in seeds)], rows)


def journal(data: dict[str, Any]) -> str:
    """What was expected of each change and what was seen."""
    head = ("version", "expected", "seen")
    table = _table(head, ([entry[name] for name in head] for entry in data["entries"]))
    machine = data["machine"]
    return f"{table}\n\n{machine['processor']}, {machine['cores']} cores."


# ---- figures in sentences --------------------------------------------------------------------


def one_row(data: dict[str, Any], **fields: Any) -> Row:
    """The row with these fields of its case, and ``threads``; the most if not given.

    Raises:
        ValueError: there is none, or more than one.
    """
    threads = fields.pop("threads", max(row["threads"] for row in data["rows"]))
    found = [
        row
        for row in data["rows"]
        if row["threads"] == threads and all(row["case"][k] == v for k, v in fields.items())
    ]
    if len(found) != 1:
        raise ValueError(f"expected one row with {fields} (actual: {len(found)})")
    return found[0]


def step_microseconds(op: str, key: str) -> str:
    row = one_row(results(CPU), op=op, T=1, mode="forward")
    return f"{1e3 * row['times'][key]['ms']:.0f}"


def fading(T: int, B: int) -> str:
    """How many times longer torch's plain GRU takes with a gradient of the last state alone."""
    row = one_row(results("srnn_table3_cpu"), T=T, B=B)
    return f"{row['times']['torch-whole-last']['ms'] / row['times']['torch-whole']['ms']:.1f}"


def minutes(name: str) -> str:
    """How long a suite took, in whole minutes."""
    return str(max(1, round(results(name)["seconds"] / 60)))


#: What writes a table, by its name in the marks.
TABLES: dict[str, Callable[[], str]] = {
    "SRU, most threads": lambda: sru(-1, ("sru", "torch-lstm", "products")),
    "SRU": lambda: sru(None, SRU),
    "SRU, no matrix unit": lambda: sru(None, SRU, NO_AMX),
    "recurrent, most threads": recurrent_in_short,
    "recurrent": lambda: recurrent(None, RECURRENT),
    "recurrent, no matrix unit": lambda: recurrent(None, RECURRENT, NO_AMX),
    "sliced": lambda: sliced(SLICED),
    "sliced, no matrix unit": lambda: sliced(SLICED, NO_AMX),
    "peers that are faster": lambda: beaten(("all", results(CPU)), ("AVX-512", results(NO_AMX))),
    "errors": lambda: errors(results(CPU)),
    "memory": lambda: memory(results(CPU)),
    "cuts": lambda: cuts(results("cuts_cpu")),
    "advantage": lambda: advantage(results("srnn_table3_cpu")),
    "recurrence": lambda: recurrence(results("sru_scan_cpu")),
    "overhead": lambda: overhead(results("overhead_cpu")),
    "journal": lambda: journal(results("journal_cpu")),
    "adding problem": lambda: adding_problem(results("adding_problem_cpu")),
}
#: What writes a figure in a sentence, by its name in the marks.
VALUES: dict[str, Callable[[], str]] = {
    "gru step": lambda: step_microseconds("gru", "penstock"),
    "gru step, batch-invariant": lambda: step_microseconds("gru", "penstock-invariant"),
    "sru step": lambda: step_microseconds("sru", "penstock"),
    "sru step, batch-invariant": lambda: step_microseconds("sru", "penstock-invariant"),
    "minutes of srufig": lambda: minutes("srufig_cpu"),
    "minutes of srnn-table3": lambda: minutes("srnn_table3_cpu"),
    "minutes of growth": lambda: minutes("growth_cpu"),
    "fading 512": lambda: fading(512, 100),
}
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
