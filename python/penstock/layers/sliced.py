"""The sliced recurrent network as a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from penstock._sliced import sliced
from penstock.layers._recurrent import DroppedWeight, add_weights, check_choice
from penstock.layers._stack import Cells, two_generators
from penstock.layers.init import skip_scale, sru_bias, sru_weight, sru_weight_c
from penstock.nn._random import Seed, check_number, check_probability
from penstock.nn.module import (
    Array,
    Layer,
    check_gradient,
    check_input,
    no_backprop,
    positive_int,
    resolve_dtype,
)

Cell = Literal["rnn", "gru", "lstm", "sru"]
Activation = Literal["tanh", "relu", "identity"]

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
#: The activation each cell has if none is named; None where it has no choice.
_ACTIVATIONS = {"rnn": "tanh", "gru": "tanh", "lstm": None, "sru": "identity"}


class SlicedRNNOutput(NamedTuple):
    """What a call of :class:`SlicedRNN` returns.

    ``y``: (B, dirs * H), the last state of the uppermost level.
    ``levels``: each level's last states, level 0 first: (s_i, B, dirs * H), or (B, s_i, dirs * H)
    with ``batch_first``, where s_i is the number of parts; the last one holds ``y``.
    ``backprop(dy=None, dlevels=None)`` -> :class:`SlicedRNNGrads`; ``dlevels`` holds gradients of
    ``levels``, each of which may be None.
    """

    y: Array
    levels: tuple[Array, ...]
    backprop: Callable[..., SlicedRNNGrads]


class SlicedRNNGrads(NamedTuple):
    """``dx``: gradient of the input. ``dparameters``: gradients by parameter name."""

    dx: Array
    dparameters: dict[str, Array]


class _Level(Layer):
    """The parameters of one level."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def _refresh(self) -> None:
        self.args = tuple(self._parameters.get(name) for name in self.names)


class SlicedRNN(Layer):
    """A recurrent network over slices (arXiv 1807.02291); see :func:`penstock.sliced`.

    ``slices`` = (n_1, …, n_k) cuts a sequence into n_1 parts, each of them into n_2, and so on.
    Level 0 reads all the smallest parts at once; each level reads the last states of the one
    below, and level k gives one vector for the whole sequence. A sequence of T steps is then read
    in T / (n_1 ⋯ n_k) + n_k + ⋯ + n_1 steps.

    Level i's parameters, with D its input width (``input_size`` for level 0, dirs * H above), H
    ``hidden_size`` and G gates in the cell's order (see :class:`penstock.GRU`, ``LSTM``, ``RNN``):

        levels.i.weight_ih          (dirs, G * H, D)
        levels.i.weight_hh          (dirs, G * H, H)
        levels.i.bias_ih, .bias_hh  (dirs, G * H), unless ``bias`` is False

    and with the cell "sru", K = 3 if D = dirs * H or without a skip term, else 4:

        levels.i.weight             (dirs, K * H, D)
        levels.i.weight_c           (dirs, 2, H), unless ``weight_c`` is False
        levels.i.bias               (dirs, 2, H)
        scale_x                     saved, but not trained

    Initial values are the cell's: see :class:`penstock.GRU` and :mod:`penstock.layers.init`.

    Args:
        input_size: features of the input.
        hidden_size: features of each direction's state.
        slices: how many parts to cut into, level by level; () cuts nothing.
        cell: "gru", "lstm", "rnn" or "sru".
        bias: whether there are biases; the SRU always has them.
        pad: on which side of a sequence padding lies, "left" or "right": with ``lengths``, and
            where T does not divide. With "left" a sequence's valid steps are its last ones.
        mask: "skip" passes over padding; "none" reads it as data, zeros where T does not divide,
            as the published code does.
        bidirectional: also run every level backwards; outputs are concatenated.
        activation: "tanh", "relu" or "identity"; None for the cell's own. The LSTM has no choice.
        reset: of the GRU, see there.
        weight_dropout: in training, of the elements of every ``weight_hh``, see
            :class:`penstock.GRU`. Not of the SRU, which has none.
        skip, weight_c, highway_bias, rescale: of the SRU, see :class:`penstock.SRU`.
        recompute: as in :class:`penstock.GRU`; not of the SRU.
        batch_first: the input is (B, T, ·) instead of (T, B, ·).
        dtype: float32, float64, float16 or bfloat16.
        seed: int, generator or None (a fresh seed), for initial values and masks.
        device: where the parameters lie, "cpu" or "cuda[:N]".
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        slices: Sequence[int] = (8, 8),
        cell: Cell = "gru",
        *,
        bias: bool = True,
        pad: Literal["left", "right"] = "left",
        mask: Literal["skip", "none"] = "skip",
        bidirectional: bool = False,
        activation: Activation | None = None,
        reset: Literal["after", "before"] = "after",
        weight_dropout: float = 0.0,
        skip: bool = True,
        weight_c: bool = True,
        highway_bias: float = 0.0,
        rescale: bool = True,
        recompute: bool = False,
        batch_first: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.slices = check_slices("slices", slices)
        self.cell = check_choice("cell", cell, ("gru", "lstm", "rnn", "sru"))
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
        self.activation: str | None = activation or _ACTIVATIONS[cell]
        self.reset = check_choice("reset", reset, ("after", "before"))
        self.weight_dropout = check_probability("weight_dropout", weight_dropout)
        self.skip = bool(skip)
        self.use_weight_c = bool(weight_c)
        self.highway_bias = check_number("highway_bias", highway_bias)
        self.rescale = bool(rescale)
        self.recompute = bool(recompute)
        self.batch_first = bool(batch_first)
        kind = resolve_dtype(dtype)
        self.dtype = kind.name
        self._check_options()

        initial, self._rng = two_generators(seed)
        self._add_rng("rng", self._rng)
        self._levels = [
            self._make_level(initial, self.input_size if i == 0 else self.output_size, kind)
            for i in range(len(self.slices) + 1)
        ]
        self.levels = Cells(self._levels)
        self._options: dict[str, Any] = {
            "slices": self.slices,
            "pad": self.pad,
            "mask": self.mask,
            "direction": "bidirectional" if bidirectional else "forward",
        }
        if self.activation is not None:
            self._options["activation"] = self.activation
        if self.cell == "gru":
            self._options["reset"] = self.reset
        if self.cell == "sru":
            self._options["skip"] = self.skip
            factor = skip_scale(self.highway_bias, rescale=self.rescale, skip=self.skip)
            self._constants["scale_x"] = factor
        else:
            self._options["recompute"] = self.recompute
        self._refresh()
        if device != "cpu":
            self.to(device)

    def _check_options(self) -> None:
        """Refuse options that the cell does not have."""
        others = {
            "reset": (self.reset, "after", self.cell == "gru"),
            "bias": (self.bias, True, self.cell != "sru"),
            "weight_dropout": (self.weight_dropout, 0.0, self.cell != "sru"),
            "recompute": (self.recompute, False, self.cell != "sru"),
            "skip": (self.skip, True, self.cell == "sru"),
            "weight_c": (self.use_weight_c, True, self.cell == "sru"),
            "highway_bias": (self.highway_bias, 0.0, self.cell == "sru"),
            "rescale": (self.rescale, True, self.cell == "sru"),
        }
        for name, (value, default, known) in others.items():
            if not known and value != default:
                raise ValueError(
                    f"{name}: expected {default!r}, since the cell {self.cell!r} has no such "
                    f"option, got {value!r}"
                )

    def _make_level(self, rng: np.random.Generator, width: int, dtype: np.dtype[Any]) -> _Level:
        if self.cell != "sru":
            level = _Level(("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            add_weights(
                level,
                rng,
                gates=_GATES[self.cell],
                directions=self.directions,
                hidden_size=self.hidden_size,
                width=width,
                bias=self.bias,
                dtype=dtype,
            )
            level._refresh()
            return level
        level = _Level(("weight", "weight_c", "bias"))
        weight = sru_weight(
            rng,
            directions=self.directions,
            hidden_size=self.hidden_size,
            width=width,
            blocks=4 if self.skip and width != self.output_size else 3,
            weight_c=self.use_weight_c,
            skip_factor=skip_scale(self.highway_bias, rescale=self.rescale, skip=self.skip),
        )
        level._add_parameter("weight", weight.astype(dtype))
        if self.use_weight_c:
            v = sru_weight_c(rng, self.directions, self.hidden_size)
            level._add_parameter("weight_c", v.astype(dtype))
        bias = sru_bias(self.directions, self.hidden_size, self.highway_bias)
        level._add_parameter("bias", bias.astype(dtype))
        level._refresh()
        return level

    def _refresh(self) -> None:
        if "scale_x" in self._constants:
            self._options["scale_x"] = self._constants["scale_x"]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments but seed and device: ``SlicedRNN(**layer.config())``."""
        config = {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "slices": self.slices,
            "cell": self.cell,
            "bias": self.bias,
            "pad": self.pad,
            "mask": self.mask,
            "bidirectional": self.bidirectional,
            "activation": self.activation,
            "reset": self.reset,
            "weight_dropout": self.weight_dropout,
            "skip": self.skip,
            "weight_c": self.use_weight_c,
            "highway_bias": self.highway_bias,
            "rescale": self.rescale,
            "recompute": self.recompute,
            "batch_first": self.batch_first,
            "dtype": self.dtype,
        }
        return config

    def __call__(
        self,
        x: Array,
        *,
        lengths: Any = None,
        training: bool = False,
        need_grad: bool | None = None,
    ) -> SlicedRNNOutput:
        """Run all levels.

        Args:
            x: (T, B, input_size), or (B, T, input_size) with ``batch_first``; the layer's dtype.
                The result depends on T, which says how long the parts are: give all batches the
                same T, or one that follows from the sequences' lengths.
            lengths: (B,) integers, valid steps of each sequence: its last ones with ``pad``
                "left", its first ones with "right". They do not count with ``mask`` "none".
            training: apply dropout.
            need_grad: keep what ``backprop`` needs; the default is the value of ``training``.

        A sequence without a valid step gives 0. Raises TypeError or ValueError for other shapes,
        dtypes and array libraries.
        """
        need = training if need_grad is None else need_grad
        first = self._levels[0].args[0]
        check_input("x", x, first, self.input_size)
        if x.ndim != 3:
            raise ValueError(f"x: expected three axes, got shape {tuple(x.shape)}")
        inner = x.transpose(1, 0, 2) if self.batch_first else x
        arguments = [level.args for level in self._levels]
        dropped: list[DroppedWeight] = []
        if training and self.weight_dropout > 0.0:
            dropped = [DroppedWeight(a[1], self.weight_dropout, self._rng, True) for a in arguments]
            arguments = [
                (a[0], drop.value, *a[2:]) for a, drop in zip(arguments, dropped, strict=True)
            ]
        out: Any = sliced(
            self.cell, inner, arguments, lengths=lengths, need_grad=need, **self._options
        )
        levels = tuple(self._swapped(level) for level in out.levels)
        if not need:
            return SlicedRNNOutput(out.y, levels, no_backprop)
        shapes = [tuple(level.shape) for level in levels]
        y_shape = tuple(out.y.shape)

        def backprop(
            dy: Array | None = None, dlevels: Sequence[Array | None] | None = None
        ) -> SlicedRNNGrads:
            if dy is not None:
                check_gradient("dy", dy, first, y_shape)
            inner_dlevels = None
            if dlevels is not None:
                if len(dlevels) != len(shapes):
                    raise ValueError(
                        f"dlevels: expected {len(shapes)} of them, one a level, got {len(dlevels)}"
                    )
                for i, (d, shape) in enumerate(zip(dlevels, shapes, strict=True)):
                    if d is not None:
                        check_gradient(f"dlevels[{i}]", d, first, shape)
                inner_dlevels = [None if d is None else self._swapped(d) for d in dlevels]
            grads = out.backprop(dy, inner_dlevels)
            gradients: dict[str, Array] = {}
            for i, level in enumerate(self._levels):
                for name, gradient in zip(level.names, grads.dlevels[i], strict=False):
                    if gradient is not None:
                        gradients[f"levels.{i}.{name}"] = gradient
                if dropped:
                    name = f"levels.{i}.weight_hh"
                    gradients[name] = dropped[i].gradient(gradients[name])
            return SlicedRNNGrads(
                self._swapped(grads.dx), {name: gradients[name] for name in self.parameters()}
            )

        return SlicedRNNOutput(out.y, levels, backprop)

    def _swapped(self, array: Array) -> Array:
        return array.transpose(1, 0, 2) if self.batch_first else array

    def __repr__(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}, slices={self.slices}, cell={self.cell!r}"]
        defaults = {"pad": "left", "mask": "skip", "bidirectional": False, "dtype": "float32"}
        config = self.config()
        parts += [f"{k}={config[k]!r}" for k, v in defaults.items() if config[k] != v]
        return f"SlicedRNN({', '.join(parts)})"


def check_slices(name: str, slices: Any) -> tuple[int, ...]:
    """Return slices as a tuple of ints of at least 1."""
    if isinstance(slices, (str, bytes)) or not hasattr(slices, "__iter__"):
        raise TypeError(f"{name}: expected a sequence of positive ints, got {slices!r:.50}")
    checked = tuple(positive_int(f"{name}[{i}]", n) for i, n in enumerate(slices))
    if math.prod(checked) >= 2**31:
        raise ValueError(f"{name}: expected a product below 2**31, got {checked}")
    return checked
