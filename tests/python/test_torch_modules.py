"""penstock.torch's modules, beside torch.nn's and beside the layers for NumPy."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import warnings
from typing import Any

import numpy as np
import penstock
import pytest

torch = pytest.importorskip("torch")

import penstock.torch as pt  # noqa: E402
from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

CELLS = ("RNN", "GRU", "LSTM")
DOUBLE = {"dtype": torch.float64}


def both(cell: str, *arguments: Any, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and ours, made with the same seed."""
    modules = []
    for namespace in (torch.nn, pt):
        torch.manual_seed(seed)
        modules.append(getattr(namespace, cell)(*arguments, **options))
    return modules[0], modules[1]


def flat(value: Any) -> list[Any]:
    """All tensors of a result, in order."""
    if isinstance(value, PackedSequence):
        return [value.data, *(t for t in value[1:] if t is not None)]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in flat(item)]
    return [value]


def outcome(module: Any, input: Any, hx: Any = None, seed: int = 1) -> dict[str, Any]:
    """Results and, of a weighted sum of them, all gradients."""

    def leaf(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, tuple) and not isinstance(value, PackedSequence):
            return tuple(leaf(v) for v in value)
        if isinstance(value, PackedSequence):
            return value._replace(data=leaf(value.data))
        return value.detach().clone().requires_grad_()

    input, hx = leaf(input), leaf(hx)
    module.zero_grad()
    torch.manual_seed(seed)
    results = flat(module(input, hx))
    generator = torch.Generator().manual_seed(2)
    loss = sum(
        (r * torch.rand(r.shape, generator=generator, dtype=r.dtype)).sum()
        for r in results
        if r.is_floating_point()
    )
    loss.backward()
    found = {f"result {i}": r.detach() for i, r in enumerate(results)}
    found["input"] = (input.data if isinstance(input, PackedSequence) else input).grad
    for i, state in enumerate(flat(hx) if hx is not None else []):
        found[f"hx {i}"] = state.grad
    return found | {name: p.grad for name, p in module.named_parameters()}


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-11) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def states_for(cell: str, *shape: int) -> Any:
    def draw() -> Any:
        return torch.randn(*shape, **DOUBLE)

    return (draw(), draw()) if cell == "LSTM" else draw()


FORMS = ("batched", "unbatched", "packed", "packed-unsorted", "packed-full")


def input_of(form: str, features: int, batch_first: bool, lengths: list[int]) -> Any:
    steps, batch = max(lengths), len(lengths)
    if form == "unbatched":
        return torch.randn(steps, features, **DOUBLE)
    if form == "batched":
        shape = (batch, steps) if batch_first else (steps, batch)
        return torch.randn(*shape, features, **DOUBLE)
    if form == "packed-full":
        lengths = [steps] * batch
    elif form == "packed":
        lengths = sorted(lengths, reverse=True)
    sequences = [torch.randn(n, features, **DOUBLE) for n in lengths]
    return pack_sequence(sequences, enforce_sorted=form != "packed-unsorted")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_beside_torch(cell: str, form: str, bidirectional: bool, with_state: bool) -> None:
    """The same results, shapes and gradients, whatever form the input has."""
    for layers, batch_first, bias in ((1, False, True), (2, True, True), (3, False, False)):
        torch.manual_seed(layers)
        theirs, ours = both(
            cell, 5, 4, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional,
            **DOUBLE,
        )  # fmt: skip
        x = input_of(form, 5, batch_first, [3, 6, 1])
        hx = None
        if with_state:
            rows = layers * (2 if bidirectional else 1)
            hx = states_for(cell, rows, *(() if form == "unbatched" else (3,)), 4)
        assert_same(outcome(ours, x, hx), outcome(theirs, x, hx))
        theirs.eval(), ours.eval()
        with torch.no_grad():
            for a, b in zip(flat(ours(x, hx)), flat(theirs(x, hx)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
                assert a.shape == b.shape
                assert a.stride() == b.stride() or 1 in a.shape
        assert type(ours(x, hx)[0]) is type(theirs(x, hx)[0])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nonlinearities(nonlinearity: str) -> None:
    theirs, ours = both("RNN", 3, 4, 2, nonlinearity, **DOUBLE)
    assert ours.mode == theirs.mode
    assert ours.nonlinearity == theirs.nonlinearity
    x = torch.randn(5, 2, 3, **DOUBLE)
    assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("form", ["batched", "packed-unsorted", "unbatched", "packed-full"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_draws_the_same_numbers(cell: str, form: str, bidirectional: bool) -> None:
    for p, batch_first in ((0.4, False), (0.4, True), (1.0, False)):
        theirs, ours = both(
            cell, 5, 6, 3, dropout=p, batch_first=batch_first, bidirectional=bidirectional, **DOUBLE
        )
        x = input_of(form, 5, batch_first, [3, 6, 1])
        found, expected = outcome(ours, x), outcome(theirs, x)
        assert_same(found, expected)
        if p < 1.0:
            other = outcome(ours, x, seed=7)
            assert not torch.allclose(other["result 0"], found["result 0"])
        after = torch.rand(1)  # as many numbers were drawn
        outcome(theirs, x, seed=7 if p < 1.0 else 1)
        assert torch.equal(after, torch.rand(1))
        ours.eval()
        theirs.eval()
        assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("layers", "bidirectional", "bias"), [(1, False, True), (3, True, False)])
def test_parameters(cell: str, layers: int, bidirectional: bool, bias: bool) -> None:
    """The same names, shapes and numbers under the same seed; state_dict goes both ways."""
    theirs, ours = both(cell, 5, 4, layers, bias=bias, bidirectional=bidirectional)
    assert torch.equal(torch.rand(1), _rand_after(cell, layers, bidirectional, bias))
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name])
    torch.manual_seed(9)
    theirs.reset_parameters()
    torch.manual_seed(9)
    ours.reset_parameters()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    other_theirs, other_ours = both(cell, 5, 4, layers, bias=bias, bidirectional=bidirectional,
                                    seed=5)  # fmt: skip
    other_ours.load_state_dict(theirs.state_dict())
    other_theirs.load_state_dict(ours.state_dict())
    for a, b in zip(other_ours.parameters(), other_theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    weights = [[tuple(w.shape) for w in ws] for ws in ours.all_weights]
    assert weights == [[tuple(w.shape) for w in ws] for ws in theirs.all_weights]
    ours.flatten_parameters()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ours.load_state_dict({**theirs.state_dict(), "weight_ih_l9": torch.zeros(1)})


def _rand_after(cell: str, layers: int, bidirectional: bool, bias: bool) -> Any:
    """The first number drawn after torch.nn has made its module."""
    torch.manual_seed(0)
    getattr(torch.nn, cell)(5, 4, layers, bias=bias, bidirectional=bidirectional)
    return torch.rand(1)


@pytest.mark.parametrize("cell", CELLS)
def test_arguments(cell: str) -> None:
    """The same names, order and defaults as torch.nn's."""
    theirs = getattr(torch.nn, cell)(3, 4)
    ours = getattr(pt, cell)(3, 4)
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first",
                 "dropout", "bidirectional", "proj_size", "training"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    positional = (3, 4, 2, "relu") if cell == "RNN" else (3, 4, 2)
    theirs = getattr(torch.nn, cell)(*positional, False, True, 0.5, True)
    ours = getattr(pt, cell)(*positional, False, True, 0.5, True)
    for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(ours, name) == getattr(theirs, name), name
    expected = "3, 4, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True"
    assert theirs.extra_repr() == expected
    assert ours.extra_repr().startswith(expected)
    assert repr(getattr(pt, cell)(3, 4)) == f"{cell}(3, 4)"
    assert getattr(pt, cell)(3, 4, dtype=torch.bfloat16, device="meta").weight_hh_l0.is_meta
    with pytest.warns(UserWarning, match="dropout: 0.5 has no effect"):
        getattr(pt, cell)(3, 4, dropout=0.5)


def test_own_options() -> None:
    x = torch.randn(5, 2, 3, **DOUBLE)
    gru = pt.GRU(3, 4, activation="relu", reset="before", recompute=True, **DOUBLE)
    w = [p.detach()[None] for p in gru.parameters()]
    expected = penstock.gru(x, *w, activation="relu", reset="before")
    assert torch.equal(gru(x)[0].detach(), expected.y)
    assert gru.extra_repr() == "3, 4, recompute=True, activation='relu', reset='before'"
    rnn = pt.RNN(3, 4, nonlinearity="identity", **DOUBLE)
    w = [p.detach()[None] for p in rnn.parameters()]
    assert torch.equal(rnn(x)[0].detach(), penstock.rnn(x, *w, activation="identity").y)
    assert rnn.extra_repr() == "3, 4, activation='identity'"


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths(cell: str, batch_first: bool) -> None:
    """``lengths`` does to a padded batch what packing does, without packing."""
    lengths = [3, 6, 1]
    theirs, ours = both(cell, 5, 4, 2, bidirectional=True, batch_first=batch_first, **DOUBLE)
    x = input_of("batched", 5, batch_first, lengths)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted=False)
    y, last = theirs(packed)
    y, _ = pad_packed_sequence(y, batch_first)
    broken = x.clone()
    for b, n in enumerate(lengths):
        (broken[b, n:] if batch_first else broken[n:, b]).fill_(math.nan)
    for given in (lengths, torch.tensor(lengths)):
        found = ours(broken, lengths=given)
        for a, b in zip(flat(found), flat((y, last)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_errors(cell: str) -> None:
    make = getattr(pt, cell)
    module = make(5, 4, 2)
    x = torch.zeros(3, 2, 5)
    with pytest.raises(TypeError, match=r"input: expected a torch.Tensor, got ndarray"):
        module(x.numpy())
    with pytest.raises(TypeError, match=r"input: expected torch.float32, as the weights, got torc"):
        module(x.double())
    with pytest.raises(ValueError, match="input: expected 2 or 3 axes"):
        module(x[0, 0])
    with pytest.raises(ValueError, match="input: expected input_size = 5 features"):
        module(torch.zeros(3, 2, 4))
    pair = cell == "LSTM"
    state = torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match=r"hx.*: expected shape \(2, 2, 4\), got \(2, 2, 3\)"):
        module(x, (state, state) if pair else state)
    state = torch.zeros(2, 2, 4).double()
    with pytest.raises(TypeError, match=r"hx.*: expected torch.float32"):
        module(x, (state, state) if pair else state)
    if pair:
        with pytest.raises(TypeError, match=r"hx: expected a tuple \(h, c\)"):
            module(x, torch.zeros(2, 2, 4))
    with pytest.raises(ValueError, match="lengths: expected None with an unbatched"):
        module(x[:, 0], lengths=[3])
    packed = pack_sequence([torch.zeros(3, 5)])
    with pytest.raises(ValueError, match="lengths: expected None with a PackedSequence"):
        module(packed, lengths=[3])
    with pytest.raises(ValueError, match="input: expected input_size = 5 features, got data"):
        module(pack_sequence([torch.zeros(3, 4)]))
    with pytest.raises(ValueError, match="lengths: expected values from 0 to T = 3"):
        module(x, lengths=[1, 4])
    with pytest.raises(ValueError, match="proj_size: expected 0"):
        make(5, 4, proj_size=2)
    with pytest.raises(ValueError, match="hidden_size: expected a positive int, got 0"):
        make(5, 0)
    with pytest.raises(TypeError, match="input_size: expected a positive int, got float"):
        make(5.0, 4)
    with pytest.raises(ValueError, match=r"dropout: expected a number from 0 to 1, got 1.5"):
        make(5, 4, dropout=1.5)
    with pytest.raises(TypeError, match="dropout: expected a number"):
        make(5, 4, dropout=True)
    with pytest.raises(TypeError, match=r"bias: expected True or False, got 0.5"):
        make(5, 4, bias=0.5)
    if cell == "GRU":
        with pytest.raises(ValueError, match="reset: expected 'after' or 'before'"):
            make(5, 4, reset="never")
    if cell == "RNN":
        with pytest.raises(ValueError, match="nonlinearity: expected 'tanh', 'relu' or 'identity'"):
            make(5, 4, 1, "gelu")


MODULES: dict[str, Any] = {
    "RNN": lambda **o: pt.RNN(5, 4, 2, "relu", dropout=0.2, **o),
    "GRU": lambda **o: pt.GRU(5, 4, 2, bidirectional=True, **o),
    "LSTM": lambda **o: pt.LSTM(5, 4, 2, dropout=0.2, **o),
    "SRU": lambda **o: pt.SRU(
        5, 4, 3, bidirectional=True, dropout=0.2, rnn_dropout=0.1, layer_norm=True,
        projection_size=3, highway_bias=-1.0, **o,
    ),
    "SlicedRNN": lambda **o: pt.SlicedRNN(5, 4, (2, 2), "lstm", weight_dropout=0.2, **o),
    "SlicedRNN-sru": lambda **o: pt.SlicedRNN(5, 4, (2, 2), "sru", bidirectional=True, **o),
}  # fmt: skip


def train(module: Any, x: Any, steps: int = 3) -> list[float]:
    """Losses of a few steps, dropout included."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    torch.manual_seed(3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        y = module(x)[0]
        loss = (y * y).mean() - y.mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", MODULES)
def test_copies(name: str) -> None:
    """deepcopy, pickle, torch.save and state_dict give modules that go on in the same way."""
    torch.manual_seed(0)
    x = torch.randn(9, 3, 5)
    module = MODULES[name]()
    train(module, x)  # also copies with gradients there
    made = {"deepcopy": copy.deepcopy(module), "pickle": pickle.loads(pickle.dumps(module))}
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    made["save"] = torch.load(buffer, weights_only=False)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    made["state_dict"] = MODULES[name]()
    made["state_dict"].load_state_dict(torch.load(buffer, weights_only=True))
    expected = train(module, x)
    for how, other in made.items():
        assert train(other, x) == expected, how
        assert repr(other) == repr(module)


@pytest.mark.parametrize("name", MODULES)
def test_types_and_devices(name: str) -> None:
    module = MODULES[name]().eval()
    x = torch.randn(9, 3, 5)
    expected = flat(module(x))
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        found = flat(copy.deepcopy(module).to(dtype)(x.to(dtype)))
        made = MODULES[name](dtype=dtype)
        assert {p.dtype for p in made.parameters()} == {dtype}
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.float(), b, rtol=tolerance, atol=tolerance)
    on_meta = MODULES[name](device="meta")
    assert [t.shape for t in flat(on_meta(x.to("meta")))] == [t.shape for t in expected]
    on_meta.to_empty(device="cpu").load_state_dict(module.state_dict())
    for a, b in zip(flat(on_meta.eval()(x)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MODULES)
def test_autocast(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    x = torch.randn(9, 3, 5)
    expected = module(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)[0]
        y.float().sum().backward()
        with torch.no_grad():
            assert torch.equal(module(x)[0], y)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    found = torch.cat([p.grad.flatten() for p in module.parameters()])
    module.zero_grad()
    module(x)[0].sum().backward()
    grads = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(found, grads, rtol=0.1, atol=0.1 * float(grads.abs().max()))


@pytest.mark.parametrize("cell", CELLS)
def test_default_device(cell: str) -> None:
    """What a module makes is on its input's device, whatever the default is."""
    module = getattr(pt, cell)(5, 4, 2, bidirectional=True, **DOUBLE)
    packed = input_of("packed-unsorted", 5, False, [3, 6, 1])
    x = input_of("batched", 5, False, [3, 6, 1])
    expected = [outcome(module, packed), flat(module(x, lengths=[3, 6, 1]))]
    with torch.device("meta"):
        found = [flat(module(packed)), flat(module(x, lengths=[3, 6, 1]))]
    for a, b in zip(found[0], expected[0].values(), strict=False):
        torch.testing.assert_close(a, b)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_functional_call_and_parametrization(cell: str) -> None:
    from torch.nn.utils.parametrizations import weight_norm

    theirs, ours = both(cell, 5, 4, **DOUBLE)
    x = torch.randn(6, 2, 5, **DOUBLE)
    state = {n: 2 * p.detach() for n, p in ours.named_parameters()}
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(2)
    found = torch.func.functional_call(ours, state, (x,))
    for a, b in zip(flat(found), flat(theirs(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    ours.load_state_dict(theirs.state_dict())
    weight_norm(ours, "weight_hh_l0")
    for a, b in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("cell", [*CELLS, "SRU"])
def test_gradients_of_each_sequence(cell: str) -> None:
    """vmap of grad over functional_call: as a loop over the batch."""
    from torch.func import functional_call, grad, vmap

    module = getattr(pt, cell)(5, 4, 2, **DOUBLE)
    x = torch.randn(6, 3, 5, **DOUBLE)
    state = {n: p.detach() for n, p in module.named_parameters()}

    def loss(state: Any, sequence: Any) -> Any:
        return functional_call(module, state, (sequence[:, None],))[0].square().sum()

    found = vmap(grad(loss), in_dims=(None, 1))(state, x)
    for b in range(3):
        module.zero_grad()
        module(x[:, b : b + 1])[0].square().sum().backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(found[name][b], p.grad)


# ---- beside the layers for NumPy -----------------------------------------------------------------

PAIRS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "sru": ("SRU", (5, 4, 3), {}),
    "sru-square": ("SRU", (8, 4, 2), {"bidirectional": True, "highway_bias": -1.0}),
    "sru-all": ("SRU", (7, 6, 3), {
        "layer_norm": True, "projection_size": 3, "activation": "tanh", "rescale": False}),
    "sru-norm": ("SRU", (6, 6, 2), {"layer_norm": True, "batch_first": True}),
    "sru-first": ("SRU", (5, 4, 2), {"weight_c": False, "skip": False, "mask_site": "state"}),
    **{f"sliced-{c}": ("SlicedRNN", (5, 4, (2, 2), c), {}) for c in ("rnn", "gru", "lstm", "sru")},
    "sliced-right": ("SlicedRNN", (5, 4, (3,), "gru"), {
        "bidirectional": True, "pad": "right", "bias": False, "batch_first": True,
        "reset": "before"}),
    "sliced-sru-square": ("SlicedRNN", (4, 4, (2,), "sru"), {"highway_bias": 1.0, "mask": "none"}),
}  # fmt: skip


def pair(name: str, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """A layer for NumPy, the module with its parameters, and an input."""
    kind, arguments, options = PAIRS[name]
    layer = getattr(penstock, kind)(*arguments, **options, seed=0, dtype=dtype)
    module = getattr(pt, kind)(*arguments, **options, dtype=getattr(torch, dtype))
    state = {n: torch.from_numpy(np.array(a)) for n, a in layer.state_dict().items()}
    assert {n: tuple(t.shape) for n, t in module.state_dict().items()} == {
        n: tuple(t.shape) for n, t in state.items()
    }
    module.load_state_dict(state)
    x = np.random.default_rng(0).standard_normal((6, 7, arguments[0])).astype(dtype)
    return layer, module, x


@pytest.mark.parametrize("name", PAIRS)
def test_beside_numpy(name: str) -> None:
    layer, module, x = pair(name, "float64")
    kind, _, options = PAIRS[name]
    batch = x.shape[0] if options.get("batch_first") else x.shape[1]
    steps = x.size // x.shape[2] // batch
    lengths = np.random.default_rng(1).integers(1, steps + 1, batch)
    given: dict[str, Any] = {"lengths": lengths}
    forms = [{}, given]
    if kind == "SRU":
        rng = np.random.default_rng(2)
        c0 = rng.standard_normal((layer.num_layers, batch, layer.output_size))
        mask = rng.random(x.shape[:2]) < 0.3
        forms += [{"c0": c0}, {"c0": c0, "mask_pad": mask}, {"mask_pad": mask, **given}]
    for form in forms:
        expected = layer(x, **form, training=True)
        tensors = {n: torch.from_numpy(a) for n, a in form.items()}
        leaf = torch.from_numpy(x).clone().requires_grad_()
        found = flat(module(leaf, **tensors))
        outputs = flat(tuple(expected[:-1]))
        for a, b in zip(found, outputs, strict=True):
            np.testing.assert_allclose(a.detach().numpy(), b, rtol=1e-12, atol=1e-12)
        dy = np.random.default_rng(3).standard_normal(outputs[0].shape)
        module.zero_grad()
        found[0].backward(torch.from_numpy(dy))
        grads = expected.backprop(dy)
        np.testing.assert_allclose(leaf.grad.numpy(), grads.dx, rtol=1e-11, atol=1e-11)
        for n, p in module.named_parameters():
            np.testing.assert_allclose(
                p.grad.numpy(), grads.dparameters[n], rtol=1e-11, atol=1e-11, err_msg=n
            )
    other = getattr(penstock, kind)(*PAIRS[name][1], **options, seed=9, dtype="float64")
    other.load_state_dict({n: t.numpy() for n, t in module.state_dict().items()})
    for n, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[n])


@pytest.mark.parametrize("name", [*PAIRS, "RNN", "GRU", "LSTM"])
def test_a_training_step_beside_numpy(name: str) -> None:
    """One step of SGD leaves the same parameters, within 1e-6 in float32."""
    if name in CELLS:
        module = getattr(pt, name)(5, 4, 2, bidirectional=True)
        layer = penstock.convert.load_torch_rnn(module)
        x = np.random.default_rng(0).standard_normal((6, 7, 5)).astype(np.float32)
    else:
        layer, module, x = pair(name)
    target = np.random.default_rng(1)
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    y = module(torch.from_numpy(x))[0]
    goal = target.standard_normal(y.shape).astype(np.float32)
    loss = torch.nn.functional.mse_loss(y, torch.from_numpy(goal))
    loss.backward()
    optimizer.step()

    out = layer(x, training=True)
    mse, dy = np.mean((out[0] - goal) ** 2), 2 / goal.size * (out[0] - goal)
    assert abs(loss.item() - mse) < 1e-6
    grads = out.backprop(dy.astype(np.float32))
    before = {n: a.copy() for n, a in layer.parameters().items()}
    penstock.optim.SGD(layer.parameters(), 0.5).step(grads.dparameters)
    if name in CELLS:
        state = {n: t.numpy() for n, t in module.state_dict().items()}
        after = penstock.convert.convert_torch_rnn(state).state
    else:
        after = {n: p.detach().numpy() for n, p in module.named_parameters()}
    assert set(after) == set(layer.parameters())
    for n, array in layer.parameters().items():
        np.testing.assert_allclose(after[n], array, rtol=0, atol=1e-6, err_msg=n)
        assert np.abs(array - before[n]).max() > 1e-5 or array.size == 0, n


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("SRU", {"num_layers": 2, "highway_bias": -2.0}),
        ("SRU", {"dropout": 0.5, "rnn_dropout": 0.3, "num_layers": 2, "weight_c": False}),
        ("SRU", {"layer_norm": True, "projection_size": 32, "bidirectional": True}),
        ("SlicedRNN", {"cell": "gru"}),
        ("SlicedRNN", {"cell": "sru", "highway_bias": 1.0, "bidirectional": True}),
    ],
)
def test_initial_distributions(cell: str, options: dict[str, Any]) -> None:
    """Other numbers than the layers for NumPy draw, but of the same distributions."""
    torch.manual_seed(0)
    ours = getattr(pt, cell)(96, 64, **options).state_dict()
    theirs = getattr(penstock, cell)(96, 64, **options, seed=1).state_dict()
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        found = ours[name].numpy()
        assert found.shape == expected.shape
        if name.endswith(("bias", "scale_x", "layer_norm.weight")) and "bias_" not in name:
            np.testing.assert_array_equal(found, expected, err_msg=name)
            continue
        in_blocks = found.ndim == 3 and found.shape[1] % 64 == 0  # each has its own factor
        rows = found.reshape(-1, 64, found.shape[-1]) if in_blocks else found[None]
        others = expected.reshape(rows.shape)
        for a, b in itertools.zip_longest(rows, others):
            assert abs(a.std() / b.std() - 1) < 0.1 or a.size < 1000, name
            assert abs(np.abs(a).max() / np.abs(b).max() - 1) < 0.1, name
            assert abs(a.mean()) < 5 * b.std() / math.sqrt(a.size), name


def test_sru_dropout() -> None:
    """One mask for all steps, on every layer's output but the last's; none in evaluation."""
    torch.manual_seed(0)
    module = pt.SRU(6, 6, 2, dropout=0.5)
    x = torch.randn(8, 3, 6)
    first = module.layers[0](x, None, {"lengths": None, "mask_pad": None})[0]
    module.eval()
    plain = module.layers[0](x, None, {"lengths": None, "mask_pad": None})[0]
    same = (first - module.layers[0].scale_x * x).abs().amax(0) < 1e-6  # where r * 0 was added
    changed = (first - plain).abs().amax(0) > 1e-6
    assert changed.all()
    assert 0.1 < same.float().mean() < 0.9
    module.train()
    seen = [module(x)[0] for _ in range(2)]
    assert not torch.equal(*seen)
    last = module.layers[1]
    assert torch.equal(last(x, None, {})[0], last(x, None, {})[0])
    dropped = pt.SRU(6, 6, 1, rnn_dropout=0.5)
    assert not torch.equal(dropped(x)[0], dropped(x)[0])
    dropped.eval()
    assert torch.equal(dropped(x)[0], dropped(x)[0])


def test_padding_never_matters() -> None:
    for options in ({}, {"layer_norm": True}, {"projection_size": 2}, {"rnn_dropout": 0.5}):
        torch.manual_seed(0)
        module = pt.SRU(5, 4, 2, **options)
        x = torch.randn(6, 2, 5)
        broken = x.clone()
        broken[4:, 1] = math.nan
        results = []
        for given in (x, broken):
            leaf = given.clone().requires_grad_()
            torch.manual_seed(1)
            y, c = module(leaf, lengths=[6, 4])
            (y.sum() + c.sum()).backward()
            results.append([y, c, leaf.grad, *(p.grad.clone() for p in module.parameters())])
            module.zero_grad()
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
        assert (results[0][0][4:, 1] == 0).all()
        assert (results[0][2][4:, 1] == 0).all()


def test_errors_of_sru_and_sliced() -> None:
    module = pt.SRU(5, 4, 2)
    x = torch.zeros(6, 2, 5)
    with pytest.raises(ValueError, match=r"input: expected shape \(T, B, input_size\) with inp"):
        module(x[0])
    with pytest.raises(TypeError, match=r"input: expected torch.float32"):
        module(x.double())
    with pytest.raises(ValueError, match=r"c0: expected shape \(2, 2, 4\)"):
        module(x, torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"mask_pad: expected shape \(6, 2\)"):
        module(x, mask_pad=torch.zeros(2, 6))
    with pytest.raises(TypeError, match=r"mask_pad: expected a torch.Tensor"):
        module(x, mask_pad=[True])
    with pytest.raises(ValueError, match="activation: expected"):
        pt.SRU(5, 4, activation="gelu")
    with pytest.raises(ValueError, match="dropout: expected"):
        pt.SRU(5, 4, dropout=1.0)
    state = module.state_dict()
    assert state["layers.1.scale_x"].dtype == torch.float64
    del state["layers.1.scale_x"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"layers.1.scale_x"'):
        module.load_state_dict(state)
    module.load_state_dict(state, strict=False)
    state["layers.1.scale_x"] = torch.zeros(2)
    with pytest.raises(RuntimeError, match="scale_x: expected one number"):
        module.load_state_dict(state)
    sliced = pt.SlicedRNN(5, 4, (2,), batch_first=True)
    with pytest.raises(ValueError, match=r"input: expected shape \(B, T, input_size\)"):
        sliced(torch.zeros(2, 6, 4))
    with pytest.raises(ValueError, match="reset: expected 'after', since the cell 'lstm' has no"):
        pt.SlicedRNN(5, 4, cell="lstm", reset="before")
    with pytest.raises(ValueError, match="skip: expected True, since the cell 'gru' has no"):
        pt.SlicedRNN(5, 4, skip=False)
    with pytest.raises(ValueError, match="activation: expected None with the cell 'lstm'"):
        pt.SlicedRNN(5, 4, cell="lstm", activation="tanh")
    with pytest.raises(ValueError, match=r"slices\[0\]: expected a positive int"):
        pt.SlicedRNN(5, 4, (0,))
    assert repr(pt.SlicedRNN(5, 4, (2,), pad="right")).splitlines()[0] == "SlicedRNN("
    assert "5, 4, slices=(2,), cell='gru', pad='right'" in repr(
        pt.SlicedRNN(5, 4, (2,), pad="right")
    )
    assert "5, 4, num_layers=2, dropout=0.5" in repr(pt.SRU(5, 4, 2, dropout=0.5))


def test_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in MODULES.values():
            make()(torch.randn(9, 3, 5))[0].sum().backward()
