"""The SRU paper's Table 1 (arXiv 1709.02755): six sets of sentences, ten folds, several networks.

    python bench/experiments/sentences.py FOLDER --embeddings vectors.bin --out results.json

FOLDER holds cr.tsv, subj.tsv, mr.tsv, trec.train.tsv, mpqa.tsv, sst2.train.tsv and sst2.dev.tsv,
each with the columns label and text. Killed and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables
from corpora import (
    SENTENCES,
    Words,
    load_corpus,
    words_of,
)
from learning import Plan, evaluate, learn, time_steps
from networks import build
from penstock.training import ModelOptions
from penstock.training.tables import file_digest
from program import Experiment, embeddings_of, main, parser
from runner import Job

FOLDS = 10
COMMON = {
    "hidden": 128,
    "batch_size": 32,
    "clip": 5.0,
    "embedding_scale": 1.0,
    "epochs": 4,
}
#: Size of learnt embeddings, and how rare a word may be.
RANDOM_SIZE = 200
MIN_COUNT = 2

#: The best of GRID on development rows, by --tune: for the SRU of 2 layers, the LSTM and the CNN
#: alike. The others were not tried.
TRAINING = {"dropout": 0.1, "lr": 0.002}
CHOSEN = {**TRAINING, "pooling": "max"}
MODELS: dict[str, dict[str, Any]] = {
    "sru-2": {"encoder": "sru", "layers": 2, **CHOSEN, "tier": 0},
    "lstm-2": {"encoder": "torch-lstm", "layers": 2, **CHOSEN, "tier": 0},
    "cnn": {"encoder": "torch-cnn", "layers": 1, **TRAINING, "tier": 0},
    "sru-4": {"encoder": "sru", "layers": 4, **CHOSEN, "tier": 1},
    "qrnn-2": {"encoder": "qrnn", "layers": 2, **CHOSEN, "tier": 1},
    "gru-2": {"encoder": "gru", "layers": 2, **CHOSEN, "tier": 2},
    "sru-8": {"encoder": "sru", "layers": 8, **CHOSEN, "tier": 3},
}
GRID = {"dropout": (0.1, 0.3), "lr": (0.002,), "pooling": ("last", "max")}


def paths_of(folder: Path, name: str) -> list[Path]:
    """The files of a data set."""
    return [folder / file for file in SENTENCES[name]]


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """All that records depend on but the models."""
    common = {**COMMON, "epochs": args.epochs or COMMON["epochs"]}
    return {
        "program": "sentences",
        "folds": args.folds,
        **common,
        "embeddings": embeddings_of(args.embeddings, RANDOM_SIZE, MIN_COUNT),
        "data": {
            name: {path.name: file_digest(path) for path in paths_of(args.folder, name)}
            for name in args.data or SENTENCES
        },
    }


def options_of(
    spec: dict[str, Any], settings: dict[str, Any], words: Words, classes: int, seed: int
) -> ModelOptions:
    """The model that `spec` describes."""
    size, features = words.table.shape
    return ModelOptions(
        classes=classes,
        vocabulary_size=size,
        input_size=features,
        encoder=spec["encoder"],
        hidden=settings["hidden"],
        layers=spec["layers"],
        dropout=spec["dropout"],
        pooling=spec.get("pooling", "max"),
        freeze_embeddings=settings["embeddings"]["kind"] == "file",
        seed=seed,
    )


def work(job: Job) -> dict[str, Any]:
    """Train one network on one split, and return its record."""
    settings, given = job["settings"], job["arguments"]
    spec, seed = settings["models"][job["model"]], job["seed"]
    corpus = load_corpus(job["data"], *paths_of(given["folder"], job["data"]))
    train, dev, test = corpus.split(seed, job["fold"], settings["folds"])
    words = words_of(corpus, train, settings, given["embeddings"], seed)
    plan = Plan(settings["epochs"], settings["batch_size"], spec["lr"], settings["clip"])
    options = options_of(spec, settings, words, len(corpus.names), seed)
    network = build(options, words.table, plan.schedule(len(train)), plan.clip)
    done = learn(network, words.examples(corpus, train), words.examples(corpus, dev), plan, seed)
    record = {key: job[key] for key in ("data", "model", "seed", "fold")}
    if not job.get("tuning"):  # else the test rows are not looked at
        record["accuracy"] = round(evaluate(network, words.examples(corpus, test))[0], 6)
        record["rows"] = len(test)
    return {**record, **done, "parameters": network.size(), "words_found": round(words.found, 4)}


def folds_of(args: argparse.Namespace, name: str) -> int:
    """How many parts of a data set are tested on."""
    return 1 if len(SENTENCES[name]) > 1 else args.folds


def time_models(
    args: argparse.Namespace, models: list[str], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Times of training steps, by data set and model."""
    settings = settings_of(args)
    result: dict[str, Any] = {}
    for name in args.data or SENTENCES:
        corpus = load_corpus(name, *paths_of(args.folder, name))
        train, _, _ = corpus.split(0, 0, settings["folds"])
        words = words_of(corpus, train, settings, args.embeddings, 0)
        rows = words.examples(corpus, train)
        contenders = {}
        for model in models:
            spec = MODELS[model]
            options = options_of(spec, settings, words, len(corpus.names), 0)
            network = build(options, words.table, lambda step: 1e-3, settings["clip"])
            contenders[model] = (network, rows)
        result[name] = time_steps(
            contenders,
            settings["batch_size"],
            args.batches,
            lambda what, name=name: progress(f"{name}: {what}"),  # type: ignore[misc]
        )
    return result


EXPERIMENT = Experiment(
    models=MODELS,
    data=tuple(SENTENCES),
    grid=GRID,
    tuning_data=("cr", "trec"),
    tuning_folds=1,
    settings=settings_of,
    folds=folds_of,
    work=work,
    time=time_models,
    tables=tables.SENTENCES,
)


if __name__ == "__main__":
    arguments = parser(__doc__.partition("\n")[0], EXPERIMENT)
    arguments.add_argument("folder", type=Path, help="where the sets are")
    arguments.add_argument("--folds", type=int, default=FOLDS)
    main(EXPERIMENT, arguments)
