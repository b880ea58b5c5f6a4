"""Measure a sliced GRU over many ways to cut, on the CPU, and print a table in Markdown.

python docs/slicing/sweep.py

Times are of one thread, forward and backward of one layer: the least processor time of several
calls. The cuts take turns, so that other work on the machine meets all of them.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import penstock

# (T, B), and how to cut.
CASES: dict[tuple[int, int], list[tuple[int, ...]]] = {
    (512, 100): [(), (2,), (8,), (23,), (8, 8), (4, 4, 4), (2,) * 8],
    (4096, 16): [(), (8,), (64,), (16, 16), (8, 8, 8), (2,) * 10],
    (4096, 1): [(), (8,), (64,), (16, 16), (8, 8, 8), (2,) * 10],
}
INPUTS, HIDDEN = 200, 50


def steps_of(time_steps: int, slices: tuple[int, ...]) -> int:
    """How many steps follow each other."""
    return -(-time_steps // math.prod(slices)) + sum(slices)


def remember(layer: penstock.SlicedRNN, time_steps: int, slices: tuple[int, ...]) -> None:
    """Let update gates keep a state for about as many steps as a part has.

    Otherwise gradients vanish over thousands of steps, and then the backward pass takes
    over ten times as long: processors are slow with numbers below float32's normal range.
    """
    lengths = [-(-time_steps // math.prod(slices)), *reversed(slices)]
    for i, steps in enumerate(lengths):
        bias = layer.parameters()[f"levels.{i}.bias_ih"]
        bias[:, HIDDEN : 2 * HIDDEN] = math.log(max(steps - 1, 1))


def measure(time_steps: int, batch: int, cuts: list[tuple[int, ...]], calls: int) -> list[float]:
    """Least milliseconds of each cut, forward and backward."""
    x = np.random.default_rng(0).standard_normal((time_steps, batch, INPUTS), dtype=np.float32)
    layers = [penstock.SlicedRNN(INPUTS, HIDDEN, slices, seed=0) for slices in cuts]
    for layer, slices in zip(layers, cuts, strict=True):
        remember(layer, time_steps, slices)
    least = [math.inf] * len(cuts)
    for _ in range(calls):
        for i, layer in enumerate(layers):
            start = time.thread_time()
            output = layer(x, training=True)
            output.backprop(output.y)
            least[i] = min(least[i], (time.thread_time() - start) * 1e3)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=10, help="of each cut")
    args = parser.parse_args()

    penstock.set_num_threads(1)
    print("| T | B | slices | steps in a row | rows at once | ms | times faster |")
    print("|---|---|---|---|---|---|---|")
    for (time_steps, batch), cuts in CASES.items():
        times = measure(time_steps, batch, cuts, args.calls)
        for slices, ms in zip(cuts, times, strict=True):
            name = f"({slices[0]},) * {len(slices)}" if len(slices) > 3 else str(slices)
            steps, rows = steps_of(time_steps, slices), batch * math.prod(slices)
            print(
                f"| {time_steps} | {batch} | {name} | {steps} | {rows} | {ms:.3g} "
                f"| {times[0] / ms:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
