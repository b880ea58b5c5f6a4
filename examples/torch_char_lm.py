"""A character language model in PyTorch, whose LSTM is penstock's instead of torch.nn's.

    python examples/torch_char_lm.py TEXT_FILE [--steps 500] [--layer torch] [--compile]

``--layer torch`` trains the same model from the same weights with torch.nn.LSTM: the losses agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import penstock.torch
import torch
from torch import Tensor, nn


class CharLM(nn.Module):
    """Characters in, logits of the next ones out."""

    def __init__(self, symbols: int, hidden: int, layer: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, hidden)
        self.lstm = layer(hidden, hidden, num_layers=2, dropout=0.1)
        self.output = nn.Linear(hidden, symbols)

    def forward(
        self, text: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """text: (T, B) numbers of characters; returns logits (T, B, symbols) and the state."""
        y, state = self.lstm(self.embedding(text), state)
        return self.output(y), state


def train(
    text: str,
    layer: type[nn.Module],
    *,
    steps: int,
    length: int = 64,
    batch: int = 32,
    hidden: int = 128,
    compiled: bool = False,
) -> Iterator[float]:
    """Train on random pieces of a text; yields the loss of each step in nats per character."""
    torch.manual_seed(0)
    symbols = sorted(set(text))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    data = torch.tensor([index[symbol] for symbol in text])
    model = CharLM(len(symbols), hidden, layer)
    forward = torch.compile(model, fullgraph=True) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        starts = torch.randint(len(data) - length, (batch,))
        pieces = torch.stack([data[s : s + length + 1] for s in starts.tolist()], dim=1)
        logits, _ = forward(pieces[:-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), pieces[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a text file in UTF-8")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--layer", choices=("penstock", "torch"), default="penstock")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    given = parser.parse_args()
    layer = penstock.torch.LSTM if given.layer == "penstock" else nn.LSTM
    text = given.text.read_text(encoding="utf-8")
    begin = time.perf_counter()
    losses = train(text, layer, steps=given.steps, compiled=given.compile)
    for step, loss in enumerate(losses, 1):
        if step % 50 == 0 or step == given.steps:
            print(f"step {step:5d}  loss {loss:.4f}  {time.perf_counter() - begin:6.1f} s")


if __name__ == "__main__":
    main()
