"""The CuPy routes of layers, losses and optimisers, without a GPU.

They run over a stand-in for CuPy, backed by NumPy, that is as strict as a GPU's memory: its arrays
are no NumPy arrays, never turn into them by themselves, and never mix with them. What would fail on
a device for want of an explicit copy fails here. It offers what penstock uses, and nothing more.
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import penstock
import pytest
from penstock import nn, optim
from penstock.layers import sliced as sliced_module
from penstock.layers import sru as sru_module


class Device:
    """``cupy.cuda.Device``."""

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _unwrap(value: Any) -> Any:
    """The NumPy value behind device arrays; host arrays are refused."""
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"a host array of shape {value.shape} was mixed with device arrays")
    if isinstance(value, tuple):
        return tuple(_unwrap(v) for v in value)
    if isinstance(value, list):
        return [_unwrap(v) for v in value]
    return value


def _wrap(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(_wrap(v) for v in value)
    return value


class ndarray:
    """``cupy.ndarray``."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.host = host
        self.device = Device()

    shape = property(lambda self: self.host.shape)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    dtype = property(lambda self: self.host.dtype)
    strides = property(lambda self: self.host.strides)
    T = property(lambda self: ndarray(self.host.T))

    @property
    def flags(self) -> Any:
        return types.SimpleNamespace(c_contiguous=self.host.flags.c_contiguous)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed; use .get()")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)  # kDLCUDA

    def get(self) -> np.ndarray[Any, Any]:
        return self.host.copy()

    def set(self, value: np.ndarray[Any, Any]) -> None:
        if not isinstance(value, np.ndarray) or value.dtype != self.dtype:
            raise TypeError(f"set: expected a host array of {self.dtype}")
        self.host[...] = value

    def __getitem__(self, key: Any) -> ndarray:
        result: ndarray = _wrap(self.host[_unwrap(key)])
        return result

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[_unwrap(key)] = _unwrap(value)

    def __len__(self) -> int:
        return len(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)


def _method(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        kwargs = {k: _unwrap(v) for k, v in kwargs.items()}
        return _wrap(getattr(self.host, name)(*_unwrap(args), **kwargs))

    return method


for _name in ("reshape", "astype", "sum", "max", "min", "mean", "copy", "transpose", "argmax"):
    setattr(ndarray, _name, _method(_name))


def _binary(function: Callable[[Any, Any], Any], swap: bool) -> Callable[..., Any]:
    def method(self: ndarray, other: Any) -> Any:
        pair = (self.host, _unwrap(other))
        return _wrap(function(*(reversed(pair) if swap else pair)))

    return method


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def method(self: ndarray, other: Any) -> ndarray:
        self.host = function(self.host, _unwrap(other))
        return self

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_"):
    _word = _name.rstrip("_")
    setattr(ndarray, f"__{_word}__", _binary(getattr(operator, _name), False))
    setattr(ndarray, f"__r{_word}__", _binary(getattr(operator, _name), True))
    setattr(ndarray, f"__i{_word}__", _in_place(getattr(operator, f"i{_word}")))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _binary(getattr(operator, _name), False))
ndarray.__neg__ = lambda self: ndarray(-self.host)  # type: ignore[attr-defined]
ndarray.__invert__ = lambda self: ndarray(~self.host)  # type: ignore[attr-defined]


def _function(name: str) -> Callable[..., Any]:
    def function(*args: Any, out: ndarray | None = None, **kwargs: Any) -> Any:
        kwargs = {k: _unwrap(v) for k, v in kwargs.items()}
        if out is not None:
            getattr(np, name)(*_unwrap(args), out=out.host, **kwargs)
            return out
        return _wrap(getattr(np, name)(*_unwrap(args), **kwargs))

    return function


class _Philox:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.Generator(np.random.Philox(seed))


class _Generator:
    def __init__(self, bits: _Philox) -> None:
        self.random = lambda shape, dtype: ndarray(bits.rng.random(shape, dtype=dtype))


def make_module() -> types.ModuleType:
    """The stand-in as a module to be put into ``sys.modules["cupy"]``."""
    module: Any = types.ModuleType("cupy")
    for name in (
        "abs",
        "arange",
        "argsort",
        "ascontiguousarray",
        "clip",
        "concatenate",
        "cumsum",
        "divide",
        "einsum",
        "empty",
        "empty_like",
        "exp",
        "flatnonzero",
        "log",
        "log1p",
        "maximum",
        "minimum",
        "multiply",
        "ones",
        "reciprocal",
        "sqrt",
        "square",
        "stack",
        "sum",
        "take",
        "where",
        "zeros",
        "zeros_like",
    ):
        setattr(module, name, _function(name))
    module.ndarray = ndarray
    module.asarray = lambda a, dtype=None: (
        a
        if isinstance(a, ndarray) and dtype in (None, a.dtype)
        else ndarray(np.array(a.host if isinstance(a, ndarray) else a, dtype=dtype))
    )
    module.cuda = types.SimpleNamespace(Device=Device)
    module.random = types.SimpleNamespace(Generator=_Generator, Philox4x3210=_Philox)
    return module


ndarray.__module__ = "cupy"


def _sru_on_the_stand_in(x: Any, *args: Any, **kwargs: Any) -> Any:
    """penstock.sru with its arrays taken off the stand-in, and its results put back."""
    if not isinstance(x, ndarray):
        return penstock.sru(x, *args, **kwargs)
    out = penstock.sru(x.host, *_unwrap(args), **{k: _unwrap(v) for k, v in kwargs.items()})

    def backprop(*gradients: Any) -> Any:
        assert out.backprop is not None
        return penstock.SRUGrads(*(_wrap(g) for g in out.backprop(*_unwrap(gradients))))

    return penstock.SRUOutput(ndarray(out.y), ndarray(out.c_last), out.backprop and backprop)


def _on_the_stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation with its arrays taken off the stand-in, and its results put back."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(a, ndarray) for a in args):
            return function(*args, **kwargs)
        out = function(*_unwrap(args), **{k: _unwrap(v) for k, v in kwargs.items()})

        def backprop(*gradients: Any) -> Any:
            grads = out.backprop(*_unwrap(gradients))
            return type(grads)(*map(_wrap, grads))

        return type(out)(*map(_wrap, out[:-1]), out.backprop and backprop)

    return call


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, imported as cupy."""
    module = make_module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(sru_module, "sru", _sru_on_the_stand_in)
    for layer in (penstock.GRU, penstock.LSTM, penstock.RNN):
        operation = staticmethod(_on_the_stand_in(layer._operation))
        monkeypatch.setattr(layer, "_operation", operation)
    monkeypatch.setattr(sliced_module, "sliced", _on_the_stand_in(penstock.sliced))
    yield module


def same(device: Any, host: Any, tol: float = 1e-12) -> None:
    assert isinstance(device, ndarray)
    assert device.dtype == host.dtype
    np.testing.assert_allclose(device.host, host, rtol=tol, atol=tol)


def compare_layer(cupy: Any, make: Callable[[], Any], x: Any, **kwargs: Any) -> None:
    """The same layer on the host and on the stand-in: output, gradients, state."""
    host, device = make(), make().to("cuda")
    device_kwargs = {
        k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()
    }
    a = host(x, need_grad=True, **kwargs)
    b = device(cupy.asarray(x), need_grad=True, **device_kwargs)
    same(b.y, a.y)
    dy = np.random.default_rng(3).standard_normal(a.y.shape)
    ga, gb = a.backprop(dy), b.backprop(cupy.asarray(dy))
    if ga.dx is not None:
        same(gb.dx, ga.dx)
    assert list(ga.dparameters) == list(gb.dparameters) == list(device.parameters())
    for name, gradient in ga.dparameters.items():
        same(gb.dparameters[name], gradient)
    state = device.state_dict()
    for name, array in host.state_dict().items():
        assert type(state[name]) is np.ndarray
        np.testing.assert_array_equal(state[name], array)
    device.load_state_dict({name: array + 1 for name, array in state.items()})
    for name, array in device.parameters().items():
        np.testing.assert_array_equal(array.host, state[name] + 1)
    assert all(type(p) is np.ndarray for p in device.to("cpu").parameters().values())


X = np.random.default_rng(0).standard_normal((4, 3, 5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(5, 4, dtype="float64", seed=0),
        lambda: nn.LayerNorm(5, dtype="float64"),
        lambda: nn.Sequential(
            nn.Linear(5, 4, dtype="float64", seed=0),
            nn.Dropout(0.5),
            nn.LayerNorm(4, dtype="float64"),
        ),
    ],
)
def test_layers(cupy: Any, make: Callable[[], Any]) -> None:
    compare_layer(cupy, make, X)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding(cupy: Any, padding_idx: int | None) -> None:
    ids = np.random.default_rng(0).zipf(1.5, (40, 6)) % 7
    compare_layer(
        cupy, lambda: nn.Embedding(7, 5, dtype="float64", seed=0, padding_idx=padding_idx), ids
    )
    compare_layer(cupy, lambda: nn.Embedding(7, 5, dtype="float64", seed=0), ids[:, :0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 2, "layer_norm": True, "projection_size": 2},
        {"num_layers": 2, "layer_norm": True, "bidirectional": True, "batch_first": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("padded", ["", "array", "list"])
def test_sru(cupy: Any, options: dict[str, Any], padded: str) -> None:
    def make() -> penstock.SRU:
        return penstock.SRU(5, 4, dtype="float64", seed=0, **options)

    batch = 4 if options.get("batch_first") else 3
    kwargs: dict[str, Any] = {}
    if padded:
        kwargs["lengths"] = np.arange(batch) if padded == "array" else list(range(batch))
    compare_layer(cupy, make, X, **kwargs)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "layer_norm": True, "batch_first": True},
        {"num_layers": 2, "dropout": 0.5, "weight_dropout": 0.5, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_recurrent_layers(cupy: Any, cell: str, options: dict[str, Any], padded: bool) -> None:
    def make() -> Any:
        return getattr(penstock, cell)(5, 4, dtype="float64", seed=0, **options)

    steps = X.swapaxes(0, 1) if options.get("batch_first") else X
    compare_layer(cupy, make, steps, **({"lengths": np.array([4, 2, 0])} if padded else {}))
    device = make().to("cuda")
    out = device(cupy.asarray(steps), training=True)
    assert out.backprop(out.y).dparameters["layers.0.weight_hh"].shape[0] == device.directions


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True, "bidirectional": True}, {"cell": "sru"}, {"weight_dropout": 0.5}],
    ids=str,
)
def test_sliced_layer(cupy: Any, options: dict[str, Any], padded: bool) -> None:
    def make() -> Any:
        return penstock.SlicedRNN(5, 4, (2, 2), dtype="float64", seed=0, **options)

    steps = X.swapaxes(0, 1) if options.get("batch_first") else X
    compare_layer(cupy, make, steps, **({"lengths": np.array([4, 2, 0])} if padded else {}))
    out = make().to("cuda")(cupy.asarray(steps), training=True)
    grads = out.backprop(None, [out.levels[0], None, out.levels[2]])
    assert grads.dx.shape == steps.shape and len(grads.dparameters) > 0


def test_masks_are_drawn_on_the_device_and_resume(cupy: Any) -> None:
    layer = penstock.SRU(5, 4, 2, dropout=0.5, rnn_dropout=0.3, dtype="float64", seed=0).to("cuda")
    x = cupy.asarray(X)
    state = layer.rng_state()
    out = layer(x, training=True)
    assert (out.y.host != layer(x).y.host).any()
    layer.set_rng_state(state)
    np.testing.assert_array_equal(layer(x, training=True).y.host, out.y.host)
    assert isinstance(out.backprop(out.y).dx, ndarray)
    y = nn.Dropout(0.25, seed=1)(cupy.asarray(np.ones((200, 100), np.float32)), training=True).y
    np.testing.assert_allclose(np.unique(y.host), [0, 4 / 3], rtol=1e-6)
    assert abs((y.host == 0).mean() - 0.25) < 0.01


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses(cupy: Any, reduction: Any, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    logits, targets, weights = rng.standard_normal((6, 4)), rng.integers(0, 4, 6), rng.random(4)
    other = rng.random((6, 4))
    put = cupy.asarray
    pairs = [
        (
            nn.softmax_cross_entropy(
                f(logits),
                f(targets),
                reduction=reduction,
                label_smoothing=0.1,
                ignore_index=1,
                class_weights=f(weights) if weighted else None,
            ),
            nn.softmax_cross_entropy(f(logits), f(targets), reduction=reduction),
            nn.binary_cross_entropy_with_logits(f(logits), f(other), reduction=reduction),
            nn.mean_squared_error(f(logits), f(other), reduction=reduction),
        )
        for f in (np.asarray, put)
    ]
    for host, device in zip(*pairs, strict=True):
        same(device.loss, np.asarray(host.loss))
        same(device.backprop(), host.backprop())
        same(device.backprop(device.loss), host.backprop(host.loss))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_optimisers(cupy: Any, kind: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    start = {
        "a": rng.standard_normal((5, 3)).astype(dtype),
        "b": rng.standard_normal(4).astype(dtype),
    }
    host = {n: a.copy() for n, a in start.items()}
    device = {n: cupy.asarray(a) for n, a in start.items()}
    options = {"momentum": 0.9} if kind is optim.SGD else {}
    one = kind(host, 0.1, weight_decay=0.1, **options)
    two = kind(device, 0.1, weight_decay=0.1, **options)
    for i in range(3):
        rows = np.array([1, 3])
        part = rng.standard_normal((2, 3)).astype(dtype)
        vector = rng.standard_normal(4).astype(dtype)
        table = nn.RowGradient(rows, part, 5)
        device_table = nn.RowGradient(cupy.asarray(rows), cupy.asarray(part), 5)
        g = {"a": table if i else table.dense(), "b": vector}
        h = {"a": device_table if i else device_table.dense(), "b": cupy.asarray(vector)}
        assert optim.clip_grad_norm(h, 1.0) == pytest.approx(optim.clip_grad_norm(g, 1.0))
        optim.clip_grad_value(g, 0.5)
        optim.clip_grad_value(h, 0.5)
        one.step(g)
        two.step(h)
    for name, array in host.items():
        same(device[name], array, 1e-3 if dtype == "float16" else 1e-12)
    state = two.state_dict()
    assert all(type(a) is np.ndarray for a in state.values())
    two.load_state_dict(one.state_dict())
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(two.state_dict()[name], array)


def test_host_and_device_do_not_mix(cupy: Any) -> None:
    layer = nn.Linear(5, 4, dtype="float64").to("cuda")
    with pytest.raises(TypeError, match=r"x: expected a cupy.ndarray"):
        layer(X)
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray"):
        nn.Linear(5, 4, dtype="float64")(cupy.asarray(X))
    out = layer(cupy.asarray(X), training=True)
    with pytest.raises(TypeError, match=r"dy: expected a cupy.ndarray"):
        out.backprop(np.zeros((4, 3, 4)))
    opt = optim.SGD(layer.parameters())
    with pytest.raises(TypeError, match=r"gradients\['weight'\]: expected a cupy.ndarray"):
        opt.step(layer.state_dict())
    with pytest.raises(TypeError, match=r"targets: expected a cupy\.ndarray"):
        nn.softmax_cross_entropy(cupy.asarray(X[0]), np.zeros(3, np.int64))
