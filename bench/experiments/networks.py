"""The networks that are compared: ours, and those of torch.nn. All read the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from penstock import SRU, nn, optim
from penstock.training import ModelOptions, SequenceClassifier, register_encoder
from penstock.training.batching import Batch
from torch.nn.functional import cross_entropy, relu

Schedule = Callable[[int], float]


class Network(Protocol):
    """A classifier with its optimiser."""

    def step(self, batch: Batch) -> float:
        """Change the weights by one step of Adam, and return the mean loss."""

    def logits(self, batch: Batch) -> np.ndarray:
        """Scores (B, C) of a batch, without dropout."""

    def save(self) -> Any:
        """A copy of the weights."""

    def restore(self, weights: Any) -> None:
        """Put back what `save` gave."""

    def size(self) -> int:
        """How many weights there are, those of the words aside."""


@register_encoder("qrnn")
def _build_qrnn(options: ModelOptions, seed: int) -> Any:
    """A QRNN whose convolutions see one word, as an SRU: no v, no skip term, h = r tanh(c).

    The published one has its tanh at the candidate, z = tanh(W x) and h = o c.
    """
    return SRU(
        options.input_size,
        options.hidden,
        options.layers,
        dropout=options.dropout,
        activation="tanh",
        skip=False,
        weight_c=False,
        seed=seed,
    )


class Ours:
    """`penstock.training.SequenceClassifier` with Adam."""

    def __init__(
        self, options: ModelOptions, table: np.ndarray, schedule: Schedule, clip: float
    ) -> None:
        self.model = SequenceClassifier(options, embeddings=table)
        self.optimizer = optim.Adam(self.model.parameters(), schedule)
        self.clip = clip

    def step(self, batch: Batch) -> float:
        output = self.model(batch.inputs, lengths=batch.lengths, training=True)
        loss = nn.softmax_cross_entropy(output.y, batch.labels)
        gradients = output.backprop(loss.backprop()).dparameters
        optim.clip_grad_norm(gradients, self.clip)
        self.optimizer.step(gradients)
        return float(loss.loss)

    def logits(self, batch: Batch) -> np.ndarray:
        return np.asarray(self.model(batch.inputs, lengths=batch.lengths).y)

    def save(self) -> Any:
        return {name: np.copy(value) for name, value in self.model.state_dict().items()}

    def restore(self, weights: Any) -> None:
        self.model.load_state_dict(weights)

    def size(self) -> int:
        words = self.model.embedding
        trained = 0 if words is None or words.frozen else words.weight.size
        return self.model.num_parameters() - trained


class Classifier(torch.nn.Module):
    """Embedding, dropout, `encode` (B, W), dropout, linear layer.

    Args:
        options: as of ours; `layers`, `hidden`, `dropout` and `pooling` mean the same.
        table: vectors of the words, float32 (V, D).
    """

    def __init__(self, options: ModelOptions, table: np.ndarray, width: int) -> None:
        super().__init__()
        self.options = options
        self.embedding = torch.nn.Embedding.from_pretrained(
            torch.from_numpy(table.copy()), freeze=options.freeze_embeddings, padding_idx=0
        )
        self.dropout = torch.nn.Dropout(options.dropout)
        self.output = torch.nn.Linear(width, options.classes)

    def encode(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """From x (T, B, D) and lengths (B,) to (B, W)."""
        raise NotImplementedError

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of tokens (T, B), lengths (B,)."""
        encoded = self.encode(self.dropout(self.embedding(tokens)), lengths)
        return self.output(self.dropout(encoded))  # type: ignore[no-any-return]


class Lstm(Classifier):
    """torch.nn.LSTM."""

    def __init__(self, options: ModelOptions, table: np.ndarray) -> None:
        super().__init__(options, table, options.hidden)
        self.lstm = torch.nn.LSTM(
            options.input_size,
            options.hidden,
            options.layers,
            dropout=options.dropout if options.layers > 1 else 0.0,
        )

    def encode(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # Not packed, which is slower on CPUs: padding comes last, so what is before it is the same.
        y, _ = self.lstm(x)
        if self.options.pooling == "last":
            return y[lengths - 1, torch.arange(len(lengths))]
        valid = torch.arange(len(y))[:, None, None] < lengths[None, :, None]
        return torch.where(valid, y, -math.inf).amax(dim=0)


class Cnn(Classifier):
    """Kim's network (arXiv 1408.5882): windows of 3, 4 and 5 words, 100 filters each, maxima."""

    WINDOWS = (3, 4, 5)
    FILTERS = 100

    def __init__(self, options: ModelOptions, table: np.ndarray) -> None:
        super().__init__(options, table, len(self.WINDOWS) * self.FILTERS)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(options.input_size, self.FILTERS, window) for window in self.WINDOWS
        )

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # Dropout acts before the last layer alone, as published.
        encoded = self.encode(self.embedding(tokens), lengths)
        return self.output(self.dropout(encoded))  # type: ignore[no-any-return]

    def encode(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # Zeros around a sentence, so that each window has every word at each of its places.
        edge = max(self.WINDOWS) - 1
        padded = torch.nn.functional.pad(x.permute(1, 2, 0), (edge, edge))
        ends = lengths[:, None, None] + edge
        maxima = []
        for window, convolution in zip(self.WINDOWS, self.convolutions, strict=True):
            y = relu(convolution(padded[:, :, edge - window + 1 :]))
            # Windows that begin behind a sentence see padding alone.
            places = torch.arange(y.shape[2])[None, None, :] + edge - window + 1
            maxima.append(torch.where(places < ends, y, 0.0).amax(dim=2))
        return torch.cat(maxima, dim=1)


class Dcnn(Classifier):
    """Dilated causal convolutions (arXiv 1609.03499): blocks of width 2, at distances 1, 2, 4, ….

    A projection to `hidden` features, then `layers` blocks, each x + relu(convolution(x)); with
    9 of them the last word's features see 512 words. These features are classified.
    """

    def __init__(self, options: ModelOptions, table: np.ndarray) -> None:
        super().__init__(options, table, options.hidden)
        self.inward = torch.nn.Conv1d(options.input_size, options.hidden, 1)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(options.hidden, options.hidden, 2, dilation=2**i)
            for i in range(options.layers)
        )

    def encode(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        y = self.inward(x.permute(1, 2, 0))
        for convolution in self.convolutions:
            past = torch.nn.functional.pad(y, (convolution.dilation[0], 0))
            y = y + relu(convolution(past))
        if self.options.pooling == "last":
            return y[torch.arange(len(lengths)), :, lengths - 1]
        valid = torch.arange(y.shape[2])[None, None, :] < lengths[:, None, None]
        return torch.where(valid, y, -math.inf).amax(dim=2)


PEERS: dict[str, type[Classifier]] = {"torch-lstm": Lstm, "torch-cnn": Cnn, "torch-dcnn": Dcnn}


class Peer:
    """A module of torch with torch's Adam."""

    def __init__(
        self, options: ModelOptions, table: np.ndarray, schedule: Schedule, clip: float
    ) -> None:
        torch.manual_seed(options.seed)
        self.model = PEERS[options.encoder](options, table)
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.weights, lr=0.0)
        self.schedule, self.clip = schedule, clip
        self.steps = 0

    def _score(self, batch: Batch) -> torch.Tensor:
        assert batch.lengths is not None
        lengths = torch.from_numpy(batch.lengths)
        return self.model(torch.from_numpy(batch.inputs), lengths)  # type: ignore[no-any-return]

    def step(self, batch: Batch) -> float:
        self.model.train()
        loss = cross_entropy(self._score(batch), torch.from_numpy(batch.labels))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.steps)
        self.optimizer.step()
        self.steps += 1
        return float(loss.detach())

    def logits(self, batch: Batch) -> np.ndarray:
        self.model.eval()
        with torch.no_grad():
            return self._score(batch).numpy()

    def save(self) -> Any:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def restore(self, weights: Any) -> None:
        self.model.load_state_dict(weights)

    def size(self) -> int:
        trained = self.model.embedding.weight
        words = trained.numel() if trained.requires_grad else 0
        return sum(p.numel() for p in self.weights) - words


def build(options: ModelOptions, table: np.ndarray, schedule: Schedule, clip: float) -> Network:
    """The network that `options.encoder` names, with Adam at the rates of `schedule`."""
    kind = Peer if options.encoder in PEERS else Ours
    return kind(options, table, schedule, clip)
