"""Sequence classifiers: embedding or features, a recurrent encoder, pooling, a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from penstock import nn
from penstock.layers import GRU, LSTM, RNN, SRU, SlicedRNN
from penstock.nn.module import no_backprop
from penstock.training.errors import UserError
from penstock.training.pooling import POOLINGS, PoolOutput


@dataclass(frozen=True)
class ModelOptions:
    """What a classifier is built from.

    Attributes:
        classes: number of classes C.
        vocabulary_size: number of tokens V; 0 for sequences of feature vectors.
        input_size: size of an embedding or feature vector, D.
        encoder: a name registered with `register_encoder`.
        hidden: features of one direction of the encoder, H.
        layers: encoder layers.
        bidirectional: whether the encoder runs both ways.
        dropout: probability, on the embeddings, between the encoder's layers and after pooling.
        pooling: "last", "max" or "mean".
        memory: if above 2, forget gates start out remembering for up to this many steps, see
            `spread_forget_biases`; otherwise their biases start as the layer has them.
        slices: of a sliced encoder, see `penstock.SlicedRNN`.
        pad: the side on which sequences are padded; "right" except for encoders that say otherwise.
        bucket: sequences are padded to a multiple of this; 0: to the longest of a batch.
        freeze_embeddings: keep the embeddings as they are given.
        seed: of the initial weights and the dropout masks.
    """

    classes: int
    vocabulary_size: int
    input_size: int
    encoder: str = "sru"
    hidden: int = 128
    layers: int = 2
    bidirectional: bool = False
    dropout: float = 0.0
    pooling: str = "max"
    memory: int = 0
    slices: tuple[int, ...] = ()
    pad: str = "right"
    bucket: int = 0
    freeze_embeddings: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", tuple(self.slices))  # JSON has lists

    @property
    def directions(self) -> int:
        """2 if bidirectional, otherwise 1."""
        return 2 if self.bidirectional else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dict fit for JSON."""
        return asdict(self)


EncoderBuilder = Callable[[ModelOptions, int], Any]
_ENCODERS: dict[str, EncoderBuilder] = {}


def register_encoder(name: str) -> Callable[[EncoderBuilder], EncoderBuilder]:
    """Offer an encoder under `name`, on the command line as ``--model name``.

    The decorated function takes `ModelOptions` and a seed, and returns a layer. The layer is
    called as ``layer(x, lengths=lengths, training=..., need_grad=...)`` with x (T, B, input_size)
    and lengths int (B,) or None, and its output's `y` is (T, B, directions * hidden), which is
    then pooled, or (B, directions * hidden), which is taken as it is.
    """

    def decorate(builder: EncoderBuilder) -> EncoderBuilder:
        if name in _ENCODERS:
            raise ValueError(f"name: {name!r} is registered already")
        _ENCODERS[name] = builder
        return builder

    return decorate


def encoder_names() -> list[str]:
    """Return the names of the registered encoders, sorted."""
    return sorted(_ENCODERS)


def spread_forget_biases(biases: Any, memory: int, rng: np.random.Generator) -> None:
    """Set forget biases, of any shape, to log(u), u uniform between 1 and memory - 1.

    A gate f = sigmoid(bias) forgets over 1 / (1 - f) steps, so that the features' memories then
    range from 2 steps to `memory` (Tallec and Ollivier, arXiv 1804.11188). With biases of 0 every
    feature starts out forgetting half of its state at each step.
    """
    biases[...] = np.log(rng.uniform(1, memory - 1, biases.shape)).astype(biases.dtype)


@register_encoder("sru")
def _build_sru(options: ModelOptions, seed: int) -> Any:
    layer = SRU(
        options.input_size,
        options.hidden,
        options.layers,
        bidirectional=options.bidirectional,
        dropout=options.dropout,
        seed=seed,
    )
    if options.memory > 2:
        rng = np.random.default_rng([seed, 1])
        for index in range(options.layers):
            bias = layer.parameters()[f"layers.{index}.bias"]  # (directions, 2, H): forget, reset
            spread_forget_biases(bias[:, 0], options.memory, rng)
    return layer


_GATED: dict[str, type[GRU] | type[LSTM] | type[RNN]] = {"gru": GRU, "lstm": LSTM, "rnn": RNN}


def _remember(cell: str, parameters: dict[str, Any], prefix: str, memory: int, rng: Any) -> None:
    """Set the biases of one layer's forgetting gates (and inputs') by `spread_forget_biases`.

    The GRU's update gate keeps the state as the LSTM's forget gate does. The latter's input gate
    starts out as its complement.
    """
    if cell == "rnn":
        raise UserError("--memory: the layer rnn has no gates")
    ours, other = (parameters[f"{prefix}.bias_{name}"] for name in ("ih", "hh"))
    size = ours.shape[-1] // (4 if cell == "lstm" else 3)
    gate = slice(size, 2 * size)  # i, f, g, o and r, z, n
    spread_forget_biases(ours[:, gate], memory, rng)
    other[:, gate] = 0
    if cell == "lstm":
        ours[:, :size] = -ours[:, gate]
        other[:, :size] = 0


def _register_plain(cell: str) -> None:
    @register_encoder(cell)
    def build(options: ModelOptions, seed: int) -> Any:
        layer = _GATED[cell](
            options.input_size,
            options.hidden,
            options.layers,
            bidirectional=options.bidirectional,
            dropout=options.dropout,
            seed=seed,
        )
        if options.memory > 2:
            rng = np.random.default_rng([seed, 1])
            for index in range(options.layers):
                _remember(cell, layer.parameters(), f"layers.{index}", options.memory, rng)
        return layer


def _register_sliced(cell: Any) -> None:
    @register_encoder(f"sliced-{cell}")
    def build(options: ModelOptions, seed: int) -> Any:
        if options.layers != 1:
            raise UserError(
                f"--layers: expected 1, since the levels of a sliced layer are its depth, got "
                f"{options.layers}"
            )
        layer = SlicedRNN(
            options.input_size,
            options.hidden,
            options.slices,
            cell,
            pad=options.pad,  # type: ignore[arg-type]
            bidirectional=options.bidirectional,
            seed=seed,
        )
        if options.memory > 2:
            rng = np.random.default_rng([seed, 1])
            for index in range(len(options.slices) + 1):
                if cell == "sru":
                    bias = layer.parameters()[f"levels.{index}.bias"]
                    spread_forget_biases(bias[:, 0], options.memory, rng)
                else:
                    _remember(cell, layer.parameters(), f"levels.{index}", options.memory, rng)
        return layer


for _cell in _GATED:
    _register_plain(_cell)
for _cell in (*_GATED, "sru"):
    _register_sliced(_cell)


class ClassifierOutput(NamedTuple):
    """`y`: logits (B, C). `backprop(dy)` returns `ClassifierGrads`."""

    y: Any
    backprop: Callable[..., ClassifierGrads]


class ClassifierGrads(NamedTuple):
    """`dx`: gradient of features (T, B, D), None for tokens. `dparameters`: name -> gradient."""

    dx: Any
    dparameters: dict[str, Any]


class SequenceClassifier(nn.Layer):
    """Embedding (of tokens), dropout, encoder, pooling over time, dropout, linear layer.

    Args:
        options: see `ModelOptions`.
        embeddings: initial embeddings, float32 (V, D); None draws them from N(0, 1), the unit
            variance that the SRU's published initialisation expects of its input.

    Raises:
        UserError: the encoder or the pooling is unknown.
        ValueError: `embeddings` has the wrong shape.
    """

    def __init__(self, options: ModelOptions, embeddings: np.ndarray | None = None) -> None:
        super().__init__()
        if options.encoder not in _ENCODERS:
            raise UserError(
                f"--model: expected one of {', '.join(encoder_names())}, got {options.encoder!r}"
            )
        if options.pooling not in POOLINGS:
            raise UserError(
                f"--pooling: expected one of {', '.join(POOLINGS)}, got {options.pooling!r}"
            )
        self.options = options
        # One seed a part, so that a change of one part leaves the others' weights alone.
        seeds = [int(s) for s in np.random.SeedSequence(options.seed).generate_state(5)]
        width = options.directions * options.hidden
        self.embedding: nn.Embedding | None = None
        if options.vocabulary_size:
            self.embedding = nn.Embedding(
                options.vocabulary_size,
                options.input_size,
                padding_idx=0,
                frozen=options.freeze_embeddings,
                weight=embeddings,
                seed=seeds[0],
            )
        # Pixels and other features are few: to drop some of them would hide the input.
        self.input_dropout = nn.Dropout(
            options.dropout if options.vocabulary_size else 0.0, seed=seeds[1]
        )
        self.encoder = _ENCODERS[options.encoder](options, seeds[2])
        self.output_dropout = nn.Dropout(options.dropout, seed=seeds[3])
        self.output = nn.Linear(width, options.classes, seed=seeds[4])

    def __call__(
        self,
        x: Any,
        *,
        lengths: Any = None,
        training: bool = False,
        need_grad: bool | None = None,
    ) -> ClassifierOutput:
        """Score a batch.

        Args:
            x: token numbers int (T, B), or features float32 (T, B, D); T >= 1.
            lengths: int (B,), valid steps of each sequence, at least 1; None means T.
            training: apply dropout.
            need_grad: keep what `backprop` needs; None means `training`.
        """
        need = training if need_grad is None else need_grad
        mode = {"training": training, "need_grad": need}
        embedded = None if self.embedding is None else self.embedding(x, **mode)
        dropped = self.input_dropout(x if embedded is None else embedded.y, **mode)
        encoded = self.encoder(dropped.y, lengths=lengths, **mode)
        pooled = (
            POOLINGS[self.options.pooling](encoded.y, lengths, self.options.directions)
            if encoded.y.ndim == 3
            else PoolOutput(encoded.y, lambda dy: dy)
        )
        thinned = self.output_dropout(pooled.y, **mode)
        logits = self.output(thinned.y, **mode)
        if not need:
            return ClassifierOutput(logits.y, no_backprop)

        def backprop(dy: Any) -> ClassifierGrads:
            output = logits.backprop(dy)
            encoder = encoded.backprop(pooled.backprop(thinned.backprop(output.dx).dx))
            gradients = nn.prefix_gradients(encoder=encoder.dparameters, output=output.dparameters)
            if embedded is None:
                return ClassifierGrads(dropped.backprop(encoder.dx).dx, gradients)
            if not self.options.freeze_embeddings:
                words = embedded.backprop(dropped.backprop(encoder.dx).dx)
                gradients.update(nn.prefix_gradients(embedding=words.dparameters))
            return ClassifierGrads(None, gradients)

        return ClassifierOutput(logits.y, backprop)
