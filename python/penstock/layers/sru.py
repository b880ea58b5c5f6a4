"""The SRU as a layer: stacked, bidirectional, with dropout, layer normalisation, projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from penstock._arrays import array_module, caller_of, host_lengths
from penstock._sru import sru
from penstock.layers._stack import Cells, two_generators, without_padding
from penstock.layers.init import (
    skip_scale,
    sru_bias,
    sru_weight,
    sru_weight_c,
    uniform_fan_in,
)
from penstock.nn._random import Seed, check_number, check_probability, dropout_mask
from penstock.nn.layer_norm import LayerNorm
from penstock.nn.linear import matmul_operand
from penstock.nn.module import (
    Array,
    Layer,
    check_gradient,
    check_input,
    no_backprop,
    non_negative_int,
    positive_int,
    resolve_dtype,
)

Activation = Literal["identity", "tanh", "relu"]
MaskSite = Literal["output", "state"]


class SRULayerOutput(NamedTuple):
    """What a call of :class:`SRU` returns.

    ``y``: (T, B, dirs * H), or (B, T, dirs * H) with ``batch_first``.
    ``c_last``: (num_layers, B, dirs * H), each layer's state after its last step.
    ``backprop(dy=None, dc_last=None)`` -> :class:`SRULayerGrads`.
    """

    y: Array
    c_last: Array
    backprop: Callable[..., SRULayerGrads]


class SRULayerGrads(NamedTuple):
    """Gradients: ``dx`` and ``dc0`` as the inputs (``dc0`` also if no ``c0`` was given).

    ``dparameters``: arrays by parameter name.
    """

    dx: Array
    dc0: Array
    dparameters: dict[str, Array]


class _CellGrads(NamedTuple):
    dx: Array
    dc0: Array
    dparameters: dict[str, Array]


class _Cell(Layer):
    """One layer of a stack: what surrounds one call of ``penstock.sru``."""

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        input_size: int,
        hidden_size: int,
        directions: int,
        dropout: float,
        rnn_dropout: float,
        layer_norm: bool,
        projection_size: int,
        highway_bias: float,
        rescale: bool,
        skip: bool,
        weight_c: bool,
        options: dict[str, Any],
        dtype: np.dtype[Any],
    ) -> None:
        super().__init__()
        output_size = directions * hidden_size
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.directions = directions
        self.dropout = dropout
        self.rnn_dropout = rnn_dropout
        self.blocks = 4 if skip and input_size != output_size else 3
        self.identity_skip = skip and self.blocks == 3
        # A projection as wide as either side would save nothing, so, as published, there is none.
        self.projected = 0 < projection_size < min(input_size, output_size)
        width = projection_size if self.projected else input_size
        factor = skip_scale(highway_bias, rescale=rescale, skip=skip)
        weight = sru_weight(
            rng,
            directions=directions,
            hidden_size=hidden_size,
            width=width,
            blocks=self.blocks,
            dropout=dropout,
            rnn_dropout=rnn_dropout,
            weight_c=weight_c,
            layer_norm=layer_norm,
            skip_factor=factor,
        )
        self._add_parameter("weight", weight.astype(dtype))
        if weight_c:
            v = sru_weight_c(rng, directions, hidden_size)
            self._add_parameter("weight_c", v.astype(dtype))
        bias = sru_bias(directions, hidden_size, highway_bias)
        self._add_parameter("bias", bias.astype(dtype))
        if self.projected:
            projection = uniform_fan_in(rng, (projection_size, input_size), input_size)
            self._add_parameter("projection", projection.astype(dtype))
        self.layer_norm: LayerNorm | None = None
        if layer_norm:
            self.layer_norm = LayerNorm(input_size, dtype=dtype)
        self._constants["scale_x"] = factor if self.identity_skip else 1.0
        self._options = options
        self._refresh()

    def _refresh(self) -> None:
        p = self._parameters
        self.args = (p["weight"], p.get("weight_c"), p["bias"])
        self.options = {**self._options, "scale_x": self._constants["scale_x"]}
        self.inference_options = {**self.options, "need_grad": False}

    def run(
        self,
        x: Array,
        c0: Array | None,
        given: dict[str, Any],
        *,
        rng: np.random.Generator,
        training: bool,
        need: bool,
    ) -> tuple[Array, Array, Callable[..., _CellGrads]]:
        """Run over ``x`` (T, B, D); returns y, c_last and a backprop(dy, dc_last)."""
        weight = self.args[0]
        mask_c = None
        if training and self.dropout > 0.0:
            shape = (x.shape[1], self.directions * self.hidden_size)
            mask_c = dropout_mask(rng, self.dropout, shape, weight, weight.dtype)

        inner = x
        normed = None
        if self.layer_norm is not None:
            normed = self.layer_norm(inner, need_grad=need)
            inner = normed.y
        mask_x: Array | None = None
        if training and self.rnn_dropout > 0.0:
            mask_x = dropout_mask(rng, self.rnn_dropout, x.shape[1:], weight, weight.dtype)
            inner = inner * mask_x
        unprojected = inner
        if self.projected:
            inner = self._project(inner)

        given = {**given, **self.options, "c0": c0, "mask_c": mask_c, "need_grad": need}
        separate = self.identity_skip and inner is not x
        # The weight multiplies the changed input, but the skip term takes the input itself.
        if separate:
            given["x_skip"] = x
        out: Any = sru(inner, *self.args, **given)
        if not need:
            return out.y, out.c_last, no_backprop

        def backprop(dy: Array | None, dc_last: Array | None) -> _CellGrads:
            grads = out.backprop(dy, dc_last)
            gradients = {"weight": grads.dweight}
            if self.args[1] is not None:
                gradients["weight_c"] = grads.dweight_c
            gradients["bias"] = grads.dbias
            dx = grads.dx
            if self.projected:
                dx, gradients["projection"] = self._unproject(dx, unprojected)
            if mask_x is not None:
                dx = dx * mask_x
            if normed is not None:
                below = normed.backprop(dx)
                dx = below.dx
                for name, gradient in below.dparameters.items():
                    gradients[f"layer_norm.{name}"] = gradient
            if separate:
                dx = dx + grads.dx_skip
            return _CellGrads(dx, grads.dc0, gradients)

        return out.y, out.c_last, backprop

    def _project(self, x: Array) -> Array:
        projection = self._parameters["projection"]
        flat = matmul_operand(x.reshape(-1, self.input_size))
        y = (flat @ matmul_operand(projection).T).astype(projection.dtype, copy=False)
        return y.reshape(*x.shape[:-1], projection.shape[0])

    def _unproject(self, dy: Array, x: Array) -> tuple[Array, Array]:
        projection = self._parameters["projection"]
        dflat = matmul_operand(dy.reshape(-1, projection.shape[0]))
        flat = matmul_operand(x.reshape(-1, self.input_size))
        dx = (dflat @ matmul_operand(projection)).astype(projection.dtype, copy=False)
        dprojection = (dflat.T @ flat).astype(projection.dtype, copy=False)
        return dx.reshape(x.shape), dprojection


class SRU(Layer):
    """A stack of Simple Recurrent Units (arXiv 1709.02755); :func:`penstock.sru` has the equations.

    Layer i's parameters, with D its input width, H ``hidden_size`` and O = dirs * H its output
    width:

        layers.i.weight             (dirs, K * H, D), or (dirs, K * H, P) after a projection
        layers.i.weight_c           (dirs, 2, H), unless ``weight_c`` is False
        layers.i.bias               (dirs, 2, H)
        layers.i.projection         (P, D), with a projection
        layers.i.layer_norm.weight  (D,), with layer normalisation; likewise ``.bias``
        layers.i.scale_x            saved, but not trained

    K is 3 if D = O, so that the skip term is the layer's input itself, or if there is no skip
    term; else 4. Initial values are the published ones: see :mod:`penstock.layers.init`.

    Args:
        input_size: features of the input.
        hidden_size: features of each direction's state.
        num_layers: layers in the stack.
        bidirectional: also run backwards; outputs are concatenated.
        dropout: in training, of every layer's output but the last's, by one mask for all time
            steps on the place that ``mask_site`` names.
        rnn_dropout: in training, of every layer's input, by one mask for all time steps. The skip
            term is not dropped where K = 3.
        layer_norm: normalise each layer's input before its weight (not where it is the skip
            term itself).
        projection_size: factor each weight through so many features, where that is fewer than
            the layer's input and output have; 0 for none.
        highway_bias: initial bias of the reset gate.
        rescale: scale the skip term so that the output's variance is the input's at the start.
        activation: g, "identity", "tanh" or "relu".
        skip: whether there is a skip term.
        weight_c: whether the gates see the previous state; False is the paper's first version.
        mask_site: "output" or "state", where the mask of ``dropout`` acts.
        batch_first: inputs and outputs are (B, T, ·) instead of (T, B, ·), ``mask_pad`` (B, T).
        dtype: float32, float64, float16 or bfloat16.
        seed: int, generator or None (a fresh seed), for initial values and masks.
        device: where the parameters lie, "cpu" or "cuda[:N]".
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
        activation: Activation = "identity",
        skip: bool = True,
        weight_c: bool = True,
        mask_site: MaskSite = "output",
        batch_first: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        device: str = "cpu",
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
        if activation not in ("identity", "tanh", "relu"):
            raise ValueError(
                f"activation: expected 'identity', 'tanh' or 'relu', got {activation!r}"
            )
        self.activation = activation
        self.skip = bool(skip)
        self.use_weight_c = bool(weight_c)
        if mask_site not in ("output", "state"):
            raise ValueError(f"mask_site: expected 'output' or 'state', got {mask_site!r}")
        self.mask_site = mask_site
        self.batch_first = bool(batch_first)
        kind = resolve_dtype(dtype)
        self.dtype = kind.name

        initial, self._rng = two_generators(seed)
        self._add_rng("rng", self._rng)
        options = {
            "activation": activation,
            "skip": self.skip,
            "mask_site": mask_site,
            "direction": "bidirectional" if bidirectional else "forward",
        }
        self._cells = [
            _Cell(
                initial,
                input_size=self.input_size if i == 0 else self.output_size,
                hidden_size=self.hidden_size,
                directions=self.directions,
                dropout=self.dropout if i + 1 < self.num_layers else 0.0,
                rnn_dropout=self.rnn_dropout,
                layer_norm=self.use_layer_norm,
                projection_size=self.projection_size,
                highway_bias=self.highway_bias,
                rescale=self.rescale,
                skip=self.skip,
                weight_c=self.use_weight_c,
                options=options,
                dtype=kind,
            )
            for i in range(self.num_layers)
        ]
        self.layers = Cells(self._cells)
        # Cells that are a bare call of penstock.sru need no preparation of their input.
        self._plain = not self.use_layer_norm and not any(c.projected for c in self._cells)
        if device != "cpu":
            self.to(device)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments but seed and device: ``SRU(**layer.config())``."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            "rnn_dropout": self.rnn_dropout,
            "layer_norm": self.use_layer_norm,
            "projection_size": self.projection_size,
            "highway_bias": self.highway_bias,
            "rescale": self.rescale,
            "activation": self.activation,
            "skip": self.skip,
            "weight_c": self.use_weight_c,
            "mask_site": self.mask_site,
            "batch_first": self.batch_first,
            "dtype": self.dtype,
        }

    def __call__(
        self,
        x: Array,
        c0: Array | None = None,
        *,
        lengths: Any = None,
        mask_pad: Array | None = None,
        training: bool = False,
        need_grad: bool | None = None,
    ) -> SRULayerOutput:
        """Run the stack.

        Args:
            x: (T, B, input_size), or (B, T, input_size) with ``batch_first``; the layer's dtype.
            c0: (num_layers, B, dirs * H), the initial states; zeros if None.
            lengths: (B,) integers, valid steps of each sequence.
            mask_pad: (T, B), or (B, T) with ``batch_first``; true where a step is padding.
            training: apply dropout.
            need_grad: keep what ``backprop`` needs; the default is the value of ``training``.

        Padded steps carry the state and give 0. Raises TypeError or ValueError for other shapes,
        dtypes and array libraries.
        """
        need = training if need_grad is None else need_grad
        if self._plain and not need and not training and not self.batch_first:
            return self._infer(x, c0, lengths, mask_pad)

        weight = self._cells[0].args[0]
        xp = self._check_input(x)
        shape = tuple(x.shape)
        h = x.transpose(1, 0, 2) if self.batch_first else x
        if mask_pad is not None and self.batch_first:
            mask_pad = xp.asarray(mask_pad).T
        batch = h.shape[1]
        states = self._check_states("c0", c0, batch, weight)
        if lengths is not None:  # once for all layers: on a GPU, each time is a copy
            lengths = host_lengths(lengths, h, caller_of(h))
        if not self._plain or (training and self.rnn_dropout > 0.0):
            h = without_padding(xp, h, lengths, mask_pad)
        given = {"lengths": lengths, "mask_pad": mask_pad}

        steps: list[Callable[..., _CellGrads]] = []
        last: list[Array] = []
        for i, cell in enumerate(self._cells):
            c = None if states is None else states[i]
            h, c, step = cell.run(h, c, given, rng=self._rng, training=training, need=need)
            last.append(c)
            steps.append(step)
        y = h.transpose(1, 0, 2) if self.batch_first else h
        c_last = xp.stack(last)
        if not need:
            return SRULayerOutput(y, c_last, no_backprop)
        y_shape = tuple(y.shape)

        def backprop(dy: Array | None = None, dc_last: Array | None = None) -> SRULayerGrads:
            dh: Any = dy
            if dy is not None:
                check_gradient("dy", dh, weight, y_shape)
                dh = dh.transpose(1, 0, 2) if self.batch_first else dh
            dstates = self._check_states("dc_last", dc_last, batch, weight)
            dc0: list[Array] = []
            found: dict[str, Array] = {}
            for i in reversed(range(len(steps))):
                grads = steps[i](dh, None if dstates is None else dstates[i])
                dh = grads.dx
                dc0.append(grads.dc0)
                for name, gradient in grads.dparameters.items():
                    found[f"layers.{i}.{name}"] = gradient
            dx = dh.transpose(1, 0, 2) if self.batch_first else dh
            dparameters = {name: found[name] for name in self.parameters()}
            return SRULayerGrads(dx.reshape(shape), xp.stack(dc0[::-1]), dparameters)

        return SRULayerOutput(y, c_last, backprop)

    def _infer(self, x: Array, c0: Array | None, lengths: Any, mask_pad: Any) -> SRULayerOutput:
        """Inference without anything around the cells: nothing but calls of penstock.sru.

        One step of one sequence takes some microseconds, so checks here are the cheapest that
        find an error; what they find is then described by the full ones.
        """
        cells = self._cells
        weight = cells[0].args[0]
        shape: tuple[int, ...] = getattr(x, "shape", ())
        if len(shape) != 3 or shape[2] != self.input_size or x.dtype != weight.dtype:
            self._check_input(x)
        if c0 is not None:
            expected = (self.num_layers, shape[1], self.output_size)
            if getattr(c0, "shape", None) != expected:
                self._check_states("c0", c0, shape[1], weight)
        if len(cells) == 1:
            cell = cells[0]
            c = None if c0 is None else c0[0]
            y, c_last, _ = sru(
                x, *cell.args, c0=c, lengths=lengths, mask_pad=mask_pad, **cell.inference_options
            )
            return SRULayerOutput(y, c_last[None], no_backprop)
        last = []
        y = x
        for i, cell in enumerate(cells):
            c = None if c0 is None else c0[i]
            y, c, _ = sru(
                y, *cell.args, c0=c, lengths=lengths, mask_pad=mask_pad, **cell.inference_options
            )
            last.append(c)
        return SRULayerOutput(y, array_module(y).stack(last), no_backprop)

    def _check_input(self, x: Any) -> Any:
        """Check x and return its array library."""
        xp = check_input("x", x, self._cells[0].args[0], self.input_size)
        if x.ndim != 3:
            raise ValueError(f"x: expected three axes, got shape {tuple(x.shape)}")
        return xp

    def _check_states(self, name: str, c: Any, batch: int, like: Array) -> Array | None:
        if c is None:
            return None
        return check_gradient(name, c, like, (self.num_layers, batch, self.output_size))

    def __repr__(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"]
        defaults = {"bidirectional": False, "dropout": 0.0, "dtype": "float32"}
        config = self.config()
        parts += [f"{k}={config[k]!r}" for k, v in defaults.items() if config[k] != v]
        return f"SRU({', '.join(parts)})"
