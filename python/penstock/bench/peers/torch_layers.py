"""Recurrent layers of PyTorch: its own, and sliced networks composed of them.

On the CPU its LSTM runs in oneDNN where PyTorch was built with it, GRU and RNN in loops over
its BLAS; on a GPU all of them run in cuDNN.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from penstock.bench.cases import Case
from penstock.bench.peer import TorchPeer
from penstock.bench.problem import Problem

_MODULES = {"gru": "GRU", "lstm": "LSTM", "rnn": "RNN"}
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _no_layer(case: Case) -> str:
    """Why torch.nn has no layer for a case, in words; empty if it has."""
    if case.op not in _MODULES:
        return f"torch.nn has no {case.op.upper()}"
    return "torch.nn runs backwards only beside forwards" if case.direction == "reverse" else ""


class _TorchLayers(TorchPeer):
    """What these peers share."""

    def new(self, op: str, inputs: int, case: Case, layers: int = 1) -> Any:
        made = getattr(self.torch.nn, _MODULES[op])(
            inputs, case.H, layers, bidirectional=case.dirs == 2,
            dtype=getattr(self.torch, case.dtype),
        )  # fmt: skip
        return self.module_of(made)

    def load(self, module: Any, parameters: dict[str, np.ndarray], ours: str, theirs: int) -> None:
        """Copy the parameters of our layer with the prefix ``ours`` to the module's layer."""
        for name in _NAMES:
            array = parameters[f"{ours}{name}"]
            for d in range(array.shape[0]):
                suffix = f"{name}_l{theirs}{'_reverse' if d else ''}"
                tensor = getattr(module, suffix)
                with self.torch.no_grad():
                    tensor.copy_(self.library.array(array[d]))
                key = f"{ours}{name}" if array.shape[0] == 1 else f"?{ours}{suffix}"
                self.trained[key] = tensor


class TorchLayer(_TorchLayers):
    """torch.nn.GRU, LSTM and RNN as they are."""

    key = "torch"
    name = "torch.nn"
    note = "torch.nn.GRU, LSTM or RNN; on the CPU the LSTM is oneDNN's, on a GPU all are cuDNN's"

    @classmethod
    def applies(cls, case: Case) -> str:
        return _no_layer(case) or ("it does not slice" if case.slices else "")

    def build(self, problem: Problem) -> np.ndarray:
        case = problem.case
        module = self.new(case.op, case.D, case, case.layers)
        self.trained = {}
        for i in range(case.layers):
            self.load(module, problem.parameters, f"layers.{i}.", i)
        module.flatten_parameters()
        self.forward = lambda x: module(x)[0]
        return problem.dy


class TorchLSTM(_TorchLayers):
    """The LSTM beside an SRU, as in the SRU's paper."""

    key = "torch-lstm"
    name = "torch.nn.LSTM"
    note = "an LSTM of the same sizes in the SRU's place"
    same = False

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op != "sru":
            return "it stands beside an SRU"
        return _no_layer(replace(case, op="lstm")) or ("it does not slice" if case.slices else "")

    def build(self, problem: Problem) -> np.ndarray:
        case = problem.case
        module = self.new("lstm", case.D, case, case.layers)
        module.flatten_parameters()
        self.trained = {f"?{name}": p for name, p in module.named_parameters()}
        self.forward = lambda x: module(x)[0]
        return problem.dy


class TorchComposed(_TorchLayers):
    """The sliced network put together from torch.nn's layers, one for each level."""

    key = "torch-composed"
    name = "composed of torch.nn"
    note = "each level is one torch.nn layer over all its slices, cut by reshape and transpose"

    @classmethod
    def applies(cls, case: Case) -> str:
        return _no_layer(case) if case.slices else "the case is not sliced"

    def build(self, problem: Problem) -> np.ndarray:
        case = problem.case
        modules = []
        self.trained = {}
        parts = case.parts()
        for i, (_, _, width) in enumerate(parts):
            modules.append(self.new(case.op, width, case))
            self.load(modules[-1], problem.parameters, f"levels.{i}.", 0)
            modules[-1].flatten_parameters()

        def forward(x: Any) -> Any:
            for module, (steps, rows, width) in zip(modules, parts, strict=True):
                # Rows are (part, sequence); a part's steps are next to each other in time.
                cut = x.reshape(rows // case.B, steps, case.B, width).transpose(0, 1)
                end = module(cut.reshape(steps, rows, width))[1]
                end = end[0] if case.op == "lstm" else end  # (dirs, rows, H)
                x = end.transpose(0, 1).reshape(rows // case.B, case.B, case.width)
            return x[0]

        self.forward = forward
        return problem.dy


class TorchWhole(_TorchLayers):
    """The network that is not sliced, beside a sliced one."""

    key = "torch-whole"
    name = "torch.nn, not sliced"
    note = "the plain network over the whole sequence, a gradient of every step's output"
    same = False
    last_only = False

    @classmethod
    def applies(cls, case: Case) -> str:
        return _no_layer(case) if case.slices else "the case is not sliced"

    def build(self, problem: Problem) -> np.ndarray:
        case = problem.case
        module = self.new(case.op, case.D, case)
        module.flatten_parameters()
        self.trained = {f"?{name}": p for name, p in module.named_parameters()}
        if not self.last_only:
            self.forward = lambda x: module(x)[0]
            return problem.dy_whole if case.training else problem.dy

        def last(x: Any) -> Any:
            end = module(x)[1]
            end = end[0] if case.op == "lstm" else end
            return end.transpose(0, 1).reshape(case.B, case.width)

        self.forward = last
        return problem.dy


class TorchWholeLast(TorchWhole):
    """Likewise, but the gradient is that of the last state, as in the sliced network's task.

    It fades over the steps, and arithmetic on the denormal numbers it becomes can be slow.
    """

    key = "torch-whole-last"
    name = "torch.nn, not sliced (last)"
    note = "the plain network over the whole sequence, a gradient of the last state alone"
    last_only = True

    @classmethod
    def applies(cls, case: Case) -> str:
        return super().applies(case) or ("" if case.training else "there is no gradient")


PEERS = (TorchLayer, TorchLSTM, TorchComposed, TorchWhole, TorchWholeLast)
