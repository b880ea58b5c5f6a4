"""Train a bidirectional SRU under a GRU with JAX, Flax and Optax, on sequences of many lengths.

Brackets of three kinds open and close between letters, and at the end of each sequence the network
says which kind is still open, the innermost one, if any. Sequences have 8 to 40 steps; padding
stands behind them. Guessing that none is open is right in about one of three cases.

    pip install penstock[jax] flax optax
    python examples/jax_flax.py
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import penstock.jax
from flax import nnx

KINDS = 3
SYMBOLS = 2 * KINDS + 4  # brackets that open, that close, and letters


class SRU(nnx.Module):
    """A bidirectional SRU: (T, B, in_features) to (T, B, 2 * hidden)."""

    def __init__(self, in_features: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.hidden = hidden
        bound = (3 / in_features) ** 0.5
        draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        # K = 4: the input has another width than the output.
        self.weight = nnx.Param(draw(rngs.params(), (2, 4 * hidden, in_features)))
        self.weight_c = nnx.Param(draw(rngs.params(), (2, 2, hidden), minval=-1.0, maxval=1.0))
        self.bias = nnx.Param(jnp.zeros((2, 2, hidden)))

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        return penstock.jax.sru(
            x, self.weight[...], self.weight_c[...], self.bias[...],
            lengths=lengths, direction="bidirectional",
        ).y  # fmt: skip


class GRU(nnx.Module):
    """A GRU: (T, B, in_features) to its last state (B, hidden)."""

    def __init__(self, in_features: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        bound = hidden**-0.5
        draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        self.weight_ih = nnx.Param(draw(rngs.params(), (1, 3 * hidden, in_features)))
        self.weight_hh = nnx.Param(draw(rngs.params(), (1, 3 * hidden, hidden)))
        self.bias_ih = nnx.Param(jnp.zeros((1, 3 * hidden)))
        self.bias_hh = nnx.Param(jnp.zeros((1, 3 * hidden)))

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        return penstock.jax.gru(
            x, self.weight_ih[...], self.weight_hh[...], self.bias_ih[...], self.bias_hh[...],
            lengths=lengths,
        ).h_last  # fmt: skip


class Classifier(nnx.Module):
    def __init__(self, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(SYMBOLS, 16, rngs=rngs)
        self.sru = SRU(16, hidden, rngs=rngs)
        self.gru = GRU(2 * hidden, hidden, rngs=rngs)
        self.head = nnx.Linear(hidden, KINDS + 1, rngs=rngs)

    def __call__(self, symbols: jax.Array, lengths: jax.Array) -> jax.Array:
        features = self.sru(self.embedding(symbols), lengths)
        return self.head(self.gru(features, lengths))


def batch(rng: np.random.Generator, size: int, longest: int = 40) -> tuple[np.ndarray, ...]:
    """Symbols (T, B), lengths (B,) and answers (B,); 0 is the answer where nothing is open."""
    lengths = rng.integers(8, longest + 1, size)
    symbols = np.zeros((longest, size), np.int32)
    answers = np.zeros(size, np.int32)
    for b, length in enumerate(lengths):
        open_kinds: list[int] = []
        for t in range(length):
            choice = rng.random()
            if choice < 0.2 and len(open_kinds) < 3:
                open_kinds.append(int(rng.integers(KINDS)))
                symbols[t, b] = open_kinds[-1]
            elif choice < 0.4 and open_kinds:
                symbols[t, b] = KINDS + open_kinds.pop()
            else:
                symbols[t, b] = rng.integers(2 * KINDS, SYMBOLS)
        answers[b] = open_kinds[-1] + 1 if open_kinds else 0
    return symbols, lengths.astype(np.int32), answers


@nnx.jit
def update(
    model: Classifier, optimizer: nnx.Optimizer, symbols: Any, lengths: Any, answers: Any
) -> tuple[jax.Array, jax.Array]:
    """One step of training; the loss and how many answers were right."""

    def loss_of(model: Classifier) -> tuple[jax.Array, jax.Array]:
        logits = model(symbols, lengths)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()
        return loss, (logits.argmax(-1) == answers).mean()

    (loss, right), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    optimizer.update(model, gradients)
    return loss, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    model = Classifier(args.hidden, rngs=nnx.Rngs(args.seed))
    schedule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
    optimizer = nnx.Optimizer(model, schedule, wrt=nnx.Param)
    totals = np.zeros(2)
    for step in range(1, args.updates + 1):
        totals += [float(n) for n in update(model, optimizer, *batch(rng, 64))]
        if step % 100 == 0:
            loss, right = totals / 100
            print(f"update {step:4d}  mean loss {loss:.3f}  right {right:.1%}", flush=True)
            totals[:] = 0.0


if __name__ == "__main__":
    main()
