"""Weights of ``keras.layers.GRU``, read and written.

Keras keeps for one direction, with D the input width and H the units, columns in blocks of H in
the order update (z), reset (r), candidate:

    kernel             (D, 3 * H)
    recurrent_kernel   (H, 3 * H)
    bias               (2, 3 * H) with reset_after=True: input's and state's; (3 * H,) without;
                       absent with use_bias=False

and for a ``Bidirectional`` layer the forward direction's arrays, then the backward one's. penstock
has the transposes, with rows in the order reset, update, candidate, the directions stacked; see
:class:`penstock.GRU`. ``reset_after=True`` is ``reset="after"`` here, ``False`` is ``"before"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from penstock.convert._state import HostArray, to_numpy
from penstock.layers.gru import GRU

_ACTIVATIONS = {"tanh": "tanh", "relu": "relu", "linear": "identity"}


class _Source(NamedTuple):
    """One layer of a stack: the arrays of each direction, and what else is known."""

    directions: list[list[HostArray]]
    options: dict[str, Any]


def _swap_gates(array: HostArray, hidden: int) -> HostArray:
    """Exchange the first two blocks of H along the last axis: z, r, n <-> r, z, n."""
    first, second, third = (array[..., i * hidden : (i + 1) * hidden] for i in range(3))
    return np.concatenate([second, first, third], axis=-1)


def _is_layer(value: Any) -> bool:
    return hasattr(value, "get_weights") and hasattr(value, "get_config")


def _name_of(activation: Any) -> str:
    """The name of an activation in a layer's configuration."""
    if isinstance(activation, dict):
        activation = activation.get("config", activation.get("class_name"))
    return str(activation)


def _layer_options(name: str, layer: Any) -> dict[str, Any]:
    """The options of one ``keras.layers.GRU`` that matter here, checked."""
    config = layer.get_config()
    if "recurrent_activation" not in config or "reset_after" not in config:
        raise TypeError(f"{name}: expected a keras.layers.GRU, got {type(layer).__name__}")
    gate = _name_of(config["recurrent_activation"])
    if gate != "sigmoid":
        raise ValueError(f"{name}: expected recurrent_activation 'sigmoid', got {gate!r}")
    activation = _name_of(config["activation"])
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{name}: expected activation {', '.join(map(repr, _ACTIVATIONS))}, got {activation!r}"
        )
    return {
        "activation": _ACTIVATIONS[activation],
        "reset": "after" if config["reset_after"] else "before",
    }


def _from_layer(name: str, layer: Any) -> _Source:
    """Read a ``GRU`` or a ``Bidirectional`` of one."""
    if hasattr(layer, "forward_layer"):
        if layer.merge_mode != "concat":
            raise ValueError(f"{name}: expected merge_mode 'concat', got {layer.merge_mode!r}")
        layers = [layer.forward_layer, layer.backward_layer]
    else:
        layers = [layer]
        if layer.get_config().get("go_backwards"):
            raise ValueError(
                f"{name}: go_backwards has no counterpart in penstock.GRU: reverse its input"
            )
    options = [_layer_options(name, one) for one in layers]
    if any(other != options[0] for other in options):
        raise ValueError(f"{name}: expected both directions to be alike, got {options}")
    weights = [[to_numpy(name, array) for array in one.get_weights()] for one in layers]
    if not all(weights):
        raise ValueError(f"{name}: expected a layer with weights; call or build it first")
    return _Source(weights, options[0])


def _from_arrays(name: str, arrays: Sequence[Any]) -> _Source:
    """Read what ``get_weights`` of one layer returned."""
    given = [to_numpy(f"{name}[{i}]", array) for i, array in enumerate(arrays)]
    if len(given) not in (2, 3, 4, 6):
        raise ValueError(
            f"{name}: expected kernel, recurrent_kernel and, unless without, bias, for one "
            f"direction or for two, got {len(given)} arrays"
        )
    size = len(given) // 2 if len(given) in (4, 6) else len(given)
    return _Source([given[i : i + size] for i in range(0, len(given), size)], {})


def _sources(source: Any) -> list[_Source]:
    if _is_layer(source):
        return [_from_layer("source", source)]
    if not isinstance(source, (list, tuple)) or not source:
        raise TypeError(
            "source: expected a keras.layers.GRU, a list of its arrays, or a list of these, "
            f"got {type(source).__name__}"
        )
    if not _is_layer(source[0]) and not isinstance(source[0], (list, tuple)):
        return [_from_arrays("source", source)]
    return [
        _from_layer(f"source[{i}]", item) if _is_layer(item) else _from_arrays(f"source[{i}]", item)
        for i, item in enumerate(source)
    ]


def _direction(
    name: str, arrays: list[HostArray], width: int | None, hidden: int, reset: str
) -> dict[str, HostArray]:
    """One direction's parameters in penstock's layout, without the axis of directions."""
    kernel, recurrent, *rest = arrays
    rows = kernel.shape[0] if width is None else width
    for what, array, expected in (
        ("kernel", kernel, (rows, 3 * hidden)),
        ("recurrent_kernel", recurrent, (hidden, 3 * hidden)),
    ):
        if array.shape != expected:
            raise ValueError(f"{name}: expected {what} of shape {expected}, got {array.shape}")
    result = {
        "weight_ih": _swap_gates(kernel, hidden).T,
        "weight_hh": _swap_gates(recurrent, hidden).T,
    }
    if rest:
        bias = rest[0]
        shape = (2, 3 * hidden) if reset == "after" else (3 * hidden,)
        if bias.shape != shape:
            raise ValueError(
                f"{name}: expected bias of shape {shape} with reset {reset!r}, got {bias.shape}"
            )
        swapped = _swap_gates(bias, hidden)
        result["bias_ih"] = swapped[0] if reset == "after" else swapped
        result["bias_hh"] = swapped[1] if reset == "after" else np.zeros_like(swapped)
    return result


def load_keras_gru(source: Any, **options: Any) -> GRU:
    """Build a :class:`penstock.GRU` from the weights of Keras GRU layers.

    Args:
        source: a ``keras.layers.GRU`` or a ``Bidirectional`` of one; the list of arrays that its
            ``get_weights()`` returns; or a list of layers or of such lists, one a layer of a stack.
        options: further arguments of :class:`penstock.GRU`; they win over what is read. Arrays
            alone do not tell the activation, nor without biases ``reset`` (taken as "after").

    As in Keras, the layer takes (B, T, D) unless ``batch_first=False`` is given. Dropout is not
    read. Raises ValueError or TypeError for a source that holds no such weights, or for options
    that have no counterpart: another ``recurrent_activation``, ``go_backwards``, a ``merge_mode``
    other than "concat".
    """
    sources = _sources(source)
    first = sources[0]
    kernel, recurrent, *rest = first.directions[0]
    if kernel.ndim != 2 or recurrent.ndim != 2:
        raise ValueError(
            f"source: expected matrices kernel and recurrent_kernel, got shapes {kernel.shape} "
            f"and {recurrent.shape}"
        )
    hidden, directions = recurrent.shape[0], len(first.directions)
    bias = bool(rest)
    read: dict[str, Any] = dict(first.options)
    if "reset" not in read:
        read["reset"] = "before" if bias and rest[0].ndim == 1 else "after"
    state: dict[str, HostArray] = {}
    for i, item in enumerate(sources):
        name = f"source[{i}]" if len(sources) > 1 else "source"
        if len(item.directions) != directions or item.options != first.options:
            raise ValueError(f"{name}: expected a layer like the first one, but for its input")
        parts = []
        for arrays in item.directions:
            if len(arrays) != len(first.directions[0]):
                raise ValueError(f"{name}: expected biases in all layers or in none")
            width = None if i == 0 else directions * hidden
            parts.append(_direction(name, arrays, width, hidden, read["reset"]))
        if any(part["weight_ih"].shape != parts[0]["weight_ih"].shape for part in parts):
            raise ValueError(f"{name}: expected both directions to have the same input width")
        for key in parts[0]:
            state[f"layers.{i}.{key}"] = np.stack([part[key] for part in parts])
    config = {
        "input_size": kernel.shape[0],
        "hidden_size": hidden,
        "num_layers": len(sources),
        "bias": bias,
        "bidirectional": directions == 2,
        "batch_first": True,
        "dtype": kernel.dtype.name,
        **read,
    }
    if options.get("reset", config["reset"]) != config["reset"] and (bias or first.options):
        raise ValueError(f"reset: expected {config['reset']!r}, as read, got {options['reset']!r}")
    device = options.pop("device", "cpu")
    layer = GRU(**{"seed": 0, **config, **options})
    layer.load_state_dict(state)
    return layer.to(device)


def to_keras_gru(layer: GRU) -> list[list[HostArray]]:
    """The arrays that Keras GRU layers of the same shape load: one list a layer.

    Make ``keras.layers.GRU(hidden_size, reset_after=layer.reset == "after", use_bias=layer.bias,
    activation=...)`` ("identity" is "linear" there), in a ``Bidirectional`` if the layer is, with
    ``return_sequences=True`` but in the last one, and call ``set_weights`` with each list. Without
    ``reset_after`` Keras has one bias, the sum of the two here.

    Raises TypeError unless ``layer`` is a :class:`penstock.GRU`, ValueError if it has layer
    normalisation.
    """
    if not isinstance(layer, GRU):
        raise TypeError(f"layer: expected a penstock.GRU, got {type(layer).__name__}")
    if layer.use_layer_norm:
        raise ValueError("layer: expected no layer normalisation, which Keras' GRU does not have")
    state = layer.state_dict()
    hidden = layer.hidden_size
    result: list[list[HostArray]] = []
    for i in range(layer.num_layers):
        arrays: list[HostArray] = []
        for d in range(layer.directions):
            for name in ("weight_ih", "weight_hh"):
                arrays.append(
                    np.ascontiguousarray(_swap_gates(state[f"layers.{i}.{name}"][d].T, hidden))
                )
            if layer.bias:
                both = np.stack([state[f"layers.{i}.{n}"][d] for n in ("bias_ih", "bias_hh")])
                if layer.reset == "before":
                    both = both.sum(axis=0, dtype=both.dtype)
                arrays.append(_swap_gates(both, hidden))
        result.append(arrays)
    return result
