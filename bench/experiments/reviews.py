"""The SRNN paper's Table 2 (arXiv 1807.02291): accuracy and time on reviews of 512 words.

    python bench/experiments/reviews.py imdb.train.tsv.gz --embeddings vectors.bin --out out.json

The table has the columns stars and text, or label and text. Killed and started again, it goes on
where it was.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables
from corpora import Corpus, Words, load_corpus, words_of
from learning import Plan, evaluate, learn, time_steps
from networks import build
from penstock.training import ModelOptions
from penstock.training.batching import TokenExamples
from penstock.training.errors import UserError
from penstock.training.tables import file_digest
from program import Experiment, embeddings_of, main, parser
from runner import Job

COMMON = {
    "steps": 512,
    "hidden": 50,
    "batch_size": 100,
    "clip": 5.0,
    "embedding_scale": 1.0,
    "epochs": 2,
}
#: Size of learnt embeddings, and how rare a word may be.
RANDOM_SIZE = 200
MIN_COUNT = 5

#: The best of GRID on development rows, by --tune --models srnn-8-2; the others have the same.
CHOSEN = {"dropout": 0.2, "lr": 0.004}
MODELS: dict[str, dict[str, Any]] = {
    "gru": {"encoder": "gru", "layers": 1, "pooling": "last", **CHOSEN, "tier": 0},
    "srnn-16-1": {"encoder": "sliced-gru", "slices": [16], **CHOSEN, "tier": 0},
    "srnn-8-2": {"encoder": "sliced-gru", "slices": [8, 8], **CHOSEN, "tier": 0},
    "srnn-4-3": {"encoder": "sliced-gru", "slices": [4, 4, 4], **CHOSEN, "tier": 0},
    "srnn-2-8": {"encoder": "sliced-gru", "slices": [2] * 8, **CHOSEN, "tier": 0},
    "dcnn": {"encoder": "torch-dcnn", "layers": 9, "pooling": "last", **CHOSEN, "tier": 0},
    "gru-max": {"encoder": "gru", "layers": 1, "pooling": "max", **CHOSEN, "tier": 0},
}
GRID = {"dropout": (0.2,), "lr": (0.002, 0.004)}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """All that records depend on but the models."""
    for name in args.models or MODELS:
        parts = math.prod(MODELS[name].get("slices", ()))
        if args.steps % parts:
            raise UserError(f"--steps: expected a multiple of {parts} for {name}, got {args.steps}")
    common = {**COMMON, "epochs": args.epochs or COMMON["epochs"], "steps": args.steps}
    return {
        "program": "reviews",
        **common,
        "embeddings": embeddings_of(args.embeddings, RANDOM_SIZE, MIN_COUNT),
        "data": {"reviews": {args.table_file.name: file_digest(args.table_file)}},
    }


def options_of(
    spec: dict[str, Any], settings: dict[str, Any], words: Words, classes: int, seed: int
) -> ModelOptions:
    """The model that `spec` describes."""
    slices = tuple(spec.get("slices", ()))
    size, features = words.table.shape
    return ModelOptions(
        classes=classes,
        vocabulary_size=size,
        input_size=features,
        encoder=spec["encoder"],
        hidden=settings["hidden"],
        layers=spec.get("layers", 1),
        dropout=spec["dropout"],
        pooling=spec.get("pooling", "last"),
        slices=slices,
        pad="left" if slices else "right",
        bucket=settings["steps"] if slices else 0,
        freeze_embeddings=settings["embeddings"]["kind"] == "file",
        seed=seed,
    )


def _rows(
    words: Words, corpus: Corpus, rows: Any, options: ModelOptions, steps: int
) -> TokenExamples:
    """Reviews as a model reads them: their last `steps` words, for slices with zeros in front."""
    return words.examples(corpus, rows, max_length=steps, pad=options.pad, bucket=options.bucket)


def work(job: Job) -> dict[str, Any]:
    """Train one network with one seed, and return its record."""
    settings, given = job["settings"], job["arguments"]
    spec, seed = settings["models"][job["model"]], job["seed"]
    corpus = load_corpus("reviews", given["table_file"])
    train, dev, test = corpus.split_in_tenths(seed)
    words = words_of(corpus, train, settings, given["embeddings"], seed)
    plan = Plan(settings["epochs"], settings["batch_size"], spec["lr"], settings["clip"])
    options = options_of(spec, settings, words, len(corpus.names), seed)

    def examples(indices: Any) -> TokenExamples:
        return _rows(words, corpus, indices, options, settings["steps"])

    network = build(options, words.table, plan.schedule(len(train)), plan.clip)
    done = learn(network, examples(train), examples(dev), plan, seed)
    record = {key: job[key] for key in ("data", "model", "seed", "fold")}
    if not job.get("tuning"):  # else the test rows are not looked at
        record["accuracy"] = round(evaluate(network, examples(test))[0], 6)
        record["rows"] = len(test)
    return {**record, **done, "parameters": network.size(), "words_found": round(words.found, 4)}


def time_models(
    args: argparse.Namespace, models: list[str], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Times of training steps by model."""
    settings = settings_of(args)
    corpus = load_corpus("reviews", args.table_file)
    train, _, _ = corpus.split_in_tenths(0)
    words = words_of(corpus, train, settings, args.embeddings, 0)
    contenders = {}
    for model in models:
        options = options_of(MODELS[model], settings, words, len(corpus.names), 0)
        network = build(options, words.table, lambda step: 1e-3, settings["clip"])
        contenders[model] = (network, _rows(words, corpus, train, options, settings["steps"]))
    times = time_steps(contenders, settings["batch_size"], args.batches, progress)
    return {"reviews": times}


EXPERIMENT = Experiment(
    models=MODELS,
    data=("reviews",),
    grid=GRID,
    tuning_data=("reviews",),
    tuning_folds=1,
    settings=settings_of,
    folds=lambda args, name: 1,
    work=work,
    time=time_models,
    tables=tables.REVIEWS,
)


if __name__ == "__main__":
    arguments = parser(__doc__.partition("\n")[0], EXPERIMENT)
    arguments.add_argument("table_file", metavar="TABLE", type=Path, help="the reviews")
    arguments.add_argument("--steps", type=int, default=COMMON["steps"], help="words of a review")
    main(EXPERIMENT, arguments)
