"""The Simple Recurrent Unit as a function."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from penstock import _core
from penstock._arrays import Caller, caller_of, host_lengths, new_tuple

Array = Any
Activation = Literal["identity", "tanh", "relu"]
Direction = Literal["forward", "reverse", "bidirectional"]
MaskSite = Literal["output", "state"]


class SRUGrads(NamedTuple):
    """Gradients of the arguments of :func:`sru`.

    Those of ``weight_c``, ``mask_c`` and ``x_skip`` are None if the argument was not given; ``dc0``
    is there in any case.
    """

    dx: Array
    dweight: Array
    dweight_c: Array | None
    dbias: Array
    dc0: Array
    dmask_c: Array | None
    dx_skip: Array | None


class SRUBackprop(Protocol):
    """Gradients of the inputs from gradients of the outputs; may be called more than once."""

    def __call__(self, dy: Array | None = None, dc_last: Array | None = None) -> SRUGrads: ...


class SRUOutput(NamedTuple):
    """Result of :func:`sru`."""

    y: Array
    c_last: Array
    backprop: SRUBackprop | None


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
    need_grad: bool = True,
) -> SRUOutput:
    """Run a Simple Recurrent Unit over a batch of sequences.

    With T steps, B batch, D input and H hidden features, and dirs = 2 if bidirectional, else 1::

        u0, u1, u2 [, u3] = weight · x_t
        f  = sigmoid(u1 + v_f * c_prev + b_f)
        r  = sigmoid(u2 + v_r * c_prev + b_r)
        c  = f * c_prev + (1 - f) * u0
        x' = scale_x * s_t (K = 3)  |  u3 (K = 4)  |  0 (skip=False)
        h  = r * m * (g(c) - x') + x'      (mask_site="state": r * (m * g(c) - x') + x')

    where s is x or, if given, x_skip (Lei et al., arXiv 1709.02755).

    Args:
        x: (T, B, D), float32, float64, float16 or bfloat16, of NumPy, CuPy or any library with
            ``__dlpack__``, with any strides. All other arrays share its element type and device.
        weight: (dirs, K·H, D), row blocks candidate, forget, reset and, if K = 4, skip.
            K = 3 with ``skip`` needs D = dirs·H, or ``x_skip``.
        weight_c: (dirs, 2, H), v_f and v_r; None for v = 0.
        bias: (dirs, 2, H), b_f and b_r.
        c0: (B, dirs·H) initial state; None for zeros.
        activation: g, one of "identity", "tanh", "relu".
        skip: False leaves the skip term out.
        scale_x: factor in the skip term when K = 3.
        mask_pad: (T, B) bool, true at padded steps: they carry the state and output 0, and nothing
            that stands there matters, NaN included.
        lengths: (B,) integers from 0 to T: steps at and past a sequence's length are padding.
        mask_c: (B, dirs·H) dropout mask, scaling included, the same at every step.
        x_skip: (T, B, dirs·H) for the skip term when K = 3; None for x itself. For layers that
            normalise, project or drop out x before the matrix product, but not in the skip term.
        mask_site: whether the mask multiplies the "output" or, as in the paper's first version, the
            "state".
        direction: "forward", "reverse" or "bidirectional" (forward features first).
        need_grad: False keeps nothing for the backward pass.

    Returns:
        ``SRUOutput(y, c_last, backprop)``: y (T, B, dirs·H), c_last (B, dirs·H), both of the
        caller's library, and ``backprop(dy=None, dc_last=None) -> SRUGrads``, None if not
        ``need_grad``. ``backprop`` reads the inputs again: do not change them in between. On a
        GPU, call it on the stream of the forward pass, or order the streams and keep ``backprop``
        until both are done: its memory belongs to that stream.

    Raises:
        ValueError: a shape or a value is wrong.
        TypeError: an element type is wrong, or something is not an array.
        BufferError: an array is on another device than x.
    """
    caller = caller_of(x)
    if lengths is not None:
        lengths = host_lengths(lengths, x, caller)
    y, c_last, saved = caller.forward(x, _core.sru_forward)(
        x, weight, weight_c, bias, c0, mask_pad, lengths, mask_c, x_skip,
        activation, skip, scale_x, mask_site, direction, need_grad,
    )  # fmt: skip
    if caller.hands_over:
        y, c_last = caller.hand_over(y), caller.hand_over(c_last)
    backprop = None
    if saved is not None:
        held = caller.hold(
            x=x, weight=weight, weight_c=weight_c, bias=bias, c0=c0, mask_pad=mask_pad,
            mask_c=mask_c, x_skip=x_skip,
        )  # fmt: skip
        backprop = _backprop(caller, x, saved, held)
    return new_tuple(SRUOutput, (y, c_last, backprop))


# Apart from the function above, which would otherwise keep its arguments in cells, at a price for
# every call.
def _backprop(caller: Caller, x: Array, saved: Any, held: Any) -> SRUBackprop:
    def backprop(dy: Array | None = None, dc_last: Array | None = None) -> SRUGrads:
        if held is not None:
            caller.check(held)
        grads = caller.backward(x, _core.sru_backward)(saved, dy, dc_last)
        return SRUGrads(*map(caller.hand_over, grads))

    return backprop
