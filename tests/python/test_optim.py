"""penstock.optim: update rules against plain formulas and torch, resuming, half types, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from penstock import optim
from penstock.nn import RowGradient
from penstock.optim import schedules

SHAPES = {"a": (3, 4), "b": (5,), "big": (40000,), "none": (0, 3)}
Arrays = dict[str, np.ndarray[Any, Any]]


def arrays(seed: int, dtype: Any = np.float64) -> Arrays:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(dtype) for n, s in SHAPES.items()}


def adam_reference(p: Any, grads: list[Any], lr: float, wd: float, decoupled: bool) -> Any:
    """Adam as its paper writes it, one whole array at a time."""
    b1, b2, eps = 0.8, 0.95, 1e-6
    m, v = np.zeros_like(p), np.zeros_like(p)
    for n, g in enumerate(grads, 1):
        if decoupled:
            p = p - lr * wd * p
        d = g if decoupled else g + wd * p
        m, v = b1 * m + (1 - b1) * d, b2 * v + (1 - b2) * d * d
        p = p - lr * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)
    return p


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("wd", [0.0, 0.3])
def test_adam_formula(kind: type[optim.Adam], wd: float) -> None:
    p, start = arrays(0), arrays(0)
    grads = [arrays(i) for i in range(1, 5)]
    kept = [arrays(i) for i in range(1, 5)]
    opt = kind(p, lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=wd)
    for g in grads:
        opt.step(g)
    for name in p:
        expected = adam_reference(
            start[name], [g[name] for g in kept], 0.05, wd, kind is optim.AdamW
        )
        np.testing.assert_allclose(p[name], expected, rtol=1e-10, atol=1e-13)
        np.testing.assert_array_equal(grads[0][name], kept[0][name])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_sgd_formula(nesterov: bool, momentum: float, wd: float) -> None:
    if nesterov and not momentum:
        pytest.skip("not allowed")
    p = arrays(0)
    expected = arrays(0)
    buffers = {n: np.zeros(s) for n, s in SHAPES.items()}
    opt = optim.SGD(p, 0.1, momentum=momentum, nesterov=nesterov, weight_decay=wd)
    for i in range(4):
        g = arrays(10 + i)
        opt.step(g)
        for n in p:
            d = g[n] + wd * expected[n]
            buffers[n] = momentum * buffers[n] + d
            d = d + momentum * buffers[n] if nesterov else buffers[n]
            expected[n] = expected[n] - 0.1 * d
    for n in p:
        np.testing.assert_allclose(p[n], expected[n], rtol=1e-12, atol=1e-13)


def make(kind: str, p: Arrays, **options: Any) -> optim.Optimizer:
    if kind == "sgd":
        return optim.SGD(p, 0.1, momentum=0.9, **options)
    return (optim.Adam if kind == "adam" else optim.AdamW)(p, 0.01, weight_decay=0.1, **options)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_matches_torch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    p = arrays(0)
    theirs = {n: torch.nn.Parameter(torch.tensor(a)) for n, a in p.items()}
    if kind == "sgd":
        other = torch.optim.SGD(theirs.values(), 0.1, momentum=0.9)
    else:
        cls = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        other = cls(theirs.values(), 0.01, weight_decay=0.1)
    ours = make(kind, p)
    for i in range(5):
        g = arrays(20 + i)
        ours.step(g)
        for n, t in theirs.items():
            t.grad = torch.tensor(g[n])
        other.step()
    for n in p:
        np.testing.assert_allclose(p[n], theirs[n].detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_resume_is_exact(kind: str, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    p = arrays(0, np.dtype(dtype))
    opt = make(kind, p)
    for i in range(3):
        opt.step(arrays(i, np.dtype(dtype)))
    q = {n: a.copy() for n, a in p.items()}
    resumed = make(kind, q)
    resumed.load_state_dict(opt.state_dict())
    assert resumed.steps == 3
    for i in range(3, 6):
        opt.step(arrays(i, np.dtype(dtype)))
        resumed.step(arrays(i, np.dtype(dtype)))
    for n in p:
        np.testing.assert_array_equal(p[n], q[n])
    kept = opt.state_dict()
    opt.step(arrays(9, np.dtype(dtype)))
    assert int(kept["steps"]) == 6  # a copy, not a view


def test_half_types_collect_small_updates() -> None:
    p = {"w": np.ones(8, np.float16)}
    opt = optim.SGD(p, lr=1e-4)
    for _ in range(100):
        opt.step({"w": np.ones(8, np.float16)})
    np.testing.assert_allclose(p["w"].astype(float), 0.99, atol=6e-4)  # plain float16 stays at 1
    assert opt.state_dict()["master.w"].dtype == np.float32
    p["w"][:] = 2
    opt.sync_master_weights()
    opt.step({"w": np.zeros(8, np.float16)})
    assert (p["w"] == 2).all()


def test_updates_in_place_without_growing_dtype() -> None:
    p = arrays(0, np.float32)
    ids = {n: a.ctypes.data for n, a in p.items()}
    opt = optim.AdamW(p, lr=0.1)
    opt.step(arrays(1, np.float32))
    assert {n: a.ctypes.data for n, a in p.items()} == ids
    assert all(a.dtype == np.float32 for n, a in opt.state_dict().items() if n != "steps")
    strided = {n: np.asfortranarray(a) for n, a in arrays(1, np.float32).items()}
    q = arrays(0, np.float32)
    optim.AdamW(q, lr=0.1).step(strided)
    for n in p:
        np.testing.assert_array_equal(p[n], q[n])


def test_decay_filter_and_schedule() -> None:
    p = {"w": np.ones(3), "bias": np.ones(3)}
    zero = {"w": np.zeros(3), "bias": np.zeros(3)}
    opt = optim.AdamW(
        p, lambda step: 0.1 * (step + 1), weight_decay=0.5, decay=lambda name: "bias" not in name
    )
    opt.step(zero)
    assert opt.current_lr == pytest.approx(0.2)
    opt.step(zero)
    np.testing.assert_allclose(p["w"], (1 - 0.05) * (1 - 0.1), rtol=1e-14)
    np.testing.assert_array_equal(p["bias"], 1)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_reaches_the_minimum(kind: str) -> None:
    p = {"w": np.array([3.0, -2.0])}
    opt: optim.Optimizer = (
        optim.SGD(p, 0.05, momentum=0.8)
        if kind == "sgd"
        else (optim.Adam if kind == "adam" else optim.AdamW)(p, 0.05, weight_decay=0.0)
    )
    for _ in range(600):
        opt.step({"w": np.array([2.0, 0.5]) * (p["w"] - 1)})
    np.testing.assert_allclose(p["w"], 1, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_row_gradients_touch_their_rows_alone(kind: str, dtype: str) -> None:
    start = np.random.default_rng(0).standard_normal((6, 3)).astype(dtype)
    table, part = {"w": start.copy()}, {"w": start[[1, 4]].copy()}
    opt, small = make(kind, table), make(kind, part)
    for i in range(3):
        values = np.random.default_rng(i).standard_normal((2, 3)).astype(dtype)
        opt.step({"w": RowGradient(np.array([1, 4]), values, 6)})
        small.step({"w": values})
    np.testing.assert_array_equal(table["w"][[1, 4]], part["w"])
    np.testing.assert_array_equal(table["w"][[0, 2, 3, 5]], start[[0, 2, 3, 5]])
    for name, array in small.state_dict().items():
        if name != "steps":
            np.testing.assert_array_equal(opt.state_dict()[name][[1, 4]], array)
    clipped = {"w": RowGradient(np.array([1, 4]), np.full((2, 3), 2.0), 6)}
    assert optim.clip_grad_norm(clipped, 1.0) == pytest.approx(math.sqrt(24))
    np.testing.assert_allclose(clipped["w"].values, 2 * 24**-0.5)
    optim.clip_grad_value(clipped, 0.1)
    np.testing.assert_array_equal(clipped["w"].values, 0.1)
    with pytest.raises(ValueError, match=r"gradients\['w'\]: expected shape \(6, 3\)"):
        opt.step({"w": RowGradient(np.array([1, 4]), np.zeros((2, 3)), 5)})


def test_clip_norm() -> None:
    g = arrays(0, np.float32)
    norm = math.sqrt(sum(float((a.astype(float) ** 2).sum()) for a in g.values()))
    before = {n: a.copy() for n, a in g.items()}
    assert optim.clip_grad_norm(g, 2 * norm) == pytest.approx(norm, rel=1e-6)
    for n in g:
        np.testing.assert_array_equal(g[n], before[n])
    assert optim.clip_grad_norm(g, 1.5) == pytest.approx(norm, rel=1e-6)
    assert optim.clip_grad_norm(g, 9) == pytest.approx(1.5, rel=1e-5)
    shared = np.ones(4)
    optim.clip_grad_norm({"a": shared, "b": shared}, math.sqrt(2))
    np.testing.assert_allclose(shared, 0.5)
    bad = {"a": np.array([np.inf, 1.0])}
    assert optim.clip_grad_norm(bad, 1.0) == math.inf
    assert bad["a"][1] == 1
    half = {"a": np.full(100, 300.0, np.float16)}  # squares overflow float16
    assert optim.clip_grad_norm(half, 30.0) == pytest.approx(3000)
    np.testing.assert_allclose(half["a"].astype(float), 3, rtol=1e-3)


def test_clip_value() -> None:
    g = {"a": np.array([-5.0, 0.5, 7.0], np.float32)}
    optim.clip_grad_value(g, 2.0)
    np.testing.assert_array_equal(g["a"], [-2, 0.5, 2])


def test_schedules() -> None:
    assert [schedules.constant(2.0, 4)(i) for i in (0, 1, 3, 4, 99)] == [0.5, 1, 2, 2, 2]
    linear = schedules.linear(1.0, total_steps=12, warmup_steps=2, final_lr=0.2)
    np.testing.assert_allclose(
        [linear(i) for i in (0, 1, 2, 7, 12, 50)], [0.5, 1, 1, 0.6, 0.2, 0.2]
    )
    cosine = schedules.cosine(1.0, total_steps=12, warmup_steps=2, final_lr=0.2)
    np.testing.assert_allclose([cosine(i) for i in (0, 2, 7, 12, 50)], [0.5, 1, 0.6, 0.2, 0.2])
    assert 1 > cosine(3) > cosine(4) > 0.6
    decay = schedules.step_decay(1.0, every=10, factor=0.5)
    assert [decay(i) for i in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]
    root = schedules.inverse_sqrt(1.0, 4)
    np.testing.assert_allclose([root(i) for i in (0, 3, 15)], [0.25, 1, 0.5])
    noam = schedules.noam(512, 4000, 2.0)
    for i in (0, 10, 3999, 9000):
        n = i + 1
        assert noam(i) == pytest.approx(2 * 512**-0.5 * min(n**-0.5, n * 4000**-1.5))


P = {"w": np.zeros((2, 3), np.float32)}
G = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optim.SGD(P).step({}), ValueError, r"missing: \['w'\], unexpected: none"),
        (lambda: optim.SGD(P).step({"w": G, "v": G}), ValueError, r"unexpected: \['v'\]"),
        (lambda: optim.SGD(P).step({"w": G.T}), ValueError, r"gradients\['w'\]: expected shape"),
        (lambda: optim.SGD(P).step({"w": [0]}), TypeError, r"gradients\['w'\]: expected a numpy"),
        (lambda: optim.SGD(P).step({"w": G.astype(int)}), TypeError, "expected a floating dtype"),
        (lambda: optim.SGD(P).step([G]), TypeError, "gradients: expected a dict"),
        (lambda: optim.SGD([G]), TypeError, "parameters: expected a dict"),
        (lambda: optim.SGD({"w": G.T}), ValueError, r"parameters\['w'\]: expected a writeable"),
        (lambda: optim.SGD({"w": 1.0}), TypeError, r"parameters\['w'\]: expected an array"),
        (lambda: optim.SGD(P, -1.0), ValueError, "lr: expected a number >= 0"),
        (lambda: optim.SGD(P, momentum=1.0), ValueError, "momentum: expected"),
        (lambda: optim.SGD(P, nesterov=True), ValueError, "nesterov: expected momentum > 0"),
        (lambda: optim.Adam(P, betas=(0.9, 1.0)), ValueError, "betas: expected two floats"),
        (lambda: optim.Adam(P, eps=0.0), ValueError, "eps: expected"),
        (lambda: optim.Adam(P, weight_decay=-1), ValueError, "weight_decay: expected"),
        (lambda: optim.Adam(P).load_state_dict({}), ValueError, r"missing: \['m.w', 'steps'"),
        (lambda: optim.clip_grad_norm({"w": G}, 0), ValueError, "max_norm: expected"),
        (lambda: optim.clip_grad_value({"w": G}, -1), ValueError, "max_value: expected"),
        (lambda: schedules.cosine(1.0, 0), ValueError, "total_steps: expected an int >= 1"),
        (lambda: schedules.constant(math.nan), ValueError, "lr: expected a finite number"),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_failed_load_changes_nothing() -> None:
    p = arrays(0)
    opt = optim.Adam(p)
    opt.step(arrays(1))
    state, bad = opt.state_dict(), opt.state_dict()
    bad["m.a"] = bad["m.a"] + 1
    bad["v.b"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"state\['v.b'\]: expected shape \(5,\), got \(2,\)"):
        opt.load_state_dict(bad)
    for name, array in opt.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def parameters() -> dict[str, Any]:
    return {"w": np.zeros(3, np.float32)}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: optim.Adam(parameters(), lr="a"), "lr"),  # type: ignore[arg-type]
        (lambda: optim.Adam(parameters(), betas=0.9), "betas"),  # type: ignore[arg-type]
        (lambda: optim.Adam(parameters(), betas=("a", 0.9)), "betas"),  # type: ignore[arg-type]
        (lambda: optim.Adam(parameters(), eps=None), "eps"),  # type: ignore[arg-type]
        (lambda: optim.Adam(parameters(), weight_decay="a"), "weight_decay"),  # type: ignore[arg-type]
        (lambda: optim.SGD(parameters(), momentum=None), "momentum"),  # type: ignore[arg-type]
        (lambda: optim.Adam({"w": np.zeros(3, np.int32)}), r"parameters\['w'\]"),
        (lambda: optim.schedules.cosine(0.1, "x"), "total_steps"),  # type: ignore[arg-type]
        (lambda: optim.schedules.constant("x"), "lr"),  # type: ignore[arg-type]
        (lambda: optim.clip_grad_norm([np.ones(3)], 1.0), "gradients"),  # type: ignore[arg-type]
        (lambda: optim.clip_grad_value(parameters(), "a"), "max_value"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_name_the_argument(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        make()
