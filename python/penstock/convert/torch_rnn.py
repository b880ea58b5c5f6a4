"""Weights of ``torch.nn.GRU``, ``LSTM`` and ``RNN`` (and their ``…Cell``), read and written.

PyTorch keeps, for layer i and, with ``_reverse`` after the name, its backward direction, with D
the layer's input width, H the hidden size and G gates in the same order as here:

    weight_ih_l<i>            (G * H, D)
    weight_hh_l<i>            (G * H, H)
    bias_ih_l<i>, bias_hh_l<i> (G * H,), unless made with bias=False

penstock stacks the directions: ``layers.<i>.weight_ih`` (dirs, G * H, D), and so on. The number of
gates tells the cell; the activation, ``batch_first`` and dropout are not in a state dictionary, and
are arguments here, or read off the module if that is given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from penstock.convert._state import HostArray, read_state, to_numpy
from penstock.layers.gru import GRU
from penstock.layers.lstm import LSTM
from penstock.layers.rnn import RNN

_NAME = re.compile(
    r"^(?P<prefix>(?:.*\.)?)(?P<name>(?:weight|bias)_(?:ih|hh|hr))"
    r"(?:_l(?P<index>\d+)(?P<reverse>_reverse)?)?$"
)
_CELLS: dict[int, type[GRU] | type[LSTM] | type[RNN]] = {1: RNN, 3: GRU, 4: LSTM}
_MODES = {"GRU": {}, "LSTM": {}, "RNN_TANH": {}, "RNN_RELU": {"activation": "relu"}}


class ConvertedRNN(NamedTuple):
    """``layer``: the class; ``config``: its arguments; ``state``: its state dictionary."""

    layer: type[GRU] | type[LSTM] | type[RNN]
    config: dict[str, Any]
    state: dict[str, HostArray]


def _grouped(
    state: Mapping[str, Any], prefix: str | None
) -> dict[tuple[int, bool], dict[str, HostArray]]:
    """The arrays of one module by layer and direction."""
    found: dict[str, dict[tuple[int, bool], dict[str, HostArray]]] = {}
    for key, value in state.items():
        match = _NAME.match(key)
        if match:
            group = found.setdefault(match["prefix"], {})
            place = int(match["index"] or 0), match["reverse"] is not None
            group.setdefault(place, {})[match["name"]] = to_numpy(f"state[{key!r}]", value)
    if prefix is None:
        if len(found) != 1:
            raise ValueError(
                "state: expected the names of one torch.nn.GRU, LSTM or RNN (weight_ih_l0, ...); "
                + (
                    f"found several, choose one by prefix: {sorted(found)}"
                    if found
                    else f"got {sorted(state)[:5]}"
                )
            )
        prefix = next(iter(found))
    elif prefix not in found:
        raise ValueError(f"prefix: expected one of {sorted(found)}, got {prefix!r}")
    return found[prefix]


def convert_torch_rnn(state: Mapping[str, Any], *, prefix: str | None = None) -> ConvertedRNN:
    """Convert the state dictionary of a ``torch.nn.GRU``, ``LSTM`` or ``RNN``, or of one cell.

    Sizes, layers, directions and biases are read off the arrays.

    Args:
        state: name -> torch tensor or NumPy array.
        prefix: what stands before ``weight_ih_l0``; None if the state holds only one such module.

    Raises ValueError or TypeError for a state that is not such a module's, or that has a
    projection (``proj_size``), which has no counterpart.
    """
    groups = _grouped(state, prefix)
    for (index, _), arrays in groups.items():
        if "weight_hr" in arrays:
            raise ValueError(
                f"state: weight_hr_l{index}, the projection of an LSTM with proj_size, has no "
                "counterpart in penstock.LSTM"
            )
    directions = 2 if any(reverse for _, reverse in groups) else 1
    count = 1 + max(index for index, _ in groups)
    expected_places = {(i, d == 1) for i in range(count) for d in range(directions)}
    if set(groups) != expected_places:
        missing = sorted(expected_places - set(groups))
        absent = [f"weight_ih_l{i}{'_reverse' if reverse else ''}" for i, reverse in missing]
        raise ValueError(f"state: missing: {absent}")
    bias = any("bias_ih" in arrays or "bias_hh" in arrays for arrays in groups.values())
    names = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ()))
    for (index, reverse), arrays in sorted(groups.items()):
        missing_names = sorted(set(names) - set(arrays))
        if missing_names:
            raise ValueError(
                f"state: layer {index}{', reverse' if reverse else ''}: missing: {missing_names}"
            )
    first = groups[0, False]
    if first["weight_hh"].ndim != 2 or first["weight_ih"].ndim != 2:
        raise ValueError(
            f"state: expected matrices weight_ih_l0 and weight_hh_l0, got shapes "
            f"{first['weight_ih'].shape} and {first['weight_hh'].shape}"
        )
    rows, hidden = first["weight_hh"].shape
    gates = rows // hidden if hidden else 0
    if gates not in _CELLS or rows != gates * hidden:
        raise ValueError(
            "state: expected weight_hh_l0 of shape (G * H, H) with G = 1 (RNN), 3 (GRU) or 4 "
            f"(LSTM), got {first['weight_hh'].shape}"
        )
    input_size = first["weight_ih"].shape[1]

    converted: dict[str, HostArray] = {}
    for i in range(count):
        width = input_size if i == 0 else directions * hidden
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, width),
            "weight_hh": (rows, hidden),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }
        for name in names:
            both = [groups[i, d == 1][name] for d in range(directions)]
            for d, array in enumerate(both):
                if array.shape != shapes[name]:
                    raise ValueError(
                        f"state[{name}_l{i}{'_reverse' if d else ''}]: expected shape "
                        f"{shapes[name]}, got {array.shape}"
                    )
            converted[f"layers.{i}.{name}"] = np.stack(both)
    config = {
        "input_size": int(input_size),
        "hidden_size": int(hidden),
        "num_layers": count,
        "bias": bias,
        "bidirectional": directions == 2,
        "dtype": first["weight_ih"].dtype.name,
    }
    return ConvertedRNN(_CELLS[gates], config, converted)


def _module_options(module: Any) -> dict[str, Any]:
    """What a module knows and its state dictionary does not."""
    if getattr(module, "mode", "GRU") not in _MODES:
        raise ValueError(f"source: expected a GRU, LSTM or RNN, got mode {module.mode!r}")
    options: dict[str, Any] = {
        "batch_first": bool(getattr(module, "batch_first", False)),
        "dropout": float(getattr(module, "dropout", 0.0)),
    }
    if getattr(module, "nonlinearity", "tanh") == "relu":
        options["activation"] = "relu"
    return options


def load_torch_rnn(source: Any, *, prefix: str | None = None, **options: Any) -> GRU | LSTM | RNN:
    """Build a :class:`penstock.GRU`, ``LSTM`` or ``RNN`` from PyTorch's weights.

    Args:
        source: a ``torch.nn.GRU``, ``LSTM``, ``RNN`` or one of their cells; a state dictionary; or
            a file: ``.safetensors``, ``.npz``, or (needs PyTorch) any other suffix, read by
            ``torch.load`` with ``weights_only``.
        prefix: what stands before ``weight_ih_l0``; see :func:`convert_torch_rnn`.
        options: further arguments of the layer, such as ``batch_first``, ``dropout``, ``dtype``,
            ``device`` or ``activation="relu"`` for an RNN made with ``nonlinearity="relu"``; they
            win over what is read.

    Dropout between layers takes one mask for all steps here, and one a step in PyTorch. Raises
    ValueError or TypeError for a source that holds no such weights.
    """
    known: dict[str, Any] = {}
    if hasattr(source, "state_dict"):
        known = _module_options(source)
        state = source.state_dict()
    elif isinstance(source, Mapping):
        state = source
    elif isinstance(source, (str, os.PathLike)):
        state = read_state(Path(source), _NAME.match)
    else:
        raise TypeError(
            "source: expected a module of PyTorch, a state dictionary or a file, got "
            f"{type(source).__name__}"
        )
    converted = convert_torch_rnn(state, prefix=prefix)
    device = options.pop("device", "cpu")
    layer = converted.layer(**{"seed": 0, **converted.config, **known, **options})
    layer.load_state_dict(converted.state)
    return layer.to(device)


def to_torch_rnn(layer: GRU | LSTM | RNN) -> dict[str, HostArray]:
    """The state dictionary that a ``torch.nn`` module of the same shape loads, as NumPy arrays.

    Make a ``torch.nn.GRU``, ``LSTM`` or ``RNN`` with the layer's sizes, ``bias``,
    ``bidirectional`` and, for an RNN with ReLU, ``nonlinearity="relu"``, and load
    ``{name: torch.from_numpy(array) for name, array in to_torch_rnn(layer).items()}``.

    Raises TypeError for another layer, ValueError if it uses what PyTorch does not have: layer
    normalisation, ``reset="before"``, other activations.
    """
    if not isinstance(layer, (GRU, LSTM, RNN)):
        raise TypeError(f"layer: expected a penstock.GRU, LSTM or RNN, got {type(layer).__name__}")
    if layer.use_layer_norm:
        raise ValueError("layer: expected no layer normalisation, which torch.nn does not have")
    allowed = {GRU: ("tanh",), RNN: ("tanh", "relu")}.get(type(layer))
    if allowed and layer.activation not in allowed:  # type: ignore[union-attr]
        raise ValueError(
            f"layer: expected activation {' or '.join(map(repr, allowed))}, "
            f"got {layer.activation!r}"  # type: ignore[union-attr]
        )
    if isinstance(layer, GRU) and layer.reset != "after":
        raise ValueError(
            f"layer: expected reset 'after', as torch.nn.GRU has it, got {layer.reset!r}"
        )
    result: dict[str, HostArray] = {}
    for key, array in layer.state_dict().items():
        _, index, name = key.split(".")
        for d in range(layer.directions):
            suffix = "_reverse" if d else ""
            result[f"{name}_l{index}{suffix}"] = np.ascontiguousarray(array[d])
    return result
