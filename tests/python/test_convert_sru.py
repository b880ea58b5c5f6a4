"""Converters for the sru package: layout by hand, and against the package where it is installed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import penstock
import pytest
from penstock.convert import convert_state_dict, load_sru_checkpoint, to_sru_package

Array = np.ndarray[Any, Any]


def package_state(
    input_size: int,
    hidden: int,
    layers: int = 1,
    *,
    directions: int = 1,
    skip: bool = True,
    projection: int = 0,
    layer_norm: bool = False,
) -> dict[str, Array]:
    """A random state dictionary in the package's layout."""
    rng = np.random.default_rng(0)
    out = directions * hidden
    state: dict[str, Array] = {}
    for i in range(layers):
        width = input_size if i == 0 else out
        k = 4 if skip and width != out else 3
        inner = projection if 0 < projection < min(width, out) else width
        prefix = f"rnn_lst.{i}."
        state[f"{prefix}weight"] = rng.standard_normal((inner, out * k))
        state[f"{prefix}weight_c"] = rng.standard_normal(2 * out)
        state[f"{prefix}bias"] = rng.standard_normal(2 * out)
        state[f"{prefix}scale_x"] = np.array([1.25], np.float32)
        if inner != width:
            state[f"{prefix}weight_proj"] = rng.standard_normal((width, projection))
        if layer_norm:
            state[f"{prefix}layer_norm.weight"] = rng.standard_normal(width)
            state[f"{prefix}layer_norm.bias"] = rng.standard_normal(width)
    return state


def package_forward(state: dict[str, Array], x: Array, directions: int, skip: bool) -> Array:
    """The package's equations, one layer, on its own interleaved layout."""
    steps, batch, _ = x.shape
    hidden = state["rnn_lst.0.bias"].size // 2 // directions
    u = (x @ state["rnn_lst.0.weight"]).reshape(steps, batch, directions, hidden, -1)
    vf, vr = state["rnn_lst.0.weight_c"].reshape(2, directions, hidden)
    bf, br = state["rnn_lst.0.bias"].reshape(2, directions, hidden)
    h = np.zeros((steps, batch, directions, hidden))
    for d in range(directions):
        c = np.zeros((batch, hidden))
        for t in range(steps) if d == 0 else reversed(range(steps)):
            f = 1 / (1 + np.exp(-(u[t, :, d, :, 1] + vf[d] * c + bf[d])))
            r = 1 / (1 + np.exp(-(u[t, :, d, :, 2] + vr[d] * c + br[d])))
            c = f * c + (1 - f) * u[t, :, d, :, 0]
            if not skip:
                xp: Any = 0.0
            elif u.shape[-1] == 3:
                xp = 1.25 * x[t].reshape(batch, directions, hidden)[:, d]
            else:
                xp = u[t, :, d, :, 3]
            h[t, :, d] = r * (c - xp) + xp
    return h.reshape(steps, batch, -1)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("input_size", "skip"), [(6, True), (5, True), (5, False), (6, False)])
def test_layout(directions: int, input_size: int, skip: bool) -> None:
    state = package_state(input_size, 6 // directions, directions=directions, skip=skip)
    x = np.random.default_rng(1).standard_normal((4, 3, input_size))
    layer = load_sru_checkpoint(state, bidirectional=directions == 2, skip=skip)
    assert layer.config()["dtype"] == "float64"
    np.testing.assert_allclose(
        layer(x).y, package_forward(state, x, directions, skip), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 3},
        {"layers": 2, "directions": 2},
        {"layers": 2, "projection": 3, "layer_norm": True},
        {"layers": 2, "skip": False},
    ],
    ids=str,
)
def test_round_trip(options: dict[str, Any]) -> None:
    state = package_state(7, 6 // options.get("directions", 1), **options)
    layer = load_sru_checkpoint(state, bidirectional=options.get("directions") == 2)
    back = to_sru_package(layer)
    assert set(back) == set(state)
    for name, array in state.items():
        if not name.endswith("scale_x"):
            np.testing.assert_array_equal(back[name], array)
    skip = options.get("skip", True)
    assert back["rnn_lst.1.scale_x"] == (1.25 if skip else 1.0)
    again = convert_state_dict(back, bidirectional=layer.bidirectional)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(again.state[name], array)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt", "nested.pt"])
def test_files(suffix: str, tmp_path: Any) -> None:
    state = {n: a.astype(np.float32) for n, a in package_state(7, 6, 2).items()}
    path = tmp_path / f"model.{suffix}"
    if suffix == "npz":
        np.savez(path, **state)
    elif suffix == "safetensors":
        from safetensors.numpy import save_file

        save_file(state, path)
    else:
        torch = pytest.importorskip("torch")
        tensors = {n: torch.from_numpy(a) for n, a in state.items()}
        nested = suffix.startswith("nested")
        torch.save({"epoch": 3, "state_dict": tensors} if nested else tensors, path)
    layer = load_sru_checkpoint(path, dropout=0.25)
    assert layer.dropout == 0.25 and layer.dtype == "float32"
    expected = convert_state_dict(state).state
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, expected[name])


def test_reads_options_off_the_arrays() -> None:
    state = package_state(7, 6, 2)
    big = {f"encoder.{n}": a for n, a in state.items()}
    big.update({f"decoder.{n}": a for n, a in package_state(3, 2).items()})
    big["embedding.weight"] = np.zeros((3, 7))
    with pytest.raises(ValueError, match=r"choose one by prefix: \['decoder.', 'encoder.'\]"):
        convert_state_dict(big)
    assert convert_state_dict(big, prefix="encoder.").config["input_size"] == 7
    early = {n: a * 0 if n.endswith("weight_c") else a for n, a in state.items()}
    converted = convert_state_dict(early)
    assert converted.config["weight_c"] is False
    assert "layers.0.weight_c" not in converted.state
    assert not to_sru_package(load_sru_checkpoint(early))["rnn_lst.1.weight_c"].any()
    cell = {n.removeprefix("rnn_lst.0."): a for n, a in package_state(7, 6).items()}
    assert convert_state_dict(cell).config["num_layers"] == 1
    half = load_sru_checkpoint(state, dtype="float16", activation="tanh")
    assert half.parameters()["layers.0.weight"].dtype == np.float16
    assert half.activation == "tanh"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"rnn_lst.0.bias": None}, {}, r"layer 0: missing: \['bias'\]"),
        ({"rnn_lst.0.custom_m.w": 0}, {}, r"without a counterpart.*custom_m.w"),
        ({"rnn_lst.0.weight": np.zeros((7, 17))}, {"skip": False}, r"rnn_lst.0.weight\]: expected"),
        ({"rnn_lst.1.bias": np.zeros(4)}, {}, r"rnn_lst.1.bias\]: expected shape \(12,\)"),
        ({"rnn_lst.1.weight": None, "rnn_lst.3.weight": 0}, {}, "expected layers 0 to n - 1"),
        ({"input_to_hidden.weight": np.zeros((6, 6))}, {}, r"input_to_hidden\.weight has no"),
        ({}, {"skip": False}, "skip: expected True for these shapes, got False"),
        ({}, {"prefix": "x."}, r"prefix: expected one of \[''\], got 'x.'"),
        ({"rnn_lst.0.bias": np.zeros(10)}, {"bidirectional": True}, "width divisible by 2, got 5"),
    ],
)
def test_errors(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    state = {**package_state(7, 6, 2), **change}
    given = {n: np.zeros(1) if isinstance(a, int) else a for n, a in state.items() if a is not None}
    with pytest.raises(ValueError, match=message):
        convert_state_dict(given, **options)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match=r"expected the names of one SRU"):
        convert_state_dict({"weight": np.zeros(1)})
    with pytest.raises(TypeError, match=r"state\['rnn_lst.0.weight'\]: expected a NumPy array"):
        convert_state_dict({"rnn_lst.0.weight": [1]})
    with pytest.raises(ValueError, match="got 'relu'"):
        to_sru_package(penstock.SRU(3, 3, activation="relu"))
    with pytest.raises(TypeError, match=r"layer: expected a penstock\.SRU"):
        to_sru_package(penstock.nn.Linear(1, 1))  # type: ignore[arg-type]


# -- against the package itself --------------------------------------------------------------------


def import_packages() -> tuple[Any, Any]:
    """PyTorch and sru, or skip; sru warns about CUDA, and needs a compiler when imported."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sru = pytest.importorskip("sru", exc_type=ImportError)
    return torch, sru


CASES: list[dict[str, Any]] = [
    {"input_size": 5, "hidden_size": 4},
    {"input_size": 4, "hidden_size": 4, "num_layers": 3, "highway_bias": -1.0},
    {"input_size": 6, "hidden_size": 3, "num_layers": 2, "bidirectional": True},
    {"input_size": 5, "hidden_size": 4, "num_layers": 2, "bidirectional": True, "use_tanh": True},
    {"input_size": 5, "hidden_size": 4, "num_layers": 2, "rescale": False},
    {"input_size": 5, "hidden_size": 4, "num_layers": 2, "has_skip_term": False},
    {"input_size": 5, "hidden_size": 4, "num_layers": 2, "v1": True},
    {"input_size": 8, "hidden_size": 6, "num_layers": 3, "projection_size": 3},
    {"input_size": 5, "hidden_size": 4, "num_layers": 3, "layer_norm": True},
    {
        "input_size": 6,
        "hidden_size": 3,
        "num_layers": 2,
        "layer_norm": True,
        "projection_size": 2,
        "bidirectional": True,
        "highway_bias": 0.5,
    },
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_outputs_and_gradients_match_the_package(options: dict[str, Any], padded: bool) -> None:
    torch, sru = import_packages()
    torch.manual_seed(0)
    module = sru.SRU(**{"rescale": True, "num_layers": 1, **options}).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not (options.get("v1") and name.endswith("weight_c")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    layer = load_sru_checkpoint(
        module.state_dict(),
        bidirectional=options.get("bidirectional", False),
        skip=options.get("has_skip_term", True),
        activation="tanh" if options.get("use_tanh") else "identity",
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3, layer.input_size))
    c0 = rng.standard_normal((layer.num_layers, 3, layer.output_size))
    lengths = np.array([6, 4, 1]) if padded else None
    mask = None if lengths is None else torch.from_numpy(np.arange(6)[:, None] >= lengths)
    tx, tc = (torch.tensor(a, requires_grad=True) for a in (x, c0))
    ty, tlast = module(tx, tc, mask_pad=mask)
    out = layer(x, c0, lengths=lengths, training=True)
    np.testing.assert_allclose(out.y, ty.detach().numpy(), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(out.c_last, tlast.detach().numpy(), rtol=1e-9, atol=1e-11)
    dy, dc = rng.standard_normal(out.y.shape), rng.standard_normal(out.c_last.shape)
    ((ty * torch.from_numpy(dy)).sum() + (tlast * torch.from_numpy(dc)).sum()).backward()
    grads = out.backprop(dy, dc)
    np.testing.assert_allclose(grads.dx, tx.grad.numpy(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(grads.dc0, tc.grad.numpy(), rtol=1e-8, atol=1e-10)
    # the package's gradients, in its layout, through the same conversion
    theirs = {n: p.detach() * 0 for n, p in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            theirs[name] = parameter.grad
    expected = convert_state_dict(theirs, bidirectional=layer.bidirectional, skip=layer.skip).state
    for name, gradient in grads.dparameters.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_the_package_loads_what_is_written() -> None:
    torch, sru = import_packages()
    layer = penstock.SRU(
        5,
        3,
        3,
        bidirectional=True,
        layer_norm=True,
        projection_size=2,
        highway_bias=-1.0,
        seed=0,
        dtype="float64",
    )
    module = sru.SRU(
        5, 3, 3, bidirectional=True, layer_norm=True, projection_size=2, rescale=True
    ).double()
    state = {n: torch.from_numpy(a) for n, a in to_sru_package(layer).items()}
    module.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).standard_normal((6, 2, 5))
    expected = module(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(layer(x).y, expected, rtol=1e-6, atol=1e-7)  # float32 scale_x


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "dropout": 0.3, "highway_bias": -1.5},
        {"num_layers": 2, "layer_norm": True, "rnn_dropout": 0.2, "bidirectional": True},
        {"num_layers": 2, "projection_size": 40, "v1": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_initialisation_matches_the_package(options: dict[str, Any]) -> None:
    torch, sru = import_packages()
    torch.manual_seed(0)
    module = sru.SRU(80, 120, rescale=True, **options)
    ours = {n: v for n, v in options.items() if n != "v1"}
    layer = penstock.SRU(80, 120, weight_c=not options.get("v1"), seed=0, **ours)
    theirs = convert_state_dict(module.state_dict(), bidirectional=layer.bidirectional).state
    state = layer.state_dict()
    assert set(theirs) == set(state)
    for name, array in theirs.items():
        assert array.shape == state[name].shape
        if name.endswith("scale_x"):
            assert state[name] == pytest.approx(float(array), rel=1e-6)
            continue
        mine, other = state[name].astype(float)[None], array.astype(float)[None]
        if name in ("layers.0.weight", "layers.1.weight"):  # each block of rows has its own spread
            mine, other = (
                a.reshape(layer.directions, -1, 120, a.shape[-1]).swapaxes(0, 1)
                for a in (mine, other)
            )
        for m, o in zip(mine, other, strict=True):
            assert m.std() == pytest.approx(o.std(), rel=0.1, abs=1e-12)
            assert m.mean() == pytest.approx(o.mean(), abs=0.25 * o.std() + 1e-12)
            assert np.abs(m).max() == pytest.approx(np.abs(o).max(), rel=0.05, abs=1e-12)
