"""The functions of :mod:`penstock.jax`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from penstock._gru import Reset
from penstock._recurrent import Activation, Direction
from penstock._sliced import RECURRENT_LEVEL, SRU_LEVEL, Cell, Level
from penstock._sru import MaskSite
from penstock.jax._arguments import flag, number, run, sequence, slices_of, word
from penstock.jax._primitives import Array


class RNNOutput(NamedTuple):
    """Result of :func:`rnn`."""

    y: Array
    h_last: Array


class GRUOutput(NamedTuple):
    """Result of :func:`gru`."""

    y: Array
    h_last: Array


class LSTMOutput(NamedTuple):
    """Result of :func:`lstm`."""

    y: Array
    h_last: Array
    c_last: Array


class SRUOutput(NamedTuple):
    """Result of :func:`sru`."""

    y: Array
    c_last: Array


class SlicedOutput(NamedTuple):
    """Result of :func:`sliced`; ``y`` is ``levels[-1][0]``."""

    y: Array
    levels: tuple[Array, ...]


def rnn(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    lengths: Array | None = None,
    direction: Direction = "forward",
    activation: Activation = "tanh",
    recompute: bool = False,
) -> RNNOutput:
    """Run a plain recurrent layer over a batch of sequences; see :func:`penstock.rnn`.

    Args:
        x: (T, B, D), float32, float64, float16 or bfloat16. All other floating arrays share its
            element type.
        weight_ih: (dirs, H, D).
        weight_hh: (dirs, H, H).
        bias_ih: (dirs, H); None for zeros.
        bias_hh: (dirs, H); None for zeros.
        h0: (B, dirs·H) initial state; None for zeros.
        lengths: (B,) integers from 0 to T, which may be traced: steps at and past a sequence's
            length carry the state and output 0, and nothing that stands there matters.
        direction: "forward", "reverse" or "bidirectional" (forward features first).
        activation: "identity", "tanh" or "relu".
        recompute: True keeps less for the gradient, which then computes the gates again.

    Returns:
        ``RNNOutput(y, h_last)``: y (T, B, dirs·H), h_last (B, dirs·H).

    Raises:
        ValueError: a shape or an option is wrong.
        TypeError: an element type is wrong, or something is not an array.
    """
    return RNNOutput(
        *run(
            "rnn",
            {
                "x": x, "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih,
                "bias_hh": bias_hh, "h0": h0,
            },
            lengths,
            {
                "direction": word("direction", direction),
                "activation": word("activation", activation),
                "recompute": flag("recompute", recompute),
            },
        )
    )  # fmt: skip


def gru(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    lengths: Array | None = None,
    direction: Direction = "forward",
    activation: Activation = "tanh",
    reset: Reset = "after",
    recompute: bool = False,
) -> GRUOutput:
    """Run a gated recurrent unit over a batch of sequences; see :func:`penstock.gru`.

    Args:
        x: (T, B, D), float32, float64, float16 or bfloat16. All other floating arrays share its
            element type.
        weight_ih: (dirs, 3·H, D), row blocks r, z, n.
        weight_hh: (dirs, 3·H, H), row blocks r, z, n.
        bias_ih: (dirs, 3·H); None for zeros.
        bias_hh: (dirs, 3·H); None for zeros.
        h0: (B, dirs·H) initial state; None for zeros.
        lengths: (B,) integers from 0 to T, which may be traced: steps at and past a sequence's
            length carry the state and output 0, and nothing that stands there matters.
        direction: "forward", "reverse" or "bidirectional" (forward features first).
        activation: "identity", "tanh" or "relu".
        reset: whether the reset gate multiplies "after" or "before" the product with R_n.
        recompute: True keeps less for the gradient, which then computes the gates again.

    Returns:
        ``GRUOutput(y, h_last)``: y (T, B, dirs·H), h_last (B, dirs·H).

    Raises:
        ValueError: a shape or an option is wrong.
        TypeError: an element type is wrong, or something is not an array.
    """
    return GRUOutput(
        *run(
            "gru",
            {
                "x": x, "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih,
                "bias_hh": bias_hh, "h0": h0,
            },
            lengths,
            {
                "direction": word("direction", direction),
                "activation": word("activation", activation),
                "reset": word("reset", reset),
                "recompute": flag("recompute", recompute),
            },
        )
    )  # fmt: skip


def lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    c0: Array | None = None,
    lengths: Array | None = None,
    direction: Direction = "forward",
    recompute: bool = False,
) -> LSTMOutput:
    """Run long short-term memory over a batch of sequences; see :func:`penstock.lstm`.

    Args:
        x: (T, B, D), float32, float64, float16 or bfloat16. All other floating arrays share its
            element type.
        weight_ih: (dirs, 4·H, D), row blocks i, f, g, o.
        weight_hh: (dirs, 4·H, H), row blocks i, f, g, o.
        bias_ih: (dirs, 4·H); None for zeros.
        bias_hh: (dirs, 4·H); None for zeros.
        h0: (B, dirs·H) initial state; None for zeros.
        c0: (B, dirs·H) initial cell state; None for zeros.
        lengths: (B,) integers from 0 to T, which may be traced: steps at and past a sequence's
            length carry both states and output 0, and nothing that stands there matters.
        direction: "forward", "reverse" or "bidirectional" (forward features first).
        recompute: True keeps less for the gradient, which then computes the gates again.

    Returns:
        ``LSTMOutput(y, h_last, c_last)``: y (T, B, dirs·H), h_last and c_last (B, dirs·H).

    Raises:
        ValueError: a shape or an option is wrong.
        TypeError: an element type is wrong, or something is not an array.
    """
    return LSTMOutput(
        *run(
            "lstm",
            {
                "x": x, "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih,
                "bias_hh": bias_hh, "h0": h0, "c0": c0,
            },
            lengths,
            {
                "direction": word("direction", direction),
                "recompute": flag("recompute", recompute),
            },
        )
    )  # fmt: skip


def sru(
    x: Array,
    weight: Array,
    weight_c: Array | None,
    bias: Array,
    *,
    c0: Array | None = None,
    activation: Activation = "identity",
    skip: bool = True,
    scale_x: float = 1.0,
    mask_pad: Array | None = None,
    lengths: Array | None = None,
    mask_c: Array | None = None,
    x_skip: Array | None = None,
    mask_site: MaskSite = "output",
    direction: Direction = "forward",
) -> SRUOutput:
    """Run a Simple Recurrent Unit over a batch of sequences; see :func:`penstock.sru`.

    Args:
        x: (T, B, D), float32, float64, float16 or bfloat16. All other floating arrays share its
            element type.
        weight: (dirs, K·H, D), row blocks candidate, forget, reset and, if K = 4, skip. K = 3 with
            ``skip`` needs D = dirs·H, or ``x_skip``.
        weight_c: (dirs, 2, H); None for zeros.
        bias: (dirs, 2, H).
        c0: (B, dirs·H) initial state; None for zeros.
        activation: "identity", "tanh" or "relu".
        skip: False leaves the skip term out.
        scale_x: factor in the skip term when K = 3; a number, not an array.
        mask_pad: (T, B) bool, true at padded steps: they carry the state and output 0, and nothing
            that stands there matters.
        lengths: (B,) integers from 0 to T, which may be traced: steps at and past a sequence's
            length are padding.
        mask_c: (B, dirs·H) dropout mask, scaling included, the same at every step.
        x_skip: (T, B, dirs·H) for the skip term when K = 3; None for x itself.
        mask_site: whether the mask multiplies the "output" or the "state".
        direction: "forward", "reverse" or "bidirectional" (forward features first).

    Returns:
        ``SRUOutput(y, c_last)``: y (T, B, dirs·H), c_last (B, dirs·H).

    Raises:
        ValueError: a shape or an option is wrong.
        TypeError: an element type is wrong, or something is not an array.
    """
    return SRUOutput(
        *run(
            "sru",
            {
                "x": x, "weight": weight, "weight_c": weight_c, "bias": bias, "c0": c0,
                "mask_pad": mask_pad, "mask_c": mask_c, "x_skip": x_skip,
            },
            lengths,
            {
                "activation": word("activation", activation),
                "skip": flag("skip", skip),
                "scale_x": number("scale_x", scale_x),
                "mask_site": word("mask_site", mask_site),
                "direction": word("direction", direction),
            },
        )
    )  # fmt: skip


def sliced(
    cell: Cell,
    x: Array,
    levels: Sequence[Level],
    *,
    slices: Sequence[int],
    lengths: Array | None = None,
    pad: Literal["left", "right"] = "left",
    mask: Literal["skip", "none"] = "skip",
    direction: Direction = "forward",
    activation: Activation | None = None,
    reset: Reset = "after",
    skip: bool = True,
    scale_x: float = 1.0,
    recompute: bool = False,
) -> SlicedOutput:
    """Run a cell over many short slices of a batch of sequences; see :func:`penstock.sliced`.

    Args:
        cell: "rnn", "gru", "lstm" or "sru".
        x: (T, B, D), float32, float64, float16 or bfloat16. All other floating arrays share its
            element type.
        levels: the parameters of each level, len(slices) + 1 tuples, level 0 first:
            (weight_ih, weight_hh, bias_ih, bias_hh), of which biases may be None or left off; of
            "sru": (weight, weight_c, bias). D is x's in level 0, and dirs·H above.
        slices: (n_1, …, n_k), each at least 1.
        lengths: (B,) integers from 0 to T, which may be traced: how many steps of each sequence
            count, its last ones with ``pad="left"``, its first ones with "right".
        pad: the side on which padding lies, "left" or "right".
        mask: "skip": padded steps carry the state, and a part of padding alone is no step of the
            next level. "none": padding is data.
        direction: "forward", "reverse" or "bidirectional", of every level.
        activation: of the cell; None for its default.
        reset: of "gru".
        skip: of "sru".
        scale_x: of "sru".
        recompute: True keeps less for the gradient, which then computes more again; not of "sru".

    Returns:
        ``SlicedOutput(y, levels)``: y (B, dirs·H), and the last states of all levels, level i's
        (n_1 ··· n_(k-i), B, dirs·H).

    Raises:
        ValueError: a shape or an option is wrong.
        TypeError: an element type is wrong, or something is not an array.
    """
    kind = word("cell", cell)
    cuts = slices_of(slices)
    if activation is None:
        activation = "identity" if kind == "sru" else "tanh"
    elif kind == "lstm" and activation != "tanh":
        raise ValueError(
            f"activation: expected 'tanh' with the cell 'lstm' (actual: {activation!r})"
        )
    names = SRU_LEVEL if kind == "sru" else RECURRENT_LEVEL
    needed = 3 if kind == "sru" else 2
    given = sequence("levels", "a list or tuple of one tuple per level", levels)
    if len(given) != len(cuts) + 1:
        raise ValueError(
            f"levels: expected len(slices) + 1 = {len(cuts) + 1} levels (actual: {len(given)})"
        )
    operands: dict[str, Any] = {"x": x}
    for i, level in enumerate(given):
        arrays = sequence(f"levels[{i}]", f"({', '.join(names)})", level)
        if not needed <= len(arrays) <= len(names):
            raise ValueError(
                f"levels[{i}]: expected ({', '.join(names)}) (actual: {len(arrays)} arrays)"
            )
        for name, array in zip(names, arrays, strict=False):
            operands[f"levels[{i}].{name}"] = array
    outputs = run(
        "sliced",
        operands,
        lengths,
        {
            "cell": kind,
            "slices": cuts,
            "pad": word("pad", pad),
            "mask": word("mask", mask),
            "direction": word("direction", direction),
            "activation": word("activation", activation),
            "reset": word("reset", reset),
            "skip": flag("skip", skip),
            "scale_x": number("scale_x", scale_x),
            "recompute": flag("recompute", recompute),
        },
    )
    return SlicedOutput(outputs[-1][0], tuple(outputs))
