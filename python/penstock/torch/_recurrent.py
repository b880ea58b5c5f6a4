"""Modules in place of torch.nn.RNN, GRU and LSTM."""

# mypy: disallow-subclassing-any=False
# mypy: allow-untyped-calls

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from penstock.layers._recurrent import check_choice
from penstock.nn._random import check_number
from penstock.nn.module import positive_int
from penstock.torch._functional import gru, lengths_for, lstm, rnn

_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _check_dropout(dropout: Any, num_layers: int) -> float:
    if isinstance(dropout, bool):
        raise TypeError(f"dropout: expected a number from 0 to 1, got {dropout}")
    value = check_number("dropout", dropout, "a number from 0 to 1")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"dropout: expected a number from 0 to 1, got {dropout}")
    if value > 0.0 and num_layers == 1:
        warnings.warn(
            f"dropout: {dropout} has no effect, since it lies between layers, of which there is 1",
            stacklevel=4,
        )
    return value


def _check_flag(name: str, value: Any) -> bool:
    """Arguments by position are easily one off: torch.nn.RNN has one more than the others."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r:.50}")
    return value


def _check_no_projection(proj_size: Any) -> None:
    if proj_size != 0:
        raise ValueError(
            f"proj_size: expected 0, since there is no LSTM with projections here, got {proj_size}"
        )


def check_tensor(name: str, value: Any, weight: Tensor) -> Tensor:
    """Check that ``value`` is a tensor of the weights' type, or that autocast makes it one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype != weight.dtype and not torch.is_autocast_enabled(value.device.type):
        raise TypeError(f"{name}: expected {weight.dtype}, as the weights, got {value.dtype}")
    return value


def check_shape(name: str, value: Tensor, shape: tuple[Any, ...]) -> None:
    """Check a tensor's shape."""
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}")


class _Packed:
    """Where the rows of a PackedSequence stand in a padded batch (T, B, ·)."""

    def __init__(self, packed: PackedSequence) -> None:
        sizes = packed.batch_sizes
        self.steps, self.batch = int(sizes.shape[0]), int(sizes[0])
        self.lengths: Tensor | None = None
        self.rows: Tensor | None = None
        if packed.data.shape[0] != self.steps * self.batch:
            valid = torch.arange(self.batch, device=sizes.device) < sizes[:, None]
            self.lengths = valid.sum(0).to(packed.data.device)
            self.rows = valid.flatten().nonzero()[:, 0].to(packed.data.device)

    def pad(self, data: Tensor) -> Tensor:
        """(rows, ·) as (T, B, ·), 0 elsewhere."""
        if self.rows is not None:
            padded = data.new_zeros((self.steps * self.batch, data.shape[1]))
            data = padded.index_copy(0, self.rows, data)
        return data.reshape(self.steps, self.batch, data.shape[1])

    def pack(self, padded: Tensor) -> Tensor:
        """The inverse."""
        flat = padded.reshape(self.steps * self.batch, padded.shape[2])
        return flat if self.rows is None else flat.index_select(0, self.rows)


class _Recurrent(nn.Module):
    """What RNN, GRU and LSTM have in common: parameters, stacking, forms of input."""

    __constants__: ClassVar[list[str]] = [
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
        "bidirectional", "proj_size",
    ]  # fmt: skip
    _function: ClassVar[Callable[..., Any]]
    _gates: ClassVar[int]
    _states: ClassVar[tuple[str, ...]] = ("h0",)

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        recompute: bool,
        options: dict[str, Any],
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_layers = positive_int("num_layers", num_layers)
        self.bias = _check_flag("bias", bias)
        self.batch_first = _check_flag("batch_first", batch_first)
        self.dropout = _check_dropout(dropout, num_layers)
        self.bidirectional = bool(bidirectional)
        self.recompute = bool(recompute)
        self.proj_size = 0
        directions = 2 if bidirectional else 1
        self._options = {
            **options,
            "direction": "bidirectional" if bidirectional else "forward",
            "recompute": self.recompute,
        }
        kinds = _KINDS if bias else _KINDS[:2]
        # Names of each layer's parameters: for each kind, one a direction.
        self._names: list[tuple[tuple[str, ...], ...]] = []
        for layer in range(self.num_layers):
            suffixes = [f"_l{layer}", f"_l{layer}_reverse"][:directions]
            rows = self._gates * self.hidden_size
            width = self.input_size if layer == 0 else directions * self.hidden_size
            shapes = ((rows, width), (rows, self.hidden_size), (rows,), (rows,))
            for suffix in suffixes:
                for kind, shape in zip(kinds, shapes, strict=False):
                    empty = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(kind + suffix, nn.Parameter(empty))
            self._names.append(tuple(tuple(kind + s for s in suffixes) for kind in kinds))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, the numbers that torch.nn draws: U(±1 / sqrt(hidden_size))."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing: parameters may lie anywhere. For programs that call it of torch.nn's modules."""

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """Lists of parameters, one for each layer and direction."""
        return [
            [getattr(self, names[d]) for names in layer]
            for layer in self._names
            for d in range(2 if self.bidirectional else 1)
        ]

    def _weights(self, layer: int) -> list[Tensor]:
        """A layer's parameters as the functions take them, both directions in one tensor."""
        if not self.bidirectional:
            return [getattr(self, names[0]).unsqueeze(0) for names in self._names[layer]]
        return [torch.stack([getattr(self, n) for n in names]) for names in self._names[layer]]

    def _run(
        self,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        lengths: Any,
        drop: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the stack over x (T, B, D); states and last states (num_layers * dirs, B, H)."""
        directions = 2 if self.bidirectional else 1
        batch, hidden = x.shape[1], self.hidden_size
        last: list[list[Tensor]] = [[] for _ in self._states]
        lengths = lengths_for(x, lengths)
        for layer in range(self.num_layers):
            given: dict[str, Tensor] = {}
            if states is not None:
                first = layer * directions
                for name, state in zip(self._states, states, strict=True):
                    own = state[first : first + directions]
                    given[name] = own.transpose(0, 1).reshape(batch, directions * hidden)
            x, *ends = type(self)._function(
                x, *self._weights(layer), lengths=lengths, **given, **self._options
            )
            for found, end in zip(last, ends, strict=True):
                if directions == 1:
                    found.append(end.unsqueeze(0))
                else:
                    found.append(end.view(batch, 2, hidden).transpose(0, 1))
            if layer + 1 < self.num_layers:
                x = drop(x)
        one = self.num_layers == 1
        return x, tuple(ends[0].contiguous() if one else torch.cat(ends) for ends in last)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)

    def _forward(
        self, input: Any, states: tuple[Any, ...] | None, lengths: Any
    ) -> tuple[Any, tuple[Tensor, ...]]:
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths: expected None with a PackedSequence, which has its own")
            return self._forward_packed(input, states)
        weight = getattr(self, self._names[0][0][0])
        check_tensor("input", input, weight)
        if input.dim() not in (2, 3):
            raise ValueError(f"input: expected 2 or 3 axes, got shape {tuple(input.shape)}")
        if input.shape[-1] != self.input_size:
            raise ValueError(
                f"input: expected input_size = {self.input_size} features, got shape "
                f"{tuple(input.shape)}"
            )
        batched = input.dim() == 3
        if not batched:
            if lengths is not None:
                raise ValueError("lengths: expected None with an unbatched input of 2 axes")
            x = input.unsqueeze(1)
        else:
            x = input.transpose(0, 1) if self.batch_first else input
        y, last = self._run(
            x, self._checked(states, x.shape[1], weight, batched), lengths, self._drop
        )
        if not batched:
            return y.squeeze(1), tuple(state.squeeze(1) for state in last)
        return (y.transpose(0, 1) if self.batch_first else y), last

    def _forward_packed(
        self, input: PackedSequence, states: tuple[Any, ...] | None
    ) -> tuple[PackedSequence, tuple[Tensor, ...]]:
        weight = getattr(self, self._names[0][0][0])
        data, sizes, order, inverse = input
        check_tensor("input.data", data, weight)
        if data.dim() != 2 or data.shape[1] != self.input_size:
            raise ValueError(
                f"input: expected input_size = {self.input_size} features, got data of shape "
                f"{tuple(data.shape)}"
            )
        places = _Packed(input)
        states = self._checked(states, places.batch, weight, True)
        if states is not None and order is not None:
            states = tuple(state.index_select(1, order) for state in states)

        def drop(x: Tensor) -> Tensor:  # draws as many numbers as torch.nn does
            if self.dropout == 0.0 or not self.training:
                return x
            return places.pad(self._drop(places.pack(x)))

        y, last = self._run(places.pad(data), states, places.lengths, drop)
        if inverse is not None:
            last = tuple(state.index_select(1, inverse) for state in last)
        return PackedSequence(places.pack(y), sizes, order, inverse), last

    def _checked(
        self, states: tuple[Any, ...] | None, batch: Any, weight: Tensor, batched: bool
    ) -> tuple[Tensor, ...] | None:
        """Initial states (num_layers * dirs, B, H) from those given."""
        if states is None:
            return None
        rows = self.num_layers * (2 if self.bidirectional else 1)
        shape = (rows, batch, self.hidden_size) if batched else (rows, self.hidden_size)
        names = ("hx",) if len(states) == 1 else ("hx[0]", "hx[1]")
        for name, state in zip(names, states, strict=True):
            check_shape(name, check_tensor(name, state, weight), shape)
        return states if batched else tuple(state.unsqueeze(1) for state in states)

    def extra_repr(self) -> str:
        """The arguments that are not the defaults, as torch.nn writes them."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
                    "bidirectional": False, "recompute": False}  # fmt: skip
        values = {name: getattr(self, name) for name in defaults}
        parts += [f"{n}={v}" for n, v in values.items() if v != defaults[n]]
        own = {"activation": "tanh", "reset": "after"}
        parts += [
            f"{n}={self._options[n]!r}" for n in own if self._options.get(n, own[n]) != own[n]
        ]
        return ", ".join(parts)


class RNN(_Recurrent):
    """``torch.nn.RNN``: the same arguments, parameters, results and random numbers.

    :func:`penstock.rnn` has the equations.

    Args:
        input_size: features of the input.
        hidden_size: features of the state.
        num_layers: layers in the stack.
        nonlinearity: "tanh" or "relu" as in torch.nn, or "identity".
        bias: whether there are biases.
        batch_first: inputs and outputs are (B, T, ·) instead of (T, B, ·).
        dropout: in training, of what goes from one layer to the next.
        bidirectional: also run backwards; outputs are concatenated.
        device, dtype: of the parameters.
        recompute: keep only the states for the backward pass.
    """

    _function = staticmethod(rnn)
    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu", "identity"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        recompute: bool = False,
    ) -> None:
        check_choice("nonlinearity", nonlinearity, ("tanh", "relu", "identity"))
        _check_no_projection(proj_size)
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first,
            dropout, bidirectional, recompute, {"activation": nonlinearity}, device, dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity

    def forward(
        self, input: Any, hx: Tensor | None = None, *, lengths: Any = None
    ) -> tuple[Any, Tensor]:
        """Run the stack.

        Args:
            input: (T, B, input_size), (B, T, input_size) with ``batch_first``, (T, input_size), or
                a PackedSequence.
            hx: (num_layers * dirs, B, hidden_size), or without B; zeros if None.
            lengths: (B,) integers, valid steps of each sequence of a padded batch; what follows
                carries the state and gives 0.

        Returns:
            The output, (T, B, dirs * hidden_size) or in the input's form, and the last states, as
            ``hx``.

        Raises ValueError or TypeError for other shapes and types.
        """
        y, (h_last,) = self._forward(input, None if hx is None else (hx,), lengths)
        return y, h_last


class GRU(_Recurrent):
    """``torch.nn.GRU``: the same arguments, parameters, results and random numbers.

    :func:`penstock.gru` has the equations.

    Args:
        input_size: features of the input.
        hidden_size: features of the state.
        num_layers: layers in the stack.
        bias: whether there are biases.
        batch_first: inputs and outputs are (B, T, ·) instead of (T, B, ·).
        dropout: in training, of what goes from one layer to the next.
        bidirectional: also run backwards; outputs are concatenated.
        device, dtype: of the parameters.
        activation: of the candidate, "tanh" as in torch.nn, "relu" or "identity".
        reset: "after" as in torch.nn, or "before".
        recompute: keep only the states for the backward pass.
    """

    _function = staticmethod(gru)
    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        activation: Literal["tanh", "relu", "identity"] = "tanh",
        reset: Literal["after", "before"] = "after",
        recompute: bool = False,
    ) -> None:
        check_choice("activation", activation, ("tanh", "relu", "identity"))
        check_choice("reset", reset, ("after", "before"))
        _check_no_projection(proj_size)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            recompute, {"activation": activation, "reset": reset}, device, dtype,
        )  # fmt: skip

    def forward(
        self, input: Any, hx: Tensor | None = None, *, lengths: Any = None
    ) -> tuple[Any, Tensor]:
        """Run the stack; see :meth:`RNN.forward`."""
        y, (h_last,) = self._forward(input, None if hx is None else (hx,), lengths)
        return y, h_last


class LSTM(_Recurrent):
    """``torch.nn.LSTM``: the same arguments, parameters, results and random numbers.

    :func:`penstock.lstm` has the equations. There are no projections: ``proj_size`` must be 0.

    Args:
        input_size: features of the input.
        hidden_size: features of the state.
        num_layers: layers in the stack.
        bias: whether there are biases.
        batch_first: inputs and outputs are (B, T, ·) instead of (T, B, ·).
        dropout: in training, of what goes from one layer to the next.
        bidirectional: also run backwards; outputs are concatenated.
        proj_size: 0.
        device, dtype: of the parameters.
        recompute: keep only the states for the backward pass.
    """

    _function = staticmethod(lstm)
    _gates = 4
    _states = ("h0", "c0")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        _check_no_projection(proj_size)
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            recompute, {}, device, dtype,
        )  # fmt: skip

    def forward(
        self, input: Any, hx: tuple[Tensor, Tensor] | None = None, *, lengths: Any = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run the stack; see :meth:`RNN.forward`. ``hx`` and the last states are (h, c)."""
        if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            raise TypeError(f"hx: expected a tuple (h, c), got {type(hx).__name__}")
        y, (h_last, c_last) = self._forward(input, None if hx is None else tuple(hx), lengths)
        return y, (h_last, c_last)
