"""Layers around the recurrent ones, and losses, over NumPy and CuPy alike."""

from penstock.nn.dropout import Dropout, DropoutGrads, DropoutOutput
from penstock.nn.embedding import Embedding, EmbeddingGrads, EmbeddingOutput
from penstock.nn.layer_norm import LayerNorm, LayerNormGrads, LayerNormOutput
from penstock.nn.linear import Linear, LinearGrads, LinearOutput
from penstock.nn.losses import (
    LossOutput,
    binary_cross_entropy_with_logits,
    mean_squared_error,
    softmax_cross_entropy,
)
from penstock.nn.module import (
    Layer,
    Sequential,
    SequentialGrads,
    SequentialOutput,
    prefix_gradients,
)
from penstock.nn.row_gradient import RowGradient

__all__ = [
    "Dropout",
    "DropoutGrads",
    "DropoutOutput",
    "Embedding",
    "EmbeddingGrads",
    "EmbeddingOutput",
    "Layer",
    "LayerNorm",
    "LayerNormGrads",
    "LayerNormOutput",
    "Linear",
    "LinearGrads",
    "LinearOutput",
    "LossOutput",
    "RowGradient",
    "Sequential",
    "SequentialGrads",
    "SequentialOutput",
    "binary_cross_entropy_with_logits",
    "mean_squared_error",
    "prefix_gradients",
    "softmax_cross_entropy",
]
