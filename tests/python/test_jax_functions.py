"""penstock.jax against the functions of NumPy arrays: values, gradients, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import penstock
import pytest
from reference.problems import Problem, random_problem
from reference.recurrent_problems import (
    VARIANTS,
    RecurrentProblem,
    SlicedProblem,
    flat,
    random_recurrent,
    random_sliced,
)

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
import penstock.jax as pj  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

AnyProblem = Problem | RecurrentProblem | SlicedProblem


@pytest.fixture(autouse=True)
def double_precision_on_the_cpu() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    with jax.default_device(jax.devices("cpu")[0]):  # the bits are those of the CPU
        yield
    jax.config.update("jax_enable_x64", before)


def sru_problems() -> dict[str, Callable[..., AnyProblem]]:
    options: dict[str, dict[str, Any]] = {
        "sru-k3": {},
        "sru-k4-tanh-reverse": {
            "form": "k4", "inputs": 7, "activation": "tanh", "direction": "reverse",
        },
        "sru-noskip-relu-bidirectional": {
            "form": "noskip", "inputs": 7, "activation": "relu", "direction": "bidirectional",
        },
        "sru-x_skip-output-mask": {
            "form": "x_skip", "inputs": 7, "mask_site": "output", "padding": "mask",
        },
        "sru-k3-state-both": {"mask_site": "state", "padding": "both", "with_c0": False},
        "sru-k4-lengths-v0": {"form": "k4", "inputs": 3, "padding": "lengths", "with_v": False},
    }  # fmt: skip
    return {
        name: lambda dtype, given=given: random_problem(dtype=dtype, **given)
        for name, given in options.items()
    }


def recurrent_problems() -> dict[str, Callable[..., AnyProblem]]:
    found: dict[str, Callable[..., AnyProblem]] = {}
    shapes: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("bidirectional-lengths", {"direction": "bidirectional", "with_lengths": True}),
        ("reverse-recompute", {"direction": "reverse", "recompute": True, "biases": "ih"}),
        ("bare", {"with_state": False, "biases": "none", "with_lengths": True}),
    ]
    for variant, (cell, options) in VARIANTS.items():
        for name, given in shapes:
            found[f"{variant}-{name}"] = lambda dtype, cell=cell, all=options | given: (
                random_recurrent(cell, dtype=dtype, **all)
            )
    return found


def sliced_problems() -> dict[str, Callable[..., AnyProblem]]:
    found: dict[str, Callable[..., AnyProblem]] = {}
    shapes: list[tuple[str, dict[str, Any]]] = [
        ("left-lengths", {"with_lengths": True}),
        (
            "right-none-bidirectional",
            {"pad": "right", "mask": "none", "direction": "bidirectional"},
        ),
        ("whole", {"slices": (), "biases": "none", "pad": "right", "with_lengths": True}),
    ]
    for cell in ("rnn", "gru", "lstm", "sru"):
        for name, given in shapes:
            found[f"sliced-{cell}-{name}"] = lambda dtype, cell=cell, given=given: random_sliced(
                cell, dtype=dtype, **given
            )
    found["sliced-gru-before-recompute"] = lambda dtype: random_sliced(
        "gru", (3, 2), reset="before", activation="identity", recompute=True, dtype=dtype
    )
    found["sliced-sru-noskip"] = lambda dtype: random_sliced("sru", skip=False, dtype=dtype)
    return found


PROBLEMS = sru_problems() | recurrent_problems() | sliced_problems()


def split(problem: AnyProblem) -> tuple[Callable[[Any], Any], dict[str, Any], Any]:
    """A function of all floating arrays alone, those arrays, and gradients of what it returns."""
    if isinstance(problem, SlicedProblem):
        levels = tuple(map(tuple, problem.levels))
        floats = {"x": problem.x, "levels": levels}
        rest = problem.keywords()
        gradients = pj.SlicedOutput(problem.dy, tuple(problem.dlevels))
        return (
            lambda f: pj.sliced(problem.cell, f["x"], f["levels"], **rest),
            jax.tree.map(jnp.asarray, floats),
            gradients,
        )
    arrays = {n: a for n, a in problem.arrays.items() if a is not None}
    integers = {n: arrays.pop(n) for n in ("lengths", "mask_pad") if n in arrays}
    rest = {**integers, **problem.options}
    if isinstance(problem, Problem):
        if "weight_c" not in arrays:
            rest["weight_c"] = None
        function, gradients = pj.sru, pj.SRUOutput(problem.dy, problem.dc_last)
    else:
        function = getattr(pj, problem.cell)
        kind = {"rnn": pj.RNNOutput, "gru": pj.GRUOutput, "lstm": pj.LSTMOutput}[problem.cell]
        gradients = kind(*problem.gradients.values())
    return lambda f: function(**f, **rest), jax.tree.map(jnp.asarray, arrays), gradients


def outcome(problem: AnyProblem) -> dict[str, np.ndarray]:
    """Outputs and gradients by name, as Backend.run and Backend.outcome return them."""
    function, floats, gradients = split(problem)

    @jax.jit
    def both(floats: Any, gradients: Any) -> Any:
        outputs, back = jax.vjp(function, floats)
        return outputs, back(gradients)[0]

    outputs, grads = both(floats, gradients)
    found = flat(outputs._asdict()) | flat({f"d{n}": a for n, a in grads.items()})
    return {name: np.asarray(array) for name, array in found.items()}


def numpy_outcome(problem: AnyProblem) -> dict[str, np.ndarray]:
    """Outputs and gradients of the function of NumPy arrays, by the same names."""
    if isinstance(problem, Problem):
        parameters = [problem.arrays[n] for n in ("x", "weight", "weight_c", "bias")]
        output: Any = penstock.sru(*parameters, **problem.keywords())
        grads: Any = output.backprop(problem.dy, problem.dc_last)
    else:
        function = getattr(penstock, problem.operation)
        output = function(*problem.positional(), **problem.keywords())
        grads = output.backprop(**problem.gradients)
    found = output._asdict() | grads._asdict()
    del found["backprop"]
    return flat(found)


# One or two of each cell are enough of the 16-bit types.
CASES = [(name, dtype) for name in PROBLEMS for dtype in ("float32", "float64")] + [
    (name, dtype) for name in PROBLEMS for dtype in ("float16", "bfloat16") if name.count("-") <= 2
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_bits_are_those_of_numpy(name: str, dtype: str) -> None:
    problem = PROBLEMS[name](dtype)
    expected = numpy_outcome(problem)
    actual = outcome(problem)
    # Gradients of what was not given are not returned here.
    missing = expected.keys() - actual.keys()
    assert missing <= {"dh0", "dc0"}
    assert actual.keys() <= expected.keys()
    for key, array in actual.items():
        assert array.dtype == expected[key].dtype, key
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    function, floats, _ = split(PROBLEMS[name]("float64"))
    check_grads(jax.jit(function), (floats,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "inputs"),
    [(1, 1, 1, 1), (1, 3, 50, 7), (4, 0, 5, 3), (0, 2, 5, 3), (3, 17, 33, 1), (40, 5, 130, 64)],
)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_shapes(cell: str, steps: int, batch: int, hidden: int, inputs: int) -> None:
    problem = random_recurrent(cell, steps, batch, hidden, inputs=inputs, dtype="float32")
    expected = numpy_outcome(problem)
    for key, array in outcome(problem).items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


def test_outputs_without_a_gradient_cost_none() -> None:
    """Where only the last state counts, backward gets no array of zeros for y."""
    problem = random_recurrent("gru", dtype="float32")
    function, floats, _ = split(problem)
    gradient = jax.grad(lambda f: function(f).h_last.sum())
    assert "given=('h_last',)" in str(jax.make_jaxpr(gradient)(floats))
    output = penstock.gru(*problem.positional(), **problem.keywords())
    assert output.backprop is not None
    expected = output.backprop(None, np.ones_like(output.h_last))
    np.testing.assert_array_equal(gradient(floats)["weight_hh"], expected.dweight_hh)


def test_padding_never_matters() -> None:
    problem = random_recurrent("lstm", with_lengths=True, dtype="float32")
    clean = outcome(problem)
    steps, lengths = np.arange(problem.arrays["x"].shape[0]), problem.arrays["lengths"]
    problem.arrays["x"][steps[:, None] >= lengths] = np.nan
    for key, array in outcome(problem).items():
        np.testing.assert_array_equal(array, clean[key], err_msg=key)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, list, tuple])
def test_kinds_of_lengths(kind: Any) -> None:
    problem = random_recurrent("gru", with_lengths=True, dtype="float32")
    lengths = problem.arrays["lengths"]
    expected = penstock.gru(*problem.positional(), **problem.keywords()).y
    given = lengths.astype(kind) if isinstance(kind(), np.generic) else kind(map(int, lengths))
    found = pj.gru(*problem.positional(), **problem.keywords() | {"lengths": given}).y
    np.testing.assert_array_equal(found, expected)


# Layers of a single one, and the same in JAX from their parameters by name.
LAYERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], Any]]] = {
    "rnn": (
        lambda: penstock.RNN(5, 16, seed=1),
        lambda x, p: pj.rnn(x, **{n.removeprefix("layers.0."): a for n, a in p.items()}).y,
    ),
    "gru": (
        lambda: penstock.GRU(5, 16, seed=1),
        lambda x, p: pj.gru(x, **{n.removeprefix("layers.0."): a for n, a in p.items()}).y,
    ),
    "lstm": (
        lambda: penstock.LSTM(5, 16, seed=1),
        lambda x, p: pj.lstm(x, **{n.removeprefix("layers.0."): a for n, a in p.items()}).y,
    ),
    "sru": (
        lambda: penstock.SRU(5, 16, seed=1),
        lambda x, p: pj.sru(x, **{n.removeprefix("layers.0."): a for n, a in p.items()}).y,
    ),
    "sliced": (
        lambda: penstock.SlicedRNN(5, 16, slices=(3,), seed=1),
        lambda x, p: (
            pj.sliced(
                "gru",
                x,
                [
                    [p[f"levels.{i}.{n}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                    for i in range(2)
                ],
                slices=(3,),
            ).y
        ),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_training_step_is_that_of_the_numpy_layer(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 8, 5)).astype(np.float32)
    make, function = LAYERS[name]
    layer = make()
    before = {n: a.copy() for n, a in layer.parameters().items()}
    output = layer(x, training=True)
    target = rng.standard_normal(output.y.shape).astype(np.float32)
    loss, backprop = penstock.nn.mean_squared_error(output.y, target)
    optimizer = penstock.optim.SGD(layer.parameters(), lr=0.1)
    optimizer.step(output.backprop(backprop()).dparameters)

    @jax.jit
    def step(parameters: dict[str, Any]) -> Any:
        def loss(parameters: dict[str, Any]) -> Any:
            return jnp.mean((function(x, parameters) - target) ** 2)

        value, gradient = jax.value_and_grad(loss)(parameters)
        return value, jax.tree.map(lambda a, g: a - np.float32(0.1) * g, parameters, gradient)

    value, after = step(before)
    assert float(value) == pytest.approx(float(loss), rel=1e-6)
    for parameter, array in layer.parameters().items():
        assert not np.array_equal(array, before[parameter]), parameter
        np.testing.assert_allclose(after[parameter], array, rtol=0, atol=1e-6, err_msg=parameter)


# ---- errors --------------------------------------------------------------------------------------

X = np.zeros((4, 2, 3), np.float32)
W = np.zeros((1, 15, 3), np.float32)
R = np.zeros((1, 15, 5), np.float32)
BIAS = np.zeros((1, 15), np.float32)


def gru(**changes: Any) -> Any:
    return pj.gru(**{"x": X, "weight_ih": W, "weight_hh": R} | changes)


def sliced(**changes: Any) -> Any:
    given = {"cell": "gru", "x": X, "levels": [(W, R), (np.zeros((1, 15, 5), np.float32), R)]}
    return pj.sliced(**{**given, "slices": (2,)} | changes)


def sru(**changes: Any) -> Any:
    zeros = np.zeros((1, 2, 3), np.float32)
    given = {"x": X, "weight": np.zeros((1, 9, 3), np.float32), "weight_c": zeros, "bias": zeros}
    return pj.sru(**given | changes)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: gru(x=[[[1.0]]]), TypeError, "x: expected an array of JAX or NumPy (actual: l"),
        (lambda: gru(x=None), TypeError, "x: expected an array of JAX or NumPy (actual: NoneType)"),
        (lambda: gru(x=X[0]), ValueError, "gru: x: expected shape (T, B, D) (actual: (2, 3))"),
        (lambda: gru(x=X[None, None]), ValueError, "x: expected at most 4 axes"),
        (lambda: gru(x=X.astype(np.int32)), TypeError, "gru: x: expected float32, float64"),
        (lambda: gru(x=X.astype(np.complex64)), TypeError, "x: expected float32, float64"),
        (lambda: gru(weight_ih=W[:, :, :2]), ValueError, "gru: weight_ih: expected shape (dirs, 3"),
        (lambda: gru(weight_ih=W.astype(np.float64)), TypeError, "weight_ih: expected float32"),
        (lambda: gru(weight_hh=None), ValueError, "gru: weight_hh: expected an array"),
        (lambda: gru(bias_ih=BIAS[:, 1:]), ValueError, "gru: bias_ih: expected shape"),
        (lambda: gru(h0=BIAS), ValueError, "gru: h0: expected shape (B, dirs*H) = (2, 5)"),
        (lambda: gru(direction="bidirectional"), ValueError, "weight_hh: expected shape"),
        (lambda: gru(direction="up"), ValueError, "direction: expected one of 'forward'"),
        (lambda: gru(direction=["forward"]), TypeError, "direction: expected a string"),
        (lambda: gru(reset="between"), ValueError, "reset: expected one of 'after', 'before'"),
        (lambda: gru(activation="softmax"), ValueError, "activation: expected one of 'identity'"),
        (lambda: gru(recompute=1), TypeError, "recompute: expected True or False (actual: int)"),
        (lambda: gru(lengths=[1, 5]), ValueError, "lengths: expected values from 0 to T = 4"),
        (lambda: gru(lengths=[1, -1]), ValueError, "(actual: -1 at index 1)"),
        (lambda: gru(lengths=[1, 2, 3]), ValueError, "lengths: expected shape (B,) = (2,)"),
        (lambda: gru(lengths=[1.0, 2.0]), TypeError, "lengths: expected integers"),
        (lambda: gru(lengths="ab"), TypeError, "lengths: expected an array"),
        (lambda: sliced(slices=(0,)), ValueError, "slices[0]: expected at least 1"),
        (lambda: sliced(slices=2), TypeError, "slices: expected a list or tuple of integers"),
        (lambda: sliced(slices=(2.0,)), TypeError, "slices[0]: expected an integer"),
        (lambda: sliced(slices=(2, 2)), ValueError, "levels: expected len(slices) + 1 = 3 levels"),
        (lambda: sliced(levels=5), TypeError, "levels: expected a list or tuple"),
        (lambda: sliced(levels=[W, R]), TypeError, "levels[0]: expected (weight_ih"),
        (lambda: sliced(levels=[(W,), (W, R)]), ValueError, "levels[0]: expected (weight_ih"),
        (lambda: sliced(levels=[(W, R), (W, R)]), ValueError, "levels[1].weight_ih: expected"),
        (lambda: sliced(levels=[(W, 1), (W, R)]), TypeError, "levels[0].weight_hh: expected an"),
        (lambda: sliced(cell="sru", levels=[(W, None, X), (W, None, X)]), ValueError,
         "levels[0].bias: expected"),
        (lambda: sliced(cell="cnn"), ValueError, "cell: expected one of 'rnn', 'gru', 'lstm'"),
        (lambda: sliced(cell="lstm", activation="relu"), ValueError, "activation: expected 'tanh'"),
        (lambda: sru(scale_x="a"), TypeError, "scale_x: expected a number (actual: str)"),
        (lambda: sru(skip=None), TypeError, "skip: expected True or False (actual: NoneType)"),
        (lambda: sru(mask_site="x"), ValueError, "mask_site: expected one of 'output', 'state'"),
        (lambda: sru(mask_pad=X[:, :, 0]), TypeError, "sru: mask_pad: expected bool"),
        (lambda: sru(bias=None), ValueError, "sru: bias: expected an array"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call: Callable[[], Any], kind: type, words: str) -> None:
    for function in (call, jax.jit(call)):
        with pytest.raises(kind) as e:
            function()
        assert words in str(e.value)


@pytest.mark.parametrize("option", ["direction", "recompute", "reset"])
def test_options_are_not_traced(option: str) -> None:
    with pytest.raises(TypeError, match=f"{option}: expected"):
        jax.jit(lambda value: gru(**{option: value}))(True)


def test_scale_and_slices_are_not_traced() -> None:
    with pytest.raises(TypeError, match="scale_x: expected a number, not one that is traced"):
        jax.jit(lambda value: sru(scale_x=value))(2.0)
    with pytest.raises(TypeError, match=r"slices\[0\]: expected an integer, not one"):
        jax.jit(lambda value: sliced(slices=(value,)))(2)


def test_symbolic_shapes_are_refused() -> None:
    from jax import export

    (batch,) = export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((4, batch, 3), np.float32)
    with pytest.raises(TypeError, match=r"x: expected a shape of numbers \(actual: \(4, b, 3\)\)"):
        jax.eval_shape(lambda x: gru(x=x), x)


def test_traced_lengths_that_are_wrong_fail_when_they_are_read() -> None:
    run = jax.jit(lambda lengths: gru(lengths=lengths).y)
    np.testing.assert_array_equal(run(np.array([4, 0])), np.zeros((4, 2, 5)))
    words = "gru: lengths: expected values from 0 to T = 4"
    with pytest.raises((RuntimeError, ValueError), match=words):
        run(np.array([1, 5])).block_until_ready()
    # and nothing is left behind
    np.testing.assert_array_equal(run(np.array([4, 0])), np.zeros((4, 2, 5)))
