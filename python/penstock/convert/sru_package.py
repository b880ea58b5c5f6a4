"""Checkpoints of the ``sru`` package (2.x), read and written.

The package keeps, for each layer i under ``rnn_lst.i.``, with D the width that the weight
multiplies, H the hidden size and K = 3 or 4:

    weight       (D, dirs * H * K), the last axis ordered direction, feature, block
    weight_c     (2 * dirs * H,), ordered gate (forget, reset), direction, feature
    bias         likewise
    scale_x      (1,), the factor on the skip term; 1 without rescaling
    weight_proj  (input width, D), with a projection
    layer_norm.weight / .bias (input width,)

penstock has ``weight`` (dirs, K * H, D), ``weight_c`` and ``bias`` (dirs, 2, H), ``projection`` (D,
input width). A checkpoint does not tell one direction from two, the activation, or dropout:
these are arguments here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from penstock.convert._state import HostArray, read_state, to_numpy
from penstock.layers.sru import SRU

_LAYER = re.compile(r"^(?P<prefix>.*?)rnn_lst\.(?P<index>\d+)\.(?P<name>.+)$")
_NAMES = {
    "weight",
    "weight_c",
    "bias",
    "scale_x",
    "weight_proj",
    "layer_norm.weight",
    "layer_norm.bias",
}


class ConvertedSRU(NamedTuple):
    """``config``: arguments of :class:`penstock.SRU`; ``state``: its state dictionary."""

    config: dict[str, Any]
    state: dict[str, HostArray]


def _layers(state: Mapping[str, Any], prefix: str | None) -> list[dict[str, HostArray]]:
    """Group the arrays of a checkpoint by layer."""
    found: dict[str, dict[int, dict[str, HostArray]]] = {}
    for key, value in state.items():
        match = _LAYER.match(key)
        if match:
            layers = found.setdefault(match["prefix"], {})
            layers.setdefault(int(match["index"]), {})[match["name"]] = to_numpy(
                f"state[{key!r}]", value
            )
    if not found and {"weight", "weight_c", "bias", "scale_x"} <= state.keys():  # one SRUCell
        found[""] = {0: {k: to_numpy(f"state[{k!r}]", v) for k, v in state.items()}}
    if prefix is None:
        if len(found) != 1:
            raise ValueError(
                "state: expected the names of one SRU of the sru package (rnn_lst.0.weight, ...); "
                + (
                    f"found several, choose one by prefix: {sorted(found)}"
                    if found
                    else f"got {sorted(state)[:5]}"
                )
            )
        prefix = next(iter(found))
    elif prefix not in found:
        raise ValueError(f"prefix: expected one of {sorted(found)}, got {prefix!r}")
    if f"{prefix}input_to_hidden.weight" in state:
        raise ValueError(
            f"state: {prefix}input_to_hidden.weight has no counterpart in penstock.SRU; load it "
            "into a penstock.nn.Linear in front of the SRU, and leave it out here"
        )
    layers = found[prefix]
    if sorted(layers) != list(range(len(layers))):
        raise ValueError(f"state: expected layers 0 to n - 1, got {sorted(layers)}")
    for index, arrays in layers.items():
        missing = {"weight", "weight_c", "bias", "scale_x"} - arrays.keys()
        unknown = arrays.keys() - _NAMES
        if missing or unknown:
            raise ValueError(
                f"state: layer {index}: missing: {sorted(missing) or 'none'}, "
                f"without a counterpart in penstock.SRU: {sorted(unknown) or 'none'}"
            )
    return [layers[i] for i in range(len(layers))]


def convert_state_dict(
    state: Mapping[str, Any],
    *,
    bidirectional: bool = False,
    skip: bool | None = None,
    prefix: str | None = None,
) -> ConvertedSRU:
    """Convert the state dictionary of an ``sru.SRU`` (or one ``sru.SRUCell``).

    Sizes, projection, layer normalisation, rescaling and the early version without ``weight_c``
    (all zeros) are read off the arrays.

    Args:
        state: name -> torch tensor or NumPy array.
        bidirectional: as the module was made; the arrays' shapes do not tell.
        skip: as ``has_skip_term`` was; None reads it off the first layer where its input and
            output widths differ, and otherwise means True.
        prefix: what stands before ``rnn_lst.``; None if the state holds only one SRU.

    Raises ValueError or TypeError for a state that is not such a module's.
    """
    layers = _layers(state, prefix)
    directions = 2 if bidirectional else 1
    output_size = layers[0]["bias"].size // 2
    if output_size == 0 or output_size % directions:
        raise ValueError(
            f"bidirectional: expected an output width divisible by {directions}, got {output_size}"
        )
    hidden = output_size // directions
    first = layers[0]
    input_size = first.get("weight_proj", first["weight"]).shape[0]
    inputs = [input_size] + [output_size] * (len(layers) - 1)
    projections = {a["weight_proj"].shape[1] for a in layers if "weight_proj" in a}
    if len(projections) > 1:
        raise ValueError(f"state: expected one projection size, got {sorted(projections)}")
    normed = {"layer_norm.weight" in a for a in layers}
    if len(normed) > 1:
        raise ValueError("state: expected layer normalisation in all layers or in none")
    if input_size != output_size:
        present = first["weight"].shape[-1] == 4 * output_size
        if skip is not None and bool(skip) != present:
            raise ValueError(f"skip: expected {present} for these shapes, got {skip}")
        skip = present
    skip = True if skip is None else bool(skip)
    use_weight_c = any(np.any(a["weight_c"]) for a in layers)
    projection_size = projections.pop() if projections else 0

    converted: dict[str, HostArray] = {}
    scales = []
    for i, (arrays, width) in enumerate(zip(layers, inputs, strict=True)):
        blocks = 4 if skip and width != output_size else 3
        inner = projection_size if "weight_proj" in arrays else width
        expected: dict[str, tuple[int, ...]] = {
            "weight": (inner, output_size * blocks),
            "weight_c": (2 * output_size,),
            "bias": (2 * output_size,),
            "scale_x": (1,),
            "weight_proj": (width, projection_size),
            "layer_norm.weight": (width,),
            "layer_norm.bias": (width,),
        }
        for name, array in arrays.items():
            if array.shape != expected[name]:
                raise ValueError(
                    f"state[rnn_lst.{i}.{name}]: expected shape {expected[name]}, got {array.shape}"
                )
        interleaved = arrays["weight"].reshape(inner, directions, hidden, blocks)
        weight = interleaved.transpose(1, 3, 2, 0).reshape(directions, blocks * hidden, inner)
        out = f"layers.{i}."
        converted[f"{out}weight"] = np.ascontiguousarray(weight)
        for name in ("weight_c", "bias") if use_weight_c else ("bias",):
            gates = arrays[name].reshape(2, directions, hidden).transpose(1, 0, 2)
            converted[f"{out}{name}"] = np.ascontiguousarray(gates)
        if "weight_proj" in arrays:
            converted[f"{out}projection"] = np.ascontiguousarray(arrays["weight_proj"].T)
        scale = float(arrays["scale_x"][0])
        scales.append(scale)
        # With K = 4 the factor is in the skip rows already.
        used = scale if skip and blocks == 3 else 1.0
        converted[f"{out}scale_x"] = np.asarray(used, dtype=np.float64)
        for name in ("layer_norm.weight", "layer_norm.bias"):
            if name in arrays:
                converted[f"{out}{name}"] = arrays[name].copy()

    config = {
        "input_size": int(input_size),
        "hidden_size": int(hidden),
        "num_layers": len(layers),
        "bidirectional": bool(bidirectional),
        "layer_norm": normed == {True},
        "projection_size": int(projection_size),
        "rescale": any(s != 1.0 for s in scales),
        "skip": skip,
        "weight_c": use_weight_c,
        "dtype": first["weight"].dtype.name,
    }
    return ConvertedSRU(config, converted)


def load_sru_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    bidirectional: bool = False,
    skip: bool | None = None,
    prefix: str | None = None,
    **options: Any,
) -> SRU:
    """Build a :class:`penstock.SRU` from a checkpoint of the ``sru`` package.

    Args:
        source: a state dictionary, or a file: ``.safetensors``, ``.npz``, or (needs PyTorch) any
            other suffix, read by ``torch.load`` with ``weights_only``; a dictionary inside the
            file's dictionary is found, too.
        bidirectional: as the module was made.
        skip: as ``has_skip_term`` was; see :func:`convert_state_dict`.
        prefix: what stands before ``rnn_lst.``; see :func:`convert_state_dict`.
        options: further arguments of :class:`penstock.SRU`, such as ``activation="tanh"`` for
            ``use_tanh``, ``dropout``, ``dtype`` or ``device``; they win over what is read.

    Raises ValueError or TypeError for a source that is no such checkpoint.
    """
    state = source if isinstance(source, Mapping) else read_state(Path(source), _LAYER.match)
    converted = convert_state_dict(state, bidirectional=bidirectional, skip=skip, prefix=prefix)
    device = options.pop("device", "cpu")
    layer = SRU(**{"seed": 0, **converted.config, **options})
    layer.load_state_dict(converted.state)
    return layer.to(device)


def to_sru_package(layer: SRU) -> dict[str, HostArray]:
    """The state dictionary that an ``sru.SRU`` of the same shape loads, as NumPy arrays.

    Make the module with ``rescale`` as the layer has it, ``has_skip_term=layer.skip``,
    ``v1=not layer.use_weight_c`` and ``use_tanh=layer.activation == "tanh"``, and load
    ``{name: torch.from_numpy(array) for name, array in to_sru_package(layer).items()}``.

    Raises TypeError unless ``layer`` is a :class:`penstock.SRU`, ValueError if it uses what the
    package does not have (ReLU).
    """
    if not isinstance(layer, SRU):
        raise TypeError(f"layer: expected a penstock.SRU, got {type(layer).__name__}")
    if layer.activation == "relu":
        raise ValueError("layer: expected activation 'identity' or 'tanh', got 'relu'")
    state = layer.state_dict()
    result: dict[str, HostArray] = {}
    for i in range(layer.num_layers):
        source, target = f"layers.{i}.", f"rnn_lst.{i}."
        weight = state[f"{source}weight"]
        directions, rows, width = weight.shape
        hidden = layer.hidden_size
        blocks = rows // hidden
        weight = weight.reshape(directions, blocks, hidden, width).transpose(3, 0, 2, 1)
        result[f"{target}weight"] = np.ascontiguousarray(weight.reshape(width, -1))
        if layer.use_weight_c:
            gates = state[f"{source}weight_c"].transpose(1, 0, 2)
            result[f"{target}weight_c"] = np.ascontiguousarray(gates.reshape(-1))
        else:
            result[f"{target}weight_c"] = np.zeros(2 * layer.output_size, weight.dtype)
        gates = state[f"{source}bias"].transpose(1, 0, 2)
        result[f"{target}bias"] = np.ascontiguousarray(gates.reshape(-1))
        result[f"{target}scale_x"] = state[f"{source}scale_x"].reshape(1).astype(np.float32)
        if f"{source}projection" in state:
            projection = state[f"{source}projection"]
            result[f"{target}weight_proj"] = np.ascontiguousarray(projection.T)
        for name in ("layer_norm.weight", "layer_norm.bias"):
            if f"{source}{name}" in state:
                result[f"{target}{name}"] = state[f"{source}{name}"]
    return result
