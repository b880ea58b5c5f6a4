"""The plain recurrent network as a layer."""

from __future__ import annotations

from typing import Any, Literal

import numpy.typing as npt

from penstock._rnn import rnn
from penstock.layers._recurrent import (
    RecurrentLayer,
    RecurrentLayerOutput,
    check_choice,
    one_state_output,
)
from penstock.nn._random import Seed
from penstock.nn.module import Array


class RNN(RecurrentLayer):
    """A stack of plain recurrent networks; :func:`penstock.rnn` has the equation.

    Layer i's parameters, with D its input width and H ``hidden_size``:

        layers.i.weight_ih          (dirs, H, D)
        layers.i.weight_hh          (dirs, H, H)
        layers.i.bias_ih, .bias_hh  (dirs, H), unless ``bias`` is False
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
        activation: "tanh", "relu" or "identity".
        layer_norm: normalise each layer's input before its weight.
        recompute: as in :class:`penstock.GRU`.
        dtype: float32, float64, float16 or bfloat16.
        seed: int, generator or None (a fresh seed), for initial values and masks.
        device: where the parameters lie, "cpu" or "cuda[:N]".
    """

    _operation = rnn
    _gates = 1

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
        activation: Literal["tanh", "relu", "identity"] = "tanh",
        layer_norm: bool = False,
        recompute: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        device: str = "cpu",
    ) -> None:
        self.activation = check_choice("activation", activation, ("tanh", "relu", "identity"))
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
            cell_options={"activation": self.activation},
            dtype=dtype,
            seed=seed,
            device=device,
        )

    def __call__(
        self,
        x: Array,
        h0: Array | None = None,
        *,
        lengths: Any = None,
        training: bool = False,
        need_grad: bool | None = None,
    ) -> RecurrentLayerOutput:
        """Run the stack; see :meth:`penstock.GRU.__call__` for the arguments."""
        return one_state_output(self._run(x, (h0,), lengths, training, need_grad))
