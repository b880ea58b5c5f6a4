"""Draw how a sliced network reads a sequence: slices-light.svg and slices-dark.svg.

python docs/slicing/draw.py
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

STEPS = 12
SLICES = (3, 2)


class Theme(NamedTuple):
    text: str
    line: str
    levels: tuple[str, ...]


# Backgrounds are transparent: the page shows through.
THEMES = {
    "light": Theme("#1f2328", "#57606a", ("#0969da", "#1a7f37", "#bc4c00")),
    "dark": Theme("#f0f6fc", "#9198a1", ("#4493f8", "#3fb950", "#f0883e")),
}
RADIUS = 0.3
RISE = 1.75  # from one level to the next


def shape(steps: int, slices: tuple[int, ...]) -> list[tuple[int, int]]:
    """(parts, steps of a part) of each level, level 0 first."""
    first = -(-steps // math.prod(slices))
    lengths = [first, *reversed(slices)]
    return [(math.prod(slices[: len(slices) - i]), n) for i, n in enumerate(lengths)]


def count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


def figure(theme: Theme) -> Figure:
    fig = Figure(figsize=(9.2, 4.0))
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set_xlim(-3.1, STEPS + 0.7)
    axes.set_ylim(-0.45, 6.42)
    axes.set_aspect("equal")
    axes.axis("off")

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=9, linewidth=1.1, color=colour,
                shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip

    def label(x: float, y: float, text: str, **options: str | float) -> None:
        axes.text(
            x, y, text, **{"color": theme.text, "ha": "center", "va": "center", "fontsize": 11}
            | options,
        )  # fmt: skip

    columns = list(range(1, STEPS + 1))
    for x in columns:
        label(x, 0, f"$x_{{{x}}}$", fontsize=12)
    label(-2.9, 0, f"input: {STEPS} steps", ha="left")

    below = 0.3  # where arrows from beneath begin
    for level, (parts, steps) in enumerate(shape(STEPS, SLICES)):
        colour = theme.levels[level]
        y = 1.35 + level * RISE
        half = RADIUS + 0.13
        for part in range(parts):
            own = columns[part * steps : (part + 1) * steps]
            axes.add_patch(
                FancyBboxPatch(
                    (own[0] - half, y - half), own[-1] - own[0] + 2 * half, 2 * half,
                    boxstyle="round,pad=0,rounding_size=0.2", linewidth=1, linestyle=(0, (3, 2)),
                    edgecolor=colour, facecolor=(colour, 0.10),
                )
            )  # fmt: skip
            for x in own:
                arrow((x, below), (x, y - RADIUS), theme.line)
                last = x == own[-1]
                axes.add_patch(
                    Circle(
                        (x, y), RADIUS, linewidth=1.4, edgecolor=colour,
                        facecolor=colour if last else (colour, 0.15),
                    )
                )  # fmt: skip
            for left, right in itertools.pairwise(own):
                arrow((left + RADIUS, y), (right - RADIUS, y), colour)
        label(-2.9, y + 0.2, f"level {level}", ha="left", color=colour, weight="bold")
        label(-2.9, y - 0.24, f"{count(parts, 'part')} of {count(steps, 'step')}", ha="left")
        columns = columns[steps - 1 :: steps]
        below = y + RADIUS
    top = below + 0.75
    arrow((columns[0], below), (columns[0], top), theme.line)
    label(columns[0], top + 0.25, "$y$", fontsize=13)
    return fig


def draw(folder: Path) -> list[Path]:
    """Write one file for each theme."""
    # Letters as outlines, so that the picture is the same whatever fonts the reader has; and the
    # same bytes each time.
    settings = {"svg.fonttype": "path", "svg.hashsalt": "slices", "mathtext.fontset": "dejavusans"}
    paths = []
    with mpl.rc_context(settings):
        for name, theme in THEMES.items():
            path = folder / f"slices-{name}.svg"
            text = io.StringIO()
            figure(theme).savefig(text, format="svg", transparent=True, metadata={"Date": None})
            lines = (line.rstrip() for line in text.getvalue().splitlines())
            path.write_text("\n".join(lines) + "\n")
            paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    for path in draw(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
