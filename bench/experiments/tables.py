"""Tables in Markdown from what the experiments wrote. Needs the standard library alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Results = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
#: So many seeds a figure has at least; with fewer there is none.
SEEDS = 3

#: What the programs call a network, and how a table does.
NAMES = {
    "sru-2": "SRU, 2 layers",
    "sru-4": "SRU, 4 layers",
    "sru-8": "SRU, 8 layers",
    "qrnn-2": "QRNN k = 1, as SRU, 2 layers",
    "gru-2": "GRU, 2 layers",
    "lstm-2": "torch.nn.LSTM, 2 layers",
    "cnn": "CNN (Kim), torch.nn",
    "gru": "GRU",
    "gru-max": "GRU, maxima over time",
    "srnn-16-1": "SRNN (16,1)",
    "srnn-8-2": "SRNN (8,2)",
    "srnn-4-3": "SRNN (4,3)",
    "srnn-2-8": "SRNN (2,8)",
    "dcnn": "dilated CNN, torch.nn",
}
SETS = {"cr": "CR", "subj": "SUBJ", "mr": "MR", "trec": "TREC", "mpqa": "MPQA", "sst": "SST"}

#: The SRU paper's Table 1, in %: CR, SUBJ, MR, TREC, MPQA, SST.
SRU_PAPER = {
    "CNN": ("83.1 ± 1.6", "92.7 ± 0.9", "78.9 ± 1.3", "93.2 ± 0.8", "89.2 ± 0.8", "85.1 ± 0.6"),
    "LSTM": ("82.7 ± 1.9", "92.6 ± 0.8", "79.8 ± 1.3", "93.4 ± 0.9", "89.4 ± 0.7", "88.1 ± 0.8"),
    "QRNN": ("83.5 ± 1.9", "93.4 ± 0.6", "82.0 ± 1.0", "92.5 ± 0.5", "90.2 ± 0.7", "88.2 ± 0.4"),
    "SRU, 2": ("84.9 ± 1.6", "93.5 ± 0.6", "82.3 ± 1.2", "94.0 ± 0.5", "90.1 ± 0.7", "89.2 ± 0.3"),
    "SRU, 4": ("85.9 ± 1.5", "93.8 ± 0.6", "82.9 ± 1.0", "94.8 ± 0.5", "90.1 ± 0.6", "89.6 ± 0.5"),
}


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def complete(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the records of a network on a data set, those of folds that all its seeds have."""
    seeds = {record["seed"] for record in records}
    folds: dict[int, set[int]] = {}
    for record in records:
        folds.setdefault(record["fold"], set()).add(record["seed"])
    if len(seeds) < SEEDS:
        return []
    return [record for record in records if folds[record["fold"]] == seeds]


def _of(results: Results, data: str, model: str) -> list[dict[str, Any]]:
    return complete([r for r in results["records"] if (r["data"], r["model"]) == (data, model)])


def _models(results: Results) -> list[str]:
    found = {record["model"] for record in results["records"]}
    return [name for name in NAMES if name in found]


def accuracy(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation in %: over the records, and in brackets over the seeds' means."""
    if not records:
        return "–"
    values = [100 * record["accuracy"] for record in records]
    if len({record["fold"] for record in records}) == 1:
        return f"{mean(values):.1f} ± {stdev(values):.1f}"
    by_seed: dict[int, list[float]] = {}
    for record in records:
        by_seed.setdefault(record["seed"], []).append(100 * record["accuracy"])
    over_seeds = stdev([mean(part) for part in by_seed.values()])
    return f"{mean(values):.1f} ± {stdev(values):.1f} ({over_seeds:.1f})"


def _runs(results: Results, model: str) -> str:
    """How many folds and seeds a network's figures are from, where there are folds."""
    settings = results["settings"]
    counts = set()
    for data, files in settings["data"].items():
        records = _of(results, data, model)
        if records and len(files) == 1:  # with a test file there are no folds
            counts.add((len({r["fold"] for r in records}), len({r["seed"] for r in records})))
    words = [
        f"{folds} of {settings['folds']} × {seeds}" for folds, seeds in sorted(counts, reverse=True)
    ]
    return ", ".join(words) or "–"


def sentences(results: Results) -> str:
    """Accuracy of each network on each set of sentences, and from how many tests."""
    sets = [name for name in SETS if any(r["data"] == name for r in results["records"])]
    rows = []
    for model in _models(results):
        cells = [accuracy(_of(results, data, model)) for data in sets]
        if any(cell != "–" for cell in cells):
            rows.append([NAMES[model], *cells, _runs(results, model)])
    head = ["network", *(SETS[data] for data in sets), "folds × seeds"]
    return _markdown(head, rows) + _origin(results)


def sentences_cost(results: Results) -> str:
    """Weights and processor time of the networks of :func:`sentences`."""
    return _cost(results)


def published_sentences() -> str:
    """The paper's figures."""
    rows = [[name, *cells] for name, cells in SRU_PAPER.items()]
    return _markdown(["the paper's", *SETS.values()], rows)


def reviews(results: Results) -> str:
    """Accuracy of each network on the reviews."""
    rows = []
    for model in _models(results):
        records = _of(results, "reviews", model)
        if records:
            each = ", ".join(
                f"{100 * r['accuracy']:.1f}" for r in sorted(records, key=lambda r: r["seed"])
            )
            weights = f"{records[0]['parameters']:,}"
            rows.append([NAMES[model], weights, each, accuracy(records)])
    seeds = len({record["seed"] for record in results["records"]})
    head = ["network", "weights", f"seeds 0 to {seeds - 1}", "mean ± deviation"]
    return _markdown(head, rows) + _origin(results)


def _cost(results: Results) -> str:
    timing = results["timing"]
    models = [name for name in NAMES if name in next(iter(timing["models"].values()))]
    sets = list(timing["models"])
    rows = []
    for model in models:
        times = [timing["models"][data][model] for data in sets]
        rows.append(
            [NAMES[model], *(f"{t['epoch_seconds']:.2f}" for t in times)]
            if len(sets) > 1
            else [
                NAMES[model],
                f"{times[0]['step_ms']:.0f}",
                " to ".join(f"{value:.0f}" for value in times[0]["step_ms_quartiles"]),
                f"{times[0]['epoch_seconds']:.1f}",
            ]
        )
    head = ["network", *(SETS.get(data, data) for data in sets)]
    if len(sets) == 1:
        head = ["network", "step, ms", "quartiles", "epoch, s"]
    batches = times[0]["batches"]
    machine = timing["machine"]
    end = f"{_count(timing['threads'], 'thread')}, {_count(batches, 'batch', 'batches')} of each. "
    end += _machine(machine)
    return f"{_markdown(head, rows)}\n\n{end}"


#: Data, network and epochs of the runs that one table has, by name in the results.
_LONG = {
    "imdb, sliced-gru": ("IMDB", "sliced GRU", "2"),
    "imdb, gru": ("IMDB", "GRU", "2"),
    "movies, sliced-gru": ("movie_reviews", "sliced GRU", "6"),
    "movies, gru": ("movie_reviews", "GRU", "6"),
    "movies, gru, longer": ("movie_reviews", "GRU", "15"),
    "movies, sliced-gru, wide embeddings": ("movie_reviews", "sliced GRU, N(0, 1)", "6"),
}
_DIGITS = {
    "digits": "SRU, 4 layers of 2 · 64",
    "digits, memory": "SRU, 2 layers of 2 · 96, 40 epochs",
    "digits, forgetting": "the same, forget biases of 0",
    "digits, gru": "GRU, 4 layers of 2 · 64",
    "digits, sliced-gru": "sliced GRU (8), 2 · 64",
}


def _by_seed(results: Results, model: str) -> list[str]:
    """Accuracy in % of each seed, then mean and deviation if there are enough."""
    records = sorted(
        (r for r in results["records"] if r["model"] == model), key=lambda r: int(r["seed"])
    )
    values = ", ".join(f"{100 * r['accuracy']:.1f}" for r in records)
    return [values or "–", accuracy(complete(records))]


def long_reviews(results: Results) -> str:
    """Accuracy of `penstock train` on reviews, sliced and plain."""
    rows = [[*words, *_by_seed(results, name)] for name, words in _LONG.items()]
    head = ["data", "network", "epochs", "seeds 0, 1, 2", "mean ± deviation"]
    return _markdown(head, rows) + _origin(results)


def digits(results: Results) -> str:
    """Accuracy of `penstock train` on digits."""
    rows = []
    for name, words in _DIGITS.items():
        rows.append([words, *_by_seed(results, name)])
    head = ["network", "seeds from 0", "mean ± deviation"]
    return _markdown(head, rows) + _origin(results)


def _count(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['processor']} ({machine['isa']}); {versions}."


def _origin(results: Results) -> str:
    return "\n\n" + " ".join(_machine(machine) for machine in results["machines"])


def _from(name: str, make: Callable[[Results], str]) -> Callable[[], str]:
    path = ROOT / "bench/results" / name
    return lambda: make(json.loads(path.read_text(encoding="utf-8")))


#: What the programs print.
SENTENCES = {"sentences": sentences, "sentences, time": sentences_cost}
REVIEWS = {"reviews": reviews, "reviews, time": _cost}

#: What stands in the documentation, for bench/tables.py.
TABLES: dict[str, Callable[[], str]] = {
    "sentences": _from("sentences_cpu.json", sentences),
    "sentences, published": published_sentences,
    "sentences, time": _from("sentences_cpu.json", sentences_cost),
    "reviews": _from("reviews_cpu.json", reviews),
    "reviews, time": _from("reviews_cpu.json", _cost),
    "digits": _from("training_cpu.json", digits),
    "long reviews": _from("training_cpu.json", long_reviews),
}
