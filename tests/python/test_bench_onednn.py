"""oneDNN as a contender: the same results as ours, and words where it is not there."""

from __future__ import annotations

import ctypes.util
from collections.abc import Iterator

import numpy as np
import pytest
from penstock.bench.cases import Case
from penstock.bench.checks import check_peer, right_results
from penstock.bench.ours import OURS
from penstock.bench.peers import onednn
from penstock.bench.problem import Problem


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(onednn, "_PACKAGES", ())
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    onednn._library.cache_clear()
    yield
    onednn._library.cache_clear()


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["rnn", "gru", "lstm"])
def test_same_results(op: str, direction: str, mode: str) -> None:
    found, why = onednn.OneDnn.available("cpu")
    if not found:
        pytest.skip(why)
    problem = Problem(Case(op, T=7, B=3, D=5, H=6, direction=direction, mode=mode))
    # Biases of zeros would say nothing of which gate they belong to.
    for name, array in problem.parameters.items():
        if "bias" in name:
            array[...] = np.random.default_rng(0).standard_normal(array.shape)
    problem.layer.load_state_dict(problem.parameters)
    ours, peer = OURS[0](), onednn.OneDnn()
    ours.prepare(problem, "cpu")
    peer.prepare(problem, "cpu")
    peer.run()  # a second call must not add to what the first one left
    values = peer.values()
    errors = check_peer(problem, values, ours.values(), right_results(problem))
    assert set(errors) == set(ours.values())


def test_absence_is_told_in_words(no_library: None) -> None:
    found, why = onednn.OneDnn.available("cpu")
    assert not found
    assert why == "oneDNN's library: onednn-cpu-gomp is not installed"
    assert onednn.OneDnn.available("cuda") == (False, "not on a GPU")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "sru"}, "oneDNN has no SRU"),
        ({"slices": (2, 3)}, "it does not slice"),
        ({"layers": 2}, "measured for one layer"),
        ({"dtype": "float16"}, "measured in float32"),
    ],
)
def test_what_it_is_not_measured_for(change: dict[str, object], words: str) -> None:
    case = Case(**{"op": "gru", "T": 6, "B": 2, "D": 3, "H": 4, **change})  # type: ignore[arg-type]
    assert onednn.OneDnn.applies(case) == words
