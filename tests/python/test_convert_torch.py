"""Weights of torch.nn's recurrent modules: layout by hand, and against PyTorch if installed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import penstock
import pytest
from penstock.convert import convert_torch_rnn, load_torch_rnn, to_torch_rnn

Array = np.ndarray[Any, Any]
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def torch_state(
    gates: int, sizes: tuple[int, int] = (5, 4), layers: int = 1, directions: int = 1, *,
    bias: bool = True,
) -> dict[str, Array]:  # fmt: skip
    """A random state dictionary in PyTorch's layout."""
    rng = np.random.default_rng(0)
    width, hidden = sizes
    state: dict[str, Array] = {}
    for i, suffix in itertools.product(range(layers), ("", "_reverse")[:directions]):
        rows = gates * hidden
        state[f"weight_ih_l{i}{suffix}"] = rng.standard_normal(
            (rows, directions * hidden if i else width)
        )
        state[f"weight_hh_l{i}{suffix}"] = rng.standard_normal((rows, hidden))
        if bias:
            state[f"bias_ih_l{i}{suffix}"] = rng.standard_normal(rows)
            state[f"bias_hh_l{i}{suffix}"] = rng.standard_normal(rows)
    return state


def test_layout() -> None:
    state = torch_state(3, (5, 4), 2, 2)
    layer, config, converted = convert_torch_rnn(state)
    assert layer is penstock.GRU
    assert config == {
        "input_size": 5,
        "hidden_size": 4,
        "num_layers": 2,
        "bias": True,
        "bidirectional": True,
        "dtype": "float64",
    }
    np.testing.assert_array_equal(converted["layers.1.weight_ih"][0], state["weight_ih_l1"])
    np.testing.assert_array_equal(converted["layers.1.bias_hh"][1], state["bias_hh_l1_reverse"])
    assert set(converted) == set(layer(**config).parameters())


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize(("layers", "directions", "bias"), [(1, 1, True), (3, 2, False)])
def test_round_trip(cell: str, layers: int, directions: int, bias: bool) -> None:
    state = torch_state(GATES[cell], (7, 4), layers, directions, bias=bias)
    layer = load_torch_rnn(state)
    assert type(layer).__name__ == cell
    back = to_torch_rnn(layer)
    assert set(back) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt", "nested.pt"])
def test_files(suffix: str, tmp_path: Any) -> None:
    state = {n: a.astype(np.float32) for n, a in torch_state(4).items()}
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
    layer = load_torch_rnn(path, dropout=0.25, batch_first=True)
    assert layer.dropout == 0.25 and layer.dtype == "float32" and layer.batch_first
    for name, array in to_torch_rnn(layer).items():
        np.testing.assert_array_equal(array, state[name])


def test_chooses_by_prefix_and_reads_cells() -> None:
    big = {f"net.encoder.{n}": a for n, a in torch_state(3).items()}
    big.update({f"decoder.{n}": a for n, a in torch_state(4, (3, 2)).items()})
    big["embedding.weight"] = np.zeros((3, 7))
    with pytest.raises(ValueError, match=r"by prefix: \['decoder\.', 'net\.encoder\.'\]"):
        convert_torch_rnn(big)
    assert convert_torch_rnn(big, prefix="decoder.").layer is penstock.LSTM
    cell = {n.removesuffix("_l0"): a for n, a in torch_state(1).items()}
    converted = convert_torch_rnn(cell)
    assert converted.layer is penstock.RNN and converted.config["num_layers"] == 1
    half = load_torch_rnn(torch_state(1), dtype="float16", activation="relu")
    assert half.parameters()["layers.0.weight_ih"].dtype == np.float16
    assert half.config()["activation"] == "relu"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"weight_hr_l0": np.zeros((2, 4))}, {}, r"weight_hr_l0, the projection.*proj_size"),
        ({"bias_ih_l0": None}, {}, r"layer 0: missing: \['bias_ih'\]"),
        ({"weight_hh_l1_reverse": None}, {}, r"layer 1, reverse: missing: \['weight_hh'\]"),
        ({"weight_ih_l3": np.zeros((12, 8))}, {}, r"missing: \['weight_ih_l2', .*_l3_reverse'\]"),
        ({"weight_hh_l0": np.zeros((8, 4))}, {}, r"weight_hh_l0 of shape .* got \(8, 4\)"),
        ({"weight_hh_l0": np.zeros(8)}, {}, "expected matrices"),
        ({"weight_ih_l1": np.zeros((12, 5))}, {}, r"weight_ih_l1\]: expected shape \(12, 8\)"),
        ({"bias_hh_l1_reverse": np.zeros(3)}, {}, r"bias_hh_l1_reverse\]: expected shape \(12,\)"),
        ({}, {"prefix": "x."}, r"prefix: expected one of \[''\], got 'x.'"),
    ],
)
def test_errors(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    state = {**torch_state(3, (5, 4), 2, 2), **change}
    with pytest.raises(ValueError, match=message):
        convert_torch_rnn({n: a for n, a in state.items() if a is not None}, **options)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match=r"expected the names of one torch\.nn\.GRU, LSTM or RNN"):
        convert_torch_rnn({"weight": np.zeros(1)})
    with pytest.raises(TypeError, match=r"state\['weight_ih_l0'\]: expected a NumPy array"):
        convert_torch_rnn({"weight_ih_l0": [1]})
    with pytest.raises(TypeError, match="source: expected a module of PyTorch"):
        load_torch_rnn(3)
    with pytest.raises(ValueError, match="layer: expected no layer normalisation"):
        to_torch_rnn(penstock.LSTM(3, 3, layer_norm=True))
    with pytest.raises(ValueError, match="expected reset 'after'"):
        to_torch_rnn(penstock.GRU(3, 3, reset="before"))
    with pytest.raises(ValueError, match="expected activation 'tanh', got 'relu'"):
        to_torch_rnn(penstock.GRU(3, 3, activation="relu"))
    with pytest.raises(ValueError, match="expected activation 'tanh' or 'relu', got 'identity'"):
        to_torch_rnn(penstock.RNN(3, 3, activation="identity"))
    with pytest.raises(TypeError, match=r"layer: expected a penstock\.GRU, LSTM or RNN"):
        to_torch_rnn(penstock.SRU(3, 3))  # type: ignore[arg-type]


# -- against PyTorch itself ------------------------------------------------------------------------

CASES: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("cell", [*GATES, "RNN relu"])
@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients_match_pytorch(
    cell: str, options: dict[str, Any], padded: bool
) -> None:
    torch = pytest.importorskip("torch")
    name, _, activation = cell.partition(" ")
    given = {**options, "nonlinearity": activation} if activation else options
    torch.manual_seed(0)
    module = getattr(torch.nn, name)(5, 4, **given).double()
    layer: Any = load_torch_rnn(module)
    assert layer.batch_first == module.batch_first
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 6, 5) if module.batch_first else (6, 3, 5))
    shape = (layer.num_layers, 3, 4 * layer.directions)
    starts = [rng.standard_normal(shape) for _ in range(2 if name == "LSTM" else 1)]
    lengths = np.array([6, 1, 4]) if padded else None

    def packed(states: Any) -> Any:  # (layers * dirs, B, H), as PyTorch has it
        return (
            states.reshape(layer.num_layers, 3, layer.directions, 4)
            .swapaxes(1, 2)
            .reshape(-1, 3, 4)
        )

    tx = torch.tensor(x, requires_grad=True)
    tstarts = [torch.tensor(s, requires_grad=True) for s in starts]
    tstates = [packed(t) for t in tstarts]
    hidden = tuple(tstates) if name == "LSTM" else tstates[0]
    if lengths is None:
        ty, tlast = module(tx, hidden)
    else:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(
            tx, torch.from_numpy(lengths), batch_first=module.batch_first, enforce_sorted=False
        )
        out, tlast = module(sequence, hidden)
        ty, _ = torch.nn.utils.rnn.pad_packed_sequence(
            out, batch_first=module.batch_first, total_length=6
        )
    tlasts = list(tlast) if name == "LSTM" else [tlast]
    ours = layer(x, *starts, lengths=lengths, training=True)
    np.testing.assert_allclose(ours.y, ty.detach().numpy(), rtol=1e-9, atol=1e-11)
    for mine, other in zip(ours[1:-1], tlasts, strict=True):
        np.testing.assert_allclose(packed(mine), other.detach().numpy(), rtol=1e-9, atol=1e-11)

    dy = rng.standard_normal(ours.y.shape)
    dlast = [rng.standard_normal(shape) for _ in starts]
    total = (ty * torch.from_numpy(dy)).sum()
    for other, d in zip(tlasts, dlast, strict=True):
        total = total + (other * torch.from_numpy(packed(d))).sum()
    total.backward()
    grads = ours.backprop(dy, *dlast)
    np.testing.assert_allclose(grads.dx, tx.grad.numpy(), rtol=1e-8, atol=1e-10)
    for mine, tensor in zip(grads[1:-1], tstarts, strict=True):
        np.testing.assert_allclose(mine, tensor.grad.numpy(), rtol=1e-8, atol=1e-10)
    theirs = convert_torch_rnn({n: p.grad for n, p in module.named_parameters()}).state
    for key, gradient in grads.dparameters.items():
        np.testing.assert_allclose(gradient, theirs[key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_pytorch_loads_what_is_written(cell: str, bidirectional: bool) -> None:
    torch = pytest.importorskip("torch")
    layer = getattr(penstock, cell)(5, 4, 2, bidirectional=bidirectional, seed=0)
    module = getattr(torch.nn, cell)(5, 4, 2, bidirectional=bidirectional)
    state = {n: torch.from_numpy(a) for n, a in to_torch_rnn(layer).items()}
    module.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).standard_normal((6, 3, 5), dtype=np.float32)
    expected = module(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(layer(x).y, expected, rtol=1e-4, atol=1e-5)


def test_modules_tell_their_options() -> None:
    torch = pytest.importorskip("torch")
    layer = load_torch_rnn(torch.nn.GRU(5, 4, 2, dropout=0.25, batch_first=True), dropout=0.5)
    assert layer.dropout == 0.5 and layer.batch_first
    cell = torch.nn.RNNCell(5, 4, nonlinearity="relu")
    relu = load_torch_rnn(cell)
    x = np.random.default_rng(0).standard_normal((1, 3, 5), dtype=np.float32)
    expected = cell(torch.from_numpy(x[0])).detach().numpy()
    np.testing.assert_allclose(relu(x).y[0], expected, rtol=1e-5, atol=1e-6)
    half = load_torch_rnn(torch.nn.LSTM(5, 4).bfloat16())
    assert half.dtype == "bfloat16"
    with pytest.raises(ValueError, match="proj_size"):
        load_torch_rnn(torch.nn.LSTM(5, 4, proj_size=2))


@pytest.mark.parametrize("cell", GATES)
def test_initialisation_matches_pytorch(cell: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = convert_torch_rnn(getattr(torch.nn, cell)(80, 120, 2).state_dict()).state
    ours = getattr(penstock, cell)(80, 120, 2, seed=0).state_dict()
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].shape == array.shape
        assert ours[name].std() == pytest.approx(array.std(), rel=0.15)
        assert np.abs(ours[name]).max() == pytest.approx(np.abs(array).max(), rel=0.05)
