"""Weights of Keras GRU layers: layout by hand, and against Keras where it is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import penstock
import pytest
from penstock.convert import load_keras_gru, to_keras_gru

Array = np.ndarray[Any, Any]
D, H = 5, 4


def keras_arrays(
    width: int = D, *, reset_after: bool = True, bias: bool = True, seed: int = 0
) -> list[Array]:
    """What get_weights() of one direction returns."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((width, 3 * H)), rng.standard_normal((H, 3 * H))]
    if bias:
        arrays.append(rng.standard_normal((2, 3 * H) if reset_after else 3 * H))
    return arrays


def keras_forward(arrays: list[Array], x: Array, reset_after: bool) -> Array:
    """Keras' equations on its own layout, x (B, T, D)."""
    kernel, recurrent, *rest = arrays
    bias = rest[0] if rest else np.zeros((2, 3 * H) if reset_after else 3 * H)
    h = np.zeros((len(x), H))
    outputs = []
    for t in range(x.shape[1]):
        xz, xr, xh = np.split(x[:, t] @ kernel + (bias[0] if reset_after else bias), 3, axis=-1)
        if reset_after:
            rz, rr, rh = np.split(h @ recurrent + bias[1], 3, axis=-1)
            z, r = 1 / (1 + np.exp(-(xz + rz))), 1 / (1 + np.exp(-(xr + rr)))
            candidate = np.tanh(xh + r * rh)
        else:
            rz, rr, _ = np.split(h @ recurrent, 3, axis=-1)
            z, r = 1 / (1 + np.exp(-(xz + rz))), 1 / (1 + np.exp(-(xr + rr)))
            candidate = np.tanh(xh + (r * h) @ recurrent[:, 2 * H :])
        h = z * h + (1 - z) * candidate
        outputs.append(h)
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reset_after", [False, True])
def test_layout(reset_after: bool, bias: bool) -> None:
    arrays = keras_arrays(reset_after=reset_after, bias=bias)
    options: dict[str, Any] = {} if bias else {"reset": "after" if reset_after else "before"}
    layer = load_keras_gru(arrays, **options)
    assert layer.reset == ("after" if reset_after else "before") and layer.bias == bias
    x = np.random.default_rng(1).standard_normal((3, 6, D))
    expected = keras_forward(arrays, x, reset_after)
    np.testing.assert_allclose(layer(x).y, expected, rtol=1e-11, atol=1e-13)
    time_first = load_keras_gru(arrays, batch_first=False, **options)
    np.testing.assert_allclose(time_first(x.swapaxes(0, 1)).y, expected.swapaxes(0, 1), rtol=1e-11)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reset_after", [False, True])
def test_round_trip(reset_after: bool, bias: bool) -> None:
    kinds: dict[str, Any] = {"reset_after": reset_after, "bias": bias}
    stack = [
        keras_arrays(width, seed=2 * i, **kinds) + keras_arrays(width, seed=2 * i + 1, **kinds)
        for i, width in enumerate((D, 2 * H, 2 * H))
    ]
    layer = load_keras_gru(stack, **({} if bias else {"reset": "after"}))
    assert layer.num_layers == 3 and layer.bidirectional
    for given, back in zip(stack, to_keras_gru(layer), strict=True):
        assert len(given) == len(back)
        for a, b in zip(given, back, strict=True):
            np.testing.assert_array_equal(a, b)


def test_two_biases_become_one_without_reset_after() -> None:
    layer = penstock.GRU(D, H, reset="before", seed=0, dtype="float64", batch_first=True)
    (arrays,) = to_keras_gru(layer)
    assert arrays[2].shape == (3 * H,)
    x = np.random.default_rng(1).standard_normal((3, 6, D))
    np.testing.assert_allclose(load_keras_gru(arrays)(x).y, layer(x).y, rtol=1e-12)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (keras_arrays()[:1], {}, "got 1 arrays"),
        ([np.zeros(3), np.zeros((4, 12))], {}, "expected matrices kernel and recurrent_kernel"),
        ([np.zeros((5, 9)), np.zeros((4, 12))], {}, r"kernel of shape \(5, 12\), got \(5, 9\)"),
        ([np.zeros((5, 12)), np.zeros((4, 9))], {}, r"recurrent_kernel of shape \(4, 12\)"),
        (
            [*keras_arrays()[:2], np.zeros((3, 12))],
            {},
            r"bias of shape \(2, 12\) with reset 'after'",
        ),
        ([keras_arrays(), keras_arrays()], {}, r"source\[1\]: expected kernel of shape \(4, 12\)"),
        ([keras_arrays(), keras_arrays(4, bias=False)], {}, r"source\[1\]: expected biases in all"),
        (
            [keras_arrays(), keras_arrays(4) * 2],
            {},
            r"source\[1\]: expected a layer like the first",
        ),
        (keras_arrays(), {"reset": "before"}, "reset: expected 'after', as read, got 'before'"),
        ([*keras_arrays(), *keras_arrays(6)], {}, "both directions to have the same input width"),
    ],
)
def test_errors(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_keras_gru(source, **options)


def test_other_errors() -> None:
    with pytest.raises(TypeError, match=r"source: expected a keras\.layers\.GRU"):
        load_keras_gru("gru")
    with pytest.raises(TypeError, match=r"source\[1\]: expected a NumPy array"):
        load_keras_gru([np.zeros((5, 12)), 3])
    with pytest.raises(ValueError, match="expected no layer normalisation"):
        to_keras_gru(penstock.GRU(3, 3, layer_norm=True))
    with pytest.raises(TypeError, match=r"layer: expected a penstock\.GRU, got LSTM"):
        to_keras_gru(penstock.LSTM(3, 3))  # type: ignore[arg-type]


# -- against Keras itself --------------------------------------------------------------------------

# On some backends Keras' sigmoid is good to seven digits, whatever the type.
KERAS: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    """Keras in float64, on whichever backend is installed."""
    if "KERAS_BACKEND" not in os.environ:
        for backend in ("torch", "jax", "tensorflow"):
            if importlib.util.find_spec(backend) is not None:
                os.environ["KERAS_BACKEND"] = backend
                break
        else:
            pytest.skip("Keras needs torch, jax or tensorflow")
    module = pytest.importorskip("keras")
    # Layers go by the policy, which is made from floatx once, by whoever comes first.
    floatx, policy = module.config.floatx(), module.config.dtype_policy()
    module.config.set_floatx("float64")
    module.config.set_dtype_policy("float64")
    yield module
    module.config.set_floatx(floatx)
    module.config.set_dtype_policy(policy)


def run_keras(layer: Any, x: Array) -> Array:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(layer(keras.ops.convert_to_tensor(x))))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "linear", "relu"])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_outputs_match_keras(
    keras: Any, reset_after: bool, use_bias: bool, activation: str, bidirectional: bool
) -> None:
    options: dict[str, Any] = {
        "reset_after": reset_after,
        "use_bias": use_bias,
        "activation": activation,
        "bias_initializer": "random_normal",
        "return_sequences": True,
    }
    x = np.random.default_rng(1).standard_normal((3, 6, D))
    stack = [keras.layers.GRU(H, **options) for _ in range(2)]
    if bidirectional:
        stack = [keras.layers.Bidirectional(layer) for layer in stack]
    expected = x
    for layer in stack:
        expected = run_keras(layer, expected)
    loaded = load_keras_gru(stack)
    assert loaded.num_layers == 2 and loaded.reset == ("after" if reset_after else "before")
    np.testing.assert_allclose(loaded(x).y, expected, **KERAS)
    known: dict[str, Any] = {} if use_bias else {"reset": loaded.reset}
    arrays = load_keras_gru(
        [layer.get_weights() for layer in stack], activation=loaded.activation, **known
    )
    np.testing.assert_array_equal(arrays(x).y, loaded(x).y)
    single = load_keras_gru(stack[0])
    np.testing.assert_allclose(single(x).y, run_keras(stack[0], x), **KERAS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("reset", ["after", "before"])
def test_keras_loads_what_is_written(keras: Any, reset: Any, bidirectional: bool) -> None:
    layer = penstock.GRU(
        D, H, 2, reset=reset, bidirectional=bidirectional, batch_first=True, seed=0, dtype="float64"
    )
    x = np.random.default_rng(1).standard_normal((3, 6, D))
    y = x
    for arrays in to_keras_gru(layer):
        theirs = keras.layers.GRU(H, reset_after=reset == "after", return_sequences=True)
        if bidirectional:
            theirs = keras.layers.Bidirectional(theirs)
        theirs.build(y.shape)
        theirs.set_weights(arrays)
        y = run_keras(theirs, y)
    np.testing.assert_allclose(layer(x).y, y, **KERAS)


@pytest.mark.filterwarnings("ignore")
def test_what_has_no_counterpart(keras: Any) -> None:
    def built(layer: Any) -> Any:
        layer.build((3, 6, D))
        return layer

    gru = keras.layers.GRU
    with pytest.raises(ValueError, match="go_backwards has no counterpart"):
        load_keras_gru(built(gru(H, go_backwards=True)))
    with pytest.raises(ValueError, match="recurrent_activation 'sigmoid', got 'hard_sigmoid'"):
        load_keras_gru(built(gru(H, recurrent_activation="hard_sigmoid")))
    with pytest.raises(ValueError, match=r"expected activation .* got 'elu'"):
        load_keras_gru(built(gru(H, activation="elu")))
    with pytest.raises(ValueError, match="merge_mode 'concat', got 'sum'"):
        load_keras_gru(built(keras.layers.Bidirectional(gru(H), merge_mode="sum")))
    with pytest.raises(ValueError, match="a layer with weights"):
        load_keras_gru(gru(H))
    with pytest.raises(TypeError, match=r"expected a keras\.layers\.GRU, got LSTM"):
        load_keras_gru(built(keras.layers.LSTM(H)))
