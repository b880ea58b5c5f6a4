"""torch.compile and torch.export of penstock.torch's modules and functions."""

from __future__ import annotations

import copy
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import penstock.torch as pt  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch._dynamo.is_dynamo_supported(), reason="PyTorch cannot compile here"
)

MODULES: dict[str, Any] = {
    "RNN": lambda: pt.RNN(5, 4, 2, "relu"),
    "GRU": lambda: pt.GRU(5, 4, 2, dropout=0.3, bidirectional=True),
    "GRU-batch_first": lambda: pt.GRU(5, 4, batch_first=True, recompute=True, reset="before"),
    "LSTM": lambda: pt.LSTM(5, 4, 2, dropout=0.3, bias=False),
    "SRU": lambda: pt.SRU(5, 4, 2, bidirectional=True, highway_bias=-1.0),
    "SRU-all": lambda: pt.SRU(
        7, 6, 3, dropout=0.2, rnn_dropout=0.1, layer_norm=True, projection_size=3
    ),
    "SlicedRNN": lambda: pt.SlicedRNN(5, 4, (2, 2), "lstm", weight_dropout=0.2),
    "SlicedRNN-sru": lambda: pt.SlicedRNN(5, 4, (3,), "sru", bidirectional=True, pad="right"),
    "SlicedRNN-plain": lambda: pt.SlicedRNN(5, 4, (), bias=False, batch_first=True),
}


@pytest.fixture(autouse=True)
def fresh() -> Any:
    """Nothing compiled by one test counts against the limits of another."""
    torch._dynamo.reset()
    torch.manual_seed(0)


def flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in flat(item)]
    return [value]


def outcome(function: Any, module: Any, x: Any, **given: Any) -> list[Any]:
    """Results and all gradients."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    results = flat(function(x, **given))
    sum((r * torch.linspace(-1, 1, r.numel()).view(r.shape)).sum() for r in results).backward()
    return [*(r.detach() for r in results), x.grad, *(p.grad for p in module.parameters())]


def assert_same(found: list[Any], expected: list[Any], tolerance: float = 1e-6) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("name", MODULES)
def test_compile(name: str) -> None:
    """One graph, forward and backward, the same numbers; sizes may change; under every mode."""
    module = MODULES[name]()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for steps, batch in ((9, 3), (10, 4), (11, 5), (2, 7)):
        x = torch.randn(steps, batch, module.input_size)
        assert_same(outcome(compiled, module, x), outcome(module, module, x))
    assert len(graphs) == 2  # of the first sizes, and of any
    names = {str(n.target) for graph in graphs for n in graph.graph.nodes}
    assert any(n.startswith("penstock.") for n in names), names

    x = torch.randn(9, 4, module.input_size)
    batch, steps = (9, 4) if module.batch_first else (4, 9)
    lengths = torch.arange(batch) % (steps + 1)
    assert_same(
        outcome(compiled, module, x, lengths=lengths), outcome(module, module, x, lengths=lengths)
    )
    module.eval()
    with torch.no_grad():
        for a, b in zip(flat(compiled(x)), flat(module(x)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(compiled, module, x)
        assert found[0].dtype == torch.bfloat16
        expected = outcome(module, module, x)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            scale = float(b.abs().max()) + 1e-3
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * scale)


def test_states_and_training() -> None:
    """Initial states go in, and a compiled training step is the plain one."""
    module = pt.LSTM(5, 4, 2)
    hx = (torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    x = torch.randn(6, 3, 5)
    losses = []
    for compiles in (False, True):
        trained = copy.deepcopy(module)
        optimizer = torch.optim.Adam(trained.parameters(), 0.01)

        def loss_of(x: Any, h: Any, c: Any, trained: Any = trained) -> Any:
            y, (h_last, c_last) = trained(x, (h, c))
            return (y * y).sum() + h_last.sum() - c_last.mean()

        function = (
            torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiles else loss_of
        )
        seen = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = function(x, *hx)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.skipif(
    shutil.which("g++") is None or not (Path(sysconfig.get_path("include")) / "Python.h").exists(),
    reason="inductor needs a compiler and Python's headers",
)
@pytest.mark.parametrize("name", ["GRU-batch_first", "SlicedRNN-plain"])
def test_inductor(name: str) -> None:
    module = MODULES[name]()
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(9, 3, 5)
    assert_same(outcome(compiled, module, x), outcome(module, module, x), 1e-5)


def test_functions() -> None:
    """Functions compile by themselves, options being constants of the graph."""
    x, w, r = torch.randn(6, 3, 5), torch.randn(2, 12, 5), torch.randn(2, 12, 4)
    w.requires_grad_()

    def function(x: Any, w: Any) -> Any:
        out = pt.gru(x, w, r, direction="bidirectional", lengths=[6, 3, 0], reset="before")
        return out.y * 2, out.h_last

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, w), function(x, w), strict=True):
        assert torch.equal(a, b)
    grads = [torch.autograd.grad(f(x, w)[0].sum(), w)[0] for f in (compiled, function)]
    torch.testing.assert_close(*grads)
    with pytest.raises(
        (ValueError, torch._dynamo.exc.TorchRuntimeError), match="x: expected 3 axes"
    ):
        compiled(x[0], w)


@pytest.mark.parametrize("name", ["GRU", "LSTM", "SRU", "SlicedRNN"])
def test_export(name: str) -> None:
    module = MODULES[name]().eval()
    x = torch.randn(8, 3, 5)
    steps = torch.export.Dim("steps", min=2, max=100)
    program = torch.export.export(module, (x,), dynamic_shapes={"input": {0: steps}})
    other = torch.randn(13, 3, 5)
    for a, b in zip(flat(program.module()(other)), flat(module(other)), strict=True):
        assert torch.equal(a, b)


def test_packed_sequences_need_no_graph() -> None:
    """Without fullgraph a PackedSequence goes through a compiled module, in as many graphs as it
    takes."""
    module = pt.GRU(5, 4)
    compiled = torch.compile(module, backend="aot_eager")
    packed = pack_sequence([torch.randn(n, 5) for n in (2, 6, 1)], enforce_sorted=False)
    for a, b in zip(flat(list(compiled(packed))), flat(list(module(packed))), strict=True):
        if a is not None:
            torch.testing.assert_close(a, b)
