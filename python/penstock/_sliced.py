"""Sliced recurrent networks as a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from penstock import _core
from penstock._arrays import caller_of, host_lengths
from penstock._gru import Reset
from penstock._recurrent import Activation, Array, Direction

Cell = Literal["rnn", "gru", "lstm", "sru"]
# One level's parameters, or their gradients.
Level = Sequence[Array | None]

# Arrays of a level.
RECURRENT_LEVEL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
SRU_LEVEL = ("weight", "weight_c", "bias")


class SlicedGrads(NamedTuple):
    """Gradients of the arguments of :func:`sliced`.

    ``dlevels[i]`` holds those of ``levels[i]``, None where a parameter was None or left off.
    """

    dx: Array
    dlevels: tuple[tuple[Array | None, ...], ...]


class SlicedBackprop(Protocol):
    """Gradients of the inputs from gradients of the outputs; may be called more than once."""

    def __call__(
        self, dy: Array | None = None, dlevels: Sequence[Array | None] | None = None
    ) -> SlicedGrads: ...


class SlicedOutput(NamedTuple):
    """Result of :func:`sliced`; ``y`` is ``levels[-1][0]``, the same memory where a library can."""

    y: Array
    levels: tuple[Array, ...]
    backprop: SlicedBackprop | None


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
    need_grad: bool = True,
) -> SlicedOutput:
    """Run a cell over many short slices of a batch of sequences at once.

    ``slices=(n_1, …, n_k)`` cuts a sequence into n_1 parts, each of them into n_2, and so on. Level
    0 runs the cell over all n_1 ··· n_k parts at once, T / (n_1 ··· n_k) steps each; the last state
    of each part (of the SRU: its last output) is a step of the next level, which has its own
    parameters; level k has n_1 steps and one part, whose last state is the result (Yu and Liu,
    "Sliced Recurrent Neural Networks", arXiv 1807.02291). All parts start from a zero state.

    Args:
        cell: "rnn", "gru", "lstm" or "sru"; equations, shapes and activations are those of the
            functions of that name.
        x: (T, B, D), float32, float64, float16 or bfloat16, of NumPy, CuPy or any library with
            ``__dlpack__``, with any strides. All other arrays share its element type and device.
        levels: the parameters of each level, k + 1 tuples, level 0 first:
            (weight_ih, weight_hh, bias_ih, bias_hh), of which biases may be None or left off; of
            "sru": (weight, weight_c, bias). D is x's in level 0, and dirs·H above.
        slices: (n_1, …, n_k), each at least 1; () is the plain cell. A T that they do not divide is
            completed with steps of padding.
        lengths: (B,) integers from 0 to T: how many steps of each sequence count, its last ones
            with ``pad="left"``, its first ones with "right". What stands elsewhere never matters,
            NaN included.
        pad: the side on which padding lies.
        mask: "skip": padded steps carry the state, and a part of padding alone is no step of the
            next level. "none": steps that complete T are zeros in x, and ``lengths`` do not count,
            as in the code published with the paper.
        direction: "forward", "reverse" or "bidirectional", of every level; a bidirectional level
            hands both directions' last states, side by side, to the next one.
        activation: of the cell; None for its default, "identity" of the SRU and "tanh" of others.
        reset: of "gru".
        skip: of "sru".
        scale_x: of "sru".
        recompute: True keeps less memory for the backward pass, which then computes more again; not
            of "sru".
        need_grad: False keeps nothing for the backward pass.

    Returns:
        ``SlicedOutput(y, levels, backprop)``: y (B, dirs·H); the last states of all levels, level
        i's (n_1 ··· n_(k-i), B, dirs·H), 0 where a part has no step that counts; and
        ``backprop(dy=None, dlevels=None) -> SlicedGrads``, None if not ``need_grad``. Its
        ``dlevels`` are gradients of ``levels``, any of which may be None; the last one adds to dy.
        ``backprop`` reads the inputs again: do not change them in between. On a GPU, call it on the
        stream of the forward pass, or order the streams and keep ``backprop`` until both are done:
        its memory belongs to that stream.

    Raises:
        ValueError: a shape or a value is wrong.
        TypeError: an element type is wrong, or something is not an array.
        BufferError: an array is on another device than x.
    """
    caller = caller_of(x)
    if lengths is not None:
        lengths = host_lengths(lengths, x, caller)
    outputs, saved = caller.forward(x, _core.sliced_forward)(
        cell, x, levels, slices, lengths, pad, mask, direction,
        activation, reset, skip, scale_x, recompute, need_grad,
    )  # fmt: skip
    states = tuple(map(caller.hand_over, outputs))
    if saved is None:
        return SlicedOutput(states[-1][0], states, None)
    names = SRU_LEVEL if cell == "sru" else RECURRENT_LEVEL
    parameters = {
        f"levels[{i}]: {name}": array
        for i, level in enumerate(levels)
        for name, array in zip(names, level, strict=False)
    }
    held = caller.hold(x=x, **parameters)

    def backprop(
        dy: Array | None = None, dlevels: Sequence[Array | None] | None = None
    ) -> SlicedGrads:
        if held is not None:
            caller.check(held)
        dx, grads = caller.backward(x, _core.sliced_backward)(saved, dy, dlevels)
        return SlicedGrads(
            caller.hand_over(dx), tuple(tuple(map(caller.hand_over, level)) for level in grads)
        )

    return SlicedOutput(states[-1][0], states, backprop)


def sliced_gru(x: Array, levels: Sequence[Level], **options: Any) -> SlicedOutput:
    """:func:`sliced` of the cell "gru", with the same options."""
    return sliced("gru", x, levels, **options)
