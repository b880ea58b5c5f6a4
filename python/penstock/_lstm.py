"""Long short-term memory as a function."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from penstock import _core
from penstock._recurrent import Array, Direction, run


class LSTMGrads(NamedTuple):
    """Gradients of the arguments of :func:`lstm`.

    Those of the biases are None if the argument was not given; ``dh0`` and ``dc0`` are there in any
    case.
    """

    dx: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dh0: Array
    dc0: Array


class LSTMBackprop(Protocol):
    """Gradients of the inputs from gradients of the outputs; may be called more than once."""

    def __call__(
        self, dy: Array | None = None, dh_last: Array | None = None, dc_last: Array | None = None
    ) -> LSTMGrads: ...


class LSTMOutput(NamedTuple):
    """Result of :func:`lstm`."""

    y: Array
    h_last: Array
    c_last: Array
    backprop: LSTMBackprop | None


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
    need_grad: bool = True,
) -> LSTMOutput:
    """Run long short-term memory over a batch of sequences.

    With T steps, B batch, D input and H hidden features, and dirs = 2 if bidirectional, else 1::

        i = sigmoid(W_i x + b_ii + R_i h_prev + b_hi)
        f = sigmoid(W_f x + b_if + R_f h_prev + b_hf)
        g = tanh   (W_g x + b_ig + R_g h_prev + b_hg)
        o = sigmoid(W_o x + b_io + R_o h_prev + b_ho)
        c = f * c_prev + i * g
        h = o * tanh(c)

    as ``torch.nn.LSTM`` computes it (Hochreiter and Schmidhuber, 1997; Gers et al., 2000).

    Args:
        x: (T, B, D), float32, float64, float16 or bfloat16, of NumPy, CuPy or any library with
            ``__dlpack__``, with any strides. All other arrays share its element type and device.
        weight_ih: (dirs, 4·H, D), W, row blocks i, f, g, o.
        weight_hh: (dirs, 4·H, H), R, row blocks i, f, g, o.
        bias_ih: (dirs, 4·H); None for zeros.
        bias_hh: (dirs, 4·H); None for zeros.
        h0: (B, dirs·H) initial state; None for zeros.
        c0: (B, dirs·H) initial cell state; None for zeros.
        lengths: (B,) integers from 0 to T: steps at and past a sequence's length carry both states
            and output 0, and nothing that stands there matters, NaN included.
        direction: "forward", "reverse" or "bidirectional" (forward features first).
        recompute: True keeps only the states for the backward pass, which then computes the gates
            again: about a quarter of the memory for about a third more arithmetic.
        need_grad: False keeps nothing for the backward pass.

    Returns:
        ``LSTMOutput(y, h_last, c_last, backprop)``: y (T, B, dirs·H), h_last and c_last
        (B, dirs·H) the states after the last step of each direction, all of the caller's library,
        and ``backprop(dy=None, dh_last=None, dc_last=None) -> LSTMGrads``, None if not
        ``need_grad``. ``backprop`` reads the inputs again: do not change them in between. On a GPU,
        call it on the stream of the forward pass, or order the streams and keep ``backprop`` until
        both are done: its memory belongs to that stream.

    Raises:
        ValueError: a shape or a value is wrong.
        TypeError: an element type is wrong, or something is not an array.
        BufferError: an array is on another device than x.
    """
    y, h_last, c_last, back = run(
        _core.lstm_forward, _core.lstm_backward, x, weight_ih, weight_hh, bias_ih, bias_hh,
        h0=h0, c0=c0, lengths=lengths, direction=direction,
        recompute=recompute, need_grad=need_grad,
    )  # fmt: skip
    if back is None:
        return LSTMOutput(y, h_last, c_last, None)

    def backprop(
        dy: Array | None = None, dh_last: Array | None = None, dc_last: Array | None = None
    ) -> LSTMGrads:
        return LSTMGrads(*back(dy, dh_last, dc_last))

    return LSTMOutput(y, h_last, c_last, backprop)
