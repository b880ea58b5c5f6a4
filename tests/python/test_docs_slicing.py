"""docs/slicing.md: its code runs, its figures are true, its picture can be read."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import numpy as np
import penstock
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/slicing.md"
if not PAGE.exists():
    pytest.skip("the documentation is not here", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(name: str) -> list[list[str]]:
    """The cells of a marked table, without its two rows of heading."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end(?: of table)? -->", TEXT, re.S)
    assert found is not None
    rows = [line for line in found[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def sequential_steps(steps: int, slices: tuple[int, ...]) -> int:
    return -(-steps // math.prod(slices)) + sum(slices)


# ---- code and links ----------------------------------------------------------------------------


def test_code_runs_in_the_order_of_the_page() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    assert len(blocks) == 4
    names: dict[str, object] = {"__name__": "slicing"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"slicing.md, block {number}", "exec"), names)


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", TEXT)
    targets = [a or b for a, b in links if not (a or b).startswith("https://")]
    assert len(targets) >= 8
    for target in targets:
        file, _, anchor = target.partition("#")
        path = PAGE.parent / file
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_cpp_names_are_those_of_the_header() -> None:
    section = TEXT.split("## In C++")[1]
    header = (ROOT / "include/penstock/sliced.h").read_text(encoding="utf-8")
    names = [n for n in re.findall(r"`([^`]+)`", section) if "/" not in n]
    assert len(names) >= 14
    for name in names:
        assert re.search(rf"\b{name}\b", header), name


# ---- figures -----------------------------------------------------------------------------------


def test_best_cuts_are_the_best() -> None:
    rows = table("best cuts")
    assert [row[0] for row in rows] == ["512", "4096", "32768"]
    for first, *cells in rows:
        steps = int(first)
        for k, cell in enumerate(cells, start=1):
            found = re.fullmatch(r"n = (\d+): (\d+)", cell)
            assert found is not None
            n, in_a_row = int(found[1]), int(found[2])
            all_counts = [sequential_steps(steps, (i,) * k) for i in range(1, steps + 1)]
            assert in_a_row == min(all_counts) == all_counts[n - 1]
            # Close to T^(1/(k+1)), as the page says.
            assert abs(n - steps ** (1 / (k + 1))) <= 1
    assert "e · ln T is the least" in TEXT and "17 steps for\nT = 512" in TEXT
    assert round(math.e * math.log(512)) == 17


def test_steps_and_rows_of_cuts() -> None:
    rows = table("table: cuts")
    assert len(rows) > 10
    for steps, batch, cut, in_a_row, at_once, *_ in rows:
        slices = tuple(eval(cut, {"__builtins__": {}}))
        assert int(in_a_row) == (sequential_steps(int(steps), slices) if slices else int(steps))
        assert int(at_once) == int(batch) * math.prod(slices)


@pytest.mark.parametrize("slices", [(), (3, 2), (8, 8), (4, 4, 4)])
def test_parts_are_those_that_the_formula_says(slices: tuple[int, ...]) -> None:
    module = load_draw()
    steps = 64
    layer = penstock.SlicedRNN(2, 3, slices, seed=0)
    levels = layer(np.zeros((steps, 1, 2), np.float32)).levels
    shape = module.shape(steps, slices)
    assert [len(level) for level in levels] == [parts for parts, _ in shape]
    assert sum(n for _, n in shape) == sequential_steps(steps, slices)


def test_parameters_and_arithmetic() -> None:
    def size(slices: tuple[int, ...]) -> int:
        layer = penstock.SlicedRNN(200, 50, slices, seed=0)
        return sum(array.size for array in layer.parameters().values())

    plain, above = size(()), size((8,)) - size(())
    assert size((8, 8)) == plain + 2 * above
    spaced = f"{plain:,} parameters and {above:,} more".replace(",", " ")
    assert spaced in " ".join(TEXT.split())

    lengths = [512 // 64, 8, 8]
    steps = [512 // math.prod(lengths[:i]) for i in range(3)]
    assert f"{' + '.join(map(str, steps))} = {sum(steps)}" in TEXT
    assert f"{sum(steps) / 512 - 1:.0%}".replace("%", " %") in TEXT
    states = steps[1] + steps[2]  # of the levels below the last
    assert f"5 · {sum(steps)} + 64 + 8 = {5 * sum(steps) + states} H" in TEXT
    assert f"against {5 * 512} H" in " ".join(TEXT.split())
    assert f"{sum(steps) + states} H with `recompute`" in TEXT


# ---- the theorem -------------------------------------------------------------------------------


def test_theorem_of_the_page() -> None:
    """The page's own function, on sequences that divide, that do not, and of unequal lengths."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "def linear" in b)
    names: dict[str, object] = {"np": np}
    exec(block[: block.index("\n\n\n")], names)
    linear_levels = names["linear_levels"]
    assert callable(linear_levels)
    rng = np.random.default_rng(1)
    w, b = rng.standard_normal((6, 4)), rng.standard_normal(6)
    r = 0.98 * np.linalg.qr(rng.standard_normal((6, 6)))[0]
    for slices, steps in itertools.product([(2,), (4,), (2, 2), (3, 2, 2)], [48, 36, 25, 5]):
        x = rng.standard_normal((steps, 4, 4))
        lengths = np.array([steps, steps - 1, 2, 0])
        levels = linear_levels(w, r, b, steps, slices)
        options = {"slices": slices, "activation": "identity"}
        left = penstock.sliced("rnn", x, levels, lengths=lengths, **options).y
        right = penstock.sliced("rnn", x, levels, lengths=lengths, pad="right", **options).y
        worst = 0.0
        for i, n in enumerate(lengths):
            h = np.zeros(6)
            for row in x[steps - n :, i]:
                h = r @ h + w @ row + b
            assert np.abs(left[i] - h).max() <= 1e-12 * max(1, np.abs(h).max())
            h = np.zeros(6)
            for row in x[:n, i]:
                h = r @ h + w @ row + b
            worst = max(worst, np.abs(right[i] - h).max())
        assert worst > 0.1  # the page: on the right it does not hold


# ---- picture and example -----------------------------------------------------------------------


def load_draw() -> ModuleType:
    pytest.importorskip("matplotlib", minversion="3.8")
    return load("docs/slicing/draw.py")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_picture_has_no_overlaps(theme: str) -> None:
    module = load_draw()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patches import Circle, FancyBboxPatch

    figure = module.figure(module.THEMES[theme])
    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    circles = [p for p in axes.patches if isinstance(p, Circle)]
    boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    shape = module.shape(module.STEPS, module.SLICES)
    assert len(circles) == sum(parts * steps for parts, steps in shape)
    assert len(boxes) == sum(parts for parts, _ in shape)
    texts = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(texts) == module.STEPS + 1 + 2 * len(shape) + 1
    for group in (
        texts + [p.get_window_extent(renderer) for p in boxes],
        texts + [p.get_window_extent(renderer) for p in circles],
    ):
        for a, b in itertools.combinations(group, 2):
            assert not a.overlaps(b), (a, b)
        for box in group:
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize(("theme", "page"), [("light", "#ffffff"), ("dark", "#0d1117")])
def test_picture_can_be_read_on_the_page(theme: str, page: str) -> None:
    colours = load_draw().THEMES[theme]
    for colour in (colours.text, colours.line, *colours.levels):
        low, high = sorted([luminance(colour), luminance(page)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour


def test_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    """As many shapes and the same size; outlines of letters differ with matplotlib's version."""
    paths = load_draw().draw(tmp_path)
    assert len(paths) == 2
    for path in paths:
        new, old = (ET.parse(p).getroot() for p in (path, ROOT / "docs/slicing" / path.name))
        assert new.get("viewBox") == old.get("viewBox")
        for prefix in ("patch_", "text_"):
            count = [sum(e.get("id", "").startswith(prefix) for e in r.iter()) for r in (new, old)]
            assert count[0] == count[1] > 0


@pytest.mark.parametrize("slices", ["4,4", ""])
def test_example_learns(slices: str) -> None:
    command = [sys.executable, str(ROOT / "examples/sliced_gru.py"), "--slices", slices]
    command += ["--steps", "30", "--updates", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", done.stdout)]
    assert len(losses) == 5
    # 0.167 is what a constant costs.
    assert losses[-1] < 0.05, done.stdout
