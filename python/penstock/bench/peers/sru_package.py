"""The ``sru`` package, by the authors of the SRU's paper."""

from __future__ import annotations

import warnings

import numpy as np

from penstock.bench.cases import Case
from penstock.bench.peer import TorchPeer, one_line
from penstock.bench.problem import Problem


class SRUPackage(TorchPeer):
    """``sru.SRU``: on the CPU TorchScript in inference, a loop in Python in training."""

    key = "sru"
    name = "sru package"

    @classmethod
    def available(cls, device: str) -> tuple[bool, str]:
        found = super().available(device)
        if not found[0]:
            return found
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import sru  # noqa: F401
        except Exception as error:  # it compiles CUDA on import, and fails in many ways
            return False, one_line(f"sru does not import here ({error})")
        return True, ""

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op != "sru":
            return "it has the SRU alone"
        if case.direction == "reverse":
            return "it runs backwards only beside forwards"
        return "it does not slice" if case.slices else ""

    def build(self, problem: Problem) -> np.ndarray:
        import sru

        from penstock.convert import to_sru_package

        case = problem.case
        module = sru.SRU(
            case.D, case.H, case.layers, bidirectional=case.dirs == 2, rescale=True
        )  # fmt: skip
        module.load_state_dict(
            {
                name: self.torch.from_numpy(np.asarray(array, np.float32))
                for name, array in to_sru_package(problem.layer).items()
            }
        )
        module = self.module_of(module.to(getattr(self.torch, case.dtype)))
        self.trained = {f"?{name}": p for name, p in module.named_parameters()}
        self.forward = lambda x: module(x)[0]
        return problem.dy


PEERS = (SRUPackage,)
