"""The long short-term memory as a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy.typing as npt

from penstock._lstm import lstm
from penstock.layers._recurrent import RecurrentLayer
from penstock.nn._random import Seed
from penstock.nn.module import Array, no_backprop


class LSTMLayerOutput(NamedTuple):
    """What a call of :class:`LSTM` returns.

    ``y``: (T, B, dirs * H), or (B, T, dirs * H) with ``batch_first``; 0 at padded steps.
    ``h_last``, ``c_last``: (num_layers, B, dirs * H), each layer's states after its last step.
    ``backprop(dy=None, dh_last=None, dc_last=None)`` -> :class:`LSTMLayerGrads`.
    """

    y: Array
    h_last: Array
    c_last: Array
    backprop: Callable[..., LSTMLayerGrads]


class LSTMLayerGrads(NamedTuple):
    """Gradients: ``dx``, ``dh0`` and ``dc0`` as the inputs (the latter even if not given).

    ``dparameters``: arrays by parameter name.
    """

    dx: Array
    dh0: Array
    dc0: Array
    dparameters: dict[str, Array]


class LSTM(RecurrentLayer):
    """A stack of LSTM cells; :func:`penstock.lstm` has the equations.

    Layer i's parameters, with D its input width and H ``hidden_size``, rows in blocks of H in the
    order input, forget, candidate, output:

        layers.i.weight_ih          (dirs, 4 * H, D)
        layers.i.weight_hh          (dirs, 4 * H, H)
        layers.i.bias_ih, .bias_hh  (dirs, 4 * H), unless ``bias`` is False
        layers.i.layer_norm.weight  (D,), with layer normalisation; likewise ``.bias``

    Initial values are uniform within 1 / sqrt(H), as in PyTorch.

    Args:
        input_size: features of the input.
        hidden_size: features of each direction's state.
        num_layers: layers in the stack.
        bias: whether there are biases.
        batch_first: inputs and outputs are (B, T, ·) instead of (T, B, ·).
        dropout: in training, of what goes from one layer to the next, by one mask for all time
            steps.
        weight_dropout: in training, of the elements of ``weight_hh``, by one mask a call
            (DropConnect, as in arXiv 1708.02182).
        bidirectional: also run backwards; outputs are concatenated.
        layer_norm: normalise each layer's input before its weight.
        recompute: as in :class:`penstock.GRU`.
        dtype: float32, float64, float16 or bfloat16.
        seed: int, generator or None (a fresh seed), for initial values and masks.
        device: where the parameters lie, "cpu" or "cuda[:N]".
    """

    _operation = lstm
    _gates = 4
    _states = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bidirectional: bool = False,
        layer_norm: bool = False,
        recompute: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            weight_dropout=weight_dropout,
            bidirectional=bidirectional,
            layer_norm=layer_norm,
            recompute=recompute,
            cell_options={},
            dtype=dtype,
            seed=seed,
            device=device,
        )

    def __call__(
        self,
        x: Array,
        h0: Array | None = None,
        c0: Array | None = None,
        *,
        lengths: Any = None,
        training: bool = False,
        need_grad: bool | None = None,
    ) -> LSTMLayerOutput:
        """Run the stack; see :meth:`penstock.GRU.__call__`. ``c0`` is shaped as ``h0``."""
        y, (h_last, c_last), backward = self._run(x, (h0, c0), lengths, training, need_grad)
        if backward is None:
            return LSTMLayerOutput(y, h_last, c_last, no_backprop)

        def backprop(
            dy: Array | None = None, dh_last: Array | None = None, dc_last: Array | None = None
        ) -> LSTMLayerGrads:
            dx, (dh0, dc0), dparameters = backward(dy, (dh_last, dc_last))
            return LSTMLayerGrads(dx, dh0, dc0, dparameters)

        return LSTMLayerOutput(y, h_last, c_last, backprop)
