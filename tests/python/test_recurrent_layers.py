"""penstock.GRU, LSTM and RNN: gradients of every option, equivalence with calls, state."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import penstock
import pytest

Array = np.ndarray[Any, Any]
T, B = 4, 3
CELLS = {"GRU": 3, "LSTM": 4, "RNN": 1}


def make(cell: str = "GRU", **options: Any) -> Any:
    """A float64 layer of input 5 whose every parameter is nonzero."""
    options = {"input_size": 5, "hidden_size": 4, "dtype": "float64", "seed": 3, **options}
    layer = getattr(penstock, cell)(**options)
    rng = np.random.default_rng(11)
    for array in layer.parameters().values():
        array[...] += 0.3 * rng.standard_normal(array.shape)
    return layer


def start(layer: Any, rng: np.random.Generator, batch: int = B) -> list[Array]:
    """Initial states, one or two."""
    shape = (layer.num_layers, batch, layer.output_size)
    return [rng.standard_normal(shape) for _ in range(2 if isinstance(layer, penstock.LSTM) else 1)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "bias": False},
    {"num_layers": 2, "layer_norm": True},
    {"num_layers": 2, "layer_norm": True, "bidirectional": True, "dropout": 0.3, "bias": False},
    {"num_layers": 3, "dropout": 0.4, "weight_dropout": 0.3, "bidirectional": True},
    {"num_layers": 2, "batch_first": True, "layer_norm": True, "dropout": 0.3},
    {"num_layers": 2, "recompute": True, "bidirectional": True},
]
CASES = [(cell, options) for cell in CELLS for options in OPTIONS] + [
    ("GRU", {"reset": "before", "num_layers": 2}),
    ("GRU", {"reset": "before", "activation": "identity", "bias": False}),
    ("GRU", {"activation": "relu", "bidirectional": True}),
    ("RNN", {"activation": "identity", "num_layers": 2}),
    ("RNN", {"activation": "relu"}),
]


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


@pytest.mark.parametrize(("cell", "options"), CASES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_gradients(cell: str, options: dict[str, Any], padded: bool) -> None:
    layer = make(cell, hidden_size=3, **options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, 5) if layer.batch_first else (T, B, 5))
    starts = start(layer, rng)
    lengths = np.array([4, 2, 0]) if padded else None
    state = layer.rng_state()
    out = layer(x, *starts, lengths=lengths, training=True)
    douts = [rng.standard_normal(o.shape) for o in out[:-1]]

    def value() -> float:
        layer.set_rng_state(state)  # the same masks in every evaluation
        o = layer(x, *starts, lengths=lengths, training=True, need_grad=False)
        return float(sum((a * d).sum() for a, d in zip(o[:-1], douts, strict=True)))

    grads = out.backprop(*douts)
    assert list(grads.dparameters) == list(layer.parameters())
    close(grads.dx, numeric_gradient(value, x))
    for gradient, array in zip(grads[1:-1], starts, strict=True):
        close(gradient, numeric_gradient(value, array))
    for name, parameter in layer.parameters().items():
        assert grads.dparameters[name].shape == parameter.shape
        close(grads.dparameters[name], numeric_gradient(value, parameter))
    np.testing.assert_array_equal(out.backprop(*douts).dx, grads.dx)
    one_at_a_time = sum(
        out.backprop(*(d if i == j else None for j, d in enumerate(douts))).dx
        for i in range(len(douts))
    )
    np.testing.assert_allclose(one_at_a_time, grads.dx, rtol=1e-10, atol=1e-12)
    if lengths is None:
        return
    places = np.arange(T)[:, None] >= lengths
    places = places.T if layer.batch_first else places
    assert not out.y[places].any() and not grads.dx[places].any()
    layer.set_rng_state(state)
    dirty = np.where(places[..., None], np.nan, x)
    again = layer(dirty, *starts, lengths=lengths, training=True)
    found = again.backprop(*douts)
    for a, b in zip((*again[:-1], *found[:-1]), (*out[:-1], *grads[:-1]), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, gradient in grads.dparameters.items():
        np.testing.assert_array_equal(found.dparameters[name], gradient)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_is_a_stack_of_calls(cell: str, bidirectional: bool) -> None:
    layer = make(cell, num_layers=2, bidirectional=bidirectional)
    rng = np.random.default_rng(0)
    x, starts = rng.standard_normal((T, B, 5)), start(layer, rng)
    lengths = np.array([4, 1, 3])
    p = layer.parameters()
    h, last = x, []
    for i in range(2):
        weights = [p[f"layers.{i}.{n}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        states = {f"{n}0": s[i] for n, s in zip("hc", starts, strict=False)}
        direction = "bidirectional" if bidirectional else "forward"
        operation = getattr(penstock, cell.lower())
        out = operation(h, *weights, lengths=lengths, direction=direction, **states)
        h = out.y
        last.append(out[1:-1])
    expected = [h, *(np.stack(states) for states in zip(*last, strict=True))]
    for kw in ({}, {"need_grad": True}, {"training": True}):
        result = layer(x, *starts, lengths=lengths, **kw)
        for a, b in zip(result[:-1], expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_layer_norm_is_of_each_layers_input(cell: str) -> None:
    layer = make(cell, num_layers=2, layer_norm=True)
    x = np.random.default_rng(0).standard_normal((T, B, 5))
    p = layer.parameters()
    h = x
    for i in range(2):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        h = h * p[f"layers.{i}.layer_norm.weight"] + p[f"layers.{i}.layer_norm.bias"]
        weights = [p[f"layers.{i}.{n}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h = getattr(penstock, cell.lower())(h, *weights).y
    np.testing.assert_allclose(layer(x).y, h, rtol=1e-11)


@pytest.mark.parametrize("cell", CELLS)
def test_single_steps_continue_a_sequence(cell: str) -> None:
    layer = make(cell, num_layers=2)
    x = np.random.default_rng(0).standard_normal((6, 1, 5))
    whole = layer(x)
    states: list[Any] = []
    for t in range(6):
        y, *states, _ = layer(x[t : t + 1], *states)
        np.testing.assert_allclose(y[0], whole.y[t], rtol=1e-12)
    for state, last in zip(states, whole[1:-1], strict=True):
        np.testing.assert_allclose(state, last, rtol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first_matches_time_first(cell: str) -> None:
    x = np.random.default_rng(0).standard_normal((T, B, 5))
    first, second = make(cell, num_layers=2), make(cell, num_layers=2, batch_first=True)
    swapped = second(np.ascontiguousarray(x.swapaxes(0, 1)), training=True)
    plain = first(x, training=True)
    np.testing.assert_array_equal(plain.y, swapped.y.swapaxes(0, 1))
    np.testing.assert_array_equal(
        plain.backprop(plain.y).dx, swapped.backprop(swapped.y).dx.swapaxes(0, 1)
    )


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (1, 1)])
@pytest.mark.parametrize("cell", CELLS)
def test_empty_and_least_batches(cell: str, steps: int, batch: int) -> None:
    layer = make(cell, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(0)
    x, starts = rng.standard_normal((steps, batch, 5)), start(layer, rng, batch)
    out = layer(x, *starts, training=True)
    assert out.y.shape == (steps, batch, 8)
    grads = out.backprop(None, *(np.ones_like(s) for s in starts))
    assert grads.dx.shape == x.shape
    if steps == 0:
        for last, first in zip(out[1:-1], starts, strict=True):
            np.testing.assert_array_equal(last, first)
        np.testing.assert_array_equal(grads.dh0, np.ones_like(starts[0]))


def test_dropout_masks() -> None:
    layer = make(num_layers=2, dropout=0.5)
    x = np.random.default_rng(0).standard_normal((T, B, 5))
    first = make(num_layers=1)
    names = set(first.state_dict())
    first.load_state_dict({n: a for n, a in layer.state_dict().items() if n in names})
    state = json.loads(json.dumps(layer.rng_state()))
    seen = layer(x, training=True)
    layer.set_rng_state(state)
    np.testing.assert_array_equal(layer(x, training=True).y, seen.y)
    assert (layer(x, training=True).y != seen.y).any()
    np.testing.assert_array_equal(layer(x).y, layer(x, need_grad=True).y)
    # Where the second layer's weight picks one feature, that feature is dropped at all steps.
    p = layer.parameters()
    p["layers.1.weight_ih"][:, :, 1:] = 0
    below = first(x).y
    drops = 0
    for _ in range(20):
        out = layer(x, training=True)
        alone = [
            penstock.gru(
                below * scale,
                p["layers.1.weight_ih"],
                p["layers.1.weight_hh"],
                p["layers.1.bias_ih"],
                p["layers.1.bias_hh"],
            ).y
            for scale in (0.0, 2.0)
        ]
        for b in range(B):
            fits = [np.allclose(out.y[:, b], a[:, b], rtol=1e-10) for a in alone]
            assert sum(fits) == 1
            drops += fits[0]
    assert 15 < drops < 45  # of 60
    one = make(dropout=0.5)  # no layer follows, so nothing is dropped
    np.testing.assert_array_equal(one(x, training=True).y, one(x).y)


def test_weight_dropout_is_of_the_recurrent_weight() -> None:
    layer = make(weight_dropout=0.5)
    x = np.random.default_rng(0).standard_normal((T, B, 5))
    out = layer(x, training=True)
    # The first step starts from a zero state, and does not see the weight; later ones do.
    np.testing.assert_array_equal(out.y[0], layer(x).y[0])
    assert (out.y[1] != layer(x).y[1]).any()
    dropped = out.backprop(np.ones_like(out.y)).dparameters["layers.0.weight_hh"] == 0
    assert 0.25 < dropped.mean() < 0.75
    np.testing.assert_array_equal(layer(x).y, layer(x, need_grad=True).y)


@pytest.mark.parametrize("cell", CELLS)
def test_initialisation(cell: str) -> None:
    layer = getattr(penstock, cell)(30, 100, 2, bidirectional=True, seed=0, dtype="float64")
    p = layer.parameters()
    rows = CELLS[cell] * 100
    shapes = {
        "layers.0.weight_ih": (2, rows, 30),
        "layers.0.weight_hh": (2, rows, 100),
        "layers.1.weight_ih": (2, rows, 200),
        "layers.1.bias_hh": (2, rows),
    }
    for name, shape in shapes.items():
        assert p[name].shape == shape
    for array in p.values():
        assert np.abs(array).max() <= 0.1
        assert array.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)
        assert abs(array.mean()) < 0.02


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_other_types(cell: str, dtype: str) -> None:
    options: dict[str, Any] = {
        "input_size": 16,
        "hidden_size": 8,
        "num_layers": 2,
        "bidirectional": True,
        "layer_norm": True,
        "dropout": 0.25,
        "weight_dropout": 0.25,
    }
    layer = make(cell, **{**options, "dtype": dtype})
    wide = make(cell, **options)
    wide.load_state_dict(layer.state_dict())
    wide.set_rng_state(layer.rng_state())
    kind = layer.parameters()["layers.0.weight_ih"].dtype
    assert kind.name == dtype == layer.dtype
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(s).astype(kind) for s in ((5, 3, 16), (5, 3, 16)))
    tol = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15}[dtype]
    a, b = layer(x, training=True), wide(x.astype(float), training=True)
    ga, gb = a.backprop(dy), b.backprop(dy.astype(float))
    pairs = [*zip(a[:-1], b[:-1], strict=True), *zip(ga[:-1], gb[:-1], strict=True)]
    pairs += [(ga.dparameters[name], gb.dparameters[name]) for name in ga.dparameters]
    for mine, exact in pairs:
        assert mine.dtype == kind
        assert np.abs(mine.astype(float) - exact).max() <= tol * np.abs(exact).max()


@pytest.mark.parametrize("cell", CELLS)
def test_state_config_seeds_and_files(cell: str, tmp_path: Any) -> None:
    layer = make(cell, num_layers=2, layer_norm=True, bidirectional=True, weight_dropout=0.25)
    layer.save(tmp_path / "m.safetensors")
    config = json.loads(json.dumps(layer.config()))
    kind = type(layer)
    other = kind(**config, seed=9)
    x = np.random.default_rng(0).standard_normal((T, B, 5))
    assert (other(x).y != layer(x).y).any()
    live = other.parameters()
    other.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(other(x).y, layer(x).y)
    assert all(array is live[name] for name, array in other.parameters().items())
    assert other.config() == config and other.to("cpu") is other
    assert repr(layer) == f"{cell}(5, 4, num_layers=2, bidirectional=True, dtype='float64')"
    first, same, third = (kind(3, 4, seed=s).state_dict() for s in (1, 1, 2))
    np.testing.assert_array_equal(first["layers.0.weight_hh"], same["layers.0.weight_hh"])
    assert (first["layers.0.weight_hh"] != third["layers.0.weight_hh"]).any()


@pytest.mark.parametrize("cell", CELLS)
def test_trains(cell: str) -> None:
    """Remember the first of eight inputs: gradients and optimiser working together."""
    rng = np.random.default_rng(0)
    layer = getattr(penstock, cell)(4, 16, seed=0)
    head = penstock.nn.Linear(16, 4, seed=1)
    params = {**layer.parameters(), **{f"head.{n}": a for n, a in head.parameters().items()}}
    opt = penstock.optim.Adam(params, lr=0.02)
    losses = []
    for _ in range(200):
        targets = rng.integers(0, 4, 32)
        x = 0.1 * rng.standard_normal((8, 32, 4), dtype=np.float32)
        x[0, np.arange(32), targets] += 1
        out = layer(x, training=True)
        logits = head(out.h_last[-1], training=True)
        loss, backprop = penstock.nn.softmax_cross_entropy(logits.y, targets)
        losses.append(float(loss))
        dhead = logits.backprop(backprop())
        grads = out.backprop(None, dhead.dx[None])
        opt.step({**grads.dparameters, **{f"head.{n}": g for n, g in dhead.dparameters.items()}})
    assert np.mean(losses[:5]) > 1.2
    assert np.mean(losses[-10:]) < 0.2


X = np.zeros((2, 3, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: penstock.GRU(0, 4), ValueError, "input_size: expected a positive int, got 0"),
        (lambda: penstock.LSTM(4, "a"), TypeError, "hidden_size: expected a positive int, got str"),
        (lambda: penstock.RNN(4, 4, 0), ValueError, "num_layers: expected a positive int"),
        (lambda: penstock.GRU(4, 4, dropout=1.0), ValueError, "dropout: expected a float in"),
        (lambda: penstock.GRU(4, 4, weight_dropout=-1), ValueError, "weight_dropout: expected"),
        (
            lambda: penstock.GRU(4, 4, activation="elu"),
            ValueError,
            "activation: expected 'tanh', 'relu' or 'identity', got 'elu'",
        ),
        (lambda: penstock.RNN(4, 4, activation=None), ValueError, "activation: expected"),
        (lambda: penstock.GRU(4, 4, reset="x"), ValueError, "reset: expected 'after' or 'before'"),
        (lambda: penstock.LSTM(4, 4, dtype="int32"), ValueError, "dtype: expected one of"),
        (lambda: make()(X[..., :4]), ValueError, r"x: expected shape \(..., 5\)"),
        (lambda: make()(X[..., :4], training=True), ValueError, r"x: expected shape \(..., 5\)"),
        (lambda: make()(X[0]), ValueError, "x: expected three axes"),
        (lambda: make()(X[0], training=True), ValueError, "x: expected three axes"),
        (lambda: make()(X.astype(np.float32)), TypeError, "x: expected dtype float64"),
        (lambda: make()(X.tolist()), TypeError, "x: expected a numpy.ndarray"),
        (lambda: make()(X, np.zeros((3, 4))), ValueError, r"h0: expected shape \(1, 3, 4\)"),
        (
            lambda: make("LSTM")(X, None, np.zeros((3, 4)), training=True),
            ValueError,
            r"c0: expected shape \(1, 3, 4\)",
        ),
        (
            lambda: make()(X, np.zeros((1, 3, 4), np.float32), training=True),
            TypeError,
            "h0: expected dtype float64",
        ),
        (
            lambda: make()(X, lengths=np.array([1, 2, 3])),
            ValueError,
            "lengths: expected values from 0 to T = 2",
        ),
        (
            lambda: make(layer_norm=True)(X, lengths=np.array([1, 2])),
            ValueError,
            "lengths: expected",
        ),
        (lambda: make()(X).backprop(), RuntimeError, "need_grad"),
        (lambda: make("LSTM")(X).backprop(), RuntimeError, "need_grad"),
        (
            lambda: make()(X, training=True).backprop(X),
            ValueError,
            r"dy: expected shape \(2, 3, 4\), got \(2, 3, 5\)",
        ),
        (
            lambda: make()(X, training=True).backprop(None, np.zeros((3, 4))),
            ValueError,
            r"dh_last: expected shape \(1, 3, 4\), got \(3, 4\)",
        ),
        (
            lambda: make("LSTM")(X, training=True).backprop(None, None, np.zeros((3, 4))),
            ValueError,
            r"dc_last: expected shape \(1, 3, 4\), got \(3, 4\)",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
