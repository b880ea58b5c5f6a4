"""penstock.jax under JAX's transformations: jit, grad, vmap, scan, checkpoint, many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import penstock
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
import penstock.jax as pj  # noqa: E402


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Results are compared with the CPU's."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


T, B, D, H = 6, 3, 4, 5
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.5 * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def arguments(operation: str, seed: int = 0) -> dict[str, Any]:
    """All floating arguments of an operation."""
    x = {"x": draw(T, B, D, seed=seed)}
    if operation == "sru":
        return x | {
            "weight": draw(1, 4 * H, D), "weight_c": draw(1, 2, H), "bias": draw(1, 2, H),
            "c0": draw(B, H, seed=seed), "mask_c": draw(B, H, seed=seed + 50),
        }  # fmt: skip
    if operation == "sliced":
        levels = tuple((draw(1, 3 * H, n), draw(1, 3 * H, H), draw(1, 3 * H)) for n in (D, H))
        return x | {"levels": levels}
    rows = GATES[operation] * H
    found = x | {
        "weight_ih": draw(1, rows, D), "weight_hh": draw(1, rows, H), "bias_ih": draw(1, rows),
        "bias_hh": draw(1, rows, seed=1), "h0": draw(B, H, seed=seed),
    }  # fmt: skip
    if operation == "lstm":
        found["c0"] = draw(B, H, seed=seed + 9)
    return found


def function_of(operation: str) -> Callable[..., Any]:
    if operation != "sliced":
        return getattr(pj, operation)

    def sliced_gru(x: Any, levels: Any, lengths: Any = None) -> Any:
        return pj.sliced("gru", x, levels, slices=(3,), lengths=lengths)

    return sliced_gru


OPERATIONS = ("rnn", "gru", "lstm", "sru", "sliced")
LENGTHS = np.array([[6, 2, 0], [1, 6, 5]])


def stacked(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def assert_trees_equal(actual: Any, expected: Any, tolerance: float = 0.0) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def primitives(function: Callable[..., Any], *args: Any) -> str:
    return str(jax.make_jaxpr(function)(*args))


# ---- vmap ----------------------------------------------------------------------------------------

PARAMETERS = (
    "weight_ih",
    "weight_hh",
    "bias_ih",
    "bias_hh",
    "weight",
    "weight_c",
    "bias",
    "levels",
)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_vmap_of_shared_parameters_is_one_call(operation: str, with_lengths: bool) -> None:
    function = function_of(operation)
    each = [arguments(operation, seed) for seed in range(2)]
    batched = stacked(each)
    for name in PARAMETERS:
        if name in batched:
            batched[name] = each[0][name]
            each[1][name] = each[0][name]
    axes: dict[str, Any] = {n: None if n in PARAMETERS else 0 for n in batched}
    if with_lengths:
        batched["lengths"], axes["lengths"] = LENGTHS, 0
        each = [a | {"lengths": n} for a, n in zip(each, LENGTHS, strict=True)]
    mapped = jax.vmap(lambda a: function(**a), in_axes=(axes,))
    assert_trees_equal(mapped(batched), stacked([function(**a) for a in each]), 1e-6)
    assert_trees_equal(jax.jit(mapped)(batched), stacked([function(**a) for a in each]), 1e-6)
    found = primitives(mapped, batched)
    assert found.count("penstock[") == 1
    assert "scan[" not in found
    # The gradient of a mapped function, too.
    parameters = {n: a for n, a in batched.items() if n in PARAMETERS}
    rest = {n: a for n, a in batched.items() if n not in PARAMETERS}

    def loss(parameters: Any) -> Any:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(mapped(parameters | rest)))

    found = primitives(jax.grad(loss), parameters)
    assert found.count("penstock_forward[") == found.count("penstock_backward[") == 1
    assert "scan[" not in found

    def one_by_one(parameters: Any) -> Any:
        return sum(
            (leaf**2).sum() for a in each for leaf in jax.tree.leaves(function(**a | parameters))
        )

    assert_trees_equal(jax.grad(loss)(parameters), jax.grad(one_by_one)(parameters), 1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_vmap_of_every_single_argument(operation: str) -> None:
    function = function_of(operation)
    base, other = arguments(operation, 0), arguments(operation, 7)
    for name in base:
        values = [jax.tree.map(jnp.asarray, base[name]), jax.tree.map(lambda a: -a, other[name])]
        expected = stacked([function(**base | {name: v}) for v in values])
        run = jax.vmap(lambda v, name=name: function(**base | {name: v}))
        assert_trees_equal(run(stacked(values)), expected, 1e-6)


def test_vmap_over_any_axis_and_twice() -> None:
    a = arguments("gru")
    x = draw(T, 2, B, 3, D)
    expected = np.stack(
        [np.stack([pj.gru(**a | {"x": x[:, i, :, j]}).y for i in range(2)]) for j in range(3)]
    )
    inner = jax.vmap(lambda x: pj.gru(**a | {"x": x}).y, in_axes=1)
    found = jax.vmap(inner, in_axes=3)(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    out = jax.vmap(lambda x: pj.gru(**a | {"x": x}).y, in_axes=1, out_axes=2)(x[:, :, :, 0])
    np.testing.assert_allclose(np.moveaxis(out, 2, 0), expected[0], rtol=1e-6, atol=1e-6)
    nothing = jax.vmap(lambda x: pj.gru(**a | {"x": x}).y)(jnp.zeros((0, T, B, D)))
    assert nothing.shape == (0, T, B, H)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_of_each_element(operation: str) -> None:
    """vmap of grad: parameters that are shared have a gradient for each element all the same."""
    function = function_of(operation)
    base = arguments(operation)
    xs = draw(3, T, B, D, seed=3)

    def loss(a: Any, x: Any) -> Any:
        return sum((leaf**3).sum() for leaf in jax.tree.leaves(function(**a | {"x": x})))

    found = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(base, xs)
    expected = stacked([jax.grad(loss)(base, x) for x in xs])
    assert_trees_equal(found, expected, 1e-5)


def test_ensembles_and_their_gradients() -> None:
    """Parameters of each element's own."""
    parameters = stacked([arguments("lstm", 0), jax.tree.map(lambda a: 2 * a, arguments("lstm"))])
    parameters.pop("x")
    x = draw(T, B, D)

    def loss(p: Any) -> Any:
        return (pj.lstm(x, **p).y ** 2).sum()

    value, grads = jax.vmap(jax.value_and_grad(loss))(parameters)
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: a[i], parameters)
        expected, g = jax.value_and_grad(loss)(one)
        np.testing.assert_allclose(value[i], expected, rtol=1e-6)
        assert_trees_equal(jax.tree.map(lambda a, i=i: a[i], grads), g, 1e-5)


def test_jacobians() -> None:
    a = arguments("gru")

    def state(h0: Any) -> Any:
        return pj.gru(**a | {"h0": h0}).h_last

    jacobian = jax.jacrev(state)(jnp.asarray(a["h0"]))
    assert jacobian.shape == (B, H, B, H)
    step = 1e-3
    for i, j in ((0, 0), (2, 3)):
        nudge = np.zeros((B, H), np.float32)
        nudge[i, j] = step
        slope = (state(a["h0"] + nudge) - state(a["h0"] - nudge)) / (2 * step)
        np.testing.assert_allclose(jacobian[:, :, i, j], slope, rtol=1e-2, atol=1e-3)


# ---- other transformations -----------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_checkpoint_changes_no_bit(operation: str) -> None:
    function = function_of(operation)

    def loss(a: Any) -> Any:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(function(**a)))

    plain = jax.jit(jax.value_and_grad(loss))(arguments(operation))
    again = jax.jit(jax.value_and_grad(jax.checkpoint(loss)))(arguments(operation))
    assert_trees_equal(again, plain)
    found = primitives(jax.grad(jax.checkpoint(loss)), arguments(operation))
    assert found.count("penstock_backward[") == 1


def test_layers_in_a_scan() -> None:
    """Layers of one shape, stacked, one after the other, and their gradients."""
    layers = {"w": draw(4, 1, 3 * H, H), "r": draw(4, 1, 3 * H, H, seed=1)}
    x = draw(T, B, H)

    def scanned(layers: Any) -> Any:
        def body(h: Any, p: Any) -> Any:
            return h + pj.gru(h, p["w"], p["r"]).y, None

        return (jax.lax.scan(body, jnp.asarray(x), layers)[0] ** 2).sum()

    def unrolled(layers: Any) -> Any:
        h = jnp.asarray(x)
        for i in range(4):
            h = h + pj.gru(h, layers["w"][i], layers["r"][i]).y
        return (h**2).sum()

    found = jax.jit(jax.value_and_grad(scanned))(layers)
    assert_trees_equal(found, jax.value_and_grad(unrolled)(layers), 1e-5)


def test_lengths_may_be_traced() -> None:
    a = arguments("lstm")
    run = jax.jit(lambda lengths: pj.lstm(**a, lengths=lengths))
    for lengths in LENGTHS:
        expected = penstock.lstm(**a, lengths=lengths)
        found = run(lengths)
        np.testing.assert_array_equal(found.y, expected.y)
        np.testing.assert_array_equal(found.c_last, expected.c_last)
    gradient = jax.grad(lambda n, h0: pj.lstm(**a | {"h0": h0}, lengths=n).y.sum(), argnums=1)
    output = penstock.lstm(**a, lengths=LENGTHS[1])
    assert output.backprop is not None
    expected_gradient = output.backprop(np.ones_like(output.y)).dh0
    np.testing.assert_array_equal(jax.jit(gradient)(LENGTHS[1], a["h0"]), expected_gradient)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_second_derivatives_are_refused_in_words(operation: str) -> None:
    function = function_of(operation)

    def loss(a: Any) -> Any:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(function(**a)))

    def of_gradient(a: Any) -> Any:
        return sum(leaf.sum() for leaf in jax.tree.leaves(jax.grad(loss)(a)))

    a = jax.tree.map(jnp.asarray, arguments(operation))
    words = rf"penstock\.jax\.{operation}: expected to be differentiated once"
    for differentiate in (jax.grad(of_gradient), jax.jit(jax.grad(of_gradient))):
        with pytest.raises(NotImplementedError, match=words):
            differentiate(a)
    with pytest.raises(NotImplementedError, match=words):
        jax.jvp(jax.grad(loss), (a,), (a,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (a,), (a,))


def test_arrays_of_numpy_and_jax_alike() -> None:
    a = arguments("gru")
    expected = pj.gru(**a)
    assert_trees_equal(pj.gru(**jax.tree.map(jnp.asarray, a)), expected)
    assert isinstance(expected.y, jax.Array)
    strided = jnp.asarray(np.ascontiguousarray(a["x"].transpose(2, 1, 0))).T
    assert_trees_equal(pj.gru(**a | {"x": strided}), expected)


def test_many_threads_at_once() -> None:
    """Handlers run on XLA's threads, several at a time, within one program and from several."""
    rng = np.random.default_rng(0)
    width = 48
    w, r = ((0.2 * rng.standard_normal((1, 4 * width, width))).astype(np.float32) for _ in range(2))
    xs = rng.standard_normal((6, 30, 16, width)).astype(np.float32)
    expected = [penstock.lstm(x, w, r, need_grad=False).y for x in xs]
    xs = jax.device_put(xs, jax.devices("cpu")[0])  # for other threads, too

    @jax.jit
    def independent(xs: Any) -> Any:
        return [pj.lstm(xs[i], w, r).y for i in range(len(xs))]

    gradient = jax.jit(jax.grad(lambda x: pj.lstm(x, w, r).y.sum()))
    wanted = gradient(xs[0])

    def work(i: int) -> None:
        if i % 2:
            np.testing.assert_array_equal(gradient(xs[0]), wanted)
            return
        for found, y in zip(independent(xs), expected, strict=True):
            np.testing.assert_array_equal(found, y)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(32)))


def test_memory_of_a_reserve_is_one_result_of_the_call() -> None:
    """The program that XLA runs holds one custom call each way, and no other loop."""
    a = arguments("gru")
    lowered = jax.jit(jax.grad(lambda a: pj.gru(**a).y.sum())).lower(a).as_text()
    assert lowered.count("@penstock_gru_forward") == 1
    assert lowered.count("@penstock_gru_backward") == 1
    assert "while" not in lowered
