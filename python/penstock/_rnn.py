"""The plain recurrent layer as a function."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from penstock import _core
from penstock._recurrent import Activation, Array, Direction, run


class RNNGrads(NamedTuple):
    """Gradients of the arguments of :func:`rnn`.

    Those of the biases are None if the argument was not given; ``dh0`` is there in any case.
    """

    dx: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dh0: Array


class RNNBackprop(Protocol):
    """Gradients of the inputs from gradients of the outputs; may be called more than once."""

    def __call__(self, dy: Array | None = None, dh_last: Array | None = None) -> RNNGrads: ...


class RNNOutput(NamedTuple):
    """Result of :func:`rnn`."""

    y: Array
    h_last: Array
    backprop: RNNBackprop | None


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
    need_grad: bool = True,
) -> RNNOutput:
    """Run a plain recurrent layer (Elman, 1990) over a batch of sequences.

    With T steps, B batch, D input and H hidden features, and dirs = 2 if bidirectional, else 1::

        h = act(W x + b_ih + R h_prev + b_hh)

    as ``torch.nn.RNN`` computes it.

    Args:
        x: (T, B, D), float32, float64, float16 or bfloat16, of NumPy, CuPy or any library with
            ``__dlpack__``, with any strides. All other arrays share its element type and device.
        weight_ih: (dirs, H, D), W.
        weight_hh: (dirs, H, H), R.
        bias_ih: (dirs, H); None for zeros.
        bias_hh: (dirs, H); None for zeros.
        h0: (B, dirs·H) initial state; None for zeros.
        lengths: (B,) integers from 0 to T: steps at and past a sequence's length carry the state
            and output 0, and nothing that stands there matters, NaN included.
        direction: "forward", "reverse" or "bidirectional" (forward features first).
        activation: act, one of "identity", "tanh", "relu".
        recompute: True keeps less memory for the backward pass, which then computes more again.
        need_grad: False keeps nothing for the backward pass.

    Returns:
        ``RNNOutput(y, h_last, backprop)``: y (T, B, dirs·H), h_last (B, dirs·H) the state after the
        last step of each direction, both of the caller's library, and
        ``backprop(dy=None, dh_last=None) -> RNNGrads``, None if not ``need_grad``. ``backprop``
        reads the inputs again: do not change them in between. On a GPU, call it on the stream of
        the forward pass, or order the streams and keep ``backprop`` until both are done: its memory
        belongs to that stream.

    Raises:
        ValueError: a shape or a value is wrong.
        TypeError: an element type is wrong, or something is not an array.
        BufferError: an array is on another device than x.
    """
    y, h_last, _, back = run(
        _core.rnn_forward, _core.rnn_backward, x, weight_ih, weight_hh, bias_ih, bias_hh,
        h0=h0, lengths=lengths, direction=direction, activation=activation,
        recompute=recompute, need_grad=need_grad,
    )  # fmt: skip
    if back is None:
        return RNNOutput(y, h_last, None)

    def backprop(dy: Array | None = None, dh_last: Array | None = None) -> RNNGrads:
        return RNNGrads(*back(dy, dh_last, None)[:6])

    return RNNOutput(y, h_last, backprop)
