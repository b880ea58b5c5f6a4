"""Pictures of results, with matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.bench.cases import Case
from penstock.bench.machine import in_words
from penstock.bench.peers import BY_KEY, OURS_KEY
from penstock.bench.runner import BUSY, threads_in_words
from penstock.training.errors import UserError, require

KINDS = ("time", "memory", "bars", "advantage")
X_FIELDS = ("T", "B", "H", "threads")
FORMATS = (".png", ".svg", ".pdf")
#: How many times faster than the plain GRU the sliced one is in Table 3 of arXiv 1807.02291.
PAPER_ADVANTAGE = {(512, (8, 8)): 13.5, (4096, (8, 8, 8)): 52.9, (32768, (8, 8, 8, 8)): 136.0}

_X_NAMES = {"T": "steps T", "B": "batch B", "H": "features H", "threads": "threads"}
_PASSES = {"forward": "forward", "train": "forward + backward"}
#: Colours that people with colour blindness tell apart; the same everywhere for a contender.
_COLOURS = {
    "penstock": "#0072B2", "penstock-whole": "#56B4E9", "penstock-whole-last": "#56B4E9",
    "torch": "#D55E00", "torch-lstm": "#882255", "torch-composed": "#882255",
    "torch-whole": "#E69F00", "torch-whole-last": "#D55E00", "sru": "#009E73",
    "jax": "#CC79A7", "keras": "#E69F00", "numpy": "#7F7F7F", "onednn": "#44AA99",
    "conv2": "#E69F00", "conv3": "#A67300", "dilated-cnn": "#009E73", "products": "#333333",
    "flashrnn": "#009E73", "accelerated-scan": "#CC79A7",
}  # fmt: skip
_DASHED = ("penstock-whole-last", "products", "conv3", "dilated-cnn")
_MARKERS = {"penstock": "o", "torch": "s", "torch-lstm": "s", "sru": "^", "jax": "D", "keras": "v"}
_GREY = "#555555"
_DPI = 160
_LETTERS_AN_INCH = 20  # of the smallest print


@dataclass
class Panel:
    """Curves over one field of otherwise equal cases."""

    title: str
    x_field: str
    #: By contender: x, value, first and third quartile; the last two None where there is one value.
    curves: dict[str, list[tuple[int, float, float | None, float | None]]] = field(
        default_factory=dict
    )


def draw(
    result: dict[str, Any], path: Path, *, kind: str | None = None, x_field: str | None = None,
    title: str | None = None, threads: int | None = None, only: str = "",
) -> None:  # fmt: skip
    """Draw a result to a file: PNG, SVG or PDF by its name.

    Args:
        kind: of :data:`KINDS`; None for what shows the result best.
        x_field: for "time" and "memory", the field to the right, of :data:`X_FIELDS`; None for all
            that vary.
        title: above the picture; None for one of its own.
        threads: of the rows, those with so many; None for the most, where threads are not drawn.
        only: of the rows, those whose case's line has this in it.

    Raises:
        UserError: an argument is not among the choices, the result has nothing to draw in this
            way, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out: expected a file ending in {', '.join(FORMATS)} (actual: {path})")
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind: expected {', '.join(KINDS)} (actual: {kind!r})")
    if x_field is not None and x_field not in X_FIELDS:
        raise UserError(f"--x: expected {', '.join(X_FIELDS)} (actual: {x_field!r})")
    figures = require("matplotlib.figure", "bench")
    rows = [row for row in result["rows"] if "times" in row and only in row["label"]]
    if not rows:
        where = f" of cases with {only!r} in their line" if only else ""
        raise UserError(f"the result has no times to draw{where}")
    most = max(row["threads"] for row in rows)
    if threads is not None and not any(row["threads"] == threads for row in rows):
        raise UserError(f"--threads: expected a number that was measured (actual: {threads})")
    chosen = [row for row in rows if row["threads"] == (most if threads is None else threads)]
    least = 2
    if kind is None:
        kind = "advantage" if result.get("plot") == "advantage" else "time"
        if kind == "time" and x_field is None:
            # Two points are no curve, as with one and all processors, unless they are asked for.
            least = 3
            kind = "time" if panels_of(rows, chosen, None, "ms", least) else "bars"
    makers: dict[str, Callable[[], Any]] = {
        "time": lambda: _curves(
            figures, panels_of(rows, chosen, x_field, "ms", least), "ms", title
        ),
        "memory": lambda: _curves(
            figures, panels_of(rows, chosen, x_field, "peak_bytes"), "peak_bytes", title
        ),
        "bars": lambda: _bars(figures, chosen, title),
        "advantage": lambda: _advantage(figures, chosen, title),
    }
    figure = makers[kind]()
    few = kind in ("bars", "advantage")  # where they are marked
    _footer(figure, result, rows if x_field == "threads" else chosen, few)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, facecolor="white")
    if path.suffix.lower() == ".png":
        _fewer_colours(path)


def _fewer_colours(path: Path) -> None:
    """Write a PNG again with a palette, which takes a third of the bytes."""
    from PIL import Image  # which matplotlib needs, and so is there

    with Image.open(path) as image:
        palette = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    palette.save(path, optimize=True)


# ---- curves ----------------------------------------------------------------------------------


def panels_of(
    rows: Sequence[dict[str, Any]],
    at_threads: Sequence[dict[str, Any]],
    x_field: str | None,
    value: str,
    least: int = 2,
) -> list[Panel]:
    """One panel for each series of rows that differ in one field alone, ``least`` points or more.

    ``at_threads`` are the rows with one number of threads: where threads are not the field.
    ``value``: "ms" or "peak_bytes".
    """
    found = []
    for name in (x_field,) if x_field else X_FIELDS:
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in rows if name == "threads" else at_threads:
            groups.setdefault(_all_but(row, name), []).append(row)
        for group in groups.values():
            if len({_x_of(row, name) for row in group}) < least:
                continue
            panel = Panel(_panel_title(group[0], name), name)
            for row in sorted(group, key=lambda row: _x_of(row, name)):
                for key, time in row["times"].items():
                    if value == "ms":
                        point = (_x_of(row, name), time["ms"], time["low"], time["high"])
                    elif time.get("peak_bytes"):
                        point = (_x_of(row, name), time["peak_bytes"] / 2**20, None, None)
                    else:
                        continue
                    panel.curves.setdefault(key, []).append(point)
            if any(len(points) >= least for points in panel.curves.values()):
                found.append(panel)
    return found


def _x_of(row: dict[str, Any], name: str) -> int:
    return int(row["threads"] if name == "threads" else row["case"][name])


def _all_but(row: dict[str, Any], name: str) -> tuple[Any, ...]:
    """What the rows of a series have in common."""
    case = Case.from_json(row["case"])
    values = {key: v for key, v in case.as_json().items() if key not in ("memory", "peers", name)}
    if name == "H":
        # Inputs that grow with the features, or inputs of one size.
        values["D"] = "H" if case.width == case.D else case.D
    return (*values.values(), None if name == "threads" else row["threads"])


def _panel_title(row: dict[str, Any], name: str) -> str:
    case = Case.from_json(row["case"])
    words = [f"{key} = {getattr(case, key)}" for key in ("T", "B") if key != name]
    if name == "H":
        words.append("D = H" if case.width == case.D else f"D = {case.D}")
    else:
        words.append(f"D = {case.D}, H = {case.H}")
    return f"{case.network}, {_PASSES[case.mode]}\n{', '.join(words)}, {case.dtype}"


def _curves(figures: Any, panels: list[Panel], value: str, title: str | None) -> Any:
    if not panels:
        what = "times" if value == "ms" else "peaks of memory"
        raise UserError(
            f"there is no series of {what} to draw: no cases differ in one field alone; "
            "measure some with --sweep, for memory with --memory"
        )
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    lines = math.ceil(len(panels) / columns)
    figure = figures.Figure(
        figsize=(4.2 * columns + 0.6, 3.5 * lines + 0.9), layout="constrained", dpi=_DPI
    )
    axes = figure.subplots(lines, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for place, panel in zip(axes.flat, panels, strict=False):
        for key, points in panel.curves.items():
            handles.setdefault(key, _curve(place, key, points))
        _scales(place, panel)
        place.set_title(panel.title, fontsize=9, loc="left")
        place.set_xlabel(_X_NAMES[panel.x_field], fontsize=9)
        place.set_ylabel("ms per call" if value == "ms" else "peak, MiB", fontsize=9)
    for place in list(axes.flat)[len(panels) :]:
        place.set_visible(False)
    name = "Time of a call" if value == "ms" else "Peak memory of a call"
    less = "lower is better" + (", bands are quartiles" if value == "ms" else "")
    _head(figure, title or f"{name}: {less}", handles)
    return figure


def _curve(
    place: Any, key: str, points: list[tuple[int, float, float | None, float | None]]
) -> Any:
    x, y, low, high = zip(*points, strict=True)
    ours = key == OURS_KEY
    colour = _COLOURS.get(key, _GREY)
    (line,) = place.plot(
        x, y, color=colour, linewidth=2.4 if ours else 1.4, marker=_MARKERS.get(key, "."),
        markersize=5 if ours else 4, linestyle="--" if key in _DASHED else "-",
        zorder=3 if ours else 2,
    )  # fmt: skip
    if None not in low:
        place.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    return line


def _scales(place: Any, panel: Panel) -> None:
    x = sorted({point[0] for points in panel.curves.values() for point in points})
    y = [point[1] for points in panel.curves.values() for point in points]
    place.set_xscale("log", base=2)
    place.set_xticks(x, [str(value) for value in x], fontsize=8)
    place.minorticks_off()
    place.set_yscale("log")
    _plain_log_ticks(place, min(y), max(y))
    _bare(place)
    place.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def _plain_log_ticks(place: Any, low: float, high: float) -> None:
    """Ticks at 1, 2, 5, 10, … (fewer over many decades), written as they are."""
    few = high / low < 200
    steps = (1, 2, 5) if few else (1,)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in steps]
    bottom, top = low / 1.3, high * 1.3
    shown = [tick for tick in ticks if bottom <= tick <= top]
    place.set_ylim(bottom, top)
    place.set_yticks(shown, [f"{tick:g}" for tick in shown], fontsize=8)
    place.minorticks_off()


# ---- bars ------------------------------------------------------------------------------------


def _bars(figures: Any, rows: list[dict[str, Any]], title: str | None) -> Any:
    """How many times ours each peer takes that does the same work, case by case."""
    shown = []
    for row in rows:
        peers = [k for k, t in row["times"].items() if k != OURS_KEY and t["same"]]
        if peers:
            shown.append((row, peers))
    if not shown:
        raise UserError("no case has a peer that does the same work to draw beside ours")
    count = sum(len(peers) for _, peers in shown) + 0.9 * len(shown)
    figure = _figure(figures, 9.0, 0.24 * count + 1.5)
    place = figure.subplots()
    y, ticks, labels = 0.0, [], []
    most = max(row["times"][k]["ratio"] for row, peers in shown for k in peers)
    handles: dict[str, Any] = {}
    for row, peers in shown:
        top = y
        for key in peers:
            time = row["times"][key]
            (bar,) = place.barh(y, time["ratio"] - 1, left=1, height=0.85, color=_COLOURS.get(key))
            handles.setdefault(key, bar)
            text = f"{_short(time['ratio'])}×  {_short(time['ms'])} ms{'~' if time['few'] else ''}"
            place.text(max(1.0, time["ratio"]) * 1.04, y, text, va="center", fontsize=7.5)
            y += 1
        ticks.append((top + y - 1) / 2)
        case = Case.from_json(row["case"])
        labels.append(
            f"{case.network}, {_PASSES[case.mode]}\nT {case.T}, B {case.B}, D {case.D}, H {case.H}:"
            f" penstock {_short(row['times'][OURS_KEY]['ms'])} ms"
        )
        y += 0.9
    place.set_yticks(ticks, labels, fontsize=7.5)
    place.margins(y=0.01)
    place.invert_yaxis()
    place.set_xscale("log")
    least = min(row["times"][k]["ratio"] for row, peers in shown for k in peers)
    left = min(0.8, least / 1.2)
    right = most * max(2.2, (most / left) ** 0.25)  # room for the words
    place.set_xlim(left, right)
    steps = [t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if left <= t <= right]
    place.set_xticks(steps, [f"{t:g}×" for t in steps], fontsize=8)
    place.minorticks_off()
    place.axvline(1, color=_COLOURS[OURS_KEY], linewidth=2)
    place.set_xlabel("time of a call, times penstock's: right of the line, penstock is faster")
    place.xaxis.label.set_fontsize(8)
    _bare(place)
    place.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    place.set_axisbelow(True)
    _head(figure, title or "How many times as long peers take for the same work", handles)
    return figure


def _short(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


# ---- the sliced network's advantage ----------------------------------------------------------

#: Whose time over whose, and the words for it.
ADVANTAGES = (
    ("torch-whole-last", OURS_KEY, "penstock sliced over torch.nn plain", "#0072B2"),
    ("torch-whole", OURS_KEY, "likewise, gradient of every step", "#56B4E9"),
    ("torch-whole-last", "torch-composed", "torch.nn sliced over torch.nn plain", "#D55E00"),
    ("penstock-whole-last", OURS_KEY, "penstock sliced over penstock plain", "#009E73"),
)


def _advantage(figures: Any, rows: list[dict[str, Any]], title: str | None) -> Any:
    """A panel for each length: how many times faster slicing is, by batch, beside the paper's."""
    lengths: dict[tuple[int, tuple[int, ...]], list[dict[str, Any]]] = {}
    for row in rows:
        case = Case.from_json(row["case"])
        if case.slices and case.training and "torch-whole-last" in row["times"]:
            lengths.setdefault((case.T, case.slices), []).append(row)
    if not lengths:
        raise UserError(
            "there is no advantage to draw: no sliced case was trained beside the peer "
            "torch-whole-last"
        )
    width = [len(found) for found in lengths.values()]
    figure = _figure(figures, 2.2 + 1.9 * sum(width), 4.6)
    places = figure.subplots(
        1, len(lengths), sharey=True, squeeze=False, gridspec_kw={"width_ratios": width}
    )[0]
    values = [v for found in lengths.values() for row in found for *_, v in advantages(row)]
    values += [PAPER_ADVANTAGE[key] for key in lengths if key in PAPER_ADVANTAGE]
    handles: dict[str, Any] = {}
    for place, ((steps, slices), found) in zip(places, lengths.items(), strict=True):
        found.sort(key=lambda row: row["case"]["B"])
        for i, row in enumerate(found):
            ratios = advantages(row)
            wide = 0.84 / len(ratios)
            for j, (words, colour, few, value) in enumerate(ratios):
                x = i + (j - (len(ratios) - 1) / 2) * wide
                (bar,) = place.bar(x, value - 1, width=wide * 0.94, color=colour, bottom=1)
                handles.setdefault(words, bar)
                text = f"{value:.3g}" if value < 100 else f"{value:.0f}"
                place.text(
                    x, max(1.0, value) * 1.04, text + ("~" if few else ""),
                    ha="center", va="bottom", fontsize=7.5, zorder=4,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
        place.set_xticks(range(len(found)), [f"B = {row['case']['B']}" for row in found])
        place.tick_params(axis="x", labelsize=8, length=0)
        paper = PAPER_ADVANTAGE.get((steps, slices))
        if paper is not None:
            line = place.axhline(paper, color="black", linestyle="--", linewidth=1.1, zorder=1)
            handles.setdefault("the paper, on its GPU", line)
            place.text(
                len(found) - 0.52, paper * 1.05, f"paper {paper:g}", fontsize=8, ha="right",
                va="bottom", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
        cut = f"SRNN({slices[0]}, {len(slices)})" if len(set(slices)) == 1 else str(slices)
        place.set_title(f"T = {steps}, {cut}", fontsize=9.5, loc="left")
        place.set_xlim(-0.52, len(found) - 0.48)
        _bare(place)
    places[0].set_yscale("log")
    _plain_log_ticks(places[0], min(0.8, *values), max(values) * 1.15)
    for place in places:
        place.axhline(1, color=_GREY, linewidth=0.8)
        place.grid(axis="y", color="#E4E4E4", linewidth=0.6)
        place.set_axisbelow(True)
    places[0].set_ylabel("times as fast, forward + backward", fontsize=9)
    _head(figure, title or "How many times faster a sliced GRU trains than the plain one", handles)
    return figure


def advantages(row: dict[str, Any]) -> list[tuple[str, str, bool, float]]:
    """Of a sliced row: the words and the colour of each advantage, whether the rounds of its times
    are few, and how many times as fast it is."""
    times = row["times"]
    return [
        (words, colour, times[slow]["few"] or times[fast]["few"],
         times[slow]["ms"] / times[fast]["ms"])
        for slow, fast, words, colour in ADVANTAGES
        if slow in times and fast in times
    ]  # fmt: skip


# ---- what all have ---------------------------------------------------------------------------


def _figure(figures: Any, width: float, height: float) -> Any:
    return figures.Figure(figsize=(width, height), layout="constrained", dpi=_DPI)


def _bare(place: Any) -> None:
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
    place.tick_params(labelsize=8)


def _head(figure: Any, title: str, handles: dict[str, Any]) -> None:
    figure.suptitle(title, fontsize=11.5, fontweight="bold", x=0.01, ha="left")
    order = {key: i for i, key in enumerate(BY_KEY)}
    handles = dict(sorted(handles.items(), key=lambda item: order.get(item[0], -1)))
    names = [BY_KEY[key].name if key in BY_KEY else key for key in handles]
    # Its height is reserved, and its place set, by _footer.
    figure.legend(
        list(handles.values()), names, loc="lower left", bbox_to_anchor=(0.0, 0.0), frameon=False,
        fontsize=8.5, ncols=_columns(figure, names), borderaxespad=0.4,
    )  # fmt: skip


def _columns(figure: Any, names: Sequence[str]) -> int:
    """How many of a legend's names fit beside each other."""
    inches = 0.75 + 0.07 * max(map(len, names))
    return min(len(names), max(1, int(figure.get_size_inches()[0] / inches)))


def _footer(figure: Any, result: dict[str, Any], rows: Sequence[dict[str, Any]], few: bool) -> None:
    """Machine, versions and date below the picture: a number without them says nothing."""
    machine = result["machine"]
    used = {key.partition("-")[0] for row in rows for key in row["times"]} | {"penstock"}
    used |= {"torch"} if used & {"conv2", "conv3", "products", "dilated"} else set()
    versions = ", ".join(
        f"{name} {version}"
        for name, version in machine["versions"].items()
        if name.partition("-")[0] in used
    )
    threads = sorted({row["threads"] for row in rows})
    counts = " and ".join(threads_in_words(n) for n in threads)
    words = f"{in_words(machine)}, {counts}; {versions}; "
    words += f"{str(machine['date'])[:10]}."
    if few and any(time["few"] for row in rows for time in row["times"].values()):
        words += " ~: few rounds."
    busy = sum((row["processors_of_others"] or 0) > BUSY for row in rows)
    if busy:
        words += f" In {busy} of {len(rows)} measurements others kept part of the machine busy."
    # Room for it and the legend at the bottom, in inches.
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(words, int((width - 0.2) * _LETTERS_AN_INCH))
    room = (0.13 * len(lines) + 0.08) / height
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    high = math.ceil(len(names) / _columns(figure, names))
    bottom = room + (0.19 * high + 0.12) / height
    figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom - 0.04 / height))
    legend.set_bbox_to_anchor((0.0, room), transform=figure.transFigure)
    figure.text(0.01, 0.06 / height, "\n".join(lines), fontsize=7, color=_GREY, va="bottom")
