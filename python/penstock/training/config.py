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

#: Models that come with the program and whose layers are sliced, and those whose are not.
_SLICED = ("sliced-gru", "sliced-lstm", "sliced-rnn", "sliced-sru")
_PLAIN = ("gru", "lstm", "rnn", "sru")

#: Models that learn best from small initial embeddings.
_UNSCALED = ("gru", "lstm", "rnn", "sliced-gru", "sliced-lstm", "sliced-rnn")

#: Options of sliced models alone.
_SLICING = ("slices", "pad", "bucket")

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
    cut: str | None = None
    threshold: float | None = None
    embeddings: str | None = None
    embedding_size: int = 100
    embedding_scale: float | None = None
    freeze_embeddings: bool = False
    model: str = "sru"
    slices: str | None = None
    pad: str | None = None
    bucket: int | None = None
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
        for name in (
            "memory",
            "bucket",
            "patience",
            "seed",
            "checkpoint_every",
            "weight_decay",
            "clip_norm",
        ):
            _check(self, name, lambda value: 0 <= value < math.inf, "a finite number, 0 or more")
        for name in ("dev_fraction", "test_fraction", "dropout"):
            _check(self, name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        _check(self, "embedding_scale", lambda value: 0 < value < math.inf, "a number above 0")
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
        if self.embedding_scale is not None and self.embeddings is not None:
            raise UserError("--embedding-scale is of random embeddings: leave out --embeddings")
        if self.data is None:
            given = [
                name
                for name in (
                    "label",
                    "text",
                    "quotes",
                    "dev",
                    "test",
                    "embeddings",
                    "max_length",
                    "cut",
                    "threshold",
                    "embedding_scale",
                    "bucket",
                )
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

        if self.cut is not None and self.max_length is None:
            raise UserError("--cut needs --max-length")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UserError(f"--threshold: expected a finite number, got {self.threshold}")
        if self.slices is not None:
            parse_slices(self.slices)
        self._check_model()

    def _check_model(self) -> None:
        """Check that the options given are options of the model; of one registered, all are."""
        if self.model in _PLAIN:
            for name in _SLICING:
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{option_name(name)}: expected a sliced model, such as --model "
                        f"sliced-gru, got {self.model}"
                    )
        if self.model in _SLICED:
            if self.layers not in (None, 1):
                raise UserError(
                    f"--layers: expected 1 with {self.model}, whose levels are its depth, got "
                    f"{self.layers}"
                )
            if self.pooling not in (None, "last"):
                raise UserError(
                    f"--pooling: expected none with {self.model}, which gives one vector, got "
                    f"{self.pooling}"
                )
        if self.memory and self.model in ("rnn", "sliced-rnn"):
            raise UserError(f"--memory: expected 0 with {self.model}, which has no gates")

    @property
    def task(self) -> str:
        """`DIGITS` or `TEXT`."""
        return DIGITS if self.data is None else TEXT

    def resolved(self) -> TrainConfig:
        """Return these options with the task's defaults in place of None."""
        defaults = dict(_TASK_DEFAULTS[self.task])
        if self.folds or self.test is not None:
            defaults["test_fraction"] = 0.0
        if self.model in _SLICED:
            slices = self.slices or ("8" if self.task == DIGITS else "8,8")
            defaults |= {"slices": slices, "layers": 1, "pooling": "last", "pad": "left"}
            if self.task == TEXT:
                defaults["bucket"] = math.prod(parse_slices(slices))
        if self.model in ("rnn", *_SLICED):
            defaults["memory"] = 0
        # The SRU's initial weights expect an input of unit variance, as embeddings have by default.
        if self.model in _UNSCALED and self.task == TEXT and self.embeddings is None:
            defaults["embedding_scale"] = 0.1
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


def parse_slices(value: str) -> tuple[int, ...]:
    """Read what stands after ``--slices``: whole numbers of at least 1, parted by commas."""
    try:
        slices = tuple(int(part) for part in value.split(","))
    except ValueError:
        slices = ()
    if not slices or min(slices) < 1:
        raise UserError(f"--slices: expected numbers of parts, like 8,8, got {value!r}")
    return slices


def _check(config: TrainConfig, name: str, valid: Any, expected: str) -> None:
    value = getattr(config, name)
    if value is not None and not valid(value):
        raise UserError(f"{option_name(name)}: expected {expected}, got {value}")
