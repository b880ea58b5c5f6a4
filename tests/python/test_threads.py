"""The number of threads changes how fast a result comes, and not one bit of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import penstock
import pytest
from reference.problems import FLOATS, random_problem

# Below and above what is worth handing to other threads, what repacks weights, what is one chunk
# of time steps, and what the matrix unit of some processors takes.
SHAPES = [
    (1, 1, 64), (5, 1, 256), (4, 2, 512), (63, 1, 200), (64, 1, 200), (20, 10, 256), (1, 200, 200),
    (1500, 1, 128), (530, 2, 130), (3, 600, 100), (33, 32, 257),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("steps", "batch", "hidden"), SHAPES)
def test_bits_do_not_depend_on_threads(
    threads: Callable[[int], None],
    cpu_only: None,
    backend: Any,
    *,
    steps: int,
    batch: int,
    hidden: int,
    dtype: str,
) -> None:
    form = {64: "k3", 256: "x_skip"}.get(hidden, "k4")
    direction = "bidirectional" if hidden % 100 == 0 else "reverse" if hidden > 200 else "forward"
    problem = random_problem(
        steps, batch, hidden, form=form, inputs=150, direction=direction, activation="tanh",
        mask_site="output", padding="both", dtype=dtype,
    )  # fmt: skip
    threads(1)
    expected = backend.run(problem)
    for n in (2, 3, 5, 8):
        threads(n)
        for name, value in backend.run(problem).items():
            assert value.tobytes() == expected[name].tobytes(), (n, name)


def test_set_and_get(threads: Callable[[int], None]) -> None:
    for n in (1, 3, np.int64(2)):
        threads(n)  # type: ignore[arg-type]
        assert penstock.get_num_threads() == n
        assert penstock.config()["num_threads"] == n


@pytest.mark.parametrize("n", [0, -1, -(2**31)])
def test_less_than_one_thread(n: int) -> None:
    before = penstock.get_num_threads()
    with pytest.raises(ValueError, match=rf"n: expected at least 1 \(actual: {n}\)"):
        penstock.set_num_threads(n)
    assert penstock.get_num_threads() == before


@pytest.mark.parametrize("n", [1.5, "2", None, [1]])
def test_threads_are_counted_in_integers(n: Any) -> None:
    with pytest.raises(TypeError, match=f"n: expected an integer .actual: {type(n).__name__}"):
        penstock.set_num_threads(n)


@pytest.mark.parametrize("n", [2**31, 2**64, 10**30])
def test_more_threads_than_can_be_counted(n: int) -> None:
    with pytest.raises(ValueError, match=f"n: .*actual: {n}"):
        penstock.set_num_threads(n)


def test_changing_the_number_while_others_compute(
    threads: Callable[[int], None], cpu_only: None, backend: Any
) -> None:
    problem = random_problem(64, 8, 192, direction="bidirectional", dtype="float32")
    expected = backend.run(problem)
    stop = threading.Event()

    def change() -> None:
        for n in itertools.cycle((1, 4, 2, 3)):
            penstock.set_num_threads(n)
            if stop.wait(0.0005):
                return

    changer = threading.Thread(target=change)
    changer.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: backend.run(problem), range(24)))
    finally:
        stop.set()
        changer.join()
    for result in results:
        for name, value in result.items():
            assert value.tobytes() == expected[name].tobytes(), name


def test_other_python_threads_run_meanwhile(cpu_only: None) -> None:
    """The interpreter's lock is given back while the library computes."""
    problem = random_problem(512, 16, 192, dtype="float32")
    args = [problem.arrays[n] for n in FLOATS[:4]]
    counts = [0]
    done = threading.Event()

    def compute() -> None:
        for _ in range(3):
            penstock.sru(*args)
        done.set()

    worker = threading.Thread(target=compute)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # so only a lock given back lets this thread in
    try:
        worker.start()
        while not done.wait(0.0005):
            counts[0] += 1
    finally:
        sys.setswitchinterval(interval)
        worker.join()
    assert counts[0] > 0


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("1", 1), ("0", None), ("many", None)])
def test_number_from_the_environment(value: str, expected: int | None) -> None:
    """What is no number of threads is ignored."""
    package = str(Path(penstock.__file__).resolve().parents[1])
    paths = os.pathsep.join([package, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", "import penstock; print(penstock.get_num_threads())"],
        env=os.environ | {"PENSTOCK_NUM_THREADS": value, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if expected is not None or processors is not None:
        assert int(done.stdout) == (expected or processors)


def test_the_pool_ends_with_the_process() -> None:
    """Exit is clean with threads asleep, and while one is still computing."""
    package = str(Path(penstock.__file__).resolve().parents[1])
    script = (
        "import threading, numpy as np, penstock\n"
        "penstock.set_num_threads(4)\n"
        "x = np.zeros((64, 16, 256), np.float32)\n"
        "w, b = np.zeros((1, 768, 256), np.float32), np.zeros((1, 2, 256), np.float32)\n"
        "def work():\n"
        "    while True: penstock.sru(x, w, None, b)\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "out = penstock.sru(x, w, None, b)\n"
        "print(out.y.shape, out.backprop(out.y).dx.shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([package, *sys.path])},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["(64,", "16,", "256)"] * 2


@pytest.mark.parametrize("cell", ["rnn", "gru", "gru before", "lstm"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("batch", [2, 24])
def test_few_rows_of_large_cells(
    threads: Callable[[int], None], cpu_only: None, cell: str, direction: str, batch: int
) -> None:
    """Here threads share the units of each step, not the rows."""
    rng = np.random.default_rng(0)
    name, _, reset = cell.partition(" ")
    hidden, inputs, steps = 390, 20, 5
    dirs = 2 if direction == "bidirectional" else 1
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[name]
    shapes = [(gates * hidden, inputs), (gates * hidden, hidden), (gates * hidden,)]
    weight_ih, weight_hh, bias = (
        rng.uniform(-0.1, 0.1, (dirs, *shape)).astype(np.float32) for shape in shapes
    )
    x = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    options = {"reset": reset} if reset else {}
    expected: list[bytes] = []
    for n in (1, 2, 5, 8):
        threads(n)
        out = getattr(penstock, name)(
            x,
            weight_ih,
            weight_hh,
            bias,
            bias,
            lengths=[5, 3] * (batch // 2),
            direction=direction,
            **options,
        )
        grads = out.backprop(np.ones_like(out.y))
        bits = [a.tobytes() for a in (*out[:-1], *grads)]
        expected = expected or bits
        assert bits == expected, n
