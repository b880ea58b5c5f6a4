"""The operations as functions that PyTorch differentiates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from penstock._arrays import caller_of, host_lengths
from penstock._gru import Reset
from penstock._recurrent import Activation, Direction
from penstock._sliced import RECURRENT_LEVEL, SRU_LEVEL, Cell, Level
from penstock._sru import MaskSite
from penstock.torch import _ops

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class RNNOutput(NamedTuple):
    """Result of :func:`rnn`: y (T, B, dirs·H) and h_last (B, dirs·H)."""

    y: Tensor
    h_last: Tensor


class GRUOutput(NamedTuple):
    """Result of :func:`gru`: y (T, B, dirs·H) and h_last (B, dirs·H)."""

    y: Tensor
    h_last: Tensor


class LSTMOutput(NamedTuple):
    """Result of :func:`lstm`: y (T, B, dirs·H), h_last and c_last (B, dirs·H)."""

    y: Tensor
    h_last: Tensor
    c_last: Tensor


class SRUOutput(NamedTuple):
    """Result of :func:`sru`: y (T, B, dirs·H) and c_last (B, dirs·H)."""

    y: Tensor
    c_last: Tensor


class SlicedOutput(NamedTuple):
    """Result of :func:`sliced`: y (B, dirs·H), which is ``levels[-1][0]``, and all levels."""

    y: Tensor
    levels: tuple[Tensor, ...]


def _check_tensors(names: Sequence[str], tensors: Sequence[Any]) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor (actual: {type(tensor).__name__})")
    if tensors[0] is None:
        raise TypeError(f"{names[0]}: expected a torch.Tensor (actual: None)")


def _direct(flat: Sequence[Any]) -> bool:
    """Whether a call can do without the dispatcher, provided that nothing is being compiled."""
    for tensor in flat:
        if tensor is not None and type(tensor) not in _PLAIN:
            return False
    x = flat[0]
    return x is not None and (x.is_cpu or x.is_cuda) and _ops.unobserved()


def _need_grad(flat: Sequence[Any]) -> bool:
    if torch.is_grad_enabled():
        for tensor in flat:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def lengths_for(x: Any, lengths: Any) -> Tensor | None:
    """Lengths as a tensor; on a GPU checked and copied there once, for all that will read them."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, device="cpu")
    if torch.compiler.is_compiling() or type(x) not in _PLAIN or not x.is_cuda or lengths.is_cuda:
        return lengths
    return host_lengths(lengths, x, caller_of(x))


def _run(
    name: str, names: Sequence[str], tensors: tuple[Any, ...], options: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Call an operation that takes no lists; the last of its results is not for users."""
    if torch.compiler.is_compiling() or not _direct(tensors):
        _check_tensors(names, tensors)
        if not torch.compiler.is_compiling() and _ops.transformed():
            device = tensors[0].device.type
            if torch.is_autocast_enabled(device):  # before what is given is kept
                tensors = tuple(_ops.autocast_inputs(tensors, device))
            return _ops.TRANSFORMABLE_CALLS[name](*tensors, *options, True)
        op = getattr(torch.ops.penstock, name).default
        return op(*tensors, *options, _need_grad(tensors))
    if _need_grad(tensors):
        return _ops.DIFFERENTIABLE_CALLS[name](*tensors, *options, True)
    return _ops.CALLS[name](*tensors, *options, False)


_RECURRENT = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0", "lengths")


def rnn(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    h0: Tensor | None = None,
    lengths: Any = None,
    direction: Direction = "forward",
    activation: Activation = "tanh",
    recompute: bool = False,
) -> RNNOutput:
    """:func:`penstock.rnn`, differentiable by PyTorch.

    Args:
        x: (T, B, D).
        weight_ih: (dirs, H, D), with dirs = 2 if bidirectional, else 1.
        weight_hh: (dirs, H, H).
        bias_ih, bias_hh: (dirs, H); None for zeros.
        h0: (B, dirs·H); None for zeros.
        lengths: (B,) integers from 0 to T, a tensor or a list.
        direction, activation, recompute: see :func:`penstock.rnn`.

    Raises what :func:`penstock.rnn` raises, and RuntimeError for a second derivative.
    """
    tensors = (x, weight_ih, weight_hh, bias_ih, bias_hh, h0, None, lengths_for(x, lengths))
    y, h_last, *_ = _run("rnn", _RECURRENT, tensors, (direction, activation, None, recompute))
    return RNNOutput(y, h_last)


def gru(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    h0: Tensor | None = None,
    lengths: Any = None,
    direction: Direction = "forward",
    activation: Activation = "tanh",
    reset: Reset = "after",
    recompute: bool = False,
) -> GRUOutput:
    """:func:`penstock.gru`, differentiable by PyTorch.

    Args:
        x: (T, B, D).
        weight_ih: (dirs, 3·H, D), with dirs = 2 if bidirectional, else 1.
        weight_hh: (dirs, 3·H, H).
        bias_ih, bias_hh: (dirs, 3·H); None for zeros.
        h0: (B, dirs·H); None for zeros.
        lengths: (B,) integers from 0 to T, a tensor or a list.
        direction, activation, reset, recompute: see :func:`penstock.gru`.

    Raises what :func:`penstock.gru` raises, and RuntimeError for a second derivative.
    """
    tensors = (x, weight_ih, weight_hh, bias_ih, bias_hh, h0, None, lengths_for(x, lengths))
    y, h_last, *_ = _run("gru", _RECURRENT, tensors, (direction, activation, reset, recompute))
    return GRUOutput(y, h_last)


def lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    lengths: Any = None,
    direction: Direction = "forward",
    recompute: bool = False,
) -> LSTMOutput:
    """:func:`penstock.lstm`, differentiable by PyTorch.

    Args:
        x: (T, B, D).
        weight_ih: (dirs, 4·H, D), with dirs = 2 if bidirectional, else 1.
        weight_hh: (dirs, 4·H, H).
        bias_ih, bias_hh: (dirs, 4·H); None for zeros.
        h0, c0: (B, dirs·H); None for zeros.
        lengths: (B,) integers from 0 to T, a tensor or a list.
        direction, recompute: see :func:`penstock.lstm`.

    Raises what :func:`penstock.lstm` raises, and RuntimeError for a second derivative.
    """
    tensors = (x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths_for(x, lengths))
    y, h_last, c_last, _ = _run("lstm", _RECURRENT, tensors, (direction, None, None, recompute))
    return LSTMOutput(y, h_last, c_last)


_SRU = ("x", "weight", "weight_c", "bias", "c0", "mask_pad", "lengths", "mask_c", "x_skip")


def sru(
    x: Tensor,
    weight: Tensor,
    weight_c: Tensor | None,
    bias: Tensor,
    *,
    c0: Tensor | None = None,
    activation: Activation = "identity",
    skip: bool = True,
    scale_x: float = 1.0,
    mask_pad: Tensor | None = None,
    lengths: Any = None,
    mask_c: Tensor | None = None,
    x_skip: Tensor | None = None,
    mask_site: MaskSite = "output",
    direction: Direction = "forward",
) -> SRUOutput:
    """:func:`penstock.sru`, differentiable by PyTorch.

    Args:
        x: (T, B, D).
        weight: (dirs, K·H, D), with dirs = 2 if bidirectional, else 1.
        weight_c: (dirs, 2, H); None for zeros.
        bias: (dirs, 2, H).
        c0: (B, dirs·H); None for zeros.
        mask_pad: (T, B) bool, true at padded steps.
        lengths: (B,) integers from 0 to T, a tensor or a list.
        mask_c: (B, dirs·H), a dropout mask.
        x_skip: (T, B, dirs·H), what stands for x in the skip term.
        activation, skip, scale_x, mask_site, direction: see :func:`penstock.sru`.

    Raises what :func:`penstock.sru` raises, and RuntimeError for a second derivative.
    """
    tensors = (x, weight, weight_c, bias, c0, mask_pad, lengths_for(x, lengths), mask_c, x_skip)
    options = (activation, skip, scale_x, mask_site, direction)
    y, c_last, _ = _run("sru", _SRU, tensors, options)
    return SRUOutput(y, c_last)


def sliced(
    cell: Cell,
    x: Tensor,
    levels: Sequence[Level],
    *,
    slices: Sequence[int],
    lengths: Any = None,
    pad: str = "left",
    mask: str = "skip",
    direction: Direction = "forward",
    activation: Activation | None = None,
    reset: Reset = "after",
    skip: bool = True,
    scale_x: float = 1.0,
    recompute: bool = False,
) -> SlicedOutput:
    """:func:`penstock.sliced`, differentiable by PyTorch.

    Args:
        cell: "rnn", "gru", "lstm" or "sru".
        x: (T, B, D).
        levels: one (weight_ih, weight_hh, bias_ih, bias_hh) per level, level 0 first, of which
            biases may be None or left off; of "sru" (weight, weight_c, bias).
        slices: (n_1, …, n_k), one less than there are levels.
        lengths: (B,) integers from 0 to T, a tensor or a list.
        pad, mask, direction, activation, reset, skip, scale_x, recompute: see
            :func:`penstock.sliced`.

    Raises what :func:`penstock.sliced` raises, and RuntimeError for a second derivative.
    """
    if cell not in ("rnn", "gru", "lstm", "sru"):
        raise ValueError(f"cell: expected 'rnn', 'gru', 'lstm' or 'sru' (actual: {cell!r})")
    if len(levels) != len(slices) + 1:
        raise ValueError(
            f"levels: expected len(slices) + 1 = {len(slices) + 1} levels (actual: {len(levels)})"
        )
    level_names = SRU_LEVEL if cell == "sru" else RECURRENT_LEVEL
    needed = len(level_names) if cell == "sru" else 2
    names: list[str] = []
    parameters: list[Any] = []
    for i, level in enumerate(levels):
        if not needed <= len(level) <= len(level_names):
            raise ValueError(
                f"levels[{i}]: expected ({', '.join(level_names)}) (actual: {len(level)} arrays)"
            )
        names += [f"levels[{i}].{name}" for name in level_names]
        parameters += [*level, *(None,) * (len(level_names) - len(level))]
    given = lengths_for(x, lengths)
    flat = (x, given, *parameters)
    _check_tensors(("x", "lengths", *names), flat)
    need = _need_grad(flat)
    present = [p for p in parameters if p is not None]
    arguments = (
        x, present, given, cell, [p is not None for p in parameters], list(slices), pad, mask,
        direction, activation, reset, skip, scale_x, recompute, need,
    )  # fmt: skip
    if not need and not torch.compiler.is_compiling() and _direct(flat):
        states = _ops.CALLS["sliced"](*arguments)[0]
    else:
        states = torch.ops.penstock.sliced.default(*arguments)[0]
    return SlicedOutput(states[-1][0], tuple(states))


def sliced_gru(x: Tensor, levels: Sequence[Level], **options: Any) -> SlicedOutput:
    """:func:`sliced` of the cell "gru", with the same options."""
    return sliced("gru", x, levels, **options)
