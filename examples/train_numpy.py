"""Train an SRU with NumPy alone: no framework, no autograd.

The adding problem: of a sequence of random numbers two are marked, and the network is to say their
sum at the end. Guessing 1 every time costs 0.167 (the variance of a sum of two uniform numbers).

    python examples/train_numpy.py
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
    parser.add_argument("--steps", type=int, default=60, help="length of the sequences")
    parser.add_argument("--updates", type=int, default=600)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    encoder = penstock.SRU(2, 64, num_layers=2, seed=1)
    head = nn.Linear(64, 1, seed=2)
    parameters = {f"encoder.{name}": array for name, array in encoder.parameters().items()}
    parameters |= {f"head.{name}": array for name, array in head.parameters().items()}
    optimizer = optim.Adam(parameters, lr=5e-3)

    for update in range(args.updates + 1):
        x, target = batch(rng, args.steps, 64)
        states = encoder(x, training=True)
        guess = head(states.y[-1], training=True)
        loss, backprop = nn.mean_squared_error(guess.y, target)

        d_guess = guess.backprop(backprop())
        dy = np.zeros_like(states.y)
        dy[-1] = d_guess.dx
        d_states = states.backprop(dy)
        gradients = nn.prefix_gradients(encoder=d_states.dparameters, head=d_guess.dparameters)
        optim.clip_grad_norm(gradients, 1.0)
        optimizer.step(gradients)
        if update % 100 == 0:
            print(f"update {update:4d}  loss {loss:.4f}")


if __name__ == "__main__":
    main()
