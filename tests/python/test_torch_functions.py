"""penstock.torch's functions: values, gradients, operators' registrations, and what is refused."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import penstock
import pytest
from penstock import _core
from reference.problems import ACTIVATIONS, DIRECTIONS, FORMS, random_problem
from reference.recurrent_problems import BIASES, VARIANTS, random_recurrent, random_sliced

torch = pytest.importorskip("torch")

import penstock.torch as pt  # noqa: E402
from penstock.torch import _ops  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

CELLS = ("rnn", "gru", "lstm")
FLOATS = {
    **dict.fromkeys(
        CELLS, ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0", "lengths")
    ),
    "sru": ("x", "weight", "weight_c", "bias", "c0", "mask_pad", "lengths", "mask_c", "x_skip"),
}


def tensor(array: Any) -> Any:
    """A NumPy array as a tensor, bfloat16 included."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.ascontiguousarray(array))


class Observed(TorchDispatchMode):
    """Notes which of penstock's operators are called; under it, calls go through the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "penstock":
            self.seen.append(func._opname)
        return func(*args, **(kwargs or {}))


class Case:
    """One call: tensors by name, some of which are differentiated, and the function to call."""

    def __init__(self, operation: str, problem: Any, **extra: Any) -> None:
        self.operation = operation
        self.options = {**problem.options, **extra}
        self.cell = getattr(problem, "cell", operation)
        if operation == "sliced":
            self.tensors = {"x": tensor(problem.x)}
            self.layout = [[None if a is None else tensor(a) for a in p] for p in problem.levels]
            for i, level in enumerate(self.layout):
                self.tensors |= {f"{i}.{j}": t for j, t in enumerate(level) if t is not None}
            if problem.lengths is not None:
                self.tensors["lengths"] = tensor(problem.lengths)
            self.given = [
                None if g is None else tensor(g)
                for g in (problem.dy, *(problem.dlevels or [None] * len(problem.levels)))
            ]
        else:
            arrays = {n: problem.arrays.get(n) for n in FLOATS[operation]}
            self.tensors = {n: tensor(a) for n, a in arrays.items() if a is not None}
            if operation == "sru":
                self.given = [tensor(problem.dy), tensor(problem.dc_last)]
            else:
                self.given = [tensor(g) for g in problem.gradients.values()]
        self.names = [n for n, t in self.tensors.items() if t.is_floating_point()]

    def call(self, functions: Any, *floats: Any, **extra: Any) -> Any:
        """Call the function of that name in ``functions`` with these for the float tensors."""
        t = {**self.tensors, **dict(zip(self.names, floats, strict=True))}
        options = {**self.options, **extra}
        if "lengths" in t:
            options["lengths"] = t["lengths"]
        if self.operation == "sliced":
            levels = [
                tuple(t.get(f"{i}.{j}") for j in range(len(level)))
                for i, level in enumerate(self.layout)
            ]
            return functions.sliced(self.cell, t["x"], levels, **options)
        positional = 4 if self.operation == "sru" else 5
        names = FLOATS[self.operation]
        options |= {n: t[n] for n in names[positional:] if n in t}
        function = getattr(functions, self.operation)
        return function(*(t.get(n) for n in names[:positional]), **options)

    def floats(self, requires_grad: bool = True) -> list[Any]:
        return [self.tensors[n].clone().requires_grad_(requires_grad) for n in self.names]

    def outputs(self, result: Any) -> list[Any]:
        """All outputs in the order of ``given``."""
        if self.operation == "sliced":
            return [result[0], *result[1]]
        return list(result[: len(self.given)])

    def expected(self) -> tuple[list[Any], list[Any]]:
        """Outputs and gradients by the functions that know nothing of autograd."""
        result = self.call(penstock, *self.floats(requires_grad=False))
        if self.operation == "sliced":
            grads = result.backprop(self.given[0], self.given[1:])
            found = {"x": grads.dx}
            for i, level in enumerate(grads.dlevels):
                found |= {f"{i}.{j}": d for j, d in enumerate(level)}
        else:
            grads = result.backprop(*self.given)._asdict()
            found = {n[1:]: d for n, d in grads.items()}
        return self.outputs(result), [found[n] for n in self.names]

    def operator_arguments(self, *floats: Any, need_grad: bool = True) -> tuple[Any, ...]:
        """The arguments of ``torch.ops.penstock.…`` for this call."""
        caught: list[tuple[Any, ...]] = []

        def catch(*arguments: Any) -> tuple[Any, ...]:
            caught.append(arguments)
            return _ops_call(*arguments)

        _ops_call = _ops.CALLS[self.operation]
        _ops.CALLS[self.operation] = catch
        try:
            self.call(pt, *self.floats(requires_grad=False))
        finally:
            _ops.CALLS[self.operation] = _ops_call
        (arguments,) = caught
        return (*arguments[:-1], need_grad)


def recurrent(cell: str, *, recompute: bool = False, **options: Any) -> Case:
    return Case(cell, random_recurrent(cell, **options), recompute=recompute)


def sru(**options: Any) -> Case:
    return Case("sru", random_problem(**options))


def sliced(cell: str, *, recompute: bool = False, **options: Any) -> Case:
    extra = {} if cell == "sru" else {"recompute": recompute}
    return Case("sliced", random_sliced(cell, **options), **extra)


# Every option of every function; small, for gradcheck takes a forward pass per number.
SMALL: dict[str, Any] = {"steps": 3, "batch": 2, "hidden": 2}
CASES: dict[str, Callable[..., Case]] = {}


def add(name: str, make: Callable[..., Case], *arguments: Any, **options: Any) -> None:
    CASES[name] = lambda **more: make(*arguments, **{**SMALL, **options, **more})


for _name, (_cell, _options) in VARIANTS.items():
    add(_name, recurrent, _cell, inputs=3, **_options)
for _cell, _direction in itertools.product(CELLS, DIRECTIONS):
    add(f"{_cell}-{_direction}-lengths", recurrent, _cell, inputs=3, direction=_direction,
        with_lengths=True)  # fmt: skip
for _cell, _biases in itertools.product(CELLS, BIASES[1:]):
    add(f"{_cell}-bias-{_biases}", recurrent, _cell, biases=_biases, with_state=False)
for _cell in CELLS:
    add(f"{_cell}-recompute", recurrent, _cell, recompute=True, with_lengths=True)
add("gru-before-recompute", recurrent, "gru", recompute=True, reset="before", activation="relu")
for _form, _activation in itertools.product(FORMS, ACTIVATIONS):
    add(f"sru-{_form}-{_activation}", sru, form=_form, activation=_activation)
for _direction, _site in itertools.product(DIRECTIONS, ("output", "state")):
    add(f"sru-{_direction}-{_site}", sru, form="x_skip", direction=_direction, mask_site=_site,
        padding="both")  # fmt: skip
add("sru-first", sru, with_v=False, with_c0=False)
for _cell, _pad, _mask in itertools.product(
    (*CELLS, "sru"), ("left", "right"), ("skip", "none")
):  # fmt: skip
    add(f"sliced-{_cell}-{_pad}-{_mask}", sliced, _cell, steps=5, slices=(2, 2), pad=_pad,
        mask=_mask, with_lengths=_mask == "skip")  # fmt: skip
for _cell in (*CELLS, "sru"):
    add(f"sliced-{_cell}-bidirectional", sliced, _cell, slices=(2,), direction="bidirectional",
        biases="none")  # fmt: skip
add("sliced-plain", sliced, "gru", slices=())
add("sliced-gru-before", sliced, "gru", slices=(2,), reset="before", activation="relu")
add("sliced-recompute", sliced, "lstm", slices=(2,), recompute=True)
add("sliced-noskip", sliced, "sru", slices=(2,), skip=False, activation="tanh")
# One of each operator, with as much as it takes.
EACH = ("rnn-bidirectional-lengths", "gru-after-tanh", "lstm-forward-lengths",
        "sru-bidirectional-output", "sliced-gru-left-skip")  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_same_bits_as_backprop(name: str) -> None:
    case = CASES[name]()
    outputs, gradients = case.expected()
    floats = case.floats()
    found = case.outputs(case.call(pt, *floats))
    for a, b in zip(found, outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.autograd.backward(found, case.given)
    for f, d in zip(floats, gradients, strict=True):
        # a sliced call's y is a view of its levels, so that their gradients are summed elsewhere
        tolerance = 1e-13 if case.operation == "sliced" else 0
        torch.testing.assert_close(f.grad, d, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    case = CASES[name]()

    def function(*floats: Any) -> tuple[Any, ...]:
        return tuple(case.outputs(case.call(pt, *floats)))

    assert torch.autograd.gradcheck(function, case.floats())


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_types(name: str, kind: str) -> None:
    case = CASES[name](dtype=kind)
    outputs, gradients = case.expected()
    floats = case.floats()
    found = case.outputs(case.call(pt, *floats))
    assert {t.dtype for t in found} == {getattr(torch, kind)}
    for a, b in zip(found, outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.autograd.backward(found, case.given)
    for f, d in zip(floats, gradients, strict=True):
        if case.operation != "sliced":
            torch.testing.assert_close(f.grad, d, rtol=0, atol=0)
        assert f.grad.dtype == f.dtype


CHECKED = (
    *EACH, "rnn-bias-none", "gru-recompute", "gru-before-tanh", "gru-bias-hh", "lstm-recompute",
    "lstm-bias-ih", "sru-first", "sru-k4-tanh", "sru-noskip-relu", "sliced-plain", "sliced-noskip",
    "sliced-rnn-bidirectional", "sliced-lstm-right-none", "sliced-sru-left-skip",
    "sliced-recompute",
)  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_opcheck(name: str) -> None:
    case = CASES[name]()
    forward = getattr(torch.ops.penstock, case.operation).default
    backward = getattr(torch.ops.penstock, f"{case.operation}_backward").default
    arguments = case.operator_arguments()

    def differentiable(value: Any) -> Any:
        if isinstance(value, list):
            return [differentiable(v) for v in value]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.clone().requires_grad_()
        return value

    torch.library.opcheck(forward, tuple(differentiable(a) for a in arguments))
    torch.library.opcheck(forward, (*arguments[:-1], False))
    *_, reserve = forward(*arguments)
    given = (case.given[1:],) if case.operation == "sliced" else tuple(case.given)
    if case.operation in ("rnn", "gru"):
        given = (*given, None)
    torch.library.opcheck(backward, (*arguments[:-1], reserve, *given))
    if case.operation != "sliced":
        none = (None,) * len(given)
        torch.library.opcheck(backward, (*arguments[:-1], reserve, *none))


SIZES = ((1, 1, 1), (3, 2, 5), (7, 3, 9), (4, 5, 16), (0, 2, 3), (2, 0, 3))


@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes_of_what_is_kept(sizes: tuple[int, int, int], kind: str) -> None:
    """The formulas in Python, for sizes that are symbols, are the library's own counts."""
    steps, batch, hidden = sizes
    given = {"steps": steps, "batch": batch, "hidden": hidden, "dtype": kind}
    makes: list[Case] = []
    for cell, direction, recompute in itertools.product(CELLS, DIRECTIONS[1:], (False, True)):
        makes.append(recurrent(cell, **given, direction=direction, recompute=recompute))
    makes.append(recurrent("gru", **given, reset="before"))
    makes.append(recurrent("rnn", **given, activation="relu", recompute=True))
    for form, direction in itertools.product(FORMS, DIRECTIONS):
        makes.append(sru(**given, form=form, direction=direction))
    for cell, slices in itertools.product((*CELLS, "sru"), ((), (2,), (3, 2))):
        for recompute in (False, True) if cell != "sru" else (False,):
            makes.append(sliced(cell, **given, slices=slices, recompute=recompute, pad="right"))
            makes.append(
                sliced(cell, **given, slices=slices, recompute=recompute, mask="none",
                       direction="bidirectional")
            )  # fmt: skip
    for case in makes:
        a = case.operator_arguments()[:-1]
        if case.operation == "sliced":
            x, parameters, lengths, cell, given_ones, slices, *rest = a
            levels = _ops.split_levels(cell, parameters, given_ones)
            size = _ops.sliced_reserve_bytes(cell, x, levels, slices, recompute=rest[-1])
            a = (cell, x, levels, slices, lengths, *rest)
        elif case.operation == "sru":
            size = _ops.sru_reserve_bytes(a[0], a[1], a[3])
        else:
            size = _ops.recurrent_reserve_bytes(case.operation, a[0], a[2], recompute=a[-1])
        assert size == getattr(_core, f"{case.operation}_reserve_bytes")(*a, 0)


class OnCuda:
    """A tensor as the formulas see one on a CUDA device."""

    def __init__(self, tensor: Any) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.element_size = tensor.element_size
        self.device = torch.device("cuda")


@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    "sizes",
    [(1, 96, 64), (20, 48, 128), (9, 95, 64), (9, 700, 10), (0, 96, 64), (5, 2, 64)],
    ids=str,
)
def test_sizes_of_what_is_kept_on_cuda(sizes: tuple[int, int, int], kind: str) -> None:
    """There 16-bit types stay so, and an SRU of many channels does not keep every state."""
    if "cuda_emulated" not in os.environ.get("PENSTOCK_HOST_PLUGIN", ""):
        pytest.skip("asks the emulated CUDA backend")
    steps, batch, hidden = sizes
    given = {"steps": steps, "batch": batch, "hidden": hidden, "dtype": kind}
    for direction in DIRECTIONS:
        a = sru(**given, form=FORMS[0], direction=direction).operator_arguments()[:-1]
        size = _ops.sru_reserve_bytes(OnCuda(a[0]), a[1], a[3])
        assert size == _core.sru_reserve_bytes(*a, 0)
    for cell, recompute in itertools.product(CELLS, (False, True)):
        a = recurrent(cell, **given, recompute=recompute).operator_arguments()[:-1]
        size = _ops.recurrent_reserve_bytes(cell, OnCuda(a[0]), a[2], recompute=a[-1])
        assert size == getattr(_core, f"{cell}_reserve_bytes")(*a, 0)
    for name in (*CELLS, "sru"):
        case = sliced(name, **given, slices=(3, 2))
        x, parameters, lengths, cell, given_ones, slices, *rest = case.operator_arguments()[:-1]
        levels = _ops.split_levels(cell, parameters, given_ones)
        size = _ops.sliced_reserve_bytes(cell, OnCuda(x), levels, slices, recompute=rest[-1])
        assert size == _core.sliced_reserve_bytes(cell, x, levels, slices, lengths, *rest, 0)


@pytest.mark.parametrize("name", EACH)
def test_gradients_through_the_dispatcher(name: str) -> None:
    """The same bits, whether operators are called or their kernels."""
    case = CASES[name]()
    gradients = []
    for observed in (None, Observed()):
        floats = case.floats()
        with observed or contextlib.nullcontext():
            outputs = case.outputs(case.call(pt, *floats))
            torch.autograd.backward(outputs, case.given)
        gradients.append([f.grad for f in floats])
        if observed is not None:
            assert observed.seen == [case.operation, f"{case.operation}_backward"]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("observed", [False, True])
def test_second_derivative_is_refused(name: str, observed: bool) -> None:
    case = CASES[name]()
    floats = case.floats()
    with Observed() if observed else contextlib.nullcontext():
        y = case.outputs(case.call(pt, *floats))[0]
        (dx,) = torch.autograd.grad((y * y).sum(), floats[0], create_graph=True)
    assert dx.requires_grad
    with pytest.raises(RuntimeError, match=f"{case.operation}: expected to be differentiated once"):
        dx.sum().backward()


@pytest.mark.parametrize("name", EACH)
def test_direct_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient a call goes past the dispatcher, unless somebody would see it there."""
    case = CASES[name]()
    calls: list[str] = []
    original = _ops.CALLS[case.operation]

    def counted(*arguments: Any) -> Any:
        calls.append("direct")
        return original(*arguments)

    monkeypatch.setitem(_ops.CALLS, case.operation, counted)

    floats = case.floats()
    expected = case.outputs(case.call(pt, *floats))
    assert calls == []
    assert expected[0].requires_grad
    with torch.no_grad():
        found = [case.outputs(case.call(pt, *floats))]
        assert calls == ["direct"]
    with torch.inference_mode():
        found.append(case.outputs(case.call(pt, *floats)))
        assert found[-1][0].is_inference()
    found.append(case.outputs(case.call(pt, *case.floats(requires_grad=False))))
    assert calls == ["direct"] * 3
    with Observed() as observed, torch.no_grad():
        found.append(case.outputs(case.call(pt, *floats)))
    assert observed.seen == [case.operation]
    assert calls == ["direct"] * 3
    for outputs in found:
        for a, b in zip(outputs, expected, strict=True):
            assert not a.requires_grad
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", EACH)
def test_fake_and_meta_tensors(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    case = CASES[name]()
    real = case.outputs(case.call(pt, *case.floats()))
    with FakeTensorMode() as mode:
        case.tensors = {n: mode.from_tensor(t) for n, t in case.tensors.items()}
        fake = case.outputs(case.call(pt, *(case.tensors[n] for n in case.names)))
    assert [(t.shape, t.stride(), t.dtype) for t in fake] == [
        (t.shape, t.stride(), t.dtype) for t in real
    ]
    case = CASES[name]()
    case.tensors = {n: t.to("meta") for n, t in case.tensors.items()}
    meta = case.outputs(case.call(pt, *(case.tensors[n] for n in case.names)))
    assert [(t.shape, t.device.type) for t in meta] == [(t.shape, "meta") for t in real]


@pytest.mark.parametrize("name", EACH)
def test_autocast(name: str) -> None:
    """Under autocast a call is that of its arguments in the lower type, as of torch.nn's layers."""
    case = CASES[name](dtype="float32")
    low = [f.detach().bfloat16().requires_grad_() for f in case.floats()]
    expected = case.outputs(case.call(pt, *low))
    given = [g.bfloat16() for g in case.given]
    torch.autograd.backward(expected, given)
    floats = case.floats()
    with torch.autocast("cpu", torch.bfloat16):
        found = case.outputs(case.call(pt, *floats))
        with torch.no_grad():
            again = case.outputs(case.call(pt, *floats))
    torch.autograd.backward(found, given)
    for a, b, c in zip(found, expected, again, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    for f, g in zip(floats, low, strict=True):
        assert f.grad.dtype == torch.float32
        assert torch.equal(f.grad, g.grad.float())
    with torch.autocast("cpu", torch.float16):
        assert case.outputs(case.call(pt, *floats))[0].dtype == torch.float16
    with torch.autocast("cpu", enabled=False):
        assert case.outputs(case.call(pt, *floats))[0].dtype == torch.float32
    double = CASES[name]()
    with torch.autocast("cpu", torch.bfloat16):  # which leaves doubles alone
        assert double.outputs(double.call(pt, *double.floats()))[0].dtype == torch.float64


@pytest.mark.parametrize("name", EACH)
def test_some_gradients(name: str) -> None:
    """Only what requires a gradient gets one, from whichever output."""
    case = CASES[name]()
    floats = case.floats(requires_grad=False)
    floats[1].requires_grad_()
    outputs = case.outputs(case.call(pt, *floats))
    last = outputs[-1].sum()
    last.backward(retain_graph=True)
    once = floats[1].grad.clone()
    last.backward()  # nothing is used up
    assert torch.equal(floats[1].grad, 2 * once)
    assert [f.grad is not None for f in floats] == [i == 1 for i in range(len(floats))]


@pytest.mark.parametrize("name", EACH)
def test_checkpoint_and_hooks(name: str) -> None:
    from torch.utils.checkpoint import checkpoint

    case = CASES[name]()
    gradients = []
    for reentrant in (None, False, True):
        floats = case.floats()

        def function(*f: Any) -> tuple[Any, ...]:
            return tuple(case.outputs(case.call(pt, *f)))

        if reentrant is None:
            outputs = function(*floats)
        else:
            outputs = checkpoint(function, *floats, use_reentrant=reentrant)
        torch.autograd.backward(outputs, case.given)
        gradients.append([f.grad for f in floats])
    floats = case.floats()

    def to_host(t: Any) -> np.ndarray:  # at no multiple of 64 bytes
        array = t.detach().numpy()
        buffer = np.empty(array.nbytes + 72, np.uint8)
        start = -buffer.ctypes.data % 64 + 8
        copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    with torch.autograd.graph.saved_tensors_hooks(to_host, torch.from_numpy):
        outputs = case.outputs(case.call(pt, *[f * 1 for f in floats]))
    torch.autograd.backward(outputs, case.given)
    gradients.append([f.grad for f in floats])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", EACH)
def test_changed_in_between(name: str) -> None:
    case = CASES[name]()
    floats = case.floats()
    x = floats[0] * 1
    y = case.outputs(case.call(pt, x, *floats[1:]))[0]
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("deterministic", [False, True])
def test_large(name: str, deterministic: bool) -> None:
    """What a large call keeps comes from penstock's pool, and lives as long as its graph does."""
    case = CASES[name](steps=40, batch=16, hidden=48, dtype="float32")
    floats = case.floats()
    arguments = case.operator_arguments()
    torch.use_deterministic_algorithms(deterministic)
    try:
        *_, reserve = getattr(torch.ops.penstock, case.operation).default(*arguments)
        outputs = case.outputs(case.call(pt, *floats))
    finally:
        torch.use_deterministic_algorithms(False)
    assert reserve.numel() > _ops._SMALL
    assert reserve.data_ptr() % 64 == 0
    expected, gradients = case.expected()
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)
    again = case.outputs(case.call(pt, *floats))  # not in the memory of the first
    penstock.release_memory()
    torch.autograd.backward(outputs, case.given)
    del again
    for f, d in zip(floats, gradients, strict=True):
        tolerance = 1e-5 if case.operation == "sliced" else 0
        torch.testing.assert_close(f.grad, d, rtol=tolerance, atol=tolerance)


def test_strides() -> None:
    """Any strides will do, of gradients too."""
    case = CASES["gru-after-tanh"](steps=4, batch=3)
    floats = case.floats()
    y, h = case.call(pt, *floats)
    torch.autograd.backward([y, h], case.given)
    other = case.floats()
    turned = [f.detach().transpose(0, -1).contiguous().transpose(0, -1) for f in other]
    for t in turned:
        t.requires_grad_()
    y, h = case.call(pt, *turned)
    y.transpose(0, 2).backward(case.given[0].transpose(0, 2), retain_graph=True)
    h.backward(case.given[1])
    for a, b in zip(floats, turned, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    total = case.call(pt, *floats)[0].sum()  # an expanded gradient, of strides 0
    total.backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [n for n in EACH if not n.startswith("sliced")])
def test_transforms(name: str) -> None:
    """torch.func.grad and vjp, and gradients of each of a batch by vmap of grad."""
    case = CASES[name]()
    floats = case.floats()
    outputs = case.outputs(case.call(pt, *floats))
    torch.autograd.backward(outputs, case.given)

    def loss(*f: Any) -> Any:
        results = case.outputs(case.call(pt, *f))
        return sum((r * g).sum() for r, g in zip(results, case.given, strict=True))

    plain = tuple(f.detach() for f in floats)
    found = torch.func.grad(loss, argnums=tuple(range(len(plain))))(*plain)
    for f, d in zip(floats, found, strict=True):
        torch.testing.assert_close(d, f.grad, rtol=1e-13, atol=1e-13)
    _, back = torch.func.vjp(lambda *f: tuple(case.outputs(case.call(pt, *f))), *plain)
    for f, d in zip(floats, back(tuple(case.given)), strict=True):
        torch.testing.assert_close(d, f.grad, rtol=1e-13, atol=1e-13)

    with torch.autocast("cpu", torch.bfloat16):
        low = torch.func.grad(lambda x: loss(x, *(f.float() for f in plain[1:])))(plain[0].float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), found[0], rtol=0.1, atol=0.1)

    several = torch.stack([plain[0], plain[0] * 2, plain[0] - 1])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(0, *(None,) * (len(plain) - 1)))
    expected = [torch.func.grad(loss)(x, *plain[1:]) for x in several]
    torch.testing.assert_close(each(several, *plain[1:]), torch.stack(expected))
    with pytest.raises(RuntimeError, match="expected to be differentiated once"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x, *plain[1:]).sum())(plain[0])


def test_lengths() -> None:
    case = CASES["gru-after-tanh"]()
    x = case.floats()
    expected = case.call(pt, *x, lengths=torch.tensor([2, 3]))[0]
    for lengths in ([2, 3], (2, 3), np.array([2, 3]), torch.tensor([2, 3], dtype=torch.int32)):
        assert torch.equal(case.call(pt, *x, lengths=lengths)[0], expected)
    for requires_grad in (False, True):
        floats = case.floats(requires_grad)
        with pytest.raises(ValueError, match="lengths: expected values from 0 to T = 3"):
            case.call(pt, *floats, lengths=[1, 4])
        with pytest.raises(ValueError, match=r"lengths: expected shape \(B,\) = \(2,\)"):
            case.call(pt, *floats, lengths=[1, 2, 3])
        with pytest.raises(TypeError, match="lengths: expected integers"):
            case.call(pt, *floats, lengths=[1.0, 2.0])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_errors(requires_grad: bool) -> None:
    """As those of the functions without autograd, whichever way a call goes."""
    case = CASES["gru-after-tanh"]()

    def call(**changes: Any) -> None:
        floats = case.floats(requires_grad)
        for name, value in list(changes.items()):
            if name in case.names:
                floats[case.names.index(name)] = changes.pop(name)
                del value
        case.call(pt, *floats, **changes)

    x = case.tensors["x"]
    call()
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor \(actual: ndarray\)"):
        call(x=x.numpy())
    with pytest.raises(TypeError, match=r"weight_hh: expected a torch.Tensor \(actual: list\)"):
        call(weight_hh=[1.0])
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor \(actual: None\)"):
        call(x=None)
    with pytest.raises(ValueError, match="weight_ih: expected"):
        call(x=x[..., :-1])
    with pytest.raises(ValueError, match="x: expected"):
        call(x=x[0])
    with pytest.raises(TypeError, match="weight_hh: expected float32"):
        call(x=x.float())
    with pytest.raises(TypeError, match="x: expected"):
        call(x=x.to(torch.int64))
    with pytest.raises(ValueError, match="direction: expected one of"):
        call(direction="backward")
    with pytest.raises(ValueError, match="reset: expected one of"):
        call(reset="never")


def test_sliced_errors() -> None:
    case = CASES["sliced-gru-left-skip"]()
    x = case.tensors["x"]
    levels = case.layout
    with pytest.raises(ValueError, match="cell: expected"):
        pt.sliced("lru", x, levels, slices=(2, 2))
    with pytest.raises(ValueError, match=r"levels: expected len\(slices\) \+ 1 = 2"):
        pt.sliced("gru", x, levels, slices=(2,))
    with pytest.raises(ValueError, match=r"levels\[0\]: expected \(weight_ih"):
        pt.sliced("gru", x, [levels[0][:1], *levels[1:]], slices=(2, 2))
    with pytest.raises(TypeError, match=r"levels\[1\].weight_hh: expected a torch.Tensor"):
        pt.sliced("gru", x, [levels[0], [levels[1][0], 3], levels[2]], slices=(2, 2))
    with pytest.raises(ValueError, match="pad: expected one of"):
        pt.sliced("gru", x, levels, slices=(2, 2), pad="middle")
    y, states = pt.sliced_gru(x, [level[:2] for level in levels], slices=(2, 2))
    expected = penstock.sliced_gru(x, [level[:2] for level in levels], slices=(2, 2))
    assert torch.equal(y, expected.y)
    assert len(states) == 3


def test_a_call_that_kept_nothing_has_no_gradient() -> None:
    case = CASES["gru-after-tanh"]()
    arguments = list(case.operator_arguments(need_grad=False))
    arguments[0] = arguments[0].clone().requires_grad_()
    y, *_ = torch.ops.penstock.gru.default(*arguments)
    with pytest.raises(RuntimeError, match="need_grad: expected True"):
        y.sum().backward()


# ---- on a GPU ------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(
    not (torch.cuda.is_available() and penstock.config()["cuda_available"]),
    reason="PyTorch or penstock has no CUDA device",
)


def on_cuda(name: str, **options: Any) -> tuple[Case, Case]:
    """A case and the same with all its tensors on the GPU, lengths excepted."""
    case, there = CASES[name](**options), CASES[name](**options)
    there.tensors = {n: t if n == "lengths" else t.cuda() for n, t in there.tensors.items()}
    there.given = [g.cuda() for g in there.given]
    return case, there


def gradients_of(case: Case, **extra: Any) -> list[Any]:
    """Outputs and gradients, on the host."""
    floats = case.floats()
    outputs = case.outputs(case.call(pt, *floats, **extra))
    torch.autograd.backward(outputs, case.given)
    return [t.detach().cpu() for t in (*outputs, *(f.grad for f in floats))]


def assert_near(found: list[Any], expected: list[Any], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_cuda(name: str) -> None:
    case, there = on_cuda(name)
    assert_near(gradients_of(there), gradients_of(case), 1e-10)
    with torch.no_grad():
        outputs = there.outputs(there.call(pt, *there.floats()))
    assert {t.device.type for t in outputs} == {"cuda"}
    assert_near([t.cpu() for t in outputs], gradients_of(case)[: len(outputs)], 1e-10)


@needs_cuda
@pytest.mark.parametrize("name", EACH)
def test_cuda_large_and_streams(name: str) -> None:
    """On a stream of the caller's, whose work is not waited for in between."""
    case, there = on_cuda(name, steps=40, batch=16, hidden=48, dtype="float32")
    expected = gradients_of(case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = gradients_of(there)
    assert_near(found, expected, 1e-3)
    if "lengths" in there.tensors:
        there.tensors["lengths"] = there.tensors["lengths"].cuda()
        assert_near(gradients_of(there), expected, 1e-3)


@needs_cuda
@pytest.mark.parametrize("name", EACH)
def test_cuda_operators(name: str) -> None:
    _, there = on_cuda(name)
    there.tensors = {n: t.cuda() for n, t in there.tensors.items()}
    operator = getattr(torch.ops.penstock, there.operation).default

    def differentiable(value: Any) -> Any:
        if isinstance(value, list):
            return [differentiable(v) for v in value]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.clone().requires_grad_()
        return value

    arguments = tuple(differentiable(a) for a in there.operator_arguments())
    torch.library.opcheck(operator, arguments)
    *_, reserve = operator(*arguments)
    plain = there.operator_arguments()[:-1]
    if there.operation in CELLS:
        size = _ops.recurrent_reserve_bytes(there.operation, plain[0], plain[2])
        assert size == reserve.numel()
    floats = CASES[name](dtype="float32").floats()
    with torch.autocast("cuda", torch.float16):
        outputs = there.outputs(there.call(pt, *[f.detach().cuda() for f in floats]))
    assert {t.dtype for t in outputs} == {torch.float16}


@needs_cuda
def test_cuda_graph() -> None:
    """A captured call computes anew with what its inputs hold when it is replayed."""
    _, there = on_cuda("gru-after-tanh", steps=10, batch=4, hidden=16, dtype="float32")
    floats = there.floats(requires_grad=False)
    with torch.no_grad():
        for _ in range(3):
            there.call(pt, *floats)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = there.call(pt, *floats)
        floats[0].normal_()
        graph.replay()
        assert_near([y], [there.call(pt, *floats)[0]], 1e-5)
