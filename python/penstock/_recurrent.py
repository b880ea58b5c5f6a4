"""What :func:`rnn`, :func:`gru` and :func:`lstm` have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from penstock._arrays import Caller, caller_of, host_lengths

Array = Any
Activation = Literal["identity", "tanh", "relu"]
Direction = Literal["forward", "reverse", "bidirectional"]

# From the gradients of y, h_last and c_last to those of the arguments.
Backprop = Callable[[Array | None, Array | None, Array | None], tuple[Any, ...]]


def run(
    forward: Callable[..., tuple[Array, Array, Array | None, Any]],
    backward: Callable[..., tuple[Any, ...]],
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    *,
    h0: Array | None,
    c0: Array | None = None,
    lengths: Array | None,
    direction: Direction,
    activation: Activation | None = None,
    reset: str | None = None,
    recompute: bool,
    need_grad: bool,
) -> tuple[Array, Array, Array | None, Backprop | None]:
    """Call a cell of the extension module: y, h_last, c_last (None where there is none), backprop.

    ``backprop`` returns dx, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0 and dc0.
    """
    caller = caller_of(x)
    if lengths is not None:
        lengths = host_lengths(lengths, x, caller)
    y, h_last, c_last, saved = caller.forward(x, forward)(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths,
        direction, activation, reset, recompute, need_grad,
    )  # fmt: skip
    if caller.hands_over:
        y, h_last, c_last = map(caller.hand_over, (y, h_last, c_last))
    if saved is None:
        return y, h_last, c_last, None
    held = caller.hold(
        x=x, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih, bias_hh=bias_hh,
        h0=h0, c0=c0,
    )  # fmt: skip
    return y, h_last, c_last, _backprop(backward, caller, x, saved, held)


# Apart from the function above, which would otherwise keep its arguments in cells, at a price for
# every call.
def _backprop(
    backward: Callable[..., tuple[Any, ...]], caller: Caller, x: Array, saved: Any, held: Any
) -> Backprop:
    def backprop(dy: Array | None, dh_last: Array | None, dc_last: Array | None) -> tuple[Any, ...]:
        if held is not None:
            caller.check(held)
        grads = caller.backward(x, backward)(saved, dy, dh_last, dc_last)
        return tuple(map(caller.hand_over, grads)) if caller.hands_over else grads

    return backprop
