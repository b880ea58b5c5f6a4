"""One way of training for every network, and one of timing them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from networks import Network, Schedule
from penstock.training.batching import (
    TokenExamples,
    shuffled_batches,
    sorted_batches,
)
from penstock.training.errors import RunError
from penstock.training.loop import SCHEDULES
from penstock.training.metrics import cross_entropy


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        epochs: passes over the training rows; the one that is best on the development rows is kept.
        batch_size: rows of a step.
        lr: highest learning rate of Adam, down to 0 along half a cosine.
        clip: largest norm of all gradients together.
    """

    epochs: int
    batch_size: int
    lr: float
    clip: float = 5.0

    def schedule(self, rows: int) -> Schedule:
        """The rate of each step with so many training rows."""
        return SCHEDULES["cosine"](self.lr, self.epochs * math.ceil(rows / self.batch_size))


def evaluate(network: Network, examples: TokenExamples) -> tuple[float, float]:
    """Return accuracy and minus the mean loss: the more, the better."""
    scores: dict[int, np.ndarray] = {}
    for indices in sorted_batches(examples.lengths, 128):
        scores.update(zip(indices.tolist(), network.logits(examples.batch(indices)), strict=True))
    logits = np.stack([scores[i] for i in range(len(examples))])
    accuracy = float(np.mean(logits.argmax(axis=1) == examples.labels))
    return accuracy, -cross_entropy(logits, examples.labels)


def learn(
    network: Network, train: TokenExamples, dev: TokenExamples, plan: Plan, seed: int
) -> dict[str, Any]:
    """Train, and leave the network with its best weights.

    Raises:
        RunError: the loss is no longer finite.
    """
    started = time.process_time()
    best: tuple[float, float] | None = None
    weights: Any = None
    best_epoch = 0
    for epoch in range(plan.epochs):
        rng = np.random.default_rng([seed, epoch])
        for indices in shuffled_batches(train.lengths, plan.batch_size, rng):
            loss = network.step(train.batch(indices))
            if not math.isfinite(loss):
                raise RunError(f"the loss became {loss} in epoch {epoch + 1}")
        score = evaluate(network, dev)
        if best is None or score > best:
            best, best_epoch, weights = score, epoch + 1, network.save()
    if best is None:
        raise ValueError(f"plan.epochs: expected at least 1, got {plan.epochs}")
    network.restore(weights)
    return {
        "dev_accuracy": round(best[0], 6),
        "best_epoch": best_epoch,
        "cpu_seconds": round(time.process_time() - started, 2),
    }


def time_steps(
    contenders: dict[str, tuple[Network, TokenExamples]],
    batch_size: int,
    batches: int,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Time training steps of all networks in turn, on the same rows.

    Every network takes its first batch twice before the clock starts, and then one batch after
    the other takes all networks through it, so that what disturbs the machine disturbs all.

    Args:
        contenders: name -> network and training rows as it reads them; the rows are the same.
        batch_size: rows of a step.
        batches: how many are timed.
        progress: called with the name of what is about to run.

    Returns:
        name -> median and spread of a step's milliseconds, and seconds of an epoch: the mean of the
        steps times their number, since batches differ in length.
    """
    _, first = next(iter(contenders.values()))
    rng = np.random.default_rng(0)
    chosen = shuffled_batches(first.lengths, batch_size, rng)
    # Full ones, in the random order in which they come: of all lengths that there are.
    chosen = ([part for part in chosen if len(part) == batch_size] or chosen)[:batches]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name, (network, rows) in contenders.items():
        progress(f"{name}, warm-up")
        for _ in range(2):
            network.step(rows.batch(chosen[0]))
    for number, indices in enumerate(chosen, 1):
        for name, (network, rows) in contenders.items():
            progress(f"{name}, batch {number} of {len(chosen)}")
            batch = rows.batch(indices)
            started = time.perf_counter()
            network.step(batch)
            times[name].append(time.perf_counter() - started)
    steps = math.ceil(len(first) / batch_size)
    return {
        name: {
            "step_ms": round(1e3 * float(np.median(values)), 3),
            "step_ms_quartiles": [
                round(1e3 * float(value), 3) for value in np.quantile(values, [0.25, 0.75])
            ],
            "epoch_seconds": round(steps * float(np.mean(values)), 3),
            "batches": len(values),
        }
        for name, values in times.items()
    }
