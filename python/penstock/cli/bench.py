"""``penstock bench``."""

from __future__ import annotations

import itertools
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

bench = typer.Typer(
    name="bench",
    help="Measure penstock and its peers on this machine; compare, list and draw results.",
    no_args_is_help=False,
)
_BUDGET = 2.0


@bench.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    suite: Annotated[
        str | None,
        typer.Option(
            help="A suite's name (see penstock bench list) or a file of cases; quick if neither "
            "this nor --case is given.",
            show_default=False,
        ),
    ] = None,
    *,
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            help='A case instead of a suite, such as "gru T=64 B=32 D=H H=256"; may be given '
            "several times.",
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="FIELD=V1,V2,…: every case with each of these values, such as H=64,128,256 or "
            "threads=1,2,4. May be given several times.",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Of the cases, those whose line has this in it.")
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            help="Numbers of threads, with commas. Default: the suite's, or 1 and all processors.",
            show_default=False,
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Peers to measure, with commas (see penstock bench list), or none. Default: all.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda. Default: the suite's.", show_default=False),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help=f"Seconds for each measurement. Default: the suite's, or {_BUDGET:g}.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        bool | None,
        typer.Option(
            "--memory/--no-memory",
            help="Measure peaks of memory of every case, or of none. Default: where the suite "
            "says so.",
            show_default=False,
        ),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(
            help="At most these of the processor's instructions for penstock: base, avx2 or "
            "avx512. Default: the suite's, or all.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write everything to this file, as JSON.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the times to this file, as CSV.")] = None,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend",
            help="Keep what the file of --out has, and measure again what is missing there, has "
            "failed, or was measured while others kept part of the machine busy.",
        ),
    ] = False,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds to wait before each case for other programs to leave the machine alone."
        ),
    ] = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No lines of progress.")] = False,
) -> None:
    """Measure penstock and its peers on this machine.

    Each case is checked, then timed, ours and the peers' calls in turn. Peers that are not
    installed are left out, and named.
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from penstock.bench.cases import ISAS
    from penstock.bench.results import as_csv, save
    from penstock.bench.runner import Run
    from penstock.bench.table import show
    from penstock.training.checkpoints import write_text_atomically

    chosen = _suite(suite, case)
    counts = _thread_counts(threads, chosen.threads)
    for text in sweep or []:
        counts = _swept(chosen, text, counts)
    chosen.cases = [c for c in chosen.cases if only is None or only in c.label]
    from penstock.training.errors import UserError

    if not chosen.cases:
        raise UserError(f"--only: expected a part of a case's line (actual: {only!r}, in none)")
    if budget is not None and not 0 < budget < float("inf"):
        raise UserError(f"--budget: expected a positive number of seconds (actual: {budget})")
    if not 0 <= patience < float("inf"):
        raise UserError(f"--patience: expected seconds, 0 or more (actual: {patience})")
    if isa not in (None, *ISAS):
        raise UserError(f"--isa: expected {', '.join(ISAS)} (actual: {isa!r})")
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device: expected cpu or cuda (actual: {device!r})")
    for path in (out, csv):  # before minutes are spent
        if path is not None and path.is_dir():
            raise UserError(f"expected a file to write to (actual: {path} is a folder)")
    where = device or chosen.device
    _check_device(where)

    if mend and only is not None:
        raise UserError("--mend: expected no --only, which would lose the other cases")
    before = _result_to_mend(mend, out, chosen.name, where, counts)

    def progress(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    measuring = Run(
        chosen,
        threads=counts if where == "cpu" else [0],
        device=where,
        budget=budget or chosen.budget or _BUDGET,
        peers=_peers(peers, chosen),
        memory=memory,
        isa=isa or chosen.isa,
        patience=patience,
        before=before,
        progress=progress,
        save=lambda result: save(out, result) if out is not None else None,
    )
    before_terminated = signal.signal(signal.SIGTERM, _stop)
    try:
        measuring.run()
    finally:  # an interrupted run shows what it has
        signal.signal(signal.SIGTERM, before_terminated)
        result = measuring.result
        if result["rows"]:
            if csv is not None:
                csv.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomically(csv, as_csv(result))
            show(result, Console())
    if any("failed" in row for row in result["rows"]):
        raise typer.Exit(1)


@bench.command("compare")
def compare_files(
    old: Annotated[Path, typer.Argument(help="What penstock bench --out wrote before.")],
    new: Annotated[Path, typer.Argument(help="What it wrote now.")],
    *,
    across: Annotated[
        bool, typer.Option("--across", help="Compare results of different machines, labelled so.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Show the peers, too, and what is within spread.")
    ] = False,
) -> None:
    """Say what changed between two results, beyond what varies from call to call.

    The status is 1 if something of penstock's is slower or fails now.
    """
    from penstock.bench.compare import SLOWER, compare
    from penstock.bench.results import load

    found = compare(load(old), load(new), across)
    _show_comparison(found, every)
    ours = [c for c in found.changes if c.key.startswith("penstock")]
    if found.broken or (not found.machines and any(c.verdict == SLOWER for c in ours)):
        raise typer.Exit(1)


@bench.command("list")
def list_all(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Name the suites and the peers, and say which peers are here."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from penstock.bench.cases import load_suite, suite_names
    from penstock.bench.worker import describe_peers
    from penstock.training.errors import UserError

    if device not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cpu or cuda (actual: {device!r})")
    console = Console()
    suites = Table(box=box.SIMPLE_HEAD)
    for name in ("suite", "device", "cases", "what it is"):
        suites.add_column(name, justify="right" if name == "cases" else "left")
    for name in suite_names():
        found = load_suite(name)
        suites.add_row(
            Text(name), found.device, str(len(found.cases)), Text(found.description)
        )  # fmt: skip
    console.print(suites)
    peers = Table(box=box.SIMPLE_HEAD)
    for name in ("peer", "name", f"on this machine ({device})", "what differs"):
        peers.add_column(name)
    for key, peer in describe_peers(device).items():
        here = Text(peer["unavailable"] or "yes", style="dim" if peer["unavailable"] else "green")
        peers.add_row(Text(key), Text(peer["name"]), here, Text(peer["note"]))
    console.print(peers)


@bench.command("show")
def show_file(
    file: Annotated[Path, typer.Argument(help="What penstock bench --out wrote.")],
) -> None:
    """Print a result's tables again."""
    from rich.console import Console

    from penstock.bench.results import load
    from penstock.bench.table import show

    show(load(file), Console())


@bench.command("plot")
def plot_file(
    file: Annotated[Path, typer.Argument(help="What penstock bench --out wrote.")],
    *,
    out: Annotated[Path, typer.Option(help="The picture, a .png, .svg or .pdf file.")],
    kind: Annotated[
        str | None,
        typer.Option(
            help="time or memory (curves over the field that varies), bars (peers beside ours, "
            "case by case), or advantage (sliced over plain). Default: what suits the result.",
            show_default=False,
        ),
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(
            help="The field to the right: T, B, H or threads. Default: each that varies.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Rows with so many threads. Default: the most.", show_default=False),
    ] = None,
    only: Annotated[
        str, typer.Option(help="Of the cases, those whose line has this in it.", show_default=False)
    ] = "",
    title: Annotated[str | None, typer.Option(help="What stands above it.")] = None,
) -> None:
    """Draw a result."""
    from penstock.bench.plots import draw
    from penstock.bench.results import load

    draw(load(file), out, kind=kind, x_field=x, title=title, threads=threads, only=only)
    typer.echo(f"{out}")


# ---- options ---------------------------------------------------------------------------------


def _suite(name: str | None, lines: list[str] | None) -> Any:
    from penstock.bench.cases import Suite, load_suite, parse_cases
    from penstock.training.errors import UserError

    if lines and name is not None:
        raise UserError("give --suite or --case, not both")
    if not lines:
        return load_suite(name or "quick")
    cases = []
    for line in lines:
        if not line.strip():
            raise UserError("--case: expected an operation and its fields (actual: nothing)")
        cases += parse_cases(line, "--case")
    return Suite("cases", "", list(dict.fromkeys(cases)))


def _stop(number: int, frame: Any) -> None:
    """End as by an exception, so that the process that measures is ended, too."""
    sys.exit(128 + number)


def _result_to_mend(
    mend: bool, out: Path | None, suite: str, device: str, threads: list[int]
) -> Any:
    """The result that a run goes on from, None for none.

    Raises:
        UserError: there is no file, or it is of another suite, machine or version.
    """
    from penstock.bench.machine import describe, differences
    from penstock.bench.results import load
    from penstock.training.errors import UserError

    if not mend:
        return None
    if out is None or not out.exists():
        raise UserError(f"--mend: expected a result at --out (actual: {out})")
    found, here = load(out), describe(device)
    other = differences(found["machine"], here)
    if found["suite"] != Path(suite).name:
        other.insert(0, f"suite: {found['suite']} and {Path(suite).name}")
    if found["settings"]["device"] != device:
        other.append(f"device: {found['settings']['device']} and {device}")
    if device == "cpu" and found["settings"]["threads"] != threads:
        other.append(f"threads: {found['settings']['threads']} and {threads}")
    for name, version in found["machine"]["versions"].items():
        if here["versions"].get(name) != version:
            other.append(f"{name}: {version} and {here['versions'].get(name)}")
    if other:
        raise UserError(f"--mend: expected a result of the same kind (actual: {'; '.join(other)})")
    return found


def _numbers(option: str, text: str) -> list[int]:
    from penstock.training.errors import UserError

    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and int(part) >= 1 for part in parts):
        raise UserError(f"{option}: expected positive integers with commas (actual: {text!r})")
    return sorted({int(part) for part in parts})


def _thread_counts(text: str | None, of_suite: tuple[int, ...]) -> list[int]:
    from penstock.bench.machine import available_cores
    from penstock.training.errors import UserError

    cores = available_cores()
    if text is None:
        # A suite's numbers as far as this machine has them.
        return sorted({min(n or cores, cores) for n in of_suite}) or sorted({1, cores})
    counts = _numbers("--threads", text)
    if counts[-1] > cores:
        raise UserError(
            f"--threads: expected at most {cores}, the processors here (actual: {counts[-1]})"
        )
    return counts


def _swept(suite: Any, text: str, counts: list[int]) -> list[int]:
    """Change the suite's cases by a sweep; return the numbers of threads."""
    from penstock.bench.cases import swept
    from penstock.training.errors import UserError

    name, equals, values = text.partition("=")
    if not equals:
        raise UserError(f"--sweep: expected FIELD=V1,V2,… (actual: {text!r})")
    if name == "threads":
        return _thread_counts(values, ())
    suite.cases = swept(suite.cases, name, values.split(","))
    return counts


def _peers(text: str | None, suite: Any) -> list[str] | None:
    from penstock.bench.peers import check_keys

    for case in suite.cases:
        check_keys(case.peers or (), f"{suite.name}: field peers")
    if text is None:
        return None
    return list(check_keys(tuple(k for k in text.split(",") if k != "none"), "--peers"))


def _check_device(device: str) -> None:
    import penstock
    from penstock.training.errors import UserError

    config = penstock.config()
    if device == "cuda" and not config["cuda_available"]:
        raise UserError(
            f"--device: expected cpu, since penstock has no GPU here ({config['cuda_status']})"
        )


# ---- comparison on screen --------------------------------------------------------------------


def _show_comparison(found: Any, every: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from penstock.bench.compare import FASTER, SAME, SLOWER
    from penstock.bench.runner import threads_in_words
    from penstock.bench.table import milliseconds

    console = Console()

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    if found.machines:
        line("DIFFERENT MACHINES: " + "; ".join(found.machines), "bold yellow")
        line("The ratios below are of machines and code together.", "yellow")
    for change in found.versions:
        line(f"not the same: {change}")
    shown = [
        c
        for c in found.changes
        if every or (c.key.startswith("penstock") and c.verdict != SAME)
    ]  # fmt: skip
    styles = {FASTER: "green", SLOWER: "red", SAME: ""}
    for (label, threads), group in itertools.groupby(shown, lambda c: (c.label, c.threads)):
        console.print()
        line(f"{label}, {threads_in_words(threads)}", "bold cyan")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("who", no_wrap=True, min_width=27)
        for name in ("old ms", "new ms", "ratio"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for c in group:
            old, new = (
                f"{milliseconds(t['ms'])} ± {50 * (t['high'] - t['low']) / t['ms']:.0f} %"
                for t in (c.old, c.new)
            )
            verdict = Text(c.verdict, style=styles[c.verdict])
            table.add_row(Text(c.name), old, new, f"{c.ratio:.2f}", verdict)
        console.print(table)
    console.print()
    ours = [c for c in found.changes if c.key.startswith("penstock")]
    counts = {v: sum(c.verdict == v for c in ours) for v in (FASTER, SLOWER, SAME)}
    line(
        f"penstock: {counts[FASTER]} faster, {counts[SLOWER]} slower, {counts[SAME]} within spread "
        "(quartiles overlap)",
        "bold",
    )
    if found.drift is not None:
        line(f"peers: median new / old {found.drift:.2f}, which the machine's own state explains")
    for text in found.broken:
        line(f"FAILS NOW: {text}", "bold red")
    for text in found.only_old:
        line(f"only in the old file: {text}", "dim")
    for text in found.only_new:
        line(f"only in the new file: {text}", "dim")
