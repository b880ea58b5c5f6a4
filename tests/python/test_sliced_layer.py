"""penstock.SlicedRNN: gradients of every option, equivalence with penstock.sliced, state."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import penstock
import pytest

Array = np.ndarray[Any, Any]
T, B = 7, 3
CELLS = ("gru", "lstm", "rnn", "sru")


def make(**options: Any) -> penstock.SlicedRNN:
    """A float64 layer of input 4 whose every parameter is nonzero."""
    options = {
        "input_size": 4,
        "hidden_size": 3,
        "slices": (2, 2),
        "dtype": "float64",
        "seed": 3,
        **options,
    }
    layer = penstock.SlicedRNN(**options)
    rng = np.random.default_rng(11)
    for array in layer.parameters().values():
        array[...] += 0.3 * rng.standard_normal(array.shape)
    return layer


OPTIONS: list[dict[str, Any]] = [
    *({"cell": cell} for cell in CELLS),
    *({"cell": cell, "bidirectional": True, "pad": "right"} for cell in CELLS),
    *({"cell": cell, "slices": (3,), "mask": "none"} for cell in CELLS),
    *({"cell": cell, "bias": False, "weight_dropout": 0.3} for cell in CELLS[:3]),
    {"reset": "before", "activation": "identity"},
    {"slices": (), "bidirectional": True, "recompute": True},
    {"slices": [3, 1, 4], "batch_first": True},
    {"cell": "rnn", "activation": "relu"},
    {"cell": "sru", "input_size": 3, "highway_bias": -1.0, "activation": "tanh"},
    {"cell": "sru", "skip": False, "weight_c": False, "batch_first": True, "bidirectional": True},
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_gradients(options: dict[str, Any], padded: bool) -> None:
    layer = make(**options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(
        (B, T, layer.input_size) if layer.batch_first else (T, B, layer.input_size)
    )
    lengths = np.array([7, 2, 0]) if padded else None
    state = layer.rng_state()
    out = layer(x, lengths=lengths, training=True)
    assert out._fields == ("y", "levels", "backprop")
    dy = rng.standard_normal(out.y.shape)
    dlevels: list[Any] = [rng.standard_normal(level.shape) for level in out.levels]

    def value() -> float:
        layer.set_rng_state(state)  # the same masks in every evaluation
        o = layer(x, lengths=lengths, training=True, need_grad=False)
        whole = (o.y * dy).sum()
        return float(whole + sum((a * d).sum() for a, d in zip(o.levels, dlevels, strict=True)))

    grads = out.backprop(dy, dlevels)
    assert list(grads.dparameters) == list(layer.parameters())
    close(grads.dx, numeric_gradient(value, x))
    for name, parameter in layer.parameters().items():
        assert grads.dparameters[name].shape == parameter.shape
        close(grads.dparameters[name], numeric_gradient(value, parameter))
    np.testing.assert_array_equal(out.backprop(dy, dlevels).dx, grads.dx)
    none: list[Any] = [None] * len(dlevels)
    parts = out.backprop(dy).dx + sum(
        out.backprop(None, [*none[:i], d, *none[i + 1 :]]).dx for i, d in enumerate(dlevels)
    )
    np.testing.assert_allclose(parts, grads.dx, rtol=1e-10, atol=1e-12)
    if lengths is None or layer.mask == "none":
        return
    steps = np.arange(T)[:, None]
    places = steps < T - lengths if layer.pad == "left" else steps >= lengths
    places = places.T if layer.batch_first else places
    assert not out.y[2].any() and not grads.dx[places].any()
    layer.set_rng_state(state)
    again = layer(np.where(places[..., None], np.nan, x), lengths=lengths, training=True)
    np.testing.assert_array_equal(again.y, out.y)
    found = again.backprop(dy, dlevels)
    np.testing.assert_array_equal(found.dx, grads.dx)
    for name, gradient in grads.dparameters.items():
        np.testing.assert_array_equal(found.dparameters[name], gradient)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_is_a_call_of_sliced(cell: Any, bidirectional: bool) -> None:
    layer = make(cell=cell, bidirectional=bidirectional, pad="right")
    x = np.random.default_rng(0).standard_normal((T, B, 4))
    lengths = np.array([7, 5, 1])
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    options: dict[str, Any] = {}
    if cell == "sru":
        names = ("weight", "weight_c", "bias")
        options = {"scale_x": math.sqrt(3)}
    p = layer.parameters()
    expected = penstock.sliced(
        cell,
        x,
        [tuple(p[f"levels.{i}.{name}"] for name in names) for i in range(3)],
        slices=(2, 2),
        lengths=lengths,
        pad="right",
        direction="bidirectional" if bidirectional else "forward",
        **options,
    )
    for kw in ({}, {"need_grad": True}, {"training": True}):
        found = layer(x, lengths=lengths, **kw)
        np.testing.assert_array_equal(found.y, expected.y)
        for a, b in zip(found.levels, expected.levels, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell", CELLS[:3])
def test_levels_are_layers_over_parts(cell: Any) -> None:
    """Each level is the plain layer with the level's weights, over the parts as a batch."""
    layer = make(cell=cell, slices=(2, 3))
    x = np.random.default_rng(0).standard_normal((12, B, 4))
    out = layer(x)
    h, shapes = x, [(6, 2), (2, 3), (1, 2)]
    for i, (parts, steps) in enumerate(shapes):
        plain = getattr(penstock, cell.upper())(h.shape[-1], 3, dtype="float64", seed=0)
        names = plain.parameters()
        plain.load_state_dict(
            {n: layer.state_dict()[n.replace("layers.0", f"levels.{i}")] for n in names}
        )
        rows = h.reshape(parts, steps, B, -1).swapaxes(0, 1).reshape(steps, parts * B, -1)
        h = plain(rows).h_last[0].reshape(parts, B, -1)
        np.testing.assert_allclose(out.levels[i], h, rtol=1e-12)
    np.testing.assert_array_equal(out.y, out.levels[-1][0])


def test_without_slices_it_is_the_plain_layer() -> None:
    layer = make(slices=(), bidirectional=True)
    plain = penstock.GRU(4, 3, bidirectional=True, dtype="float64", seed=0)
    plain.load_state_dict({n.replace("levels", "layers"): a for n, a in layer.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((T, B, 4))
    np.testing.assert_allclose(layer(x).y, plain(x).h_last[0], rtol=1e-13)


def test_batch_first_matches_time_first() -> None:
    x = np.random.default_rng(0).standard_normal((T, B, 4))
    first, second = make(), make(batch_first=True)
    a, b = first(x, training=True), second(np.ascontiguousarray(x.swapaxes(0, 1)), training=True)
    np.testing.assert_array_equal(a.y, b.y)
    for mine, other in zip(a.levels, b.levels, strict=True):
        np.testing.assert_array_equal(mine.swapaxes(0, 1), other)
    da, db = a.backprop(a.y, a.levels), b.backprop(b.y, b.levels)
    np.testing.assert_array_equal(da.dx.swapaxes(0, 1), db.dx)


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (5, 0), (1, 1)])
@pytest.mark.parametrize("cell", CELLS)
def test_empty_and_least_batches(cell: Any, steps: int, batch: int) -> None:
    layer = make(cell=cell)
    out = layer(np.ones((steps, batch, 4)), training=True)
    assert out.y.shape == (batch, 3)
    assert out.y.any() == (steps > 0 and batch > 0)
    assert [level.shape for level in out.levels] == [(4, batch, 3), (2, batch, 3), (1, batch, 3)]
    assert out.backprop(out.y).dx.shape == (steps, batch, 4)


def test_parameters_and_initial_values() -> None:
    p = penstock.SlicedRNN(30, 100, (4, 2), "lstm", bidirectional=True, seed=0).parameters()
    assert p["levels.0.weight_ih"].shape == (2, 400, 30)
    assert p["levels.2.weight_ih"].shape == (2, 400, 200)
    assert p["levels.1.bias_hh"].shape == (2, 400)
    for array in p.values():
        assert 0.098 < np.abs(array).max() <= 0.1
    sru = penstock.SlicedRNN(30, 100, (4, 2), "sru", highway_bias=-1.0, seed=0)
    p = sru.parameters()
    assert p["levels.0.weight"].shape == (1, 400, 30)  # four blocks: the widths differ
    assert p["levels.1.weight"].shape == (1, 300, 100)
    alpha = math.sqrt(1 + 2 * math.exp(-1.0))
    assert p["levels.0.weight"][0, 300:].std() == pytest.approx(alpha / math.sqrt(30), rel=0.05)
    assert (p["levels.1.bias"][:, 1] == -1).all()
    assert sru.state_dict()["scale_x"] == pytest.approx(alpha)
    assert "scale_x" not in make().state_dict()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_other_types(cell: Any, dtype: str) -> None:
    options: dict[str, Any] = {"cell": cell, "hidden_size": 8, "bidirectional": True}
    layer, wide = make(dtype=dtype, **options), make(**options)
    wide.load_state_dict(layer.state_dict())
    kind = layer.parameters()[next(iter(layer.parameters()))].dtype
    assert kind.name == dtype == layer.dtype
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((T, B, 4)).astype(kind), rng.standard_normal((B, 16)).astype(kind)
    tol = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15}[dtype]
    a, b = layer(x, training=True), wide(x.astype(float), training=True)
    ga, gb = a.backprop(dy), b.backprop(dy.astype(float))
    pairs = [(a.y, b.y), (ga.dx, gb.dx)]
    pairs += [(ga.dparameters[name], gb.dparameters[name]) for name in ga.dparameters]
    for mine, exact in pairs:
        assert mine.dtype == kind
        assert np.abs(mine.astype(float) - exact).max() <= tol * np.abs(exact).max()


@pytest.mark.parametrize("cell", CELLS)
def test_state_config_and_files(cell: Any, tmp_path: Any) -> None:
    layer = make(cell=cell, pad="right")
    layer.save(tmp_path / "m.safetensors")
    config = json.loads(json.dumps(layer.config()))
    other = penstock.SlicedRNN(**config, seed=9)
    x = np.random.default_rng(0).standard_normal((T, B, 4))
    assert (other(x).y != layer(x).y).any()
    live = other.parameters()
    other.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(other(x).y, layer(x).y)
    assert all(array is live[name] for name, array in other.parameters().items())
    assert other.config() == layer.config()
    expected = f"SlicedRNN(4, 3, slices=(2, 2), cell='{cell}', pad='right', dtype='float64')"
    assert repr(layer) == expected


@pytest.mark.parametrize("cell", CELLS)
def test_trains(cell: Any) -> None:
    """Find which symbol stands somewhere among blanks: gradients and optimiser together."""
    rng = np.random.default_rng(0)
    layer = penstock.SlicedRNN(4, 16, (4, 2), cell, seed=0)
    head = penstock.nn.Linear(16, 4, seed=1)
    params = {**layer.parameters(), **{f"head.{n}": a for n, a in head.parameters().items()}}
    opt = penstock.optim.Adam(params, lr=0.02)
    losses = []
    for _ in range(200):
        targets = rng.integers(0, 4, 32)
        x = 0.1 * rng.standard_normal((16, 32, 4), dtype=np.float32)
        x[rng.integers(0, 16, 32), np.arange(32), targets] += 2
        out = layer(x, training=True)
        logits = head(out.y, training=True)
        loss, backprop = penstock.nn.softmax_cross_entropy(logits.y, targets)
        losses.append(float(loss))
        dhead = logits.backprop(backprop())
        grads = out.backprop(dhead.dx)
        opt.step({**grads.dparameters, **{f"head.{n}": g for n, g in dhead.dparameters.items()}})
    assert np.mean(losses[:5]) > 1.2
    assert np.mean(losses[-10:]) < 0.3


X = np.zeros((2, 3, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(input_size=0), ValueError, "input_size: expected a positive int, got 0"),
        (lambda: make(slices=8), TypeError, "slices: expected a sequence of positive ints, got 8"),
        (lambda: make(slices="8,8"), TypeError, "slices: expected a sequence of positive ints"),
        (lambda: make(slices=(8, 0)), ValueError, r"slices\[1\]: expected a positive int, got 0"),
        (lambda: make(slices=(2.0,)), TypeError, r"slices\[0\]: expected a positive int"),
        (lambda: make(slices=(1 << 16, 1 << 16)), ValueError, "slices: expected a product below"),
        (lambda: make(cell="qrnn"), ValueError, "cell: expected 'gru', 'lstm', 'rnn' or 'sru'"),
        (lambda: make(pad="both"), ValueError, "pad: expected 'left' or 'right', got 'both'"),
        (lambda: make(mask="zero"), ValueError, "mask: expected 'skip' or 'none'"),
        (lambda: make(activation="elu"), ValueError, "activation: expected 'tanh', 'relu'"),
        (lambda: make(cell="lstm", activation="tanh"), ValueError, "activation: expected None"),
        (
            lambda: make(cell="lstm", reset="before"),
            ValueError,
            "reset: expected 'after', since the cell 'lstm' has no such option, got 'before'",
        ),
        (lambda: make(cell="sru", bias=False), ValueError, "bias: expected True, since the cell"),
        (lambda: make(cell="sru", recompute=True), ValueError, "recompute: expected False"),
        (lambda: make(cell="sru", weight_dropout=0.1), ValueError, "weight_dropout: expected 0.0"),
        (lambda: make(highway_bias=1.0), ValueError, "highway_bias: expected 0.0"),
        (lambda: make(dtype="int8"), ValueError, "dtype: expected one of"),
        (lambda: make()(X[0]), ValueError, "x: expected three axes"),
        (lambda: make()(X[..., :3]), ValueError, r"x: expected shape \(..., 4\)"),
        (lambda: make()(X.astype(np.float32)), TypeError, "x: expected dtype float64"),
        (lambda: make()(X.tolist()), TypeError, "x: expected a numpy.ndarray"),
        (lambda: make()(X, lengths=np.array([1, 2, 3])), ValueError, "lengths: expected values"),
        (lambda: make()(X).backprop(), RuntimeError, "need_grad"),
        (
            lambda: make()(X, training=True).backprop(X),
            ValueError,
            r"dy: expected shape \(3, 3\), got \(2, 3, 4\)",
        ),
        (
            lambda: make()(X, training=True).backprop(None, [None]),
            ValueError,
            "dlevels: expected 3 of them, one a level, got 1",
        ),
        (
            lambda: make()(X, training=True).backprop(None, [None, X, None]),
            ValueError,
            r"dlevels\[1\]: expected shape \(2, 3, 3\), got \(2, 3, 4\)",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
