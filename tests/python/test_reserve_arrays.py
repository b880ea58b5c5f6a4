"""Calls that keep what the backward pass needs in an array of the caller's library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from penstock import _core
from reference.problems import random_problem
from reference.recurrent_problems import VARIANTS, random_recurrent, random_sliced

Call = tuple[str, tuple[Any, ...], tuple[Any, ...]]  # operation, arguments, gradients


def aligned_bytes(n: int) -> np.ndarray:
    """As a device's allocator would: at a multiple of 256, and full of what was there before."""
    buffer = np.full(n + 256, 0xA5, np.uint8)
    start = -buffer.ctypes.data % 256
    return buffer[start : start + n]


def recurrent(cell: str, recompute: bool = False, **options: Any) -> Call:
    p = random_recurrent(cell, **options)
    a = {**p.arrays, **p.options}
    gradients = (p.gradients["dy"], p.gradients["dh_last"], p.gradients.get("dc_last"))
    arguments = (
        a["x"], a["weight_ih"], a["weight_hh"], a["bias_ih"], a["bias_hh"], a["h0"], a.get("c0"),
        a["lengths"], a["direction"], a.get("activation", "tanh"), a.get("reset", "after"),
        recompute,
    )  # fmt: skip
    return cell, arguments, gradients


def sru(**options: Any) -> Call:
    p = random_problem(**options)
    a = {"skip": True, "scale_x": 1.0, "mask_site": "output", **p.arrays, **p.options}
    arguments = (
        a["x"], a["weight"], a["weight_c"], a["bias"], a["c0"], a["mask_pad"], a["lengths"],
        a["mask_c"], a["x_skip"], a["activation"], a["skip"], a["scale_x"], a["mask_site"],
        a["direction"],
    )  # fmt: skip
    return "sru", arguments, (p.dy, p.dc_last)


def sliced(cell: str, recompute: bool = False, **options: Any) -> Call:
    p = random_sliced(cell, **options)
    a = {"pad": "left", "mask": "skip", "activation": None, "reset": "after", **p.options}
    arguments = (
        cell, p.x, p.levels, a["slices"], p.lengths, a["pad"], a["mask"], a["direction"],
        a["activation"], a["reset"], a.get("skip", True), a.get("scale_x", 1.0), recompute,
    )  # fmt: skip
    return "sliced", arguments, (p.dy, p.dlevels)


CALLS: dict[str, Callable[[], Call]] = {}
for _name, (_cell, _options) in VARIANTS.items():
    CALLS[_name] = lambda c=_cell, o=_options: recurrent(c, **o, with_lengths=True)
for _cell in ("rnn", "gru", "lstm"):
    CALLS[f"{_cell}-recompute"] = lambda c=_cell: recurrent(c, recompute=True, dtype="float32")
    for _direction in ("reverse", "bidirectional"):
        CALLS[f"{_cell}-{_direction}"] = lambda c=_cell, d=_direction: recurrent(
            c, direction=d, biases="none", with_state=False, dtype="float32"
        )
    for _type in ("float16", "bfloat16"):
        CALLS[f"{_cell}-{_type}"] = lambda c=_cell, t=_type: recurrent(c, dtype=t)
    CALLS[f"{_cell}-large"] = lambda c=_cell: recurrent(c, steps=40, hidden=70, dtype="float32")
    CALLS[f"{_cell}-empty"] = lambda c=_cell: recurrent(c, batch=0)
for _form in ("k3", "k4", "noskip", "x_skip"):
    CALLS[f"sru-{_form}"] = lambda f=_form: sru(form=f, padding="both", mask_site="output")
CALLS["sru-bidirectional"] = lambda: sru(
    form="k4", direction="bidirectional", activation="tanh", mask_site="state", dtype="float32"
)
CALLS["sru-plain"] = lambda: sru(with_v=False, with_c0=False, dtype="bfloat16")
for _cell in ("rnn", "gru", "lstm", "sru"):
    CALLS[f"sliced-{_cell}"] = lambda c=_cell: sliced(c, with_lengths=True)
    CALLS[f"sliced-{_cell}-none"] = lambda c=_cell: sliced(
        c, mask="none", pad="right", direction="bidirectional", biases="none", dtype="float32"
    )
    CALLS[f"sliced-{_cell}-plain"] = lambda c=_cell: sliced(c, slices=(), dtype="bfloat16")
CALLS["sliced-gru-recompute"] = lambda: sliced("gru", recompute=True, slices=(3, 2, 2))


def flat(value: Any) -> list[Any]:
    """All arrays of a result, in order."""
    if isinstance(value, (tuple, list)):
        return [array for item in value for array in flat(item)]
    return [] if value is None else [value]


def bits(value: Any) -> list[tuple[Any, ...]]:
    return [(a.dtype, a.shape, a.tobytes()) for a in flat(value)]


@pytest.mark.parametrize("name", CALLS)
def test_same_bits(name: str) -> None:
    """Outputs and gradients are those of the calls that keep the reserve themselves."""
    operation, arguments, gradients = CALLS[name]()
    *outputs, saved = getattr(_core, f"{operation}_forward")(*arguments, True, None, None, 0)
    expected = getattr(_core, f"{operation}_backward")(saved, *gradients, 0)

    forward = getattr(_core, f"{operation}_forward_arrays")
    *again, reserve = forward(*arguments, True, None, aligned_bytes, 0)
    assert bits(again) == bits(outputs)
    assert type(reserve) is np.ndarray
    assert reserve.dtype == np.uint8
    n = getattr(_core, f"{operation}_reserve_bytes")(*arguments, 0)
    assert reserve.shape == (n,)

    moved = aligned_bytes(n)  # nothing of it depends on where it lies
    moved[:] = reserve
    reserve[:] = 0
    before = moved.tobytes()
    backward = getattr(_core, f"{operation}_backward_arrays")
    for _ in range(2):  # and nothing of it is used up
        grads = backward(*arguments, moved, *gradients, None, None, 0)
        assert bits(grads) == bits(expected)
        assert moved.tobytes() == before

    *inference, none = forward(*arguments, False, None, None, 0)
    assert none is None
    *expected, _ = getattr(_core, f"{operation}_forward")(*arguments, False, None, None, 0)
    assert bits(inference) == bits(expected)


@pytest.mark.parametrize("name", ["rnn-tanh", "gru-after-tanh", "lstm", "sru-k4", "sliced-gru"])
def test_wrong_reserve(name: str) -> None:
    operation, arguments, gradients = CALLS[name]()
    *_, reserve = getattr(_core, f"{operation}_forward_arrays")(
        *arguments, True, None, aligned_bytes, 0
    )
    backward = getattr(_core, f"{operation}_backward_arrays")

    def call(given: Any) -> Any:
        return backward(*arguments, given, *gradients, None, None, 0)

    n = reserve.size
    with pytest.raises(ValueError, match=rf"reserve: expected .*{n}.*actual: {n - 1}"):
        call(reserve[:-1])
    with pytest.raises(TypeError, match="reserve: expected a contiguous one-dimensional uint8"):
        call(aligned_bytes(8 * n).view(np.float64))
    with pytest.raises(TypeError, match="reserve: expected a contiguous one-dimensional uint8"):
        call(reserve.reshape(2, -1))
    with pytest.raises(TypeError, match="reserve: expected a contiguous one-dimensional uint8"):
        call(aligned_bytes(2 * n)[::2])
    with pytest.raises(ValueError, match="reserve: expected"):
        call(None)
    with pytest.raises((ValueError, BufferError), match="reserve: expected memory aligned"):
        call(aligned_bytes(n + 1)[1:])
    assert len(flat(call(reserve))) > 1


@pytest.mark.parametrize("name", ["rnn-tanh", "gru-after-tanh", "lstm", "sru-k4", "sliced-gru"])
def test_inputs_are_checked_again(name: str) -> None:
    """A backward pass with other inputs than the forward pass had finds what does not fit."""
    operation, arguments, gradients = CALLS[name]()
    *_, reserve = getattr(_core, f"{operation}_forward_arrays")(
        *arguments, True, None, aligned_bytes, 0
    )
    backward = getattr(_core, f"{operation}_backward_arrays")
    at = 1 if operation == "sliced" else 0
    wrong = list(arguments)
    wrong[at] = arguments[at][..., :-1]
    with pytest.raises(ValueError, match="expected"):
        backward(*wrong, reserve, *gradients, None, None, 0)
    wrong[at] = arguments[at].astype(np.float32)
    with pytest.raises(TypeError, match="expected"):
        backward(*wrong, reserve, *gradients, None, None, 0)
    longer = np.concatenate([arguments[at]] * 2)
    wrong[at] = longer
    with pytest.raises((ValueError, TypeError), match="expected"):
        backward(*wrong, reserve, *gradients, None, None, 0)


@pytest.mark.parametrize("n", [0, 1, 1000, 1 << 20])
def test_host_bytes(n: int) -> None:
    """Memory of the pool, as large as asked for, and each time another block."""
    blocks = [np.from_dlpack(_core.host_bytes(n)) for _ in range(2)]
    for block in blocks:
        assert block.dtype == np.uint8
        assert block.shape == (n,)
        assert block.ctypes.data % 64 == 0 or n == 0
    assert n == 0 or not np.shares_memory(*blocks)


def test_reserve_bytes_checks_shapes() -> None:
    operation, arguments, _ = CALLS["gru-after-tanh"]()
    wrong = list(arguments)
    wrong[1] = arguments[1][:, :-1]
    with pytest.raises(ValueError, match="weight_ih: expected"):
        getattr(_core, f"{operation}_reserve_bytes")(*wrong, 0)


def test_failing_allocator() -> None:
    """What the allocator raises comes out as it is, and a reserve that does not fit is refused."""
    operation, arguments, _ = CALLS["gru-after-tanh"]()
    forward = getattr(_core, f"{operation}_forward_arrays")

    def fail(n: int) -> np.ndarray:
        raise MemoryError(f"no {n} bytes")

    with pytest.raises(MemoryError, match=r"no \d+ bytes"):
        forward(*arguments, True, None, fail, 0)
    with pytest.raises(ValueError, match="reserve: expected"):
        forward(*arguments, True, None, lambda n: aligned_bytes(n - 1), 0)
