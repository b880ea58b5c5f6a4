"""Runs on disk: training one, or one for each fold, and loading a trained model again.

A run's folder holds

    config.json              the options of the run, as resolved
    model.json               what is needed to rebuild the model and read its input
    model.safetensors        the weights that were kept
    vocabulary.txt           text only: one token per line
    checkpoint.safetensors   the whole state of the training, for resuming
    metrics.json             figures, history, options and versions
    learning_curve.png

and a run over folds holds config.json, metrics.json and one such folder for each fold.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import penstock
from penstock.training import batching, digits, tables
from penstock.training.batching import Examples, FeatureExamples, TokenExamples
from penstock.training.checkpoints import read_json, write_json_atomically
from penstock.training.config import (
    DIGITS,
    RESUMABLE,
    TrainConfig,
    option_name,
    parse_slices,
)
from penstock.training.embeddings import read_embeddings
from penstock.training.errors import UserError, require
from penstock.training.loop import (
    SCHEDULES,
    FitOptions,
    Observer,
    Progress,
    device_module,
    fit,
    predict_logits,
)
from penstock.training.metrics import report
from penstock.training.models import ModelOptions, SequenceClassifier, encoder_names
from penstock.training.plots import plot_learning_curve
from penstock.training.pooling import POOLINGS
from penstock.training.text import CUTS, TOKENIZERS, Tokenizer, Vocabulary

CONFIG, MODEL, WEIGHTS = "config.json", "model.json", "model.safetensors"
VOCABULARY, CHECKPOINT = "vocabulary.txt", "checkpoint.safetensors"
METRICS, CURVE = "metrics.json", "learning_curve.png"

#: Options that name a file.
_FILES = ("data", "dev", "test", "embeddings")


class RunObserver(Observer):
    """An observer that is also told of folds and of data."""

    def data_loaded(self, lines: Sequence[str]) -> None:
        """The data are read; `lines` describe them."""

    def fold_started(self, number: int, folds: int) -> None:
        """Fold `number`, from 1, of `folds` starts."""


@dataclass(frozen=True)
class _Data:
    """The rows of a run: those of the data file, then those of the dev and test files."""

    labels: np.ndarray  # int64 (N,)
    names: list[str]  # of the C classes
    tokens: list[list[str]] | None  # N tokenised texts
    features: np.ndarray | None  # float32 (N, T, D)
    input_spec: dict[str, Any]  # for model.json
    digests: dict[str, str]
    parts: dict[str, np.ndarray]  # "data", "dev" and "test": indices

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class _Split:
    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray


def _limited(count: int, limit: int | None, seed: int) -> np.ndarray:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def _load_digits(config: TrainConfig) -> _Data:
    features, labels = digits.load_digits()
    chosen = _limited(len(labels), config.limit, config.seed)
    return _Data(
        labels[chosen],
        [str(digit) for digit in range(digits.CLASSES)],
        None,
        features[chosen],
        {"kind": "pixels", "steps": digits.STEPS},
        {},
        {"data": np.arange(len(chosen))},
    )


def _load_text(config: TrainConfig) -> _Data:
    assert config.data is not None
    tokenizer = Tokenizer(config.tokenizer, lowercase=config.lowercase)
    files = {"data": config.data, "dev": config.dev, "test": config.test}
    tokens: list[list[str]] = []
    labels: list[str] = []
    digests: dict[str, str] = {}
    parts: dict[str, np.ndarray] = {}
    columns: tuple[str | None, str | None] = (config.label, config.text)
    for part, name in files.items():
        if name is None:
            continue
        path = Path(name)
        table = tables.read_table(path, label=columns[0], text=columns[1], quotes=config.quotes)
        digests[part] = tables.file_digest(path)
        if config.threshold is not None:
            table = tables.two_classes(table, config.threshold, path)
        if part == "data":
            # The dev and test files have the columns that were found in the data file.
            columns = (table.label_column, table.text_column)
            table = table.select(_limited(len(table), config.limit, config.seed))
        else:
            unseen = sorted(set(table.labels) - set(labels))
            if unseen:
                raise UserError(f"{path} has labels that {config.data} lacks: {unseen[:10]}")
        parts[part] = np.arange(len(tokens), len(tokens) + len(table))
        tokens += [tokenizer(text) for text in table.texts]
        labels += table.labels
    names = tables.sorted_labels(labels)
    if len(names) < 2:
        raise UserError(f"{config.data}: expected two labels or more, found only {names[0]!r}")
    if len(names) > len(parts["data"]) // 2:
        raise UserError(
            f"{config.data}: column {columns[0]!r} holds {len(names)} different labels in "
            f"{len(parts['data'])} rows; is it the label column? Name another with --label"
        )
    numbers = {name: i for i, name in enumerate(names)}
    spec = {
        "kind": "text",
        "tokenizer": config.tokenizer,
        "lowercase": config.lowercase,
        "max_length": config.max_length,
        "cut": config.cut,
        "threshold": config.threshold,
        "label_column": columns[0],
        "text_column": columns[1],
        "quotes": config.quotes,
    }
    return _Data(
        np.array([numbers[label] for label in labels], np.int64),
        names,
        tokens,
        None,
        spec,
        digests,
        parts,
    )


def _splits(config: TrainConfig, data: _Data) -> list[_Split]:
    """Split the rows; see the options of `penstock train`."""
    rows = data.parts["data"]
    labels = data.labels[rows]
    none = np.zeros(0, np.int64)

    def hold_out(indices: np.ndarray, fraction: float, seed: int) -> tuple[Any, Any]:
        kept, held = batching.stratified_split(data.labels[indices], fraction, seed)
        return indices[kept], indices[held]

    if config.folds:
        if config.folds > len(rows):
            raise UserError(f"--folds: expected at most {len(rows)}, the rows, got {config.folds}")
        splits = []
        for test in batching.stratified_folds(labels, config.folds, config.seed):
            train, dev = hold_out(np.setdiff1d(rows, test), config.dev_fraction, config.seed + 1)
            splits.append(_Split(train, dev, test))
        return splits
    train, test = hold_out(rows, config.test_fraction or 0.0, config.seed)
    test = data.parts.get("test", test)
    if "dev" in data.parts:
        return [_Split(train, data.parts["dev"], test)]
    train, dev = hold_out(train, config.dev_fraction, config.seed + 1)
    return [_Split(train, dev if len(dev) else none, test)]


def _initial_embeddings(
    vocabulary: Vocabulary, vectors: dict[str, np.ndarray], size: int, seed: int
) -> np.ndarray:
    """Return float32 (V, size): the given vectors, and for other tokens draws of their spread."""
    spread = float(np.std(np.stack(list(vectors.values()))))
    rng = np.random.default_rng([seed, 2])
    table = rng.standard_normal((len(vocabulary), size), np.float32) * np.float32(spread)
    for i, token in enumerate(vocabulary.tokens):
        if token in vectors:
            table[i] = vectors[token]
    return table


def _check_options(config: TrainConfig, resume: bool) -> None:
    """Check what would otherwise fail late: names, files, packages."""
    for package in ("sklearn.metrics", "matplotlib.figure", "safetensors"):
        require(package)
    for field, value, allowed in (
        ("model", config.model, encoder_names()),
        ("pooling", config.pooling, list(POOLINGS)),
        ("tokenizer", config.tokenizer, list(TOKENIZERS)),
        ("schedule", config.schedule, list(SCHEDULES)),
        ("cut", config.cut or "end", list(CUTS)),
        ("pad", config.pad or "right", ["left", "right"]),
    ):
        if value not in allowed:
            raise UserError(
                f"{option_name(field)}: expected one of {', '.join(allowed)}, got {value!r}"
            )
    for name in _FILES:
        path = getattr(config, name)
        if path is not None and not Path(path).is_file():
            hint = f"; if it has moved, give {option_name(name)} with --resume" if resume else ""
            raise UserError(f"no such file: {path}{hint}")
    device_module(config.device)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "penstock": penstock.__version__}
    for package in ("numpy", "scikit-learn", "pandas", "cupy"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _token_examples(
    texts: Sequence[list[str]],
    labels: np.ndarray,
    vocabulary: Vocabulary,
    spec: dict[str, Any],
    options: ModelOptions,
) -> TokenExamples:
    """Number the tokens of texts as a run's model reads them: `spec` says what is cut."""
    limit, cut = spec["max_length"], spec.get("cut") or "end"
    sequences = [vocabulary.encode(tokens, limit, cut) for tokens in texts]
    return TokenExamples(sequences, labels, pad=options.pad, bucket=options.bucket)


class _Run:
    """Training one model in one folder."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        data: _Data,
        split: _Split,
        *,
        resume: bool,
        observer: RunObserver,
    ) -> None:
        self.folder, self.config, self.data, self.split = folder, config, data, split
        self.resume = resume and (folder / CHECKPOINT).is_file()
        self.observer = observer
        self.vocabulary: Vocabulary | None = None
        self.options: ModelOptions

    def _text_inputs(self) -> tuple[int, int, np.ndarray | None]:
        """Make or load the vocabulary; return its size, the vectors' size and the vectors."""
        config, data = self.config, self.data
        assert data.tokens is not None
        if self.resume:
            self.vocabulary = Vocabulary.load(self.folder / VOCABULARY)
            size = int(_read_model(self.folder)["model"]["input_size"])
            return len(self.vocabulary), size, None
        vectors: dict[str, np.ndarray] = {}
        size = config.embedding_size
        if config.embeddings is not None:
            # A word of the dev or test set may use its vector as well: no label is seen.
            words = {token for tokens in data.tokens for token in tokens}
            vectors, size = read_embeddings(Path(config.embeddings), words)
            self.observer.data_loaded(
                [f"{len(vectors)} of {len(words)} words found in {config.embeddings}, size {size}"]
            )
        self.vocabulary = Vocabulary.build(
            (data.tokens[i] for i in self.split.train), min_count=config.min_count, known=vectors
        )
        self.vocabulary.save(self.folder / VOCABULARY)
        table = None
        if vectors:
            table = _initial_embeddings(self.vocabulary, vectors, size, config.seed)
        return len(self.vocabulary), size, table

    def _examples(self, indices: np.ndarray) -> Examples:
        data = self.data
        if data.features is not None:
            return FeatureExamples(data.features[indices], data.labels[indices])
        assert data.tokens is not None and self.vocabulary is not None
        return _token_examples(
            [data.tokens[i] for i in indices],
            data.labels[indices],
            self.vocabulary,
            data.input_spec,
            self.options,
        )

    def _build(self) -> SequenceClassifier:
        config, data = self.config, self.data
        table = None
        if data.features is not None:
            vocabulary_size, size = 0, data.features.shape[2]
        else:
            vocabulary_size, size, table = self._text_inputs()
        assert config.hidden is not None and config.layers is not None
        assert config.dropout is not None and config.pooling is not None
        self.options = ModelOptions(
            classes=len(data.names),
            vocabulary_size=vocabulary_size,
            input_size=size,
            encoder=config.model,
            hidden=config.hidden,
            layers=config.layers,
            bidirectional=bool(config.bidirectional),
            dropout=config.dropout,
            pooling=config.pooling,
            memory=config.memory or 0,
            slices=() if config.slices is None else parse_slices(config.slices),
            pad=config.pad or "right",
            bucket=config.bucket or 0,
            freeze_embeddings=config.freeze_embeddings,
            seed=config.seed,
        )
        write_json_atomically(
            self.folder / MODEL,
            {
                "format": 1,
                "task": config.task,
                "labels": data.names,
                "input": data.input_spec,
                "data": data.digests,
                "model": self.options.to_dict(),
            },
        )
        model = SequenceClassifier(self.options, table)
        if model.embedding is not None and config.embedding_scale not in (None, 1.0):
            weight = model.embedding.weight
            weight *= weight.dtype.type(config.embedding_scale)
        return model.to(config.device)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        options = {
            name: value for name, value in self.config.to_dict().items() if name not in RESUMABLE
        }
        for name in _FILES:
            options.pop(name)  # a file may move; what it holds may not change
        if self.config.schedule == "cosine":
            options["epochs"] = self.config.epochs  # the whole schedule depends on it
        return {**options, **{f"{part} file": d for part, d in self.data.digests.items()}}

    def train(self) -> dict[str, Any]:
        config, split = self.config, self.split
        if not len(split.train):
            raise UserError("no rows are left to train on; hold out less")
        self.folder.mkdir(parents=True, exist_ok=True)
        model = self._build()
        train, dev = self._examples(split.train), self._examples(split.dev)
        assert config.lr is not None and config.epochs is not None
        assert config.batch_size is not None and config.patience is not None
        assert config.clip_norm is not None
        options = FitOptions(
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            schedule=config.schedule,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            patience=config.patience,
            seed=config.seed,
            device=config.device,
            checkpoint_every=config.checkpoint_every,
        )
        progress = fit(
            model,
            train,
            dev if len(dev) else None,
            options,
            checkpoint=self.folder / CHECKPOINT,
            keep=lambda best: best.save(self.folder / WEIGHTS),
            identity=self._identity(),
            resume=self.resume,
            observer=self.observer,
        )
        model.load(self.folder / WEIGHTS)
        return self._conclude(model, train, dev, progress)

    def _conclude(
        self, model: SequenceClassifier, train: Examples, dev: Examples, progress: Progress
    ) -> dict[str, Any]:
        test = self._examples(self.split.test)
        reports = {
            part: report(
                examples.labels,
                predict_logits(model, examples, self.config.device),
                self.data.names,
            )
            for part, examples in (("dev", dev), ("test", test))
            if len(examples)
        }
        evaluated_on = "test" if len(test) else "dev" if len(dev) else None
        final = reports.get(evaluated_on or "", {})
        seconds = [entry["seconds"] for entry in progress.history]
        metrics = {
            "task": self.config.task,
            "evaluated_on": evaluated_on,
            "accuracy": final.get("accuracy"),
            "loss": final.get("loss"),
            "macro_f1": final.get("macro_f1"),
            "confusion_matrix": final.get("confusion_matrix"),
            "labels": self.data.names,
            "best_epoch": progress.best_epoch,
            "epochs": progress.epoch,
            "seconds": sum(seconds),
            "seconds_per_epoch": sum(seconds) / len(seconds),
            "parameters": model.num_parameters(),
            "examples": {"train": len(train), "dev": len(dev), "test": len(test)},
            "vocabulary_size": model.options.vocabulary_size,
            **reports,
            "history": progress.history,
            "config": _stored(self.config),
            "versions": versions(),
            "machine": machine(),
        }
        write_json_atomically(self.folder / METRICS, metrics)
        name = Path(self.config.data).name if self.config.data else "digits"
        plot_learning_curve(
            self.folder / CURVE,
            progress.history,
            progress.best_epoch if len(dev) else None,
            f"{name}: {self.config.model}, {model.num_parameters():,} parameters",
        )
        return metrics


def machine() -> dict[str, Any]:
    """Describe the machine: system, processor and number of cores usable."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"system": f"{platform.system()} {platform.machine()}", "processor": processor,
            "cores": cores}  # fmt: skip


def _summary(config: TrainConfig, folds: list[dict[str, Any]]) -> dict[str, Any]:
    def mean_sd(key: str) -> dict[str, float]:
        values = np.array([fold[key] for fold in folds], np.float64)
        return {"mean": float(values.mean()), "sd": float(values.std(ddof=1))}

    accuracy, f1 = mean_sd("accuracy"), mean_sd("macro_f1")
    matrices = np.array([fold["confusion_matrix"] for fold in folds])
    return {
        "task": config.task,
        "evaluated_on": f"{len(folds)} folds",
        "accuracy": accuracy["mean"],
        "accuracy_sd": accuracy["sd"],
        "loss": mean_sd("loss")["mean"],
        "macro_f1": f1["mean"],
        "macro_f1_sd": f1["sd"],
        "confusion_matrix": matrices.sum(axis=0).tolist(),
        "labels": folds[0]["labels"],
        "seconds": sum(fold["seconds"] for fold in folds),
        "seconds_per_epoch": mean_sd("seconds_per_epoch")["mean"],
        "folds": [
            {key: fold[key] for key in ("accuracy", "loss", "macro_f1", "best_epoch", "epochs")}
            for fold in folds
        ],
        "config": _stored(config),
        "versions": versions(),
        "machine": machine(),
    }


def _stored(config: TrainConfig) -> dict[str, Any]:
    """Return the options for a file, with names of files that hold from any working directory."""
    options = config.to_dict()
    for name in _FILES:
        if options[name] is not None:
            options[name] = str(Path(options[name]).absolute())
    return options


def _read_model(folder: Path) -> dict[str, Any]:
    """Read model.json.

    Raises:
        UserError: it is missing, or not what a run writes.
    """
    path = folder / MODEL
    description = read_json(path)
    if not isinstance(description, dict) or description.get("format") != 1:
        got = description.get("format") if isinstance(description, dict) else description
        raise UserError(f"{path}: expected format 1, got {got!r:.50}")
    for key, kind in (("labels", list), ("input", dict), ("data", dict), ("model", dict)):
        if not isinstance(description.get(key), kind):
            raise UserError(
                f"{path}: expected a {kind.__name__} under {key!r}, "
                f"got {description.get(key)!r:.50}"
            )
    return description


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds a run, finished or not."""
    return (folder / CONFIG).is_file()


def runs_of(root: Path, name: str, data: str | None) -> tuple[Path, list[Path]]:
    """Look through the folders name, name-2, name-3, ... in `root`, of which some may be gone.

    Returns:
        the folder for a new run, numbered above all that exist, and the runs on `data` (None:
        the digits), oldest first.
    """
    pattern = re.compile(re.escape(name) + r"(?:-([1-9][0-9]*))?")
    found: list[tuple[int, Path]] = []
    for path in root.iterdir() if root.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            found.append((int(match[1] or 1), path))
    found.sort()
    wanted = None if data is None else Path(data).resolve()
    same: list[Path] = []
    for _, path in found:
        with suppress(UserError):
            of_run = load_config(path).data
            if wanted == (None if of_run is None else Path(of_run).resolve()):
                same.append(path)
    return root / (f"{name}-{found[-1][0] + 1}" if found else name), same


def load_config(folder: Path) -> TrainConfig:
    """Read the options of a run.

    Raises:
        UserError: there is no run in `folder`.
    """
    if not is_run(folder):
        raise UserError(f"{folder} holds no run (it has no {CONFIG})")
    return TrainConfig.from_dict(read_json(folder / CONFIG))


def resume_config(folder: Path, changes: dict[str, Any]) -> TrainConfig:
    """Return the options of the run in `folder` with `changes` applied.

    Args:
        folder: of the run.
        changes: options by their name in `TrainConfig`. Those that what was computed so far
            depends on must be as they were; a file may have moved, but its content is compared
            when the run goes on.

    Raises:
        UserError: there is no run in `folder`, or an option may not change.
    """
    config = load_config(folder)
    for name, value in changes.items():
        before = getattr(config, name)
        moved = name in _FILES and (value is None) == (before is None)
        if value == before or moved:
            continue
        if name == "epochs" and config.schedule == "cosine":
            raise UserError(
                f"--epochs: the run in {folder} lowers its learning rate along a cosine over "
                f"{before} epochs, so that their number cannot change; --schedule constant "
                "allows it"
            )
        if name not in RESUMABLE:
            raise UserError(
                f"{option_name(name)}: the run in {folder} was started with {before}, got "
                f"{value}; leave the option out, or start a new run"
            )
    return replace(config, **changes)


def _check_same_data(folder: Path, data: _Data) -> None:
    """Check that a run's data files hold what they held when it started."""
    for path in [folder, *sorted(folder.glob("fold-[0-9]*"))]:
        if not (path / MODEL).is_file():
            continue
        before = _read_model(path)["data"]
        for part, digest in data.digests.items():
            if before.get(part) != digest:
                what = "data file" if part == "data" else f"{part} file"
                raise UserError(f"cannot resume: the {what} of the run in {folder} has changed")


def clear_run(folder: Path) -> None:
    """Delete the files of a run, and nothing else, from a folder."""
    for path in [folder, *sorted(folder.glob("fold-[0-9]*"))]:
        for name in (CONFIG, MODEL, WEIGHTS, VOCABULARY, CHECKPOINT, METRICS, CURVE):
            (path / name).unlink(missing_ok=True)
        if path != folder:
            with suppress(OSError):
                path.rmdir()


def run_training(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: RunObserver | None = None,
) -> dict[str, Any]:
    """Train as `config` says, and leave the results in `folder`.

    Args:
        config: the options; those left None take the task's defaults.
        folder: made if it does not exist.
        resume: go on where the run in `folder` stopped, from the beginning if it has not got
            as far as a checkpoint.
        overwrite: delete the run in `folder` first, once the data are read without an error.
        observer: told of every event.

    Returns:
        what metrics.json holds.

    Raises:
        UserError: an option, a file or the data are unusable.
        Interrupted: after SIGINT or SIGTERM; resuming goes on from there.
    """
    config = config.resolved()
    observer = observer or RunObserver()
    _check_options(config, resume)
    data = _load_digits(config) if config.task == DIGITS else _load_text(config)
    splits = _splits(config, data)
    if resume:
        _check_same_data(folder, data)
    elif overwrite:
        clear_run(folder)
    elif is_run(folder):
        raise UserError(f"{folder} holds a run already")
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder / CONFIG, _stored(config))
    observer.data_loaded(_describe(config, data, splits))
    if not config.folds:
        return _Run(folder, config, data, splits[0], resume=resume, observer=observer).train()
    width = len(str(len(splits)))
    results = []
    for number, split in enumerate(splits, 1):
        observer.fold_started(number, len(splits))
        path = folder / f"fold-{number:0{width}}"
        path.mkdir(exist_ok=True)
        write_json_atomically(path / CONFIG, _stored(config))
        run = _Run(path, config, data, split, resume=resume, observer=observer)
        results.append(run.train())
    metrics = _summary(config, results)
    write_json_atomically(folder / METRICS, metrics)
    return metrics


def _describe(config: TrainConfig, data: _Data, splits: list[_Split]) -> list[str]:
    counts = np.bincount(data.labels, minlength=len(data.names))
    classes = ", ".join(f"{name} ({n})" for name, n in list(zip(data.names, counts, strict=True)))
    if len(data.names) > 12:
        classes = f"{counts.min()} to {counts.max()} rows each"
    split = splits[0]
    lines = [f"{len(data)} sequences, {len(data.names)} classes: {classes}"]
    if data.tokens is not None:
        lengths = np.array([len(tokens) for tokens in data.tokens])
        lines.append(
            f"columns {data.input_spec['label_column']!r} (label) and "
            f"{data.input_spec['text_column']!r} (text); tokens per text: "
            f"median {int(np.median(lengths))}, longest {lengths.max()}"
        )
        if config.max_length is not None:
            share = np.mean(lengths > config.max_length)
            lines.append(
                f"{100 * share:.0f} % of the texts lose their {config.cut or 'end'} beyond "
                f"{config.max_length} tokens"
            )
    lines.append(
        f"training on {len(split.train)}, dev {len(split.dev)}, test {len(split.test)}"
        + (f" in each of {len(splits)} folds" if len(splits) > 1 else "")
    )
    return lines


class TrainedModel:
    """A run's model, ready to score new input.

    Args:
        folder: of the run, or of one fold.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: there is no trained model in `folder`.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        if not (folder / WEIGHTS).is_file():
            if (folder / CONFIG).is_file() and sorted(folder.glob("fold-[0-9]*")):
                first = sorted(folder.glob("fold-[0-9]*"))[0]
                raise UserError(f"{folder} holds one model for each fold: name one, like {first}")
            if (folder / CONFIG).is_file():
                raise UserError(
                    f"the run in {folder} has not finished its first epoch: go on with "
                    f"penstock train --resume --out {folder}"
                )
            raise UserError(f"{folder} holds no trained model (it has no {WEIGHTS})")
        device_module(device)
        description = _read_model(folder)
        self.folder, self.device = folder, device
        self.labels: list[str] = [str(name) for name in description["labels"]]
        self.input_spec: dict[str, Any] = description["input"]
        self.vocabulary: Vocabulary | None = None
        encoder = description["model"].get("encoder")
        if isinstance(encoder, str) and encoder not in encoder_names():
            raise UserError(
                f"{folder} holds a model of the layer {encoder!r}, which is not registered; "
                f"known: {', '.join(encoder_names())}"
            )
        try:
            self.options = ModelOptions(**description["model"])
            if self.is_text:
                for name in ("max_length", "text_column", "label_column", "quotes"):
                    self.input_spec[name]
                if (self.input_spec.get("cut") or "end") not in CUTS:
                    raise ValueError(f"cut {self.input_spec['cut']!r}")
                self._tokenizer = Tokenizer(
                    self.input_spec["tokenizer"], lowercase=self.input_spec["lowercase"]
                )
            self.model = SequenceClassifier(self.options)
            if self.options.classes != len(self.labels):
                raise ValueError(f"{self.options.classes} classes, {len(self.labels)} labels")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / MODEL} is not what a run writes: {error!r}") from error
        if self.is_text:
            self.vocabulary = Vocabulary.load(folder / VOCABULARY)
        try:
            self.model.load(folder / WEIGHTS)
        except Exception as error:  # safetensors raises its own type, outside its public names
            raise UserError(f"cannot read {folder / WEIGHTS}: {error}") from error
        self.model.to(device)

    @property
    def is_text(self) -> bool:
        """Whether the model reads text; otherwise it reads images, pixel by pixel."""
        return bool(self.input_spec["kind"] == "text")

    def score_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return logits float32 (N, C) of N texts."""
        if self.vocabulary is None:
            raise UserError("this run was trained on images of digits, not on text")
        return self._score_tokens([self._tokenizer(text) for text in texts])

    def _score_tokens(self, texts: Sequence[list[str]]) -> np.ndarray:
        assert self.vocabulary is not None
        examples = _token_examples(
            texts, np.zeros(len(texts), np.int64), self.vocabulary, self.input_spec, self.options
        )
        return predict_logits(self.model, examples, self.device)

    def score_features(self, features: np.ndarray) -> np.ndarray:
        """Return logits float32 (N, C) of N feature sequences (N, T, D)."""
        examples = FeatureExamples(features, np.zeros(len(features), np.int64))
        return predict_logits(self.model, examples, self.device)

    def evaluate_file(
        self, path: Path, *, label: str | None = None, text: str | None = None
    ) -> dict[str, Any]:
        """Score a labelled file, and return `metrics.report`'s figures.

        Args:
            path: a TSV or CSV file, gzipped or not.
            label: the label column; None takes the one of the training data.
            text: the text column, likewise.

        Raises:
            UserError: the file is unusable or holds a label that the model does not know.
        """
        table = tables.read_table(
            path,
            label=label or self.input_spec.get("label_column"),
            text=text or self.input_spec.get("text_column"),
            quotes=self.input_spec.get("quotes"),
        )
        if self.input_spec.get("threshold") is not None:
            table = tables.two_classes(table, self.input_spec["threshold"], path)
        unseen = sorted(set(table.labels) - set(self.labels))
        if unseen:
            raise UserError(
                f"{path} has labels the model does not know: {', '.join(unseen[:10])}; "
                f"it knows {', '.join(self.labels)}"
            )
        numbers = {name: i for i, name in enumerate(self.labels)}
        labels = np.array([numbers[label] for label in table.labels], np.int64)
        return report(labels, self.score_texts(table.texts), self.labels)

    def evaluate_held_out(self) -> tuple[str, dict[str, Any]]:
        """Score the rows that the run held out of its own data: its test set, else its dev set.

        Returns:
            ("test" or "dev", `metrics.report`'s figures).

        Raises:
            UserError: the run held out nothing, or its data have changed or gone.
        """
        config = load_config(self.folder)
        if config.folds:
            raise UserError("evaluate a fold's model on a file: penstock evaluate RUN FILE")
        if config.task == DIGITS:
            data = _load_digits(config)
        else:
            for name in _FILES[:3]:
                path = getattr(config, name)
                if path is not None and not Path(path).is_file():
                    raise UserError(
                        f"no such file: {path}, of the run's data; name a file to evaluate on: "
                        f"penstock evaluate {self.folder} FILE"
                    )
            data = _load_text(config)
            if data.names != self.labels:
                raise UserError(f"{config.data} has changed since the run: other labels")
        split = _splits(config, data)[0]
        part, indices = ("test", split.test) if len(split.test) else ("dev", split.dev)
        if not len(indices):
            raise UserError("the run held out no rows: name a file to evaluate on")
        if data.features is not None:
            logits = self.score_features(data.features[indices])
        else:
            assert data.tokens is not None
            logits = self._score_tokens([data.tokens[i] for i in indices])
        return part, report(data.labels[indices], logits, self.labels)
