"""Programs for PyTorch with penstock's layers in place of torch.nn's: the same losses.

PENSTOCK_TEXT may name a text file, such as tinyshakespeare's, for the language model.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import penstock.torch as pt  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

STEPS = 50
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torch_char_lm.py"
POEM = """\
Tyger Tyger, burning bright,
In the forests of the night;
What immortal hand or eye,
Could frame thy fearful symmetry?

In what distant deeps or skies,
Burnt the fire of thine eyes?
On what wings dare he aspire?
What the hand, dare seize the fire?

And what shoulder, & what art,
Could twist the sinews of thy heart?
And when thy heart began to beat,
What dread hand? & what dread feet?
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch's threads spin between these small operations, which takes seconds where others work
    too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of processes started here
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def example() -> Any:
    spec = importlib.util.spec_from_file_location("torch_char_lm", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def char_lm(namespace: Any, text: str = POEM) -> Iterator[float]:
    """A language model: an LSTM over embedded characters, with dropout between its layers."""
    yield from example().train(text, namespace.LSTM, steps=STEPS, length=32, batch=8, hidden=48)


def tagger(namespace: Any) -> Iterator[float]:
    """Tags for every word of sentences of all lengths, packed: whether a number was seen before."""
    torch.manual_seed(0)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(12, 24)
            self.gru = namespace.GRU(24, 32, 2, batch_first=True, dropout=0.2)
            self.output = nn.Linear(32, 2)

        def forward(self, words: Any, lengths: Any) -> Any:
            packed = pack_padded_sequence(
                self.embedding(words), lengths, batch_first=True, enforce_sorted=False
            )
            y, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
            return self.output(y)

    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(STEPS):
        lengths = torch.randint(1, 13, (16,))
        words = torch.randint(12, (16, int(lengths.max())))
        tags = torch.tensor([[w in row[:t] for t, w in enumerate(row)] for row in words.tolist()])
        valid = torch.arange(words.shape[1]) < lengths[:, None]
        loss = nn.functional.cross_entropy(model(words, lengths)[valid], tags[valid].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def classifier(namespace: Any) -> Iterator[float]:
    """Whether a noisy wave is a fast one: a bidirectional LSTM's last states decide."""
    torch.manual_seed(0)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = namespace.LSTM(2, 24, 2, bidirectional=True)
            self.output = nn.Linear(48, 2)

        def forward(self, x: Any) -> Any:
            _, (h, _) = self.lstm(x)
            last = h.view(2, 2, x.shape[1], 24)[-1]  # (directions, B, H) of the upper layer
            return self.output(torch.cat([last[0], last[1]], dim=1))

    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    time = torch.linspace(0, 6, 25)[:, None, None]
    for _ in range(STEPS):
        speed = 1 + 2 * torch.rand(1, 32, 1)
        x = torch.sin(time * speed + torch.tensor([0.0, 1.0])) + 0.1 * torch.randn(25, 32, 2)
        loss = nn.functional.cross_entropy(model(x), (speed[0, :, 0] > 2).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("program", [char_lm, tagger, classifier], ids=lambda p: p.__name__)
def test_same_losses(program: Any) -> None:
    """Step by step for 50 steps within 1e-4, and they fall."""
    theirs = list(program(nn))
    ours = list(program(pt))
    assert len(ours) == STEPS
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert sum(theirs[-5:]) < 0.9 * sum(theirs[:5])


def test_same_losses_on_a_text() -> None:
    path = os.environ.get("PENSTOCK_TEXT")
    if not path:
        pytest.skip("PENSTOCK_TEXT names no text file")
    text = Path(path).read_text(encoding="utf-8")
    theirs = list(char_lm(nn, text))
    ours = list(char_lm(pt, text))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert theirs[-1] < theirs[0]


def test_example(tmp_path: Path) -> None:
    """The example as a command."""
    path = tmp_path / "poem.txt"
    path.write_text(POEM, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(path), "--steps", "3"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("step     3  loss 3.")


WORKER = """
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import penstock.torch as pt


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = pt.GRU(5, 6, 2, bidirectional=True)
        self.lstm = pt.LSTM(12, 4)
        self.rnn = pt.RNN(4, 5)
        self.sru = pt.SRU(5, 5, 2)
        self.sliced = pt.SlicedRNN(5, 4, (2, 2))

    def forward(self, x):
        for layer in (self.gru, self.lstm, self.rnn, self.sru):
            x, _ = layer(x)
        return self.sliced(x)[0]


def gradients(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(rank)  # DDP begins with the first process's parameters
model = Model()
ddp = DistributedDataParallel(model)
x = torch.randn(8, 6, 5, generator=torch.Generator().manual_seed(7))
mine = x[:, 3 * rank : 3 * rank + 3]
for _ in range(2):
    found = gradients(ddp, mine)
    expected = gradients(model, x)
    for (name, _), a, b in zip(model.named_parameters(), found, expected):
        assert a.abs().max() > 0, name
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=lambda m: f"{name}: {m}")
    with torch.no_grad():
        for p, g in zip(model.parameters(), found):
            p -= 0.1 * g
dist.barrier()
dist.destroy_process_group()
print("same gradients")
"""


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="PyTorch has no gloo",
)
def test_two_processes(tmp_path: Path) -> None:
    """DistributedDataParallel over gloo: the gradients of one process over the whole batch."""
    path = tmp_path / "worker.py"
    path.write_text(textwrap.dedent(WORKER), encoding="utf-8")
    environment = dict(os.environ)
    if sys.platform == "linux":  # whatever the machine calls itself
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = [
        subprocess.Popen(
            [sys.executable, str(path), str(rank), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        results = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, (out, err) in zip(workers, results, strict=True):
        assert worker.returncode == 0, err
        assert out == "same gradients\n"
