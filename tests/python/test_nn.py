"""penstock.nn: gradients by finite differences, equations, state, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penstock import nn
from penstock.nn.embedding import sum_by_row, sum_runs_pairwise

ml_dtypes = pytest.importorskip("ml_dtypes")


def numeric_gradient(
    f: Callable[[], float], array: np.ndarray[Any, Any], eps: float = 1e-6
) -> np.ndarray[Any, Any]:
    """Central differences of the scalar ``f()`` with respect to ``array``, changed in place."""
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


def check_layer(layer: nn.Layer, x: np.ndarray[Any, Any], *, has_dx: bool = True) -> None:
    """Compare a layer's gradients of sum(y * w) with central differences."""
    rng = np.random.default_rng(7)
    out = layer(x, training=False, need_grad=True)
    w = rng.standard_normal(out.y.shape)
    grads = out.backprop(w)
    assert list(grads.dparameters) == list(layer.parameters())

    def value() -> float:
        return float((layer(x).y * w).sum())

    if has_dx:
        np.testing.assert_allclose(grads.dx, numeric_gradient(value, x), rtol=1e-6, atol=1e-7)
    for name, parameter in layer.parameters().items():
        np.testing.assert_allclose(
            grads.dparameters[name], numeric_gradient(value, parameter), rtol=1e-6, atol=1e-7
        )
    again = out.backprop(w)
    for name in grads.dparameters:
        np.testing.assert_array_equal(again.dparameters[name], grads.dparameters[name])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
def test_linear_gradients(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(5, 3, bias, dtype="float64", seed=1)
    x = np.random.default_rng(0).standard_normal(shape)
    expected = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    np.testing.assert_allclose(layer(x).y, expected, rtol=1e-14)
    check_layer(layer, x)


def test_linear_takes_any_strides() -> None:
    layer = nn.Linear(4, 3, dtype="float64", seed=1)
    x = np.random.default_rng(0).standard_normal((4, 6, 2)).transpose(2, 1, 0)[:, ::-1]
    np.testing.assert_allclose(layer(x).y, layer(x.copy()).y, rtol=1e-14)


def test_layer_norm_gradients() -> None:
    rng = np.random.default_rng(3)
    layer = nn.LayerNorm(6, dtype="float64")
    layer.weight[:] = rng.standard_normal(6)
    layer.bias[:] = rng.standard_normal(6)
    x = rng.standard_normal((2, 4, 6)) * 3 + 1
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    expected = layer.weight * (x - mean) / np.sqrt(var + layer.eps) + layer.bias
    np.testing.assert_allclose(layer(x).y, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(layer(x, training=True).y, expected, rtol=1e-12, atol=1e-13)
    check_layer(layer, x)


@pytest.mark.parametrize("features", [3, 70])  # either side of the two summation routes
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding_gradients(features: int, padding_idx: int | None) -> None:
    rng = np.random.default_rng(3)
    layer = nn.Embedding(9, features, padding_idx=padding_idx, dtype="float64", seed=1)
    x = rng.integers(0, 6, (4, 5))
    out = layer(x, need_grad=True)
    np.testing.assert_array_equal(out.y, layer.weight[x])
    dy = rng.standard_normal(out.y.shape)
    grads = out.backprop(dy)
    expected = np.zeros_like(layer.weight)
    np.add.at(expected, x, dy)
    if padding_idx is not None:
        assert not layer.weight[padding_idx].any()
        expected[padding_idx] = 0
    by_row = nn.Embedding(
        9,
        features,
        padding_idx=padding_idx,
        row_gradient=True,
        weight=layer.weight,
        dtype="float64",
    )
    part = by_row(x, need_grad=True).backprop(dy).dparameters["weight"]
    np.testing.assert_array_equal(part.rows, np.unique(x))
    np.testing.assert_array_equal(part.dense(), grads.dparameters["weight"])
    assert grads.dx is None
    assert list(grads.dparameters) == ["weight"]
    np.testing.assert_allclose(grads.dparameters["weight"], expected, rtol=1e-13, atol=1e-14)
    if padding_idx is None and features == 3:
        check_layer(layer, x, has_dx=False)


@pytest.mark.parametrize("features", [8, 100])
def test_row_sums_match_and_are_stable(features: int) -> None:
    rng = np.random.default_rng(5)
    rows = rng.zipf(1.4, 3000) % 50
    values = rng.standard_normal((3000, features)).astype(np.float32)
    exact = np.zeros((60, features))
    np.add.at(exact, rows, values.astype(np.float64))
    first = sum_by_row(rows, values, 60).dense()
    np.testing.assert_allclose(first, exact, rtol=1e-4, atol=1e-3)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, sum_by_row(rows, values, 60).dense())
    # the route that devices take
    order = np.argsort(rows, kind="stable")
    distinct, sums = sum_runs_pairwise(np, values[order], rows[order])
    np.testing.assert_array_equal(distinct, np.unique(rows))
    np.testing.assert_allclose(sums, exact[distinct], rtol=1e-4, atol=1e-4)


def test_embedding_frozen_is_saved_but_not_trained() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    layer = nn.Embedding(4, 3, frozen=True, weight=table)
    assert layer.parameters() == {}
    assert list(layer.state_dict()) == ["weight"]
    out = layer(np.array([[1, 3]]), training=True)
    assert out.backprop(np.ones((1, 2, 3), np.float32)).dparameters == {}
    table[:] = 0
    assert layer.weight[1, 1] == 4  # a copy was taken


def test_empty_batch() -> None:
    layer = nn.Embedding(4, 3, seed=0)
    out = layer(np.zeros((0, 2), dtype=np.int64), training=True)
    assert out.y.shape == (0, 2, 3)
    assert not out.backprop(np.zeros((0, 2, 3), np.float32)).dparameters["weight"].any()


def test_dropout() -> None:
    layer = nn.Dropout(0.3, seed=3)
    x = np.full((300, 200), 2.0)
    assert layer(x).y is x
    out = layer(x, training=True)
    values = np.unique(out.y)
    np.testing.assert_allclose(values, [0, 2 / 0.7], rtol=1e-12)
    assert abs((out.y == 0).mean() - 0.3) < 0.01
    np.testing.assert_array_equal(out.backprop(x).dx, out.y)  # linear with the same mask
    np.testing.assert_array_equal(nn.Dropout(0.3, seed=3)(x, training=True).y, out.y)
    assert (layer(x, training=True).y != out.y).any()


def test_dropout_shared_axes() -> None:
    y = nn.Dropout(0.5, shared_axes=(0,), seed=3)(np.ones((7, 3, 40)), training=True).y
    assert (y == y[:1]).all()
    assert 0 < (y == 0).mean() < 1


def test_rng_state_resumes_masks() -> None:
    layer = nn.Sequential(nn.Dropout(0.5, seed=1), nn.Dropout(0.5, seed=2))
    x = np.ones((4, 50), np.float32)
    layer(x, training=True)
    state = json.loads(json.dumps(layer.rng_state()))
    expected = [layer(x, training=True).y for _ in range(3)]
    other = nn.Sequential(nn.Dropout(0.5, seed=8), nn.Dropout(0.5, seed=9))
    other.set_rng_state(state)
    for y in expected:
        np.testing.assert_array_equal(other(x, training=True).y, y)
    with pytest.raises(ValueError, match="state: expected the names"):
        layer.set_rng_state({})
    mersenne = {n: {"bit_generator": "MT19937"} for n in state}
    with pytest.raises(ValueError, match="expected the state of a PCG64"):
        layer.set_rng_state(mersenne)


class Pair(nn.Layer):
    """A composite with a named child, as users write them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, 4, dtype="float64", seed=1),
            nn.LayerNorm(4, dtype="float64"),
            nn.Linear(4, 2, dtype="float64", seed=2),
        )


def test_sequential_gradients_and_names() -> None:
    pair = Pair()
    names = ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    assert list(pair.parameters()) == [*names, "body.2.weight", "body.2.bias"]
    assert pair.num_parameters() == 5 * 4 + 4 + 8 + 8 + 2
    check_layer(pair.body, np.random.default_rng(0).standard_normal((3, 5)))
    pair.body = nn.Sequential()
    assert pair.parameters() == {}


def test_state_dict_copies_and_loads_in_place(tmp_path: Any) -> None:
    first, second = Pair(), Pair()
    for array in first.parameters().values():
        array[...] += 1
    live = second.parameters()
    state = first.state_dict()
    second.load_state_dict(state)
    for name, array in second.parameters().items():
        assert array is live[name]
        np.testing.assert_array_equal(array, state[name])
    first.parameters()["body.0.bias"][:] = 9
    assert not (state["body.0.bias"] == 9).any()
    first.save(tmp_path / "a.safetensors", metadata={"note": "x"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    loaded = Pair().load(tmp_path / "a.safetensors")
    for name, array in first.parameters().items():
        np.testing.assert_array_equal(loaded.parameters()[name], array)


SAVE = """
import sys
from penstock import nn
from penstock.training.checkpoints import save_checkpoint
from pathlib import Path
layer = nn.Linear(3, 2, seed=0)
layer.save(sys.argv[1] + "/model", metadata={"note": "x", "author": "y", "more": "z"})
save_checkpoint(Path(sys.argv[1] + "/checkpoint"), {"b": layer.parameters(), "a": [1, None]})
"""


def test_files_have_the_same_bytes_in_every_process(tmp_path: Any) -> None:
    package = str(Path(nn.__file__).parents[2])
    for seed in "1234":
        folder = tmp_path / seed
        folder.mkdir()
        path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
        variables = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", SAVE, str(folder)], env=variables, check=True)
    for name in ("model", "checkpoint"):
        assert len({(tmp_path / seed / name).read_bytes() for seed in "1234"}) == 1


def test_load_names_the_file(tmp_path: Any) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        Pair().load(bad)
    with pytest.raises(OSError, match=r"none\.safetensors"):
        Pair().load(tmp_path / "none.safetensors")


def test_load_state_dict_errors_write_nothing() -> None:
    pair = Pair()
    before = pair.state_dict()
    state = pair.state_dict()
    for array in state.values():
        array[...] += 1
    missing = {k: v for k, v in state.items() if k != "body.0.bias"}
    with pytest.raises(ValueError, match=r"missing: \['body.0.bias'\], unexpected: none"):
        pair.load_state_dict(missing)
    with pytest.raises(ValueError, match=r"unexpected: \['other'\]"):
        pair.load_state_dict({**state, "other": np.zeros(1)})
    with pytest.raises(ValueError, match=r"body.2.bias'\]: expected shape \(2,\), got \(3,\)"):
        pair.load_state_dict({**state, "body.2.bias": np.zeros(3)})
    with pytest.raises(TypeError, match="expected a floating dtype, got int64"):
        pair.load_state_dict({**state, "body.2.bias": np.zeros(2, np.int64)})
    with pytest.raises(TypeError, match="state: expected a mapping"):
        pair.load_state_dict([1])  # type: ignore[arg-type]
    for name, array in pair.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    pair.load_state_dict(missing, strict=False)
    np.testing.assert_array_equal(pair.state_dict()["body.0.bias"], before["body.0.bias"])
    np.testing.assert_array_equal(pair.state_dict()["body.2.bias"], state["body.2.bias"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype: str, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    kind = nn.module.resolve_dtype(dtype)
    half = nn.Sequential(nn.Linear(16, 8, dtype=dtype, seed=1), nn.LayerNorm(8, dtype=dtype))
    wide = nn.Sequential(nn.Linear(16, 8, dtype="float64"), nn.LayerNorm(8, dtype="float64"))
    wide.load_state_dict(half.state_dict())
    x = rng.standard_normal((5, 16)).astype(kind)
    dy = rng.standard_normal((5, 8)).astype(kind)
    out = half(x, training=True)
    ref = wide(x.astype(np.float64), training=True)
    grads, expected = out.backprop(dy), ref.backprop(dy.astype(np.float64))
    assert out.y.dtype == grads.dx.dtype == kind
    tol = 1e-2 if dtype == "float16" else 6e-2
    np.testing.assert_allclose(out.y.astype(np.float64), ref.y, atol=tol, rtol=tol)
    for name, gradient in grads.dparameters.items():
        assert gradient.dtype == kind
        error = np.abs(gradient.astype(np.float64) - expected.dparameters[name]).max()
        assert error <= tol * np.abs(expected.dparameters[name]).max()
    half.save(tmp_path / "h.safetensors")
    again = nn.Sequential(nn.Linear(16, 8, dtype=dtype), nn.LayerNorm(8, dtype=dtype))
    again.load(tmp_path / "h.safetensors")
    np.testing.assert_array_equal(again[0].weight, half[0].weight)  # type: ignore[attr-defined]
    table = nn.Embedding(7, 4, dtype=dtype, seed=0)
    looked_up = table(np.array([1, 1, 6]), training=True)
    assert looked_up.backprop(np.ones((3, 4), kind)).dparameters["weight"][1, 0] == 2


def test_backprop_needs_gradients() -> None:
    with pytest.raises(RuntimeError, match="need_grad"):
        nn.Linear(2, 2)(np.zeros((1, 2), np.float32)).backprop(np.zeros((1, 2), np.float32))


# -- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [None, -1, 2])
def test_softmax_cross_entropy(
    reduction: Any, smoothing: float, weighted: bool, ignore_index: int | None
) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 4, 5)) * 3
    targets = rng.integers(0, 5, (3, 4))
    if ignore_index is not None:
        targets[0, :2] = ignore_index
    weights = rng.uniform(0.5, 2, 5) if weighted else None

    def loss() -> Any:
        return nn.softmax_cross_entropy(
            logits,
            targets,
            reduction=reduction,
            label_smoothing=smoothing,
            class_weights=weights,
            ignore_index=ignore_index,
        )

    w = np.ones(5) if weights is None else weights
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, total = np.zeros((3, 4)), 0.0
    for i in np.ndindex(3, 4):
        if targets[i] != ignore_index:
            q = smoothing / 5 + (1 - smoothing) * (np.arange(5) == targets[i])
            rows[i] = -(w * q * logp[i]).sum()
            total += w[targets[i]]
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / total}[reduction]
    out = loss()
    np.testing.assert_allclose(out.loss, expected, rtol=1e-12)
    dloss = rng.standard_normal((3, 4)) if reduction == "none" else 1.7
    numeric = numeric_gradient(lambda: float((loss().loss * dloss).sum()), logits)
    np.testing.assert_allclose(out.backprop(dloss), numeric, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        out.backprop(), out.backprop(np.ones((3, 4)) if reduction == "none" else 1.0), rtol=1e-13
    )


def test_softmax_cross_entropy_is_stable_and_keeps_dtype() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    out = nn.softmax_cross_entropy(logits, np.array([0, 0]), reduction="none")
    np.testing.assert_allclose(out.loss, [0, 2e4])
    assert out.loss.dtype == out.backprop().dtype == np.float32
    assert np.isfinite(out.backprop()).all()
    empty = nn.softmax_cross_entropy(np.zeros((2, 3)), np.array([-1, -1]), ignore_index=-1)
    assert float(empty.loss) == 0 and not empty.backprop().any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_rows_may_hold_anything(reduction: Any, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((5, 3)), np.array([0, -1, 2, -1, -1])
    options: Any = {
        "reduction": reduction,
        "label_smoothing": 0.1,
        "class_weights": rng.uniform(0.5, 2, 3) if weighted else None,
        "ignore_index": -1,
    }
    clean = nn.softmax_cross_entropy(logits, targets, **options)
    dirty = logits.copy()
    dirty[1], dirty[3], dirty[4, 0] = np.nan, np.inf, -np.inf
    with np.errstate(all="raise"):
        out = nn.softmax_cross_entropy(dirty, targets, **options)
        dlogits = out.backprop()
    np.testing.assert_array_equal(out.loss, clean.loss)
    np.testing.assert_array_equal(dlogits, clean.backprop())
    assert not dlogits[targets == -1].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy(reduction: Any) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((3, 4)) * 4, rng.uniform(0, 1, (3, 4))

    def loss() -> Any:
        return nn.binary_cross_entropy_with_logits(logits, targets, reduction=reduction)

    p = 1 / (1 + np.exp(-logits))
    rows = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]
    np.testing.assert_allclose(loss().loss, expected, rtol=1e-11)
    dloss = rng.standard_normal((3, 4)) if reduction == "none" else -0.5
    numeric = numeric_gradient(lambda: float((loss().loss * dloss).sum()), logits)
    np.testing.assert_allclose(loss().backprop(dloss), numeric, rtol=1e-5, atol=1e-8)
    extreme = nn.binary_cross_entropy_with_logits(
        np.array([1e4, -1e4], np.float32), np.array([False, True]), reduction="none"
    )
    np.testing.assert_allclose(extreme.loss, [1e4, 1e4])
    np.testing.assert_allclose(extreme.backprop(), [1, -1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mean_squared_error(reduction: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))

    def loss() -> Any:
        return nn.mean_squared_error(a, b, reduction=reduction)

    rows = (a - b) ** 2
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]
    np.testing.assert_allclose(loss().loss, expected, rtol=1e-13)
    dloss = rng.standard_normal((3, 4)) if reduction == "none" else 2.5
    numeric = numeric_gradient(lambda: float((loss().loss * dloss).sum()), a)
    np.testing.assert_allclose(loss().backprop(dloss), numeric, rtol=1e-6, atol=1e-8)


def test_losses_match_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((6, 4)), np.array([0, 1, 2, 3, 1, -5])
    weights = rng.uniform(0.5, 2, 4)
    t = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(
        t,
        torch.tensor(targets),
        weight=torch.tensor(weights),
        ignore_index=-5,
        label_smoothing=0.1,
    )
    theirs.backward()
    ours = nn.softmax_cross_entropy(
        logits, targets, class_weights=weights, ignore_index=-5, label_smoothing=0.1
    )
    np.testing.assert_allclose(ours.loss, theirs.item(), rtol=1e-13)
    np.testing.assert_allclose(ours.backprop(), t.grad.numpy(), rtol=1e-12, atol=1e-15)


# -- errors ------------------------------------------------------------------------------------

F = np.zeros((2, 3), np.float32)
I = np.zeros(2, np.int64)  # noqa: E741


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Linear(3, 2)(F[:, :2]), ValueError, r"x: expected shape \(..., 3\)"),
        (lambda: nn.Linear(3, 2)(F.astype(float)), TypeError, "x: expected dtype float32"),
        (lambda: nn.Linear(3, 2)([[1, 2, 3]]), TypeError, "x: expected a numpy.ndarray"),
        (lambda: nn.Linear(0, 2), ValueError, "in_features: expected a positive int, got 0"),
        (lambda: nn.Linear(3, 2.5), TypeError, "out_features: expected a positive int"),
        (lambda: nn.Linear(3, 2, dtype="int8"), ValueError, "dtype: expected one of float32"),
        (lambda: nn.Linear(3, 2, seed="a"), TypeError, "seed: expected an int"),
        (lambda: nn.Linear(3, 2, seed=-1), ValueError, "seed: expected a non-negative"),
        (lambda: nn.Linear(3, 2, device="gpu"), ValueError, "device: expected 'cpu', 'cuda'"),
        (lambda: nn.Linear(3, 2, device="cuda:x"), ValueError, "device: expected"),
        (
            lambda: nn.Linear(3, 2)(F, training=True).backprop(F),
            ValueError,
            r"dy: expected shape \(2, 2\), got \(2, 3\)",
        ),
        (
            lambda: nn.LayerNorm(3)(F, training=True).backprop(F.astype(float)),
            TypeError,
            "dy: expected dtype float32, got float64",
        ),
        (lambda: nn.LayerNorm(3, eps=0), ValueError, "eps: expected a positive"),
        (lambda: nn.Embedding(4, 2)(F), TypeError, "x: expected integers, got dtype float32"),
        (lambda: nn.Embedding(4, 2)(I - 1), ValueError, r"x: expected indices in \[0, 4\)"),
        (lambda: nn.Embedding(4, 2)(I + 4), ValueError, "got values from 4 to 4"),
        (lambda: nn.Embedding(4, 2, padding_idx=4), ValueError, "padding_idx: expected 0 <="),
        (lambda: nn.Embedding(4, 2, weight=F), ValueError, r"weight: expected shape \(4, 2\)"),
        (lambda: nn.Dropout(1.0), ValueError, r"p: expected a float in \[0, 1\), got 1.0"),
        (lambda: nn.Dropout("x"), TypeError, "p: expected a float"),
        (lambda: nn.Sequential(3), TypeError, r"layers\[0\]: expected a Layer, got int"),
        (lambda: nn.softmax_cross_entropy(F, F[:, 0]), TypeError, "targets: expected integers"),
        (lambda: nn.softmax_cross_entropy(F, I[:1]), ValueError, r"targets: expected shape \(2,"),
        (lambda: nn.softmax_cross_entropy(F, I + 3), ValueError, r"targets: expected values in"),
        (lambda: nn.softmax_cross_entropy(I, I), TypeError, "logits: expected a floating"),
        (
            lambda: nn.softmax_cross_entropy(F, I, reduction="avg"),
            ValueError,
            "reduction: expected 'mean', 'sum' or 'none', got 'avg'",
        ),
        (
            lambda: nn.softmax_cross_entropy(F, I, class_weights=np.ones(2)),
            ValueError,
            r"class_weights: expected shape \(3,\)",
        ),
        (
            lambda: nn.softmax_cross_entropy(F, I, label_smoothing=1.0),
            ValueError,
            "label_smoothing: expected",
        ),
        (
            lambda: nn.mean_squared_error(F, F[:1]),
            ValueError,
            r"targets: expected shape \(2, 3\), got \(1, 3\)",
        ),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_parameters_start_at_cache_lines() -> None:
    for _ in range(8):  # NumPy's own allocations fall on one now and then
        layer = nn.Linear(7, 5, seed=0).to("cpu")
        for array in layer.parameters().values():
            assert array.ctypes.data % 64 == 0
            assert array.flags.c_contiguous
            assert array.flags.writeable


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.Dropout(shared_axes=0), "shared_axes"),  # type: ignore[arg-type]
        (lambda: nn.Dropout("a"), "p"),  # type: ignore[arg-type]
        (lambda: nn.Dropout(0.5)(np.ones((2, 3), np.int64), training=True), "x"),
        (lambda: nn.Embedding(4, 2, padding_idx=1.5), "padding_idx"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_name_the_argument(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        make()
