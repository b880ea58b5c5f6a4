"""The options of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from penstock.training.errors import UserError

#: The embedded task, used when no data file is named.
DIGITS = "digits"
TEXT = "text"

#: Options that may change when a run is resumed: they do not alter what was computed so far.
RESUMABLE = frozenset({"epochs", "patience", "checkpoint_every", "device"})

#: Defaults of the options that depend on the task.
_TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    DIGITS: {
        "hidden": 64,
        "layers": 4,
        "dropout": 0.1,
        "bidirectional": True,
        "pooling": "mean",
        "memory": 64,
        "lr": 1e-2,
        "clip_norm": 1.0,
        "epochs": 60,
        "patience": 0,
        "batch_size": 32,
        "test_fraction": 0.2,
    },
    TEXT: {
        "hidden": 128,
        "layers": 2,
        "dropout": 0.2,
        "bidirectional": False,
        "pooling": "max",
        "memory": 0,
        "lr": 4e-3,
        "clip_norm": 5.0,
        "epochs": 10,
        "patience": 5,
        "batch_size": 32,
        "test_fraction": 0.0,
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """Options of `penstock train`; see there for what each means.

    None stands for the task's default where `resolved` fills one in.

    Raises:
        UserError: on construction, if a value is out of range.
    """

    data: str | None = None
    label: str | None = None
    text: str | None = None
    quotes: bool | None = None
    dev: str | None = None
    test: str | None = None
    dev_fraction: float = 0.1
    test_fraction: float | None = None
    folds: int = 0
    limit: int | None = None
    tokenizer: str = "words"
    lowercase: bool = True
    min_count: int = 2
    max_length: int | None = None
    embeddings: str | None = None
    embedding_size: int = 100
    freeze_embeddings: bool = False
    model: str = "sru"
    hidden: int | None = None
    layers: int | None = None
    bidirectional: bool | None = None
    dropout: float | None = None
    pooling: str | None = None
    memory: int | None = None
    lr: float | None = None
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float | None = None
    epochs: int | None = None
    patience: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: float = 30.0

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "epochs", "batch_size", "max_length", "limit"):
            _check(self, name, lambda value: value >= 1, "at least 1")
        for name in ("embedding_size", "min_count"):
            _check(self, name, lambda value: value >= 1, "at least 1")
        for name in ("memory", "patience", "seed", "checkpoint_every", "weight_decay", "clip_norm"):
            _check(self, name, lambda value: 0 <= value < math.inf, "a finite number, 0 or more")
        for name in ("dev_fraction", "test_fraction", "dropout"):
            _check(self, name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        _check(self, "lr", lambda value: 0 < value < math.inf, "a number above 0")
        _check(self, "folds", lambda value: value == 0 or value >= 2, "2 or more")
        if self.folds and (self.test is not None or self.test_fraction):
            raise UserError("--folds tests on each fold in turn: leave out --test, --test-fraction")
        if self.folds and self.dev is not None:
            raise UserError("--folds takes its dev set from the data: leave out --dev")
        if self.test is not None and self.test_fraction:
            raise UserError("give --test or --test-fraction, not both")
        if self.freeze_embeddings and self.embeddings is None:
            raise UserError("--freeze-embeddings needs --embeddings: random ones must be trained")
        if self.data is None:
            given = [
                name
                for name in ("label", "text", "quotes", "dev", "test", "embeddings", "max_length")
                if getattr(self, name) is not None
            ]
            given += [
                field.name
                for field in fields(self)
                if field.name in ("tokenizer", "lowercase", "min_count", "embedding_size")
                and getattr(self, field.name) != field.default
            ]
            if given:
                raise UserError(f"{option_name(given[0])} needs a data file: penstock train FILE")

    @property
    def task(self) -> str:
        """`DIGITS` or `TEXT`."""
        return DIGITS if self.data is None else TEXT

    def resolved(self) -> TrainConfig:
        """Return these options with the task's defaults in place of None."""
        defaults = dict(_TASK_DEFAULTS[self.task])
        if self.folds or self.test is not None:
            defaults["test_fraction"] = 0.0
        return replace(
            self, **{name: value for name, value in defaults.items() if getattr(self, name) is None}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dict fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Read what `to_dict` gave.

        Raises:
            UserError: an option is unknown, for example because a newer version wrote it, or
                a value is of another type.
        """
        if not isinstance(values, dict):
            raise UserError(f"the run's config is no table of options, got {values!r:.50}")
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise UserError(f"the run's config has options unknown here: {sorted(unknown)}")
        for name, kind in get_type_hints(cls).items():
            value = values.get(name, getattr(cls, name))
            kinds = get_args(kind) or (kind,)
            # An int will do for a float; True, which Python counts as an int, for neither.
            if type(value) not in kinds and not (type(value) is int and float in kinds):
                raise UserError(f"the run's config has {value!r:.50} for {option_name(name)}")
        return cls(**values)


def option_name(field: str) -> str:
    """Return the command-line spelling of a field of `TrainConfig`."""
    if field == "lowercase":
        return "--keep-case"
    return "FILE" if field == "data" else "--" + field.replace("_", "-")


def _check(config: TrainConfig, name: str, valid: Any, expected: str) -> None:
    value = getattr(config, name)
    if value is not None and not valid(value):
        raise UserError(f"{option_name(name)}: expected {expected}, got {value}")
