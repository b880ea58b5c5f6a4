"""The gated recurrent unit as a function."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from penstock import _core
from penstock._recurrent import Activation, Array, Direction, run

Reset = Literal["after", "before"]


class GRUGrads(NamedTuple):
    """Gradients of the arguments of :func:`gru`.

    Those of the biases are None if the argument was not given; ``dh0`` is there in any case.
    """

    dx: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dh0: Array


class GRUBackprop(Protocol):
    """Gradients of the inputs from gradients of the outputs; may be called more than once."""

    def __call__(self, dy: Array | None = None, dh_last: Array | None = None) -> GRUGrads: ...


class GRUOutput(NamedTuple):
    """Result of :func:`gru`."""

    y: Array
    h_last: Array
    backprop: GRUBackprop | None


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
    need_grad: bool = True,
) -> GRUOutput:
    """Run a gated recurrent unit over a batch of sequences.

    With T steps, B batch, D input and H hidden features, and dirs = 2 if bidirectional, else 1::

        r = sigmoid(W_r x + b_ir + R_r h_prev + b_hr)
        z = sigmoid(W_z x + b_iz + R_z h_prev + b_hz)
        n = act(W_n x + b_in + r * (R_n h_prev + b_hn))     (reset="after")
        n = act(W_n x + b_in + R_n (r * h_prev) + b_hn)     (reset="before")
        h = (1 - z) * n + z * h_prev

    ``reset="after"`` is what PyTorch and cuDNN compute, "before" the form of Cho et al., arXiv
    1406.1078, and of the code published with sliced RNNs.

    Args:
        x: (T, B, D), float32, float64, float16 or bfloat16, of NumPy, CuPy or any library with
            ``__dlpack__``, with any strides. All other arrays share its element type and device.
        weight_ih: (dirs, 3·H, D), W, row blocks r, z, n.
        weight_hh: (dirs, 3·H, H), R, row blocks r, z, n.
        bias_ih: (dirs, 3·H); None for zeros.
        bias_hh: (dirs, 3·H); None for zeros.
        h0: (B, dirs·H) initial state; None for zeros.
        lengths: (B,) integers from 0 to T: steps at and past a sequence's length carry the state
            and output 0, and nothing that stands there matters, NaN included.
        direction: "forward", "reverse" or "bidirectional" (forward features first).
        activation: act, one of "identity", "tanh", "relu".
        reset: whether the reset gate multiplies "after" or "before" the product with R_n.
        recompute: True keeps only the states for the backward pass, which then computes the gates
            again: about a quarter of the memory for about a third more arithmetic.
        need_grad: False keeps nothing for the backward pass.

    Returns:
        ``GRUOutput(y, h_last, backprop)``: y (T, B, dirs·H), h_last (B, dirs·H) the state after the
        last step of each direction, both of the caller's library, and
        ``backprop(dy=None, dh_last=None) -> GRUGrads``, None if not ``need_grad``. ``backprop``
        reads the inputs again: do not change them in between. On a GPU, call it on the stream of
        the forward pass, or order the streams and keep ``backprop`` until both are done: its memory
        belongs to that stream.

    Raises:
        ValueError: a shape or a value is wrong.
        TypeError: an element type is wrong, or something is not an array.
        BufferError: an array is on another device than x.
    """
    y, h_last, _, back = run(
        _core.gru_forward, _core.gru_backward, x, weight_ih, weight_hh, bias_ih, bias_hh,
        h0=h0, lengths=lengths, direction=direction, activation=activation, reset=reset,
        recompute=recompute, need_grad=need_grad,
    )  # fmt: skip
    if back is None:
        return GRUOutput(y, h_last, None)

    def backprop(dy: Array | None = None, dh_last: Array | None = None) -> GRUGrads:
        return GRUGrads(*back(dy, dh_last, None)[:6])

    return GRUOutput(y, h_last, backprop)
