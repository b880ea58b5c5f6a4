"""The SRU and sliced networks as modules."""

# mypy: disallow-subclassing-any=False
# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from penstock._sliced import RECURRENT_LEVEL, SRU_LEVEL
from penstock.layers import sliced as numpy_sliced
from penstock.layers._recurrent import check_choice
from penstock.layers.init import skip_scale
from penstock.nn._random import check_number, check_probability
from penstock.nn.module import non_negative_int, positive_int
from penstock.torch._functional import lengths_for, sliced, sru
from penstock.torch._recurrent import check_shape, check_tensor


class _Constant(nn.Module):
    """A module with a number ``scale_x`` that is saved, but neither trained nor moved."""

    scale_x: float
    _keeps_scale = True

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._keeps_scale:
            destination[f"{prefix}scale_x"] = torch.tensor(self.scale_x, dtype=torch.float64)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        name = f"{prefix}scale_x"
        value = state_dict.get(name)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not self._keeps_scale:
            return
        if value is None:
            if strict:
                missing_keys.append(name)
            return
        if name in unexpected_keys:
            unexpected_keys.remove(name)
        if torch.as_tensor(value).numel() != 1:
            error_msgs.append(f"{name}: expected one number, got {tuple(value.shape)}")
            return
        self.scale_x = float(value)


def _draw_sru(
    weight: Tensor,
    weight_c: Tensor | None,
    bias: Tensor,
    *,
    skip_factor: float,
    highway_bias: float,
    dropout: float = 0.0,
    rnn_dropout: float = 0.0,
    layer_norm: bool = False,
) -> None:
    """Initial values of one SRU; :mod:`penstock.layers.init` says which."""
    directions, rows, width = weight.shape
    hidden = bias.shape[2]
    with torch.no_grad():
        bound = math.sqrt(3.0 / width)
        weight.uniform_(-bound, bound)
        blocks = weight.view(directions, rows // hidden, hidden, width)
        blocks[:, 0] *= math.sqrt(1.0 - dropout)
        if weight_c is not None:
            blocks[:, 1:3] *= math.sqrt(0.5)
        if blocks.shape[1] == 4:
            blocks[:, 3] *= skip_factor
        if rnn_dropout > 0.0:
            weight *= math.sqrt(1.0 - rnn_dropout)
        if layer_norm:
            weight *= 0.1
        if weight_c is not None:
            bound = math.sqrt(3.0) * math.sqrt(0.5)
            weight_c.uniform_(-bound, bound)
        bias.zero_()
        bias[:, 1] = highway_bias


def _batch(name: str, input: Any, weight: Tensor, input_size: int, batch_first: bool) -> Tensor:
    """Check a module's input and return it as (T, B, D)."""
    check_tensor(name, input, weight)
    if input.dim() != 3 or input.shape[2] != input_size:
        form = "(B, T, input_size)" if batch_first else "(T, B, input_size)"
        raise ValueError(
            f"{name}: expected shape {form} with input_size = {input_size}, got "
            f"{tuple(input.shape)}"
        )
    return input.transpose(0, 1) if batch_first else input


class _SRUCell(_Constant):
    """One layer of a stack: what surrounds one call of :func:`penstock.torch.sru`."""

    def __init__(self, stack: SRU, input_size: int, last: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        dirs, hidden = stack.directions, stack.hidden_size
        output_size = dirs * hidden
        self.dropout = 0.0 if last else stack.dropout
        self.rnn_dropout = stack.rnn_dropout
        blocks = 4 if stack.skip and input_size != output_size else 3
        self.identity_skip = stack.skip and blocks == 3
        self.highway_bias = stack.highway_bias
        self.skip_factor = skip_scale(stack.highway_bias, rescale=stack.rescale, skip=stack.skip)
        # A projection as wide as either side would save nothing, so, as published, there is none.
        projected = 0 < stack.projection_size < min(input_size, output_size)
        width = stack.projection_size if projected else input_size

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight = parameter(dirs, blocks * hidden, width)
        self.weight_c = parameter(dirs, 2, hidden) if stack.use_weight_c else None
        self.bias = parameter(dirs, 2, hidden)
        self.projection = parameter(width, input_size) if projected else None
        self.layer_norm: nn.LayerNorm | None = None
        if stack.use_layer_norm:
            self.layer_norm = nn.LayerNorm(input_size, device=device, dtype=dtype)
        self.scale_x = self.skip_factor if self.identity_skip else 1.0
        self.options: dict[str, Any] = {
            "activation": stack.activation,
            "skip": stack.skip,
            "mask_site": stack.mask_site,
            "direction": "bidirectional" if stack.bidirectional else "forward",
        }

    def reset_parameters(self) -> None:
        _draw_sru(
            self.weight, self.weight_c, self.bias, skip_factor=self.skip_factor,
            highway_bias=self.highway_bias, dropout=self.dropout, rnn_dropout=self.rnn_dropout,
            layer_norm=self.layer_norm is not None,
        )  # fmt: skip
        if self.projection is not None:
            bound = math.sqrt(3.0 / self.projection.shape[1])
            nn.init.uniform_(self.projection, -bound, bound)
        if self.layer_norm is not None:
            self.layer_norm.reset_parameters()

    def forward(self, x: Tensor, c0: Tensor | None, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        mask_c = None
        if self.training and self.dropout > 0.0:
            width = self.bias.shape[0] * self.bias.shape[2]
            mask_c = functional.dropout(self.bias.new_ones((x.shape[1], width)), self.dropout)
        inner = x if self.layer_norm is None else self.layer_norm(x)
        if self.training and self.rnn_dropout > 0.0:
            inner = inner * functional.dropout(x.new_ones(x.shape[1:]), self.rnn_dropout)
        if self.projection is not None:
            inner = functional.linear(inner, self.projection)
        # The weight multiplies the changed input, but the skip term takes the input itself.
        x_skip = x if self.identity_skip and inner is not x else None
        y, c_last = sru(
            inner, self.weight, self.weight_c, self.bias, c0=c0, mask_c=mask_c, x_skip=x_skip,
            scale_x=self.scale_x, **given, **self.options,
        )  # fmt: skip
        return y, c_last


class SRU(nn.Module):
    """A stack of Simple Recurrent Units (arXiv 1709.02755); :func:`penstock.sru` has the equations.

    Parameters, their names and their initial distributions are those of :class:`penstock.SRU`, and
    so is ``state_dict``. A dropout mask is the same at all time steps.

    Args:
        input_size: features of the input.
        hidden_size: features of each direction's state.
        num_layers: layers in the stack.
        batch_first: inputs and outputs are (B, T, ·) instead of (T, B, ·), ``mask_pad`` (B, T).
        bidirectional, dropout, rnn_dropout, layer_norm, projection_size, highway_bias, rescale,
            activation, skip, weight_c, mask_site: see :class:`penstock.SRU`.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        layer_norm: bool = False,
        projection_size: int = 0,
        highway_bias: float = 0.0,
        rescale: bool = True,
        activation: Literal["identity", "tanh", "relu"] = "identity",
        skip: bool = True,
        weight_c: bool = True,
        mask_site: Literal["output", "state"] = "output",
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_layers = positive_int("num_layers", num_layers)
        self.bidirectional = bool(bidirectional)
        self.directions = 2 if bidirectional else 1
        self.output_size = self.directions * self.hidden_size
        self.dropout = check_probability("dropout", dropout)
        self.rnn_dropout = check_probability("rnn_dropout", rnn_dropout)
        self.use_layer_norm = bool(layer_norm)
        self.projection_size = non_negative_int("projection_size", projection_size)
        self.highway_bias = check_number("highway_bias", highway_bias)
        self.rescale = bool(rescale)
        self.activation = check_choice("activation", activation, ("identity", "tanh", "relu"))
        self.skip = bool(skip)
        self.use_weight_c = bool(weight_c)
        self.mask_site = check_choice("mask_site", mask_site, ("output", "state"))
        self.batch_first = bool(batch_first)
        self.layers = nn.ModuleList(
            _SRUCell(
                self,
                self.output_size if i else self.input_size,
                i + 1 == self.num_layers,
                device,
                dtype,
            )
            for i in range(self.num_layers)
        )
        # Where nothing but the operation itself sees x, padding need not be taken out of it.
        self._plain = not layer_norm and all(
            cast(_SRUCell, cell).projection is None for cell in self.layers
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: see :mod:`penstock.layers.init`."""
        for cell in self.layers:
            cast(_SRUCell, cell).reset_parameters()

    def forward(
        self,
        input: Tensor,
        c0: Tensor | None = None,
        *,
        lengths: Any = None,
        mask_pad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the stack.

        Args:
            input: (T, B, input_size), or (B, T, input_size) with ``batch_first``.
            c0: (num_layers, B, dirs * hidden_size), the initial states; zeros if None.
            lengths: (B,) integers, valid steps of each sequence.
            mask_pad: (T, B) bool, or (B, T) with ``batch_first``; true where a step is padding.

        Padded steps carry the state and give 0.

        Returns:
            The output, (T, B, dirs * hidden_size) or (B, T, ·), and the last states, as ``c0``.

        Raises ValueError or TypeError for other shapes and types.
        """
        weight = cast(Tensor, self.layers[0].weight)
        x = _batch("input", input, weight, self.input_size, self.batch_first)
        if c0 is not None:
            shape = (self.num_layers, x.shape[1], self.output_size)
            check_shape("c0", check_tensor("c0", c0, weight), shape)
        if mask_pad is not None:
            if not isinstance(mask_pad, Tensor):
                raise TypeError(f"mask_pad: expected a torch.Tensor, got {type(mask_pad).__name__}")
            check_shape("mask_pad", mask_pad, tuple(input.shape[:2]))
            mask_pad = (mask_pad.transpose(0, 1) if self.batch_first else mask_pad).bool()
        lengths = lengths_for(x, lengths)
        if not self._plain or (self.training and self.rnn_dropout > 0.0):
            x = _without_padding(x, lengths, mask_pad)
        given = {"lengths": lengths, "mask_pad": mask_pad}
        last = []
        for i, cell in enumerate(self.layers):
            x, c_last = cell(x, None if c0 is None else c0[i], given)
            last.append(c_last)
        return (x.transpose(0, 1) if self.batch_first else x), torch.stack(last)

    def extra_repr(self) -> str:
        """The arguments that are not the defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        values = {
            "num_layers": (self.num_layers, 1),
            "bidirectional": (self.bidirectional, False),
            "dropout": (self.dropout, 0.0),
            "rnn_dropout": (self.rnn_dropout, 0.0),
            "layer_norm": (self.use_layer_norm, False),
            "projection_size": (self.projection_size, 0),
            "highway_bias": (self.highway_bias, 0.0),
            "rescale": (self.rescale, True),
            "activation": (self.activation, "identity"),
            "skip": (self.skip, True),
            "weight_c": (self.use_weight_c, True),
            "mask_site": (self.mask_site, "output"),
            "batch_first": (self.batch_first, False),
        }
        return ", ".join(parts + [f"{n}={v!r}" for n, (v, d) in values.items() if v != d])


def _without_padding(x: Tensor, lengths: Tensor | None, mask_pad: Tensor | None) -> Tensor:
    """Zero padded steps of x (T, B, D): what stands there, NaN included, must not matter."""
    padded = mask_pad
    if lengths is not None:
        beyond = torch.arange(x.shape[0], device=x.device)[:, None] >= lengths.to(x.device)
        padded = beyond if padded is None else padded | beyond
    return x if padded is None else x.masked_fill(padded.unsqueeze(2), 0.0)


class _Level(nn.Module):
    """The parameters of one level."""

    def __init__(self, shapes: dict[str, tuple[int, ...] | None], device: Any, dtype: Any) -> None:
        super().__init__()
        for name, shape in shapes.items():
            parameter = None
            if shape is not None:
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, parameter)


class SlicedRNN(_Constant):
    """A recurrent network over slices (arXiv 1807.02291); see :func:`penstock.sliced`.

    Parameters, their names and their initial distributions are those of
    :class:`penstock.SlicedRNN`, and so is ``state_dict``.

    Args:
        input_size: features of the input.
        hidden_size: features of each direction's state.
        slices: how many parts to cut into, level by level; () cuts nothing.
        cell: "gru", "lstm", "rnn" or "sru".
        batch_first: the input is (B, T, ·) instead of (T, B, ·).
        bias, pad, mask, bidirectional, activation, reset, weight_dropout, skip, weight_c,
            highway_bias, rescale, recompute: see :class:`penstock.SlicedRNN`.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        slices: Sequence[int] = (8, 8),
        cell: Literal["rnn", "gru", "lstm", "sru"] = "gru",
        *,
        bias: bool = True,
        pad: Literal["left", "right"] = "left",
        mask: Literal["skip", "none"] = "skip",
        bidirectional: bool = False,
        activation: Literal["tanh", "relu", "identity"] | None = None,
        reset: Literal["after", "before"] = "after",
        weight_dropout: float = 0.0,
        skip: bool = True,
        weight_c: bool = True,
        highway_bias: float = 0.0,
        rescale: bool = True,
        recompute: bool = False,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.slices = numpy_sliced.check_slices("slices", slices)
        self.cell: Any = check_choice("cell", cell, ("gru", "lstm", "rnn", "sru"))
        self.bias = bool(bias)
        self.pad = check_choice("pad", pad, ("left", "right"))
        self.mask = check_choice("mask", mask, ("skip", "none"))
        self.bidirectional = bool(bidirectional)
        self.directions = 2 if bidirectional else 1
        self.output_size = self.directions * self.hidden_size
        if activation is not None:
            if cell == "lstm":
                raise ValueError(
                    f"activation: expected None with the cell 'lstm', got {activation!r}"
                )
            check_choice("activation", activation, ("tanh", "relu", "identity"))
        self.activation = activation
        self.reset = check_choice("reset", reset, ("after", "before"))
        self.weight_dropout = check_probability("weight_dropout", weight_dropout)
        self.skip = bool(skip)
        self.use_weight_c = bool(weight_c)
        self.highway_bias = check_number("highway_bias", highway_bias)
        self.rescale = bool(rescale)
        self.recompute = bool(recompute)
        self.batch_first = bool(batch_first)
        # Which options a cell has is written down once, in the layer for NumPy.
        numpy_sliced.SlicedRNN._check_options(cast(Any, self))
        self._keeps_scale = cell == "sru"
        self.skip_factor = skip_scale(self.highway_bias, rescale=self.rescale, skip=self.skip)
        self.scale_x = self.skip_factor if self._keeps_scale else 1.0
        self.levels = nn.ModuleList(
            _Level(self._shapes(self.output_size if i else self.input_size), device, dtype)
            for i in range(len(self.slices) + 1)
        )
        self.reset_parameters()

    def _shapes(self, width: int) -> dict[str, tuple[int, ...] | None]:
        dirs, hidden = self.directions, self.hidden_size
        if self.cell == "sru":
            blocks = 4 if self.skip and width != self.output_size else 3
            return {
                "weight": (dirs, blocks * hidden, width),
                "weight_c": (dirs, 2, hidden) if self.use_weight_c else None,
                "bias": (dirs, 2, hidden),
            }
        rows = numpy_sliced._GATES[self.cell] * hidden
        bias = (dirs, rows) if self.bias else None
        return {
            "weight_ih": (dirs, rows, width),
            "weight_hh": (dirs, rows, hidden),
            "bias_ih": bias,
            "bias_hh": bias,
        }

    def reset_parameters(self) -> None:
        """Draw all parameters anew: see :class:`penstock.SlicedRNN`."""
        for level in self.levels:
            if self.cell == "sru":
                _draw_sru(
                    cast(Tensor, level.weight), cast("Tensor | None", level.weight_c),
                    cast(Tensor, level.bias), skip_factor=self.skip_factor,
                    highway_bias=self.highway_bias,
                )  # fmt: skip
                continue
            bound = 1.0 / math.sqrt(self.hidden_size)
            for parameter in level.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor, *, lengths: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all levels.

        Args:
            input: (T, B, input_size), or (B, T, input_size) with ``batch_first``. The result
                depends on T, which says how long the parts are: give all batches the same T, or one
                that follows from the sequences' lengths.
            lengths: (B,) integers, valid steps of each sequence: its last ones with ``pad``
                "left", its first ones with "right". They do not count with ``mask`` "none".

        Returns:
            The last state of the uppermost level, (B, dirs * hidden_size), and all levels' last
            states, level 0 first, (parts, B, dirs * hidden_size), or (B, parts, ·) with
            ``batch_first``.

        Raises ValueError or TypeError for other shapes and types.
        """
        names = SRU_LEVEL if self.cell == "sru" else RECURRENT_LEVEL
        levels = [tuple(getattr(level, name) for name in names) for level in self.levels]
        x = _batch("input", input, cast(Tensor, levels[0][0]), self.input_size, self.batch_first)
        if self.training and self.weight_dropout > 0.0:
            levels = [
                (level[0], functional.dropout(level[1], self.weight_dropout), *level[2:])
                for level in levels
            ]
        y, states = sliced(
            self.cell, x, levels, slices=self.slices, lengths=lengths, pad=self.pad,
            mask=self.mask, direction="bidirectional" if self.bidirectional else "forward",
            activation=self.activation, reset=self.reset, skip=self.skip, scale_x=self.scale_x,
            recompute=self.recompute,
        )  # fmt: skip
        if self.batch_first:
            states = tuple(state.transpose(0, 1) for state in states)
        return y, states

    def extra_repr(self) -> str:
        """The arguments that are not the defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}, slices={self.slices}, cell={self.cell!r}"]
        values = {
            "bias": (self.bias, True),
            "pad": (self.pad, "left"),
            "mask": (self.mask, "skip"),
            "bidirectional": (self.bidirectional, False),
            "activation": (self.activation, None),
            "reset": (self.reset, "after"),
            "weight_dropout": (self.weight_dropout, 0.0),
            "skip": (self.skip, True),
            "weight_c": (self.use_weight_c, True),
            "highway_bias": (self.highway_bias, 0.0),
            "rescale": (self.rescale, True),
            "recompute": (self.recompute, False),
            "batch_first": (self.batch_first, False),
        }
        return ", ".join(parts + [f"{n}={v!r}" for n, (v, d) in values.items() if v != d])
