"""The training loop: epochs, early stopping, checkpoints, and exact resuming."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from penstock import nn, optim
from penstock.nn.module import parse_device
from penstock.training.batching import (
    Batch,
    Examples,
    batch_count,
    shuffled_batches,
    sorted_batches,
)
from penstock.training.checkpoints import load_checkpoint, save_checkpoint, to_numpy
from penstock.training.errors import RunError, UserError
from penstock.training.metrics import summarise
from penstock.training.models import SequenceClassifier

#: Batches of evaluation may be larger than those of training: nothing is kept for backprop.
_EVALUATION_BATCH = 128


@dataclass(frozen=True)
class FitOptions:
    """How to train.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step.
        lr: highest learning rate of Adam.
        schedule: "constant", or "cosine" (down to 0 along half a cosine over all epochs).
        weight_decay: decoupled, as in AdamW.
        clip_norm: largest Euclidean norm of all gradients together; 0 does not clip.
        patience: stop after this many epochs without a better dev score; 0 never stops early.
        seed: of the order of the batches.
        device: "cpu", "cuda" or "cuda:N".
        checkpoint_every: seconds between checkpoints within an epoch; 0 writes one per batch.
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float = 5.0
    patience: int = 0
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: float = 30.0


@dataclass
class Progress:
    """Where a run stands. Every field is in the checkpoint.

    Attributes:
        epoch: completed epochs.
        batch: completed batches of the epoch under way.
        loss_sum, correct, seen, seconds: totals of the epoch under way.
        history: one dict per completed epoch.
        best_epoch: the epoch whose weights are kept, None before the first one ends.
        best_score: its (dev accuracy, -dev loss), None without a dev set.
        waited: epochs since then.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: list[float] | None = None
    waited: int = 0

    def begin_epoch(self) -> None:
        """Reset what is counted per epoch."""
        self.batch, self.loss_sum, self.correct, self.seen, self.seconds = 0, 0.0, 0, 0, 0.0


class Observer:
    """Receives a run's events; every method does nothing by default."""

    def fit_started(self, progress: Progress, epochs: int) -> None:
        """Training starts, or goes on from `progress`."""

    def epoch_started(self, epoch: int, batches: int, done: int) -> None:
        """Epoch number `epoch`, from 1, starts with `done` of its `batches` behind it."""

    def batch_done(self, mean_loss: float) -> None:
        """A batch is done; `mean_loss` is the epoch's mean so far."""

    def epoch_done(self, record: dict[str, Any], kept: bool) -> None:
        """An epoch is done; `kept` tells whether its weights are the best so far."""


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the checkpoint has been written."""


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT or SIGTERM came. A second SIGINT kills."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _to_device(batch: Batch, xp: Any) -> Batch:
    if xp is np:
        return batch
    return Batch(
        xp.asarray(batch.inputs),
        None if batch.lengths is None else xp.asarray(batch.lengths),
        xp.asarray(batch.labels),
    )


def device_module(device: str) -> Any:
    """Return the array library for a device: numpy for "cpu", cupy for "cuda[:N]".

    Raises:
        UserError: CuPy is missing, there is no such GPU, or the name is unknown.
    """
    try:
        number = parse_device(device)
    except ValueError as error:
        raise UserError(f"--device: {str(error).removeprefix('device: ')}") from error
    if number is None:
        return np
    try:
        import cupy
    except ImportError as error:
        raise UserError(
            f"--device {device} needs CuPy, which could not be imported ({error}); "
            "install it with: pip install '.[cuda13]' (or [cuda12]) in a clone of penstock"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(f"--device {device}: no usable GPU ({error})") from error
    if number >= count:
        raise UserError(f"--device {device}: this machine has {count} GPU(s), numbered from 0")
    return cupy


@contextmanager
def on_device(device: str) -> Iterator[Any]:
    """Make a device current and yield its array library."""
    xp = device_module(device)
    if xp is np:
        yield xp
    else:
        with xp.cuda.Device(parse_device(device)):
            yield xp


def predict_logits(
    model: SequenceClassifier, examples: Examples, device: str = "cpu"
) -> np.ndarray:
    """Score every example, in the order of the data set.

    Args:
        model: a classifier with C classes, its weights on `device`.
        examples: N examples.

    Returns:
        logits float32 (N, C).
    """
    logits = np.empty((len(examples), model.options.classes), np.float32)
    with on_device(device) as xp:
        for indices in sorted_batches(examples.lengths, _EVALUATION_BATCH, examples.steps):
            batch = _to_device(examples.batch(indices), xp)
            logits[indices] = to_numpy(model(batch.inputs, lengths=batch.lengths).y)
    return logits


#: Schedules of the learning rate by name, from the highest rate and the number of updates.
SCHEDULES: dict[str, Callable[[float, int], optim.Schedule]] = {
    "constant": lambda lr, steps: optim.schedules.constant(lr),
    "cosine": optim.schedules.cosine,
}


def _decays(name: str) -> bool:
    """Whether weight decay holds for a parameter: for matrices, and not for biases."""
    return name.endswith("weight")


class _Fit:
    """One call of `fit`."""

    def __init__(
        self,
        model: SequenceClassifier,
        train: Examples,
        dev: Examples | None,
        options: FitOptions,
        *,
        checkpoint: Path,
        keep: Callable[[SequenceClassifier], None],
        identity: Mapping[str, Any],
        observer: Observer,
    ) -> None:
        self.model, self.train, self.dev = model, train, dev
        self.options, self.checkpoint, self.keep = options, checkpoint, keep
        self.identity, self.observer = dict(identity), observer
        updates = options.epochs * batch_count(train, options.batch_size)
        self.optimizer = optim.AdamW(
            model.parameters(),
            SCHEDULES[options.schedule](options.lr, updates),
            weight_decay=options.weight_decay,
            decay=_decays,
        )
        self.progress = Progress()
        self.saved_at = time.monotonic()

    def save(self) -> None:
        save_checkpoint(
            self.checkpoint,
            {
                "identity": self.identity,
                "progress": asdict(self.progress),
                "model": self.model.state_dict(),
                "random": self.model.rng_state(),
                "optimizer": self.optimizer.state_dict(),
            },
        )
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        state = load_checkpoint(self.checkpoint)
        # An option that an older version did not know counts as None, the default of new ones.
        changed = sorted(
            key
            for key in {*state["identity"], *self.identity}
            if state["identity"].get(key) != self.identity.get(key)
        )
        if changed:
            raise UserError(
                f"cannot resume from {self.checkpoint}: it was made with another "
                f"{', '.join(changed)}"
            )
        self.model.load_state_dict(state["model"])
        self.model.set_rng_state(state["random"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def finished(self) -> bool:
        options, progress = self.options, self.progress
        return progress.epoch >= options.epochs or (
            options.patience > 0 and progress.waited >= options.patience
        )

    def step(self, batch: Batch) -> None:
        progress, options = self.progress, self.options
        output = self.model(batch.inputs, lengths=batch.lengths, training=True)
        loss = nn.softmax_cross_entropy(output.y, batch.labels)
        value = float(loss.loss)
        if not math.isfinite(value):
            raise RunError(
                f"the loss became {value} in epoch {progress.epoch + 1}, batch "
                f"{progress.batch + 1}; try a smaller --lr or a smaller --clip-norm"
            )
        gradients = output.backprop(loss.backprop()).dparameters
        if options.clip_norm > 0:
            optim.clip_grad_norm(gradients, options.clip_norm)
        self.optimizer.step(gradients)
        size = len(batch.labels)
        progress.loss_sum += value * size
        progress.correct += int((output.y.argmax(axis=1) == batch.labels).sum())
        progress.seen += size
        progress.batch += 1

    def run_epoch(self, xp: Any, stop: Callable[[], bool]) -> None:
        progress, options = self.progress, self.options
        # The order depends on the seed and the epoch alone, so that the position is a number.
        rng = np.random.default_rng([options.seed, progress.epoch])
        batches = shuffled_batches(self.train.lengths, options.batch_size, rng, self.train.steps)
        before, started = progress.seconds, time.perf_counter()
        self.observer.epoch_started(progress.epoch + 1, len(batches), progress.batch)
        for indices in batches[progress.batch :]:
            self.step(_to_device(self.train.batch(indices), xp))
            progress.seconds = before + time.perf_counter() - started
            self.observer.batch_done(progress.loss_sum / progress.seen)
            due = time.monotonic() - self.saved_at >= options.checkpoint_every
            if stop():
                self.save()
                raise Interrupted
            if due and progress.batch < len(batches):
                self.save()

    def end_epoch(self) -> None:
        progress = self.progress
        progress.epoch += 1
        record: dict[str, Any] = {
            "epoch": progress.epoch,
            "train_loss": progress.loss_sum / progress.seen,
            "train_accuracy": progress.correct / progress.seen,
            "seconds": progress.seconds,
        }
        kept = True
        if self.dev is not None:
            logits = predict_logits(self.model, self.dev, self.options.device)
            scores = summarise(self.dev.labels, logits)
            record.update({f"dev_{name}": value for name, value in scores.items()})
            score = [scores["accuracy"], -scores["loss"]]
            kept = progress.best_score is None or score > progress.best_score
            if kept:
                progress.best_score = score
        if kept:
            progress.best_epoch, progress.waited = progress.epoch, 0
            self.keep(self.model)
        else:
            progress.waited += 1
        progress.history.append(record)
        progress.begin_epoch()
        self.save()
        self.observer.epoch_done(record, kept)

    def run(self, resume: bool) -> Progress:
        if resume and self.checkpoint.is_file():
            self.restore()
        self.observer.fit_started(self.progress, self.options.epochs)
        with on_device(self.options.device) as xp, _stop_requests() as stop:
            while not self.finished():
                self.run_epoch(xp, stop)
                self.end_epoch()
                if stop():
                    raise Interrupted
        return self.progress


def fit(
    model: SequenceClassifier,
    train: Examples,
    dev: Examples | None,
    options: FitOptions,
    *,
    checkpoint: Path,
    keep: Callable[[SequenceClassifier], None],
    identity: Mapping[str, Any],
    resume: bool = False,
    observer: Observer | None = None,
) -> Progress:
    """Train a classifier with Adam, and keep the weights that score best on the dev set.

    A run that is killed and resumed computes the same bits as one that is not: the checkpoint
    holds the weights, the optimiser, the random generators and the position in the epoch.

    Args:
        model: the classifier, its weights on `options.device`. It ends with the last weights.
        train: training examples, one or more.
        dev: decides which epoch is kept (accuracy, then loss) and when to stop; with None the
            last epoch is kept.
        options: see `FitOptions`.
        checkpoint: file for the state of the run.
        keep: called with the model whenever its weights are the best so far.
        identity: JSON values that say what is trained on what; a checkpoint with others is
            refused.
        resume: go on from `checkpoint` if it exists.
        observer: told of every event.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with the checkpoint written.
        RunError: the loss is no longer finite.
        UserError: the checkpoint cannot be read or belongs to another run.
    """
    run = _Fit(
        model,
        train,
        dev,
        options,
        checkpoint=checkpoint,
        keep=keep,
        identity=identity,
        observer=observer or Observer(),
    )
    return run.run(resume)
