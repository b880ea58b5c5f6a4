"""What the layers GRU, LSTM and RNN have in common: stacking, dropout, normalisation, states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from penstock._arrays import array_module, caller_of, host_lengths
from penstock.layers._stack import Cells, two_generators, without_padding
from penstock.nn._random import Seed, check_probability, dropout_mask
from penstock.nn.layer_norm import LayerNorm
from penstock.nn.module import (
    Array,
    Layer,
    check_gradient,
    check_input,
    no_backprop,
    positive_int,
    resolve_dtype,
)

#: Gradients of the input, of the initial states and of the parameters.
Step = Callable[[Any, tuple[Any, ...]], tuple[Array, tuple[Array, ...], dict[str, Array]]]


class RecurrentLayerOutput(NamedTuple):
    """What a call of :class:`penstock.GRU` or :class:`penstock.RNN` returns.

    ``y``: (T, B, dirs * H), or (B, T, dirs * H) with ``batch_first``; 0 at padded steps.
    ``h_last``: (num_layers, B, dirs * H), each layer's state after its last step.
    ``backprop(dy=None, dh_last=None)`` -> :class:`RecurrentLayerGrads`.
    """

    y: Array
    h_last: Array
    backprop: Callable[..., RecurrentLayerGrads]


class RecurrentLayerGrads(NamedTuple):
    """Gradients: ``dx`` and ``dh0`` as the inputs (``dh0`` also if no ``h0`` was given).

    ``dparameters``: arrays by parameter name.
    """

    dx: Array
    dh0: Array
    dparameters: dict[str, Array]


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """Return ``value`` after checking that it is one of a few words; ValueError otherwise."""
    if not isinstance(value, str) or value not in allowed:
        words = [repr(word) for word in allowed]
        expected = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return value


def add_weights(
    layer: Layer,
    rng: np.random.Generator,
    *,
    gates: int,
    directions: int,
    hidden_size: int,
    width: int,
    bias: bool,
    dtype: np.dtype[Any],
) -> None:
    """Give a layer the parameters of one cell, drawn as PyTorch draws them: U(±1 / sqrt(H)).

    Adds weight_ih (dirs, G * H, width) and weight_hh (dirs, G * H, H) and, with ``bias``, bias_ih
    and bias_hh (dirs, G * H), where G is ``gates`` and H ``hidden_size``.
    """
    bound = 1.0 / math.sqrt(hidden_size)
    rows = (directions, gates * hidden_size)
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (*rows, width),
        "weight_hh": (*rows, hidden_size),
    }
    if bias:
        shapes |= {"bias_ih": rows, "bias_hh": rows}
    for name, shape in shapes.items():
        layer._add_parameter(name, rng.uniform(-bound, bound, shape).astype(dtype))


def stack(xp: Any, arrays: Sequence[Array]) -> Array:
    """``xp.stack``, without a copy of a single array: one step takes some microseconds."""
    return arrays[0][None] if len(arrays) == 1 else xp.stack(arrays)


class DroppedWeight:
    """A recurrent weight of which some elements are 0 in one training step (DropConnect).

    Attributes:
        value: what to compute with.
    """

    def __init__(self, weight: Array, p: float, rng: np.random.Generator, training: bool) -> None:
        self._mask: Array | None = None
        self.value = weight
        if training and p > 0.0:
            self._mask = dropout_mask(rng, p, weight.shape, weight, weight.dtype)
            self.value = weight * self._mask

    def gradient(self, dvalue: Array) -> Array:
        """The weight's gradient from that of ``value``."""
        return dvalue if self._mask is None else dvalue * self._mask


class _Cell(Layer):
    """One layer of a stack: what surrounds one call of the operation."""

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        operation: Callable[..., Any],
        gates: int,
        states: tuple[str, ...],
        input_size: int,
        hidden_size: int,
        directions: int,
        bias: bool,
        input_dropout: float,
        weight_dropout: float,
        layer_norm: bool,
        options: dict[str, Any],
        dtype: np.dtype[Any],
    ) -> None:
        super().__init__()
        self.operation = operation
        self.states = states
        self.input_dropout = input_dropout
        self.weight_dropout = weight_dropout
        add_weights(
            self,
            rng,
            gates=gates,
            directions=directions,
            hidden_size=hidden_size,
            width=input_size,
            bias=bias,
            dtype=dtype,
        )
        self.layer_norm: LayerNorm | None = None
        if layer_norm:
            self.layer_norm = LayerNorm(input_size, dtype=dtype)
        self.options = options
        self.inference_options = {**options, "need_grad": False}
        self._refresh()

    def _refresh(self) -> None:
        p = self._parameters
        self.args = (p["weight_ih"], p["weight_hh"], p.get("bias_ih"), p.get("bias_hh"))

    def run(
        self,
        x: Array,
        states: dict[str, Any],
        lengths: Any,
        *,
        rng: np.random.Generator,
        training: bool,
        need: bool,
    ) -> tuple[Array, tuple[Array, ...], Step]:
        """Run over ``x`` (T, B, D); returns y, the last states and a backward step."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.args
        inner = x
        normed = None
        if self.layer_norm is not None:
            normed = self.layer_norm(inner, need_grad=need)
            inner = normed.y
        mask_x: Array | None = None
        if training and self.input_dropout > 0.0:
            # One mask for all steps, as Gal and Ghahramani have it (arXiv 1512.05287).
            mask_x = dropout_mask(rng, self.input_dropout, x.shape[1:], x, x.dtype)
            inner = inner * mask_x
        recurrent = DroppedWeight(weight_hh, self.weight_dropout, rng, training)
        out: Any = self.operation(
            inner,
            weight_ih,
            recurrent.value,
            bias_ih,
            bias_hh,
            lengths=lengths,
            need_grad=need,
            **states,
            **self.options,
        )
        last = tuple(out[1:-1])

        def step(
            dy: Any, dlast: tuple[Any, ...]
        ) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
            grads = out.backprop(dy, *dlast)
            gradients = {
                "weight_ih": grads.dweight_ih,
                "weight_hh": recurrent.gradient(grads.dweight_hh),
            }
            if bias_ih is not None:
                gradients["bias_ih"] = grads.dbias_ih
                gradients["bias_hh"] = grads.dbias_hh
            dx = grads.dx
            if mask_x is not None:
                dx = dx * mask_x
            if normed is not None:
                below = normed.backprop(dx)
                dx = below.dx
                for name, gradient in below.dparameters.items():
                    gradients[f"layer_norm.{name}"] = gradient
            return dx, tuple(getattr(grads, f"d{name}0") for name in self.states), gradients

        return out.y, last, step


class RecurrentLayer(Layer):
    """Base of the stacked layers whose cells mix the state through a matrix.

    A subclass names the operation of :mod:`penstock`, the number of its gates and its states.
    """

    _operation: ClassVar[Callable[..., Any]]
    _gates: ClassVar[int]
    _states: ClassVar[tuple[str, ...]] = ("h",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bias: bool,
        batch_first: bool,
        dropout: float,
        weight_dropout: float,
        bidirectional: bool,
        layer_norm: bool,
        recompute: bool,
        cell_options: dict[str, Any],
        dtype: npt.DTypeLike,
        seed: Seed,
        device: str,
    ) -> None:
        super().__init__()
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_layers = positive_int("num_layers", num_layers)
        self.bidirectional = bool(bidirectional)
        self.directions = 2 if bidirectional else 1
        self.output_size = self.directions * self.hidden_size
        self.bias = bool(bias)
        self.batch_first = bool(batch_first)
        self.dropout = check_probability("dropout", dropout)
        self.weight_dropout = check_probability("weight_dropout", weight_dropout)
        self.use_layer_norm = bool(layer_norm)
        self.recompute = bool(recompute)
        kind = resolve_dtype(dtype)
        self.dtype = kind.name
        self._cell_options = cell_options

        initial, self._rng = two_generators(seed)
        self._add_rng("rng", self._rng)
        options = {
            **cell_options,
            "direction": "bidirectional" if bidirectional else "forward",
            "recompute": self.recompute,
        }
        self._cells = [
            _Cell(
                initial,
                operation=type(self)._operation,
                gates=self._gates,
                states=self._states,
                input_size=self.input_size if i == 0 else self.output_size,
                hidden_size=self.hidden_size,
                directions=self.directions,
                bias=self.bias,
                input_dropout=self.dropout if i > 0 else 0.0,
                weight_dropout=self.weight_dropout,
                layer_norm=self.use_layer_norm,
                options=options,
                dtype=kind,
            )
            for i in range(self.num_layers)
        ]
        self.layers = Cells(self._cells)
        if device != "cpu":
            self.to(device)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments but seed and device: ``GRU(**layer.config())``."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "weight_dropout": self.weight_dropout,
            "bidirectional": self.bidirectional,
            "layer_norm": self.use_layer_norm,
            "recompute": self.recompute,
            **self._cell_options,
            "dtype": self.dtype,
        }

    def _run(
        self,
        x: Array,
        states: tuple[Any, ...],
        lengths: Any,
        training: bool,
        need_grad: bool | None,
    ) -> tuple[Array, tuple[Array, ...], Step | None]:
        """Run the stack; the backward step is None if nothing was kept for it."""
        need = training if need_grad is None else need_grad
        if not (need or training or self.batch_first or self.use_layer_norm):
            return self._infer(x, states, lengths)
        xp = self._check_input(x)
        weight = self._cells[0].args[0]
        shape = tuple(x.shape)
        h = x.transpose(1, 0, 2) if self.batch_first else x
        batch = h.shape[1]
        names = [f"{name}0" for name in self._states]
        self._check_states(names, states, batch)
        if lengths is not None:  # once for all layers: on a GPU, each time is a copy
            lengths = host_lengths(lengths, h, caller_of(h))
            if self.use_layer_norm:
                h = without_padding(xp, h, lengths)

        steps: list[Step] = []
        last: list[tuple[Array, ...]] = []
        for i, cell in enumerate(self._cells):
            given = {n: None if s is None else s[i] for n, s in zip(names, states, strict=True)}
            h, ends, step = cell.run(h, given, lengths, rng=self._rng, training=training, need=need)
            last.append(ends)
            steps.append(step)
        y = h.transpose(1, 0, 2) if self.batch_first else h
        stacked = tuple(stack(xp, ends) for ends in zip(*last, strict=True))
        if not need:
            return y, stacked, None
        y_shape = tuple(y.shape)

        def backward(
            dy: Any, dlast: tuple[Any, ...]
        ) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
            dh: Any = dy
            if dy is not None:
                check_gradient("dy", dh, weight, y_shape)
                dh = dh.transpose(1, 0, 2) if self.batch_first else dh
            self._check_states([f"d{name}_last" for name in self._states], dlast, batch)
            dstates: list[tuple[Array, ...]] = []
            found: list[dict[str, Array]] = []
            for i in reversed(range(len(steps))):
                dh, dstart, gradients = steps[i](
                    dh, tuple(None if d is None else d[i] for d in dlast)
                )
                dstates.append(dstart)
                found.append(gradients)
            dx = dh.transpose(1, 0, 2) if self.batch_first else dh
            starts = tuple(stack(xp, d[::-1]) for d in zip(*dstates, strict=True))
            dparameters = {
                f"layers.{i}.{name}": gradient
                for i, gradients in enumerate(reversed(found))
                for name, gradient in gradients.items()
            }
            return dx.reshape(shape), starts, dparameters

        return y, stacked, backward

    def _infer(
        self, x: Array, states: tuple[Any, ...], lengths: Any
    ) -> tuple[Array, tuple[Array, ...], None]:
        """Inference without anything around the cells.

        One step of one sequence takes some microseconds, so checks here are the cheapest that
        find an error; what they find is then described by the full ones.
        """
        cells = self._cells
        shape: tuple[int, ...] = getattr(x, "shape", ())
        if len(shape) != 3 or shape[2] != self.input_size or x.dtype != cells[0].args[0].dtype:
            self._check_input(x)
        names = [f"{name}0" for name in self._states]
        expected = (self.num_layers, shape[1], self.output_size)
        for state in states:
            if state is not None and getattr(state, "shape", None) != expected:
                self._check_states(names, states, shape[1])
        last: list[tuple[Array, ...]] = []
        y = x
        for i, cell in enumerate(cells):
            given = {n: None if s is None else s[i] for n, s in zip(names, states, strict=True)}
            out = cell.operation(y, *cell.args, lengths=lengths, **given, **cell.inference_options)
            y = out[0]
            last.append(out[1:-1])
        xp = array_module(y)
        return y, tuple(stack(xp, ends) for ends in zip(*last, strict=True)), None

    def _check_input(self, x: Any) -> Any:
        """Check x and return its array library."""
        xp = check_input("x", x, self._cells[0].args[0], self.input_size)
        if x.ndim != 3:
            raise ValueError(f"x: expected three axes, got shape {tuple(x.shape)}")
        return xp

    def _check_states(self, names: list[str], states: tuple[Any, ...], batch: int) -> None:
        expected = (self.num_layers, batch, self.output_size)
        for name, state in zip(names, states, strict=True):
            if state is not None:
                check_gradient(name, state, self._cells[0].args[0], expected)

    def __repr__(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"]
        defaults = {"bidirectional": False, "dropout": 0.0, "dtype": "float32"}
        config = self.config()
        parts += [f"{k}={config[k]!r}" for k, v in defaults.items() if config[k] != v]
        return f"{type(self).__name__}({', '.join(parts)})"


def one_state_output(
    result: tuple[Array, tuple[Array, ...], Step | None],
) -> RecurrentLayerOutput:
    """The output of a layer whose only state is h."""
    y, (h_last,), backward = result
    if backward is None:
        return RecurrentLayerOutput(y, h_last, no_backprop)

    def backprop(dy: Array | None = None, dh_last: Array | None = None) -> RecurrentLayerGrads:
        dx, (dh0,), dparameters = backward(dy, (dh_last,))
        return RecurrentLayerGrads(dx, dh0, dparameters)

    return RecurrentLayerOutput(y, h_last, backprop)
