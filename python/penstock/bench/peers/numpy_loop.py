"""The same network in NumPy, one step after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.bench import reference
from penstock.bench.cases import Case
from penstock.bench.peer import Peer
from penstock.bench.problem import Problem


class NumpyLoop(Peer):
    """What one writes in NumPy without a library: the product with all inputs, then a loop."""

    key = "numpy"
    name = "NumPy loop"
    note = "forward only"
    devices = ("cpu",)

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.dtype not in ("float32", "float64"):
            return "measured in float32 and float64"
        return "it has no backward pass" if case.training else ""

    def prepare(self, problem: Problem, device: str) -> None:
        self.case, self.x = problem.case, problem.x
        self.parameters = problem.parameters

    def run(self) -> Any:
        return reference.forward(self.case, self.parameters, self.x)

    def values(self) -> dict[str, np.ndarray]:
        return {"y": self.run()}


PEERS = (NumpyLoop,)
