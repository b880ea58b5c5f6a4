"""penstock.SRU: gradients of every option, equivalence with penstock.sru, initialisation, state."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import penstock
import pytest

Array = np.ndarray[Any, Any]
T, B = 4, 3


def make(**options: Any) -> penstock.SRU:
    """A float64 layer of input 5 or the given width, whose every parameter is nonzero."""
    options = {"input_size": 5, "hidden_size": 4, "dtype": "float64", "seed": 3, **options}
    layer = penstock.SRU(**options)
    rng = np.random.default_rng(11)
    for array in layer.parameters().values():
        array[...] += 0.3 * rng.standard_normal(array.shape)
    return layer


OPTIONS: list[dict[str, Any]] = [
    {},
    {"input_size": 4},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "skip": False},
    {"num_layers": 2, "weight_c": False, "activation": "tanh"},
    {"num_layers": 2, "activation": "relu", "rescale": False},
    {"num_layers": 2, "layer_norm": True},
    {"num_layers": 2, "layer_norm": True, "bidirectional": True, "highway_bias": -1.0},
    {"num_layers": 2, "projection_size": 2},
    {"num_layers": 2, "projection_size": 2, "layer_norm": True, "bidirectional": True},
    {"num_layers": 2, "layer_norm": True, "skip": False},
    {"num_layers": 2, "dropout": 0.4, "mask_site": "state"},
    {"num_layers": 3, "dropout": 0.4, "rnn_dropout": 0.3, "bidirectional": True},
    {
        "num_layers": 2,
        "dropout": 0.4,
        "rnn_dropout": 0.3,
        "layer_norm": True,
        "projection_size": 3,
        "bidirectional": True,
    },
    {"num_layers": 2, "batch_first": True, "layer_norm": True, "rnn_dropout": 0.3},
]


def loss_and_gradients(layer: penstock.SRU, x: Array, c0: Array, **kw: Any) -> tuple[Any, Any, Any]:
    """A loss over all outputs as a function, and its gradients from backprop."""
    state = layer.rng_state()
    rng = np.random.default_rng(5)
    out = layer(x, c0, training=True, **kw)
    dy, dc = rng.standard_normal(out.y.shape), rng.standard_normal(out.c_last.shape)

    def value() -> float:
        layer.set_rng_state(state)  # the same masks in every evaluation
        o = layer(x, c0, training=True, need_grad=False, **kw)
        return float((o.y * dy).sum() + (o.c_last * dc).sum())

    return value, out.backprop(dy, dc), (out, dy, dc)


def numeric_gradient(f: Any, array: Array, eps: float = 1e-6) -> Array:
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + eps
        above = f()
        array[index] = kept - eps
        below = f()
        array[index] = kept
        gradient[index] = (above - below) / (2 * eps)
    return gradient


def close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-8)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padded", ["", "lengths", "mask_pad"])
def test_gradients(options: dict[str, Any], padded: str) -> None:
    layer = make(**options)
    rng = np.random.default_rng(0)
    shape = (B, T) if layer.batch_first else (T, B)
    x = rng.standard_normal((*shape, layer.input_size))
    c0 = rng.standard_normal((layer.num_layers, B, layer.output_size))
    lengths = np.array([4, 2, 0])
    mask = np.arange(T)[:, None] >= lengths
    kw: dict[str, Any] = {}
    if padded == "lengths":
        kw = {"lengths": lengths}
    elif padded:
        kw = {"mask_pad": mask.T if layer.batch_first else mask}
    value, grads, (out, dy, dc) = loss_and_gradients(layer, x, c0, **kw)
    assert out._fields == ("y", "c_last", "backprop")
    assert grads._fields == ("dx", "dc0", "dparameters")
    assert list(grads.dparameters) == list(layer.parameters())
    close(grads.dx, numeric_gradient(value, x))
    close(grads.dc0, numeric_gradient(value, c0))
    for name, parameter in layer.parameters().items():
        assert grads.dparameters[name].shape == parameter.shape
        close(grads.dparameters[name], numeric_gradient(value, parameter))
    again = out.backprop(dy, dc)
    np.testing.assert_array_equal(again.dx, grads.dx)
    half = out.backprop(dy, None).dx + out.backprop(None, dc).dx
    np.testing.assert_allclose(half, grads.dx, rtol=1e-10, atol=1e-12)
    if padded:
        places = mask.T if layer.batch_first else mask
        assert not out.y[places].any() and not grads.dx[places].any()
        dirty = np.where(places[..., None], np.nan, x)
        state = layer.rng_state()
        first = layer(x, c0, training=True, **kw)
        layer.set_rng_state(state)
        second = layer(dirty, c0, training=True, **kw)
        np.testing.assert_array_equal(second.y, first.y)
        clean, found = first.backprop(dy, dc), second.backprop(dy, dc)
        np.testing.assert_array_equal(found.dx, clean.dx)
        for name, gradient in clean.dparameters.items():
            np.testing.assert_array_equal(found.dparameters[name], gradient)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_is_a_stack_of_sru_calls(bidirectional: bool) -> None:
    layer = make(num_layers=2, bidirectional=bidirectional, activation="tanh", highway_bias=-0.5)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, 5))
    c0 = rng.standard_normal((2, B, layer.output_size))
    lengths = np.array([4, 1, 3])
    p = layer.parameters()
    h, states = x, []
    for i in range(2):
        out = penstock.sru(
            h,
            p[f"layers.{i}.weight"],
            p[f"layers.{i}.weight_c"],
            p[f"layers.{i}.bias"],
            c0=c0[i],
            activation="tanh",
            scale_x=1.0 if i == 0 else math.sqrt(1 + 2 / math.exp(0.5)),
            lengths=lengths,
            direction="bidirectional" if bidirectional else "forward",
        )
        h = out.y
        states.append(out.c_last)
    for kw in ({}, {"need_grad": True}, {"training": True}):
        result = layer(x, c0, lengths=lengths, **kw)
        np.testing.assert_allclose(result.y, h, rtol=1e-13)
        np.testing.assert_allclose(result.c_last, np.stack(states), rtol=1e-13)


def test_layer_norm_and_projection_leave_the_skip_term_alone() -> None:
    layer = make(input_size=4, layer_norm=True, projection_size=2)
    x = np.random.default_rng(0).standard_normal((T, B, 4))
    p = layer.parameters()
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normed = normed * p["layers.0.layer_norm.weight"] + p["layers.0.layer_norm.bias"]
    u = (normed @ p["layers.0.projection"].T) @ p["layers.0.weight"][0].T
    v, b = p["layers.0.weight_c"][0], p["layers.0.bias"][0]
    c = np.zeros((B, 4))
    for t in range(T):
        u0, u1, u2 = np.split(u[t], 3, axis=-1)
        f = 1 / (1 + np.exp(-(u1 + v[0] * c + b[0])))
        r = 1 / (1 + np.exp(-(u2 + v[1] * c + b[1])))
        c = f * c + (1 - f) * u0
        skip = math.sqrt(3) * x[t]
        np.testing.assert_allclose(layer(x).y[t], r * (c - skip) + skip, rtol=1e-11)


def test_single_steps_continue_a_sequence() -> None:
    layer = make(num_layers=2)
    x = np.random.default_rng(0).standard_normal((6, 1, 5))
    whole = layer(x)
    c = None
    for t in range(6):
        y, c, _ = layer(x[t : t + 1], c)
        np.testing.assert_allclose(y[0], whole.y[t], rtol=1e-12)
    np.testing.assert_allclose(c, whole.c_last, rtol=1e-12)


def test_batch_first_matches_time_first() -> None:
    x = np.random.default_rng(0).standard_normal((T, B, 5))
    first, second = make(num_layers=2), make(num_layers=2, batch_first=True)
    np.testing.assert_array_equal(
        first(x).y, second(np.ascontiguousarray(x.swapaxes(0, 1))).y.swapaxes(0, 1)
    )


def test_dropout_masks() -> None:
    layer = make(input_size=4, num_layers=2, dropout=0.5, skip=False)
    x = np.random.default_rng(0).standard_normal((T, B, 4))
    first = make(input_size=4, num_layers=1, skip=False)
    names = {n for n in first.state_dict()}
    first.load_state_dict({n: a for n, a in layer.state_dict().items() if n in names})
    state = json.loads(json.dumps(layer.rng_state()))
    seen = layer(x, training=True)
    layer.set_rng_state(state)
    np.testing.assert_array_equal(layer(x, training=True).y, seen.y)
    assert (layer(x, training=True).y != seen.y).any()
    np.testing.assert_array_equal(layer(x).y, layer(x, need_grad=True).y)
    one = make(dropout=0.5)  # no layer follows, so nothing is dropped
    np.testing.assert_array_equal(
        one(x[..., [0, 1, 2, 3, 0]], training=True).y, one(x[..., [0, 1, 2, 3, 0]]).y
    )


def test_initialisation() -> None:
    layer = penstock.SRU(
        60, 100, 3, dropout=0.36, highway_bias=-1.0, bidirectional=True, seed=0, dtype="float64"
    )
    p = layer.parameters()
    alpha = math.sqrt(1 + 2 * math.exp(-1.0))
    assert p["layers.0.weight"].shape == (2, 400, 60)
    assert p["layers.1.weight"].shape == (2, 300, 200)
    blocks = p["layers.0.weight"].reshape(2, 4, 100, 60)
    bound = math.sqrt(3 / 60)
    for k, factor in enumerate([0.8, math.sqrt(0.5), math.sqrt(0.5), alpha]):
        values = blocks[:, k]
        assert np.abs(values).max() <= bound * factor
        assert np.abs(values).max() > 0.999 * bound * factor
        assert values.std() == pytest.approx(factor / math.sqrt(60), rel=0.02)
        assert abs(values.mean()) < 0.02 * bound
    last = p["layers.2.weight"].reshape(2, 3, 100, 200)
    assert last[:, 0].std() == pytest.approx(1 / math.sqrt(200), rel=0.02)  # no dropout after it
    assert np.abs(p["layers.1.weight_c"]).max() <= math.sqrt(1.5)
    assert p["layers.1.weight_c"].std() == pytest.approx(math.sqrt(0.5), rel=0.1)
    assert (p["layers.1.bias"][:, 0] == 0).all() and (p["layers.1.bias"][:, 1] == -1).all()
    state = layer.state_dict()
    assert state["layers.0.scale_x"] == 1.0
    assert state["layers.1.scale_x"] == pytest.approx(alpha, rel=1e-15)
    plain = penstock.SRU(100, 100, rescale=False, weight_c=False, layer_norm=True, seed=0)
    assert plain.state_dict()["layers.0.scale_x"] == 1.0
    gates = plain.parameters()["layers.0.weight"].reshape(3, 100, 100)
    assert gates.std() == pytest.approx(0.01, rel=0.02)
    assert "layers.0.weight_c" not in plain.parameters()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_types(dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    options: dict[str, Any] = {
        "input_size": 16,
        "hidden_size": 8,
        "num_layers": 2,
        "bidirectional": True,
        "layer_norm": True,
        "projection_size": 6,
        "dropout": 0.25,
        "rnn_dropout": 0.25,
    }
    layer = make(**{**options, "dtype": dtype})
    wide = make(**options)
    wide.load_state_dict(layer.state_dict())
    wide.set_rng_state(layer.rng_state())
    kind = layer.layers.parameters()["0.weight"].dtype
    assert kind.name == dtype == layer.dtype
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((5, 3, 16)).astype(kind) for _ in range(2))
    tol = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15}[dtype]
    a, b = layer(x, training=True), wide(x.astype(float), training=True)
    ga, gb = a.backprop(dy), b.backprop(dy.astype(float))
    for name in ga.dparameters:
        pairs = [(a.y, b.y), (a.c_last, b.c_last), (ga.dx, gb.dx)]
        for mine, exact in [*pairs, (ga.dparameters[name], gb.dparameters[name])]:
            assert mine.dtype == kind
            assert np.abs(mine.astype(float) - exact).max() <= tol * np.abs(exact).max()


def test_seeds() -> None:
    a, b = penstock.SRU(3, 4, seed=1).state_dict(), penstock.SRU(3, 4, seed=1).state_dict()
    c = penstock.SRU(3, 4, seed=2).state_dict()
    np.testing.assert_array_equal(a["layers.0.weight"], b["layers.0.weight"])
    assert (a["layers.0.weight"] != c["layers.0.weight"]).any()
    rng = np.random.default_rng(1)
    first, second = penstock.SRU(3, 4, seed=rng), penstock.SRU(3, 4, seed=rng)
    assert (first.layers.state_dict()["0.weight"] != second.layers.state_dict()["0.weight"]).any()


def test_state_config_and_files(tmp_path: Any) -> None:
    layer = make(num_layers=2, layer_norm=True, projection_size=2, highway_bias=-2.0)
    layer.save(tmp_path / "m.safetensors")
    other = penstock.SRU(**{**json.loads(json.dumps(layer.config())), "highway_bias": 0.0}, seed=9)
    x = np.random.default_rng(0).standard_normal((T, B, 5))
    assert (other(x).y != layer(x).y).any()
    live = other.parameters()
    other.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(other(x).y, layer(x).y)  # scale_x came with the file
    assert all(array is live[name] for name, array in other.parameters().items())
    assert other.to("cpu") is other


def test_trains() -> None:
    """Remember the first of eight inputs: gradients and optimiser working together."""
    rng = np.random.default_rng(0)
    layer = penstock.SRU(4, 16, 2, seed=0)
    head = penstock.nn.Linear(16, 4, seed=1)
    params = {**layer.parameters(), **{f"head.{n}": a for n, a in head.parameters().items()}}
    opt = penstock.optim.Adam(params, lr=0.02)
    losses = []
    for _ in range(150):
        targets = rng.integers(0, 4, 32)
        x = 0.1 * rng.standard_normal((8, 32, 4), dtype=np.float32)
        x[0, np.arange(32), targets] += 1
        out = layer(x, training=True)
        logits = head(out.y[-1], training=True)
        loss, backprop = penstock.nn.softmax_cross_entropy(logits.y, targets)
        losses.append(float(loss))
        dhead = logits.backprop(backprop())
        dy = np.zeros_like(out.y)
        dy[-1] = dhead.dx
        grads = out.backprop(dy)
        opt.step({**grads.dparameters, **{f"head.{n}": g for n, g in dhead.dparameters.items()}})
    assert np.mean(losses[:5]) > 1.2
    assert np.mean(losses[-10:]) < 0.1


X = np.zeros((2, 3, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: penstock.SRU(0, 4), ValueError, "input_size: expected a positive int, got 0"),
        (lambda: penstock.SRU(4, "a"), TypeError, "hidden_size: expected a positive int, got str"),
        (lambda: penstock.SRU(4, 4, 0), ValueError, "num_layers: expected a positive int"),
        (lambda: penstock.SRU(4, 4, dropout=1.0), ValueError, "dropout: expected a float in"),
        (lambda: penstock.SRU(4, 4, rnn_dropout=-1), ValueError, "rnn_dropout: expected"),
        (lambda: penstock.SRU(4, 4, projection_size=-1), ValueError, "projection_size: expected"),
        (lambda: penstock.SRU(4, 4, activation="elu"), ValueError, "activation: expected"),
        (lambda: penstock.SRU(4, 4, mask_site="x"), ValueError, "mask_site: expected"),
        (lambda: penstock.SRU(4, 4, dtype="int32"), ValueError, "dtype: expected one of"),
        (lambda: make()(X[..., :4]), ValueError, r"x: expected shape \(..., 5\)"),
        (lambda: make()(X[..., :4], training=True), ValueError, r"x: expected shape \(..., 5\)"),
        (lambda: make()(X[0], training=True), ValueError, "x: expected three axes"),
        (lambda: make()(X.astype(np.float32)), TypeError, "x: expected dtype float64"),
        (lambda: make()(X[0]), ValueError, "x: expected three axes"),
        (lambda: make()(X.tolist()), TypeError, "x: expected a numpy.ndarray"),
        (
            lambda: make()(X, lengths=np.array([1, 2, 3])),
            ValueError,
            "lengths: expected values from 0 to T = 2",
        ),
        (lambda: make()(X.tolist(), training=True), TypeError, "x: expected a numpy.ndarray"),
        (lambda: make()(X, np.zeros((3, 4))), ValueError, r"c0: expected shape \(1, 3, 4\)"),
        (
            lambda: make()(X, np.zeros((1, 3, 4), np.float32)),
            TypeError,
            "c0: expected.*float64",
        ),
        (
            lambda: make(layer_norm=True)(X, lengths=np.array([1, 2])),
            ValueError,
            "lengths: expected",
        ),
        (
            lambda: make(layer_norm=True)(X, mask_pad=np.zeros((3, 2), bool)),
            ValueError,
            r"mask_pad: expected shape \(2, 3\)",
        ),
        (lambda: make()(X).backprop(), RuntimeError, "need_grad"),
        (
            lambda: make()(X, training=True).backprop(X),
            ValueError,
            r"dy: expected shape \(2, 3, 4\), got \(2, 3, 5\)",
        ),
        (
            lambda: make()(X, training=True).backprop(None, np.zeros((3, 4))),
            ValueError,
            r"dc_last: expected shape \(1, 3, 4\), got \(3, 4\)",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "value"),
    [("projection_size", "a"), ("projection_size", None), ("highway_bias", "a")],
)
def test_wrong_types_name_the_argument(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        penstock.SRU(4, 4, **options)
