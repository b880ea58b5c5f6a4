"""What all tests share: where the reference lies, and the backends that tests run over.

``PENSTOCK_HOST_PLUGIN`` (read by the library) replaces the CPU by another backend on the host. With
CuPy and a device, tests that take ``backend`` run there too.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The reference's products are small, and NumPy's BLAS threads spin between them, which on few cores
# slows everything else down. Read when NumPy is first imported; penstock counts its own threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads spin, too

import numpy as np
import penstock
import pytest

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))  # for `reference`, which is not part of the package

from reference.problems import FLOATS, Problem, dtype_of  # noqa: E402
from reference.recurrent_problems import RecurrentProblem, SlicedProblem, flat  # noqa: E402

HOST_PLUGIN = os.environ.get("PENSTOCK_HOST_PLUGIN", "")
GRADIENTS = ("dx", "dweight", "dweight_c", "dbias", "dc0", "dmask_c", "dx_skip")


def _why_no_cuda() -> str:
    """Empty where CuPy and penstock both have a device."""
    config = penstock.config()
    if not config["cuda_available"]:
        return str(config["cuda_status"])
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy

    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        return f"CuPy finds no device: {e}"
    return ""


NO_CUDA = _why_no_cuda()


class Backend:
    """Where a test's arrays live: moves them there and back and runs problems on them."""

    name = "host"
    # Bits and limits of the CPU's own code do not hold where a plugin stands in for it.
    is_cpu = not HOST_PLUGIN
    # An emulated device is slow: large problems are left to the real ones.
    is_emulated = bool(HOST_PLUGIN)

    def to_device(self, array: Any) -> Any:
        return array

    def to_host(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def has_dtype(self, name: str) -> bool:
        try:
            dtype_of(name)
        except ImportError:
            return False
        return True

    def sru(self, problem: Problem, **changes: Any) -> penstock.SRUOutput:
        """Call penstock.sru with a problem's arguments, moved to the device."""
        a = problem.arrays
        keywords = problem.keywords() | changes
        for name, value in keywords.items():
            if isinstance(value, np.ndarray):
                keywords[name] = self.to_device(value)
        x, weight, weight_c, bias = (
            None if a[n] is None else self.to_device(a[n]) for n in FLOATS[:4]
        )
        return penstock.sru(x, weight, weight_c, bias, **keywords)

    def collect(self, output: Any, grads: Any | None) -> dict[str, np.ndarray]:
        """Outputs and gradients on the host, in the element type they came in."""
        found = {"y": output.y, "c_last": output.c_last}
        if grads is not None:
            found |= {n: getattr(grads, n) for n in GRADIENTS if getattr(grads, n) is not None}
        return {name: self.to_host(value) for name, value in found.items()}

    def run(self, problem: Problem) -> dict[str, np.ndarray]:
        """Forward and backward; the outcome has the keys of ``problem.solve()``."""
        output = self.sru(problem)
        assert output.backprop is not None
        dy, dc_last = (
            None if g is None else self.to_device(g) for g in (problem.dy, problem.dc_last)
        )
        return self.collect(output, output.backprop(dy, dc_last))

    def moved(self, value: Any) -> Any:
        """A NumPy array, or all that a container holds, on the device; the rest as it is."""
        if isinstance(value, np.ndarray):
            return self.to_device(value)
        if isinstance(value, dict):
            return {k: self.moved(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.moved(v) for v in value)
        return value

    def call(self, problem: RecurrentProblem | SlicedProblem, **changes: Any) -> Any:
        """Call the function that a problem is about with its arguments, moved to the device."""
        function = getattr(penstock, problem.operation)
        keywords = problem.keywords() | changes
        return function(*self.moved(problem.positional()), **self.moved(keywords))

    def named(self, *results: Any) -> dict[str, np.ndarray]:
        """Outputs and gradients on the host, by name; those that are None are left out."""
        found: dict[str, Any] = {}
        for result in results:
            found |= result._asdict()
        found.pop("backprop", None)
        return {name: self.to_host(value) for name, value in flat(found).items()}

    def outcome(
        self, problem: RecurrentProblem | SlicedProblem, **changes: Any
    ) -> dict[str, np.ndarray]:
        """Forward and backward; the outcome has the keys of ``problem.solve()``."""
        output = self.call(problem, **changes)
        return self.named(output, output.backprop(**self.moved(problem.gradients)))


class CudaBackend(Backend):
    name = "cuda"
    is_cpu = False
    is_emulated = False

    def to_device(self, array: Any) -> Any:
        import cupy

        return cupy.asarray(array)

    def to_host(self, array: Any) -> np.ndarray:
        return array.get()

    def has_dtype(self, name: str) -> bool:
        if name != "bfloat16":
            return True
        import cupy
        import ml_dtypes

        try:
            cupy.empty(1, ml_dtypes.bfloat16)
        except (TypeError, ValueError):
            return False
        return True


@pytest.fixture(params=["host"] if NO_CUDA else ["host", "cuda"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The backend to run on."""
    return CudaBackend() if request.param == "cuda" else Backend()


@pytest.fixture
def cpu_only() -> None:
    """Skip where a plugin stands in for the CPU."""
    if HOST_PLUGIN:
        pytest.skip("about the CPU's own code, and PENSTOCK_HOST_PLUGIN replaces it")


@pytest.fixture
def resident_bytes() -> Callable[[], int]:
    """Memory of this process that is in use, asked for after a collection of garbage."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc")
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer keeps what is freed")

    def measure() -> int:
        gc.collect()
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    return measure


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """set_num_threads, undone afterwards."""
    before = penstock.get_num_threads()
    yield penstock.set_num_threads
    penstock.set_num_threads(before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """NumPy has no bfloat16 of its own."""
    parameters = getattr(item, "callspec", None)
    if parameters is not None and "bfloat16" in parameters.id.split("-"):
        pytest.importorskip("ml_dtypes")


def pytest_report_header() -> list[str]:
    config = penstock.config()
    host = f"plugin {HOST_PLUGIN}" if HOST_PLUGIN else f"CPU {config['cpu_isa']}"
    return [
        f"penstock {config['version']}: host {host}, {config['num_threads']} threads, "
        f"BLAS kernels for {config['blas_core']}",
        f"penstock CUDA: {NO_CUDA or config['cuda_status']}",
    ]
