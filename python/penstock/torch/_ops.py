"""The operations as PyTorch operators: ``torch.ops.penstock.gru`` and so on.

Each has a forward operator, which returns besides its results what it keeps for the backward pass,
a uint8 tensor, and a backward operator, which takes that tensor and the inputs again. So all that
goes in and out is a plain tensor, as fake tensors, ``torch.compile`` and hooks on saved tensors
need it. What a call does not have comes out as an empty tensor: operators return no None.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from penstock import _core
from penstock._arrays import caller_of, host_lengths

Size = Any  # int or torch.SymInt

LIBRARY = torch.library.Library("penstock", "DEF")

# What each operation is without the dispatcher: from the operator's arguments to its results, of
# which any may be None.
CALLS: dict[str, Callable[..., tuple[Any, ...]]] = {}
# The same, with autograd; of the operations that take no lists.
DIFFERENTIABLE_CALLS: dict[str, Callable[..., tuple[Any, ...]]] = {}
# And with the operator, for torch.func's transforms, which the operator's own autograd refuses.
TRANSFORMABLE_CALLS: dict[str, Callable[..., tuple[Any, ...]]] = {}

_SMALL = 1 << 18
_HOST = torch.device("cpu")

# Values that a step keeps for the backward pass, in units of its state.
_KEPT = {"rnn": 1, "gru": 4, "lstm": 4}


def transformed() -> bool:
    """Whether one of torch.func's transforms is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def unobserved() -> bool:
    """Whether nothing but its own kernels would see a call of an operator.

    Then it can do without the dispatcher, which costs more than some kernels. Never so in a graph
    that is being compiled: ask ``torch.compiler.is_compiling()`` first.
    """
    c = torch._C
    return (
        c._len_torch_dispatch_stack() == 0
        and c._len_torch_function_stack() == 0
        and not transformed()
        and not c._is_any_autocast_enabled()
        and c._get_tracing_state() is None
    )


def plain(tensor: Any) -> Any:
    """A tensor without its gradient's history, as the extension module takes it."""
    return tensor.detach() if tensor is not None and tensor.requires_grad else tensor


# ---- how much a forward pass keeps ---------------------------------------------------------------


def _alignment(x: Tensor) -> int:
    return 256 if x.device.type == "cuda" else 64


def _up(x: Tensor, size: Size) -> Size:
    """``size`` rounded up to the alignment of memory on x's device."""
    alignment = _alignment(x)
    return (size + alignment - 1) // alignment * alignment


def _item(x: Tensor) -> int:
    """Bytes of a number in what is kept: on the CPU, 16-bit types are computed in float32."""
    return x.element_size() if x.device.type == "cuda" else _state_item(x)


def _state_item(x: Tensor) -> int:
    """Bytes of a number of the state c."""
    return 8 if x.dtype == torch.float64 else 4


def _recurrent_kept(cell: str, x: Tensor, values: Size, recompute: bool) -> Size:
    kept = _up(x, values * _item(x))
    if not recompute:
        kept = kept + _up(x, values * _KEPT[cell] * _item(x))
    if cell == "lstm":
        kept = kept + _up(x, values * _state_item(x))
    return kept


# As src/cells/sru_cuda_plan.h has them.
_SRU_KEEP_STEPS = 8
_SRU_KEEP_CHANNELS = 6144


def _sru_keeps_few(x: Tensor, states: Size, dirs: Size, hidden: Size) -> bool:
    """Whether not every state is kept; ``states`` rows of them a step."""
    if x.device.type != "cuda" or x.dtype == torch.float64:
        return False
    channels = 256 // x.element_size()  # of a block
    tiles = (hidden + channels - 1) // channels
    return bool(
        hidden * x.element_size() % 16 == 0
        and 4 * hidden >= 3 * tiles * channels
        and states * dirs * hidden >= _SRU_KEEP_CHANNELS
    )


def _sru_kept(x: Tensor, steps: Size, states: Size, dirs: Size, hidden: Size, blocks: Size) -> Size:
    kept = steps
    if _sru_keeps_few(x, states, dirs, hidden):
        kept = torch.sym_max(steps - 1, 0) // _SRU_KEEP_STEPS
    values = states * dirs * hidden
    return _up(x, steps * values * blocks * _item(x)) + _up(x, kept * values * _state_item(x))


def _at_least_one(size: Size) -> Size:
    return torch.sym_max(size, 1)


def recurrent_reserve_bytes(
    cell: str, x: Tensor, weight_hh: Tensor, *, recompute: bool = False
) -> Size:
    """Bytes that rnn, gru or lstm keep, as ``_core.gru_reserve_bytes`` counts them.

    In Python, because under ``torch.compile`` sizes are symbols. x (T, B, D), weight_hh
    (dirs, G * H, H).
    """
    values = x.shape[0] * x.shape[1] * weight_hh.shape[0] * weight_hh.shape[2]
    return _at_least_one(_recurrent_kept(cell, x, values, recompute))


def sru_reserve_bytes(x: Tensor, weight: Tensor, bias: Tensor) -> Size:
    """Bytes that sru keeps. x (T, B, D), weight (dirs, K * H, D), bias (dirs, 2, H)."""
    dirs, _, hidden = bias.shape
    blocks = weight.shape[1] // hidden
    return _at_least_one(_sru_kept(x, x.shape[0], x.shape[1], dirs, hidden, blocks))


def sliced_parts(slices: Sequence[int]) -> list[int]:
    """The number of parts of each level, level 0 first."""
    return [math.prod(slices[: len(slices) - i]) for i in range(len(slices) + 1)]


def sliced_reserve_bytes(
    cell: str,
    x: Tensor,
    levels: Sequence[Sequence[Tensor | None]],
    slices: Sequence[int],
    *,
    recompute: bool = False,
) -> Size:
    """Bytes that sliced keeps: each level's own and, but for the last, what it hands on."""
    parts = sliced_parts(slices)
    time, batch = x.shape[0], x.shape[1]
    kept: Size = 0
    for i, level in enumerate(levels):
        width = _level_width(cell, level)
        # Steps of padding that complete T are kept like others.
        steps = (time + parts[0] - 1) // parts[0] if i == 0 else slices[len(slices) - i]
        values = parts[i] * steps * batch * width
        first = level[0]
        assert first is not None
        if cell == "sru":
            hidden = _level_hidden(cell, level)
            kept = kept + _sru_kept(
                x, steps, parts[i] * batch, width // hidden, hidden, first.shape[1] // hidden
            )
        else:
            kept = kept + _recurrent_kept(cell, x, values, recompute)
        if i + 1 < len(levels):
            kept = kept + _up(x, parts[i] * batch * width * x.element_size())
    return _at_least_one(kept)


def _level_hidden(cell: str, level: Sequence[Tensor | None]) -> Size:
    sizes = level[2 if cell == "sru" else 1]
    assert sizes is not None
    return sizes.shape[2]


def _level_width(cell: str, level: Sequence[Tensor | None]) -> Size:
    sizes = level[2 if cell == "sru" else 1]
    assert sizes is not None
    return sizes.shape[0] * sizes.shape[2]


# ---- calls of the extension module ---------------------------------------------------------------


def _call(
    x: Tensor, function: Callable[..., Any], arguments: Sequence[Any], lengths_at: int
) -> tuple[Any, ...]:
    """Call a function of the extension module with plain tensors, on x's device and stream."""
    caller = caller_of(x)
    given = [a.detach() if isinstance(a, Tensor) and a.requires_grad else a for a in arguments]
    if given[lengths_at] is not None:
        given[lengths_at] = host_lengths(given[lengths_at], x, caller)
    if x.is_cpu:
        return function(*given, caller.empty(x), _bytes_to_keep, 0)
    empty_bytes = caller.empty_bytes(x)
    if given[-1] is True:  # need_grad: only a forward pass keeps something
        empty_bytes = functools.partial(_bytes_to_keep, device=x.device)
    return caller.call(x, function, *given, caller.empty(x), empty_bytes, caller.stream(x))


def _bytes_to_keep(n: int, device: torch.device = _HOST) -> Tensor:
    """Memory for what a forward pass keeps.

    Not every byte of it is written: there are gaps between its parts, and steps that do not count.
    Nothing reads those, but tools that compare what operators return do. So a small one is filled,
    which costs next to nothing, and any if PyTorch is to be deterministic. Large ones on the host
    come from penstock's pool, because fresh pages cost more than the work done in them.
    """
    if n <= _SMALL:
        return torch.zeros(n, dtype=torch.uint8, device=device)
    if device is _HOST and not torch.are_deterministic_algorithms_enabled():
        return from_dlpack(_core.host_bytes(n))
    return torch.empty(n, dtype=torch.uint8, device=device)  # fills it, if deterministic


def _aligned(reserve: Tensor) -> Tensor:
    """What was kept, or a copy: hooks on saved tensors may have moved it anywhere."""
    return reserve.clone() if reserve.data_ptr() % _alignment(reserve) else reserve


def _or_empty(x: Tensor, tensor: Tensor | None) -> Tensor:
    return x.new_empty(0) if tensor is None else tensor


def _reserve_or_empty(x: Tensor, reserve: Tensor | None) -> Tensor:
    return x.new_empty(0, dtype=torch.uint8) if reserve is None else reserve


def _axes(name: str, tensor: Tensor, count: int) -> None:
    if tensor.dim() != count:
        raise ValueError(f"{name}: expected {count} axes (actual: {tuple(tensor.shape)})")


def _gradient_of(tensor: Tensor | None, x: Tensor) -> Tensor:
    """A contiguous tensor of that shape, or an empty one."""
    return x.new_empty(0 if tensor is None else tensor.shape)


# ---- registration --------------------------------------------------------------------------------


def _define(
    name: str, tensors: str, options: str, results: str, gradients: str, given: str,
    *,
    call: Callable[..., tuple[Any, ...]],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    fake_forward: Callable[..., Any],
    fake_backward: Callable[..., Any],
    assign: Callable[..., tuple[Any, ...]],
) -> None:  # fmt: skip
    """Define an operation's two operators.

    Args:
        name: of the forward operator; the backward operator's is ``name``_backward.
        tensors: its inputs that are tensors, as in a schema.
        options: its other inputs.
        results: what it returns besides ``reserve``.
        gradients: what the backward operator returns.
        given: the gradients that the backward operator takes.
        call: what goes into ``CALLS``.
        forward, backward: the kernels.
        fake_forward, fake_backward: the same for tensors without memory.
        assign: from what the backward operator returned and the inputs that are tensors to one
            gradient for each of these.
    """
    CALLS[name] = call
    count = tensors.count(",") + 1
    LIBRARY.define(
        f"{name}({tensors}, {options}, bool need_grad) -> ({results}, Tensor reserve)",
        tags=torch.Tag.pt2_compliant_tag,
    )
    LIBRARY.define(
        f"{name}_backward({tensors}, {options}, Tensor reserve, {given}) -> ({gradients})",
        tags=torch.Tag.pt2_compliant_tag,
    )
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, forward, device)
        LIBRARY.impl(f"{name}_backward", backward, device)
    torch.library.register_fake(f"penstock::{name}", fake_forward, lib=LIBRARY)
    torch.library.register_fake(f"penstock::{name}_backward", fake_backward, lib=LIBRARY)
    forward_op = getattr(torch.ops.penstock, name).default
    backward_op = getattr(torch.ops.penstock, f"{name}_backward").default

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.set_materialize_grads(False)  # of what is kept, too, there would be one
        ctx.need_grad = inputs[-1]
        ctx.options = inputs[count:-1]
        # Lists of tensors are taken apart, for save_for_backward takes none.
        ctx.lengths_of_lists = [len(t) if isinstance(t, list) else None for t in inputs[:count]]
        flat: list[Any] = []
        for t in inputs[:count]:
            flat += t if isinstance(t, list) else [t]
        ctx.save_for_backward(*flat, output[-1])
        ctx.shapes = [[t.shape for t in o] if isinstance(o, list) else None for o in output[:-1]]

    def differentiate(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        *flat, reserve = ctx.saved_tensors  # asked for once: checkpoints compute them again
        x = flat[0]

        def complete(grad: Any, shapes: Any) -> Any:
            # Autograd does not follow lists in which a tensor is missing.
            if shapes is None:
                return grad
            pairs = zip(grad or [None] * len(shapes), shapes, strict=True)
            return [x.new_zeros(shape) if g is None else g for g, shape in pairs]

        if not ctx.need_grad:
            raise RuntimeError(
                f"{name}: need_grad: expected True in the forward pass of a call whose gradients "
                "are asked for (actual: False)"
            )
        inputs: list[Any] = []
        for n in ctx.lengths_of_lists:
            if n is None:
                inputs.append(flat.pop(0))
            else:
                inputs.append(flat[:n])
                del flat[:n]
        given = map(complete, grads[:-1], ctx.shapes)
        run = backward_op
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and unobserved():
            run = backward
        elif name in TRANSFORMABLE_CALLS and transformed():
            run = backward_under_transforms
        found = run(*inputs, *ctx.options, reserve, *given)
        # An empty list counts as a list of tensors, and so has a list for its gradient.
        nothing: list[Any] = [[] if option == [] else None for option in ctx.options]
        return (*assign(found, *inputs), *nothing, None)

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{name}: expected to be differentiated once (actual: a gradient of its gradient)"
        )

    if "[]" not in tensors:

        def forward_and_keep(ctx: Any, *inputs: Any) -> tuple[Any, ...]:
            output = forward(*inputs)
            keep(ctx, inputs, output)
            return output

        def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            pass

        def function(forward: Any, backward: Any, setup_context: Any = None) -> Any:
            members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
            if setup_context is not None:
                members["setup_context"] = staticmethod(setup_context)
            members["generate_vmap_rule"] = setup_context is not None  # type: ignore[assignment]
            return type(name, (torch.autograd.Function,), members).apply  # type: ignore[attr-defined]

        DIFFERENTIABLE_CALLS[name] = function(forward_and_keep, differentiate)
        TRANSFORMABLE_CALLS[name] = function(forward_op, differentiate, keep)
        backward_under_transforms = function(backward_op, refuse, keep_nothing)

    torch.library.register_autograd(
        f"penstock::{name}", differentiate, setup_context=keep, lib=LIBRARY
    )
    torch.library.register_autograd(f"penstock::{name}_backward", refuse, lib=LIBRARY)

    for device in ("cpu", "cuda"):
        LIBRARY.impl(name, _autocast(forward_op, device), f"Autocast{device.upper()}")


def autocast_inputs(values: Sequence[Any], device: str) -> list[Any]:
    """What autocast on a type of device, which is on, makes of an operator's arguments."""
    dtype = torch.get_autocast_dtype(device)

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(v) for v in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.device.type != device or value.dtype == torch.float64:
            return value
        return value.to(dtype)

    return [cast(value) for value in values]


def _autocast(op: Any, device: str) -> Callable[..., Any]:
    """Run an operator in the type that autocast has chosen, as torch.nn's recurrent layers do."""

    def kernel(*arguments: Any) -> Any:
        given = autocast_inputs(arguments, device)
        with torch.autocast(device, enabled=False):
            return op(*given)

    return kernel


# ---- rnn, gru, lstm ------------------------------------------------------------------------------


def _define_recurrent(cell: str) -> None:
    core_forward = getattr(_core, f"{cell}_forward_arrays")
    core_backward = getattr(_core, f"{cell}_backward_arrays")
    lengths_at = 7
    has_c = cell == "lstm"

    def call(*arguments: Any) -> tuple[Any, ...]:
        return _call(arguments[0], core_forward, arguments, lengths_at)

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        x = arguments[0]
        y, h_last, c_last, reserve = call(*arguments)
        return y, h_last, _or_empty(x, c_last), _reserve_or_empty(x, reserve)

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        x = arguments[0]
        *inputs, reserve, dy, dh_last, dc_last = arguments
        given = [*inputs, _aligned(reserve), dy, dh_last, dc_last]
        return tuple(_or_empty(x, g) for g in _call(x, core_backward, given, lengths_at))

    def fake_forward(
        x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Any, bias_hh: Any, h0: Any,
        c0: Any, lengths: Any, direction: str, activation: Any, reset: Any, recompute: bool,
        need_grad: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        _axes("x", x, 3)
        _axes("weight_ih", weight_ih, 3)
        _axes("weight_hh", weight_hh, 3)
        steps, batch, _ = x.shape
        width = weight_hh.shape[0] * weight_hh.shape[2]
        size = recurrent_reserve_bytes(cell, x, weight_hh, recompute=recompute) if need_grad else 0
        return (
            x.new_empty((steps, batch, width)),
            x.new_empty((batch, width)),
            x.new_empty((batch, width) if has_c else 0),
            x.new_empty(size, dtype=torch.uint8),
        )

    def fake_backward(
        x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Any, bias_hh: Any, *rest: Any
    ) -> tuple[Tensor, ...]:
        state = (x.shape[1], weight_hh.shape[0] * weight_hh.shape[2])
        return (
            *(_gradient_of(t, x) for t in (x, weight_ih, weight_hh, bias_ih, bias_hh)),
            x.new_empty(state),
            x.new_empty(state if has_c else 0),
        )

    def assign(grads: Sequence[Tensor], *inputs: Any) -> tuple[Any, ...]:
        pairs = zip(inputs[:7], grads, strict=True)
        return (*(None if t is None else g for t, g in pairs), None)

    _define(
        cell,
        "Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
        "Tensor? h0, Tensor? c0, Tensor? lengths",
        "str direction, str? activation, str? reset, bool recompute",
        "Tensor y, Tensor h_last, Tensor c_last",
        "Tensor dx, Tensor dweight_ih, Tensor dweight_hh, Tensor dbias_ih, Tensor dbias_hh, "
        "Tensor dh0, Tensor dc0",
        "Tensor? dy, Tensor? dh_last, Tensor? dc_last",
        call=call,
        forward=forward,
        backward=backward,
        fake_forward=fake_forward,
        fake_backward=fake_backward,
        assign=assign,
    )


# ---- sru -----------------------------------------------------------------------------------------


def _define_sru() -> None:
    lengths_at = 6

    def call(*arguments: Any) -> tuple[Any, ...]:
        return _call(arguments[0], _core.sru_forward_arrays, arguments, lengths_at)

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        y, c_last, reserve = call(*arguments)
        return y, c_last, _reserve_or_empty(arguments[0], reserve)

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        x = arguments[0]
        *inputs, reserve, dy, dc_last = arguments
        given = [*inputs, _aligned(reserve), dy, dc_last]
        grads = _call(x, _core.sru_backward_arrays, given, lengths_at)
        return tuple(_or_empty(x, g) for g in grads)

    def fake_forward(
        x: Tensor, weight: Tensor, weight_c: Any, bias: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        _axes("x", x, 3)
        _axes("weight", weight, 3)
        _axes("bias", bias, 3)
        steps, batch, _ = x.shape
        width = bias.shape[0] * bias.shape[2]
        size = sru_reserve_bytes(x, weight, bias) if rest[-1] else 0
        return (
            x.new_empty((steps, batch, width)),
            x.new_empty((batch, width)),
            x.new_empty(size, dtype=torch.uint8),
        )

    def fake_backward(
        x: Tensor, weight: Tensor, weight_c: Any, bias: Tensor, c0: Any, mask_pad: Any,
        lengths: Any, mask_c: Any, x_skip: Any, *rest: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return (
            *(_gradient_of(t, x) for t in (x, weight, weight_c, bias)),
            x.new_empty((x.shape[1], bias.shape[0] * bias.shape[2])),
            _gradient_of(mask_c, x),
            _gradient_of(x_skip, x),
        )

    def assign(grads: Sequence[Tensor], *inputs: Any) -> tuple[Any, ...]:
        _, _, weight_c, _, c0, _, _, mask_c, x_skip = inputs
        dx, dweight, dweight_c, dbias, dc0, dmask_c, dx_skip = grads
        return (
            dx,
            dweight,
            None if weight_c is None else dweight_c,
            dbias,
            None if c0 is None else dc0,
            None,
            None,
            None if mask_c is None else dmask_c,
            None if x_skip is None else dx_skip,
        )

    _define(
        "sru",
        "Tensor x, Tensor weight, Tensor? weight_c, Tensor bias, Tensor? c0, Tensor? mask_pad, "
        "Tensor? lengths, Tensor? mask_c, Tensor? x_skip",
        "str activation, bool skip, float scale_x, str mask_site, str direction",
        "Tensor y, Tensor c_last",
        "Tensor dx, Tensor dweight, Tensor dweight_c, Tensor dbias, Tensor dc0, Tensor dmask_c, "
        "Tensor dx_skip",
        "Tensor? dy, Tensor? dc_last",
        call=call,
        forward=forward,
        backward=backward,
        fake_forward=fake_forward,
        fake_backward=fake_backward,
        assign=assign,
    )


# ---- sliced --------------------------------------------------------------------------------------


def split_levels(cell: str, parameters: Sequence[Any], given: Sequence[bool]) -> list[list[Any]]:
    """The parameters of each level, from a list without those that are None.

    ``given`` tells which of all levels' parameters are there: 3 a level for "sru", else 4.
    """
    rest = iter(parameters)
    flat = [next(rest) if there else None for there in given]
    n = 3 if cell == "sru" else 4
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def _define_sliced() -> None:
    lengths_at = 4

    def core_arguments(arguments: Sequence[Any]) -> list[Any]:
        """From the operator's order to the extension module's."""
        x, parameters, lengths, cell, given, slices, *rest = arguments
        levels = split_levels(cell, [plain(p) for p in parameters], given)
        return [cell, x, levels, list(slices), lengths, *rest]

    def call(*arguments: Any) -> tuple[Any, ...]:
        return _call(
            arguments[0], _core.sliced_forward_arrays, core_arguments(arguments), lengths_at
        )

    def forward(*arguments: Any) -> tuple[Any, ...]:
        levels, reserve = call(*arguments)
        return list(levels), _reserve_or_empty(arguments[0], reserve)

    def backward(*arguments: Any) -> tuple[Any, ...]:
        *inputs, reserve, dlevels = arguments
        x = inputs[0]
        gradients = [_aligned(reserve), None, [plain(d) for d in dlevels]]
        dx, found = _call(
            x, _core.sliced_backward_arrays, core_arguments(inputs) + gradients, lengths_at
        )
        return dx, [g for level in found for g in level if g is not None]

    def fake_forward(
        x: Tensor, parameters: list[Tensor], lengths: Any, cell: str, given: Sequence[bool],
        slices: Sequence[int], pad: str, mask: str, direction: str, activation: Any, reset: str,
        skip: bool, scale_x: float, recompute: bool, need_grad: bool,
    ) -> tuple[Any, ...]:  # fmt: skip
        _axes("x", x, 3)
        levels = split_levels(cell, parameters, given)
        size: Size = 0
        if need_grad:
            size = sliced_reserve_bytes(cell, x, levels, slices, recompute=recompute)
        outputs = [
            x.new_empty((parts, x.shape[1], _level_width(cell, level)))
            for parts, level in zip(sliced_parts(slices), levels, strict=True)
        ]
        return outputs, x.new_empty(size, dtype=torch.uint8)

    def fake_backward(x: Tensor, parameters: list[Tensor], *rest: Any) -> tuple[Any, ...]:
        return _gradient_of(x, x), [_gradient_of(p, x) for p in parameters]

    def assign(grads: Any, *inputs: Any) -> tuple[Any, ...]:
        dx, dparameters = grads
        return dx, dparameters, None

    _define(
        "sliced",
        "Tensor x, Tensor[] parameters, Tensor? lengths",
        "str cell, bool[] given, int[] slices, str pad, str mask, str direction, str? activation, "
        "str reset, bool skip, float scale_x, bool recompute",
        "Tensor[] levels",
        "Tensor dx, Tensor[] dparameters",
        "Tensor[] dlevels",
        call=call,
        forward=forward,
        backward=backward,
        fake_forward=fake_forward,
        fake_backward=fake_backward,
        assign=assign,
    )


for _cell in ("rnn", "gru", "lstm"):
    _define_recurrent(_cell)
_define_sru()
_define_sliced()
