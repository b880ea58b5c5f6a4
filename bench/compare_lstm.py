"""Text classification with the SRU against the same model built on torch.nn.LSTM.

Both models are an embedding, dropout, two recurrent layers with dropout in between, max pooling
over time, dropout and a linear layer, and share everything else: the rows held out, the
vocabulary, the order of the batches, the initial embeddings and output weights, Adam with its
learning rate and schedule, clipping, and the epoch that is kept (the best on a dev set, which is a
tenth of the training rows). The accuracy reported is that on the held-out tenth, which nothing was
chosen on. The learning rate is the same for both, from `--lr`; several values try each.

    python bench/compare_lstm.py DATA.tsv [DATA.tsv ...] --seeds 3 --out results.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from penstock import set_num_threads
from penstock.training import FitOptions, ModelOptions, SequenceClassifier, fit
from penstock.training.batching import (
    TokenExamples,
    shuffled_batches,
    sorted_batches,
    stratified_split,
)
from penstock.training.checkpoints import write_json_atomically
from penstock.training.loop import SCHEDULES, predict_logits
from penstock.training.runs import machine, versions
from penstock.training.tables import read_table, sorted_labels
from penstock.training.text import Tokenizer, Vocabulary
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True)
class Split:
    """The three parts of a data file, under one vocabulary."""

    train: TokenExamples
    dev: TokenExamples
    test: TokenExamples
    classes: int
    vocabulary_size: int


def load(path: Path, seed: int) -> Split:
    """Hold out a tenth of the rows to test on, and a tenth of the rest to choose the epoch by."""
    table = read_table(path)
    names = sorted_labels(table.labels)
    labels = np.array([names.index(label) for label in table.labels])
    tokenizer = Tokenizer()
    tokens = [tokenizer(text) for text in table.texts]
    rest, test = stratified_split(labels, 0.1, seed)
    train, dev = stratified_split(labels[rest], 0.1, seed + 1)
    train, dev = rest[train], rest[dev]
    vocabulary = Vocabulary.build((tokens[i] for i in train), min_count=2)

    def examples(indices: np.ndarray) -> TokenExamples:
        return TokenExamples([vocabulary.encode(tokens[i]) for i in indices], labels[indices])

    return Split(examples(train), examples(dev), examples(test), len(names), len(vocabulary))


class LstmClassifier(torch.nn.Module):
    """`SequenceClassifier` with torch.nn.LSTM as its encoder, from the same initial weights."""

    def __init__(self, twin: SequenceClassifier, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        options = twin.options
        width = options.directions * options.hidden
        self.embedding = torch.nn.Embedding(
            options.vocabulary_size, options.input_size, padding_idx=0
        )
        self.lstm = torch.nn.LSTM(
            options.input_size,
            options.hidden,
            options.layers,
            bidirectional=options.bidirectional,
            dropout=options.dropout,
        )
        self.dropout = torch.nn.Dropout(options.dropout)
        self.output = torch.nn.Linear(width, options.classes)
        with torch.no_grad():
            state = twin.state_dict()
            self.embedding.weight.copy_(torch.from_numpy(state["embedding.weight"]))
            self.output.weight.copy_(torch.from_numpy(state["output.weight"]))
            self.output.bias.copy_(torch.from_numpy(state["output.bias"]))

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of tokens (T, B), lengths (B,)."""
        x = self.dropout(self.embedding(tokens))
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], padding_value=-math.inf)
        return self.output(self.dropout(y.amax(dim=0)))  # type: ignore[no-any-return]


def lstm_logits(model: LstmClassifier, examples: TokenExamples) -> np.ndarray:
    """Return logits (N, C)."""
    model.eval()
    logits = np.empty((len(examples), model.output.out_features), np.float32)
    with torch.no_grad():
        for indices in sorted_batches(examples.lengths, 128):
            inputs, lengths, _ = examples.batch(indices)
            scores = model(torch.from_numpy(inputs), torch.from_numpy(lengths))
            logits[indices] = scores.numpy()
    return logits


def score(labels: np.ndarray, logits: np.ndarray) -> list[float]:
    """Return (accuracy, -loss), the order in which `penstock.training.fit` ranks epochs."""
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    return [float((logits.argmax(axis=1) == labels).mean()), -float(loss)]


def train_lstm(model: LstmClassifier, data: Split, options: FitOptions) -> dict[str, Any]:
    """Train as `penstock.training.fit` does."""
    steps = options.epochs * math.ceil(len(data.train) / options.batch_size)
    schedule = SCHEDULES[options.schedule](options.lr, steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
    best: list[float] | None = None
    kept: dict[str, torch.Tensor] = {}
    seconds = []
    step = best_epoch = 0
    for epoch in range(options.epochs):
        started = time.perf_counter()
        model.train()
        rng = np.random.default_rng([options.seed, epoch])
        for indices in shuffled_batches(data.train.lengths, options.batch_size, rng):
            inputs, lengths, labels = data.train.batch(indices)
            logits = model(torch.from_numpy(inputs), torch.from_numpy(lengths))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            optimizer.step()
            step += 1
        seconds.append(time.perf_counter() - started)
        result = score(data.dev.labels, lstm_logits(model, data.dev))
        if best is None or result > best:
            best, best_epoch = result, epoch + 1
            kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return {
        "accuracy": score(data.test.labels, lstm_logits(model, data.test))[0],
        "best_epoch": best_epoch,
        "seconds_per_epoch": float(np.mean(seconds)),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def train_sru(model: SequenceClassifier, data: Split, options: FitOptions) -> dict[str, Any]:
    """Train with the library's own loop."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        progress = fit(
            model,
            data.train,
            data.dev,
            options,
            checkpoint=Path(folder) / "checkpoint.safetensors",
            keep=lambda best: best.save(weights),
            identity={},
        )
        model.load(weights)
    return {
        "accuracy": score(data.test.labels, predict_logits(model, data.test))[0],
        "best_epoch": progress.best_epoch,
        "seconds_per_epoch": float(np.mean([e["seconds"] for e in progress.history])),
        "parameters": model.num_parameters(),
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds, and the runs themselves."""
    accuracies = np.array([run["accuracy"] for run in runs])
    return {
        "accuracy_mean": float(accuracies.mean()),
        "accuracy_sd": float(accuracies.std(ddof=1)) if len(runs) > 1 else None,
        "seconds_per_epoch": float(np.median([run["seconds_per_epoch"] for run in runs])),
        "runs": runs,
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", type=Path, help="TSV or CSV files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--embedding-size", type=int, default=100)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, nargs="+", default=[4e-3])
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--out", type=Path, default=Path("bench/results/text_classification_cpu.json")
    )
    return parser.parse_args()


def main() -> None:
    """Run the comparison, and print and write its result."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    set_num_threads(args.threads)
    fixed = {"pooling": "max", "schedule": "cosine", "clip_norm": 5.0}
    settings = {name: v for name, v in vars(args).items() if name not in ("data", "out")}
    result: dict[str, Any] = {}
    if args.out.exists():
        result = json.loads(args.out.read_text(encoding="utf-8"))
    for path in args.data:
        entry: dict[str, Any] = {}
        # An earlier result of this file is replaced, those of other files stay.
        result[path.name] = {
            "settings": {**settings, **fixed},
            "machine": machine(),
            "versions": {**versions(), "torch": torch.__version__},
            "results": entry,
        }
        for lr in args.lr:
            runs: dict[str, list[dict[str, Any]]] = {"sru": [], "lstm": []}
            for seed in range(args.seeds):
                data = load(path, seed)
                options = ModelOptions(
                    classes=data.classes,
                    vocabulary_size=data.vocabulary_size,
                    input_size=args.embedding_size,
                    hidden=args.hidden,
                    layers=args.layers,
                    bidirectional=args.bidirectional,
                    dropout=args.dropout,
                    seed=seed,
                )
                how = FitOptions(args.epochs, args.batch_size, lr, seed=seed)
                sru = SequenceClassifier(options)
                lstm = LstmClassifier(sru, seed)
                runs["sru"].append({"seed": seed, **train_sru(sru, data, how)})
                runs["lstm"].append({"seed": seed, **train_lstm(lstm, data, how)})
                for name in runs:
                    last = runs[name][-1]
                    print(
                        f"{path.name} lr {lr:g} seed {seed} {name:>4}: "
                        f"{100 * last['accuracy']:.2f} % (epoch {last['best_epoch']}), "
                        f"{last['seconds_per_epoch']:.2f} s an epoch",
                        flush=True,
                    )
                # After every seed, so that a comparison cut short still has a result.
                entry[f"lr {lr:g}"] = {name: summarise(found) for name, found in runs.items()}
                write_json_atomically(args.out, result)
    for name, found in result.items():
        for lr, models in found["results"].items():
            means = ", ".join(
                f"{model} {100 * figures['accuracy_mean']:.2f} %"
                for model, figures in models.items()
            )
            print(f"{name}, {lr}: {means}")


if __name__ == "__main__":
    main()
