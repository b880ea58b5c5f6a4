"""Initial parameters as the SRU paper's authors publish them (arXiv 1709.02755, version 5).

With D the width that the weight multiplies and a = sqrt(1 + 2 exp(highway_bias)):

    weight     ~ U(-sqrt(3 / D), sqrt(3 / D)), variance 1 / D; then, by blocks of rows:
                 candidate * sqrt(1 - dropout), forget and reset * sqrt(1/2) unless v = 0,
                 skip (K = 4) * a if rescaling; all * sqrt(1 - rnn_dropout), and all * 0.1
                 under layer normalisation before the cell
    weight_c   ~ U(-sqrt 3, sqrt 3) * sqrt(1/2)
    bias       = 0, the reset gate's highway_bias
    scale_x    = a if rescaling with a skip term, else 1
    projection ~ U(-sqrt(3 / D), sqrt(3 / D)), D its own input width
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def skip_scale(highway_bias: float, *, rescale: bool, skip: bool) -> float:
    """The factor a on the skip term that keeps the output's variance at initialisation."""
    return math.sqrt(1.0 + 2.0 * math.exp(highway_bias)) if rescale and skip else 1.0


def uniform_fan_in(
    rng: np.random.Generator, shape: tuple[int, ...], width: int
) -> npt.NDArray[np.float64]:
    """Uniform values of mean 0 and variance 1 / width."""
    bound = math.sqrt(3.0 / width)
    return rng.uniform(-bound, bound, shape)


def sru_weight(
    rng: np.random.Generator,
    *,
    directions: int,
    hidden_size: int,
    width: int,
    blocks: int,
    dropout: float = 0.0,
    rnn_dropout: float = 0.0,
    weight_c: bool = True,
    layer_norm: bool = False,
    skip_factor: float = 1.0,
) -> npt.NDArray[np.float64]:
    """Draw ``weight`` (directions, blocks * hidden_size, width) of one SRU layer.

    Args:
        rng: generator to draw from.
        directions: 1 or 2.
        hidden_size: H.
        width: D, what the weight multiplies.
        blocks: K, 3 or 4.
        dropout: of the layer's output.
        rnn_dropout: of the layer's input.
        weight_c: whether the gates also see the previous state.
        layer_norm: whether the input is layer-normalised.
        skip_factor: on the skip block's rows, if there is one.
    """
    weight = uniform_fan_in(rng, (directions, blocks, hidden_size, width), width)
    weight[:, 0] *= math.sqrt(1.0 - dropout)
    if weight_c:
        weight[:, 1:3] *= math.sqrt(0.5)
    if blocks == 4:
        weight[:, 3] *= skip_factor
    if rnn_dropout > 0.0:
        weight *= math.sqrt(1.0 - rnn_dropout)
    if layer_norm:
        weight *= 0.1
    return weight.reshape(directions, blocks * hidden_size, width)


def sru_weight_c(
    rng: np.random.Generator, directions: int, hidden_size: int
) -> npt.NDArray[np.float64]:
    """Draw ``weight_c`` (directions, 2, hidden_size): v_f and v_r."""
    bound = math.sqrt(3.0)
    return rng.uniform(-bound, bound, (directions, 2, hidden_size)) * math.sqrt(0.5)


def sru_bias(directions: int, hidden_size: int, highway_bias: float) -> npt.NDArray[np.float64]:
    """``bias`` (directions, 2, hidden_size): zeros, and ``highway_bias`` in the reset gate."""
    bias = np.zeros((directions, 2, hidden_size))
    bias[:, 1] = highway_bias
    return bias
