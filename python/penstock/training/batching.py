"""Data sets in memory, and batches of sequences of about the same length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

#: How many batches' worth of examples are sorted by length together. More means less padding,
#: fewer means batches that differ more from one epoch to the next.
_POOL_BATCHES = 50


class Batch(NamedTuple):
    """A batch, time first: token numbers int32 (T, B) or features float32 (T, B, D)."""

    inputs: np.ndarray
    lengths: np.ndarray | None  # int64 (B,), None when every sequence has T steps
    labels: np.ndarray  # int64 (B,)


class Examples(Protocol):
    """A data set of labelled sequences."""

    @property
    def lengths(self) -> np.ndarray:
        """Length of each sequence, int64 (N,)."""

    @property
    def labels(self) -> np.ndarray:
        """Class number of each sequence, int64 (N,)."""

    @property
    def steps(self) -> np.ndarray | None:
        """Padded length of each sequence, int64 (N,), the same for all of a batch; None if a batch
        is as long as its longest sequence."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the examples at `indices` (B,) as one batch."""


class TokenExamples:
    """Labelled sequences of token numbers.

    Args:
        sequences: N arrays int32 (L_i,), L_i >= 1.
        labels: int (N,).
        padding_index: token number where a sequence is padded.
        pad: the side on which sequences are padded, "left" or "right".
        bucket: pad each sequence to a multiple of so many steps, so that what a model makes of it
            does not depend on the others in its batch; 0 pads to the longest one of a batch.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        labels: np.ndarray,
        padding_index: int = 0,
        *,
        pad: str = "right",
        bucket: int = 0,
    ) -> None:
        if pad not in ("left", "right"):
            raise ValueError(f"pad: expected 'left' or 'right', got {pad!r}")
        if len(sequences) != len(labels):
            raise ValueError(f"labels: expected {len(sequences)} of them, got {len(labels)}")
        self.lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        if len(sequences) and self.lengths.min() < 1:
            raise ValueError("sequences: expected at least one token each, got an empty sequence")
        self.labels = np.asarray(labels, dtype=np.int64)
        self.steps = -(-self.lengths // bucket) * bucket if bucket else None
        self._pad = pad
        # One flat array: a batch is then gathered without a loop over its rows.
        self._tokens = np.concatenate([np.zeros(0, np.int32), *sequences]).astype(np.int32)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._padding_index = padding_index

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the examples at `indices` (B,), padded to the longest of them."""
        lengths = self.lengths[indices]
        total = (lengths if self.steps is None else self.steps[indices]).max(initial=0)
        steps = np.arange(total, dtype=np.int64)[:, None]
        if self._pad == "left":
            steps = steps - (total - lengths)
        valid = (steps >= 0) & (steps < lengths)
        positions = np.where(valid, self._starts[indices] + steps, 0)
        inputs = np.where(valid, self._tokens[positions], np.int32(self._padding_index))
        return Batch(inputs, lengths, self.labels[indices])


class FeatureExamples:
    """Labelled sequences of feature vectors, all of one length.

    Args:
        features: float32 (N, T, D).
        labels: int (N,).
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        if features.ndim != 3:
            raise ValueError(f"features: expected 3 axes (N, T, D), got shape {features.shape}")
        if len(features) != len(labels):
            raise ValueError(f"labels: expected {len(features)} of them, got {len(labels)}")
        self._features = np.ascontiguousarray(features, dtype=np.float32)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.lengths = np.full(len(features), features.shape[1], dtype=np.int64)
        self.steps = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the examples at `indices` (B,)."""
        inputs = np.ascontiguousarray(self._features[indices].transpose(1, 0, 2))
        return Batch(inputs, None, self.labels[indices])


def _cut(order: np.ndarray, batch_size: int, steps: np.ndarray | None) -> list[np.ndarray]:
    """Cut an order of examples into batches, each of examples of the same padded length."""
    groups = [order]
    if steps is not None:
        groups = [order[steps[order] == value] for value in np.unique(steps)]
    return [g[i : i + batch_size] for g in groups for i in range(0, len(g), batch_size)]


def shuffled_batches(
    lengths: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    steps: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Cut a shuffled data set into batches of similar lengths, in random order.

    Args:
        lengths: (N,).
        batch_size: examples per batch; one batch, or one of each padded length, may be smaller.
        rng: the only source of randomness, so that equal generators give equal batches.
        steps: padded lengths (N,), equal within each batch; None if any may go together.

    Returns:
        index arrays that together hold 0 .. N-1 once each, as many as `batch_count` says.
    """
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    if steps is not None:
        batches = _cut(order, batch_size, steps)
    else:
        pool = _POOL_BATCHES * batch_size
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            batches += _cut(part[np.argsort(lengths[part], kind="stable")], batch_size, None)
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(
    lengths: np.ndarray, batch_size: int, steps: np.ndarray | None = None
) -> list[np.ndarray]:
    """Cut a data set into batches by length, for evaluation: the least padding, no randomness."""
    return _cut(np.argsort(lengths, kind="stable"), batch_size, steps)


def batch_count(examples: Examples, batch_size: int) -> int:
    """How many batches an epoch has."""
    if examples.steps is None:
        return math.ceil(len(examples) / batch_size)
    _, counts = np.unique(examples.steps, return_counts=True)
    return int(np.sum(-(-counts // batch_size)))


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fraction of every class.

    Args:
        labels: int (N,).
        fraction: share held out, between 0 and 1; 0 holds out nothing.
        seed: of the shuffle.

    Returns:
        (kept, held_out): sorted indices. A class with two members or more keeps at least one,
        and the number held out is `round(fraction * N)` to within one for each class.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction: expected 0 <= fraction < 1, got {fraction}")
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(round(fraction * len(members)), len(members) - 1)
        held.append(members[:count])
    held_out = np.sort(np.concatenate([np.zeros(0, np.int64), *held]))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Deal a shuffled data set into parts with equal shares of every class.

    Args:
        labels: int (N,).
        folds: number of parts, 2 <= folds <= N.
        seed: of the shuffle.

    Returns:
        `folds` sorted index arrays that together hold 0 .. N-1 once each; their sizes differ by
        one at most.
    """
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds: expected between 2 and {len(labels)}, got {folds}")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [np.sort(by_class[start::folds]) for start in range(folds)]
