"""The benchmark's cases as text, and the formulas of their work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import penstock
import pytest
from penstock.bench import formulas
from penstock.bench.cases import (
    Case,
    load_suite,
    parse_cases,
    parse_suite,
    suite_names,
    swept,
)
from penstock.bench.peers import PEER_KEYS, check_keys
from penstock.bench.problem import Problem
from penstock.training.errors import UserError


def test_a_line_is_read() -> None:
    (case,) = parse_cases("gru T=512 B=100 D=200 H=50 slices=8x8 dtype=bfloat16 pass=train")
    assert case == Case(
        "gru", 512, 100, 200, 50, slices=(8, 8), dtype="bfloat16", mode="train"
    )  # fmt: skip
    assert case.training
    assert case.network == "sliced GRU (8 x 8)"
    assert case.output_shape == (100, 50)


def test_lists_make_every_combination_the_last_fastest() -> None:
    cases = parse_cases("sru,lstm T=4 B=2 D=H H=8,16 direction=forward,bidirectional")
    assert [(c.op, c.H, c.direction) for c in cases] == [
        (op, h, d)
        for op in ("sru", "lstm")
        for h in (8, 16)
        for d in ("forward", "bidirectional")
    ]  # fmt: skip
    assert [c.D for c in cases[:4]] == [8, 16, 16, 32]  # as wide as the output


def test_a_label_is_a_line_that_gives_the_case_back() -> None:
    lines = (
        "rnn T=7 B=1 D=3 H=5",
        "gru T=64 B=2 D=3 H=4 slices=4x2 direction=bidirectional dtype=float64 pass=train",
        "lstm T=7 B=1 D=3 H=5 layers=3 cache=cold",
    )
    for line in lines:
        (case,) = parse_cases(line)
        assert parse_cases(case.label) == [case]
        assert Case.from_json(case.as_json()) == case


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gur T=1 B=1 D=1 H=1", r"operation: expected sru, gru.*'gur'"),
        ("gru T=1 B=1 D=1", "field H: missing"),
        ("gru T=0 B=1 D=1 H=1", r"field T: expected a positive integer \(actual: '0'\)"),
        ("gru T=1 B=1,x D=1 H=1", "field B: .*'x'"),
        ("gru T=1 B=1 D=W H=1", "field D: expected a positive integer, or H"),
        ("gru T=1 B=1 D=1 H=1 E=2", "expected name=value.*'E=2'"),
        ("gru T=1 B=1 D=1 H=1 T", "expected name=value.*'T'"),
        ("gru T=1 T=2 B=1 D=1 H=1", "field T: given twice"),
        ("gru T=1 B=1 D=1 H=1 slices=8,8x", "field slices: .*8x8x8"),
        ("gru T=12 B=1 D=1 H=1 slices=8", "field T: expected a multiple of 8.*12"),
        ("gru T=8 B=1 D=1 H=1 slices=8 layers=2", "field layers: expected 1 with slices"),
        ("gru T=1 B=1 D=1 H=1 direction=both", "field direction: .*bidirectional.*'both'"),
        ("gru T=1 B=1 D=1 H=1 dtype=int8", "field dtype: .*'int8'"),
        ("gru T=1 B=1 D=1 H=1 pass=back", "field pass: expected forward or train"),
        ("gru T=1 B=1 D=1 H=1 memory=1", "field memory: expected yes or no"),
    ],
)
def test_mistakes_are_named_with_their_place(line: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^s.txt, line 3: {message}"):
        parse_suite(f"# about\n\n{line}\n", "s.txt")


def test_a_suite_has_a_description_settings_and_defaults() -> None:
    text = """\
# What it is,
# in two lines.
suite device=cuda budget=0.5 plot=advantage threads=1,all  # about all
default D=4 H=4 pass=forward,train
default H=6
gru T=8 B=1   # not part of the description
gru T=8 B=1
sru T=8 B=1 pass=train
"""
    suite = parse_suite(text, "mine")
    assert suite.description == "What it is, in two lines."
    assert (suite.device, suite.budget, suite.plot) == ("cuda", 0.5, "advantage")
    assert suite.threads == (1, 0)
    assert [(c.op, c.H, c.mode) for c in suite.cases] == [
        ("gru", 6, "forward"), ("gru", 6, "train"), ("sru", 6, "train"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one case"),
        ("default T=x\n", "line 1: field T"),
        ("suite device=tpu\n", "line 1: field device: expected cpu or cuda .*'tpu'"),
        ("suite budget=-1\n", "field budget: expected a positive number of seconds"),
        ("suite threads=some\n", "field threads: expected positive integers, or all .*'some'"),
        ("suite isa=sse\n", "field isa: expected base or avx2 or avx512 .*'sse'"),
        ("suite budget=1,2\n", "field budget: expected one value"),
        ("suite plot=time\nsuite plot=time\n", "line 2: suite: given twice"),
    ],
)
def test_mistakes_about_a_whole_suite(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_suite(text, "s.txt")


def test_the_suites_that_come_along_are_sound() -> None:
    names = suite_names()
    assert {"cpu", "gpu", "quick", "srufig", "srnn-table3"} <= set(names)
    for name in names:
        suite = load_suite(name)
        assert suite.description
        for case in suite.cases:
            check_keys(case.peers or (), name)
            assert parse_cases(case.label)  # every field is in the label


def test_the_published_suites_exist() -> None:
    script = Path(__file__).resolve().parents[2] / "bench/publish.sh"
    (line,) = [text for text in script.read_text().splitlines() if text.startswith("parts=")]
    names = line.split(":-")[1].rstrip("}").split()
    assert len(names) > 5
    assert set(names) - {"sru_scan"} <= set(suite_names())


def test_a_suite_is_found_by_path_and_a_missing_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("gru T=1 B=1 D=1 H=1\n")
    assert load_suite(str(path)).name == str(path)
    with pytest.raises(UserError, match=r"--suite: expected cpu, .*'nothing'"):
        load_suite("nothing")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        load_suite(str(path))


def test_a_sweep_sets_a_field_and_lets_inputs_follow() -> None:
    cases = parse_cases("gru T=4 B=2 D=H H=8") + parse_cases("gru T=4 B=2 D=3 H=8")
    found = swept(cases, "H", ["8", "16"])
    assert [(c.D, c.H) for c in found] == [(8, 8), (16, 16), (3, 8), (3, 16)]
    assert [c.slices for c in swept(cases[:1], "slices", ["none", "2", "2x2"])] == [
        (),
        (2,),
        (2, 2),
    ]
    with pytest.raises(UserError, match="--sweep: expected a field of T, B"):
        swept(cases, "G", ["1"])
    with pytest.raises(UserError, match="--sweep T: field T: expected a multiple of 2"):
        swept(swept(cases, "slices", ["2"]), "T", ["3"])


def test_unknown_peers_are_named() -> None:
    assert check_keys(("torch", "numpy"), "x") == ("torch", "numpy")
    with pytest.raises(UserError, match=r"--peers: expected peers of .*'pytorch'"):
        check_keys(("pytorch",), "--peers")
    assert len(set(PEER_KEYS)) == len(PEER_KEYS)


@pytest.mark.parametrize(
    "line",
    [
        "gru T=3 B=2 D=5 H=4",
        "gru T=3 B=2 D=5 H=4 layers=2 direction=bidirectional",
        "lstm T=3 B=2 D=5 H=4",
        "rnn T=3 B=2 D=5 H=4 layers=2",
        "sru T=3 B=2 D=4 H=4 layers=2",
        "sru T=3 B=2 D=5 H=4 layers=2 direction=bidirectional",
        "gru T=8 B=2 D=5 H=4 slices=2x2",
        "sru T=8 B=2 D=5 H=4 slices=2x2",
    ],
)
def test_formulas_count_what_the_layers_have(line: str) -> None:
    (case,) = parse_cases(line)
    problem = Problem(case)
    arrays = problem.layer.parameters()
    assert formulas.parameters(case) == sum(a.size for a in arrays.values())
    # Each row of an input weight is used once for each step and sequence it reads, and so on.
    products = 0
    for name, array in arrays.items():
        _, level, kind = name.split(".")
        if kind in ("weight", "weight_ih", "weight_hh"):
            steps, rows, _ = case.parts()[int(level)]
            products += 2 * steps * rows * array.size
    assert formulas.operations(case) == products
    assert formulas.operations(Case.from_json({**case.as_json(), "mode": "train"})) == 3 * products


def test_bytes_of_one_layer() -> None:
    (case,) = parse_cases("gru T=3 B=2 D=5 H=4 dtype=float16")
    x, y, parameters = 3 * 2 * 5, 3 * 2 * 4, 3 * 4 * (5 + 4 + 2)
    assert formulas.least_bytes(case) == 2 * (x + y + parameters)
    training = Case.from_json({**case.as_json(), "mode": "train", "dtype": "float64"})
    assert formulas.least_bytes(training) == 8 * (3 * x + 2 * y + 3 * parameters)


def test_parts_of_a_sliced_network() -> None:
    (case,) = parse_cases("gru T=512 B=3 D=5 H=4 slices=8x4 direction=bidirectional")
    assert case.parts() == [(16, 96, 5), (4, 24, 8), (8, 3, 8)]


def test_problems_are_the_same_every_time_and_for_every_type() -> None:
    (case,) = parse_cases("gru T=3 B=2 D=5 H=4 pass=train")
    first, again = Problem(case), Problem(case)
    np.testing.assert_array_equal(first.x, again.x)
    for name, array in first.parameters.items():
        np.testing.assert_array_equal(array, again.parameters[name])
    part = first.in_float64(1)
    assert part.x.shape == (3, 1, 5)
    assert part.x.dtype == part.dy.dtype == np.float64
    np.testing.assert_array_equal(part.x, first.x[:, :1].astype(np.float64))
    assert isinstance(first.layer, penstock.GRU)
