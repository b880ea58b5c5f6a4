"""Train a sliced GRU on sequences of 512 steps, with NumPy alone.

The adding problem: of a sequence of random numbers two are marked, and the network is to say their
sum at the end. Guessing 1 every time costs 0.167 (the variance of a sum of two uniform numbers).
Through 8 × 8 slices a gradient passes 24 steps instead of 512.

    python examples/sliced_gru.py
    python examples/sliced_gru.py --slices ""     # the plain GRU
"""

from __future__ import annotations

import argparse

import numpy as np
import penstock
from penstock import nn, optim


def batch(rng: np.random.Generator, steps: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (T, B, 2), numbers and marks, and targets (B, 1)."""
    numbers = rng.random((steps, size), np.float32)
    marks = np.zeros((steps, size), np.float32)
    column = np.arange(size)
    marks[rng.integers(0, steps // 2, size), column] = 1
    marks[rng.integers(steps // 2, steps, size), column] = 1
    return np.stack([numbers, marks], axis=-1), (numbers * marks).sum(0)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=512, help="length of the sequences")
    parser.add_argument("--slices", default="8,8", help="into how many parts, and these again")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    slices = tuple(int(n) for n in args.slices.split(",") if n)
    encoder = penstock.SlicedRNN(2, 32, slices, cell="gru", seed=rng)
    head = nn.Linear(32, 1, seed=rng)
    parameters = {f"encoder.{name}": array for name, array in encoder.parameters().items()}
    parameters |= {f"head.{name}": array for name, array in head.parameters().items()}
    optimizer = optim.Adam(parameters, lr=5e-3)
    count = sum(array.size for array in parameters.values())
    print(f"{encoder}: {count} parameters with the head's")

    total = 0.0
    for update in range(1, args.updates + 1):
        x, target = batch(rng, args.steps, 64)
        state = encoder(x, training=True)
        guess = head(state.y, training=True)
        loss, backprop = nn.mean_squared_error(guess.y, target)

        d_guess = guess.backprop(backprop())
        d_state = state.backprop(d_guess.dx)
        gradients = nn.prefix_gradients(encoder=d_state.dparameters, head=d_guess.dparameters)
        optim.clip_grad_norm(gradients, 1.0)
        optimizer.step(gradients)
        total += float(loss)
        if update % 100 == 0:
            print(f"update {update:4d}  mean loss {total / 100:.4f}")
            total = 0.0


if __name__ == "__main__":
    main()
