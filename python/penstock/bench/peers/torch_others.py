"""What else does such work in PyTorch: convolutions over time, and the matrix products alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.bench.cases import Case
from penstock.bench.formulas import blocks
from penstock.bench.peer import TorchPeer
from penstock.bench.problem import Problem


def _one_plain_layer(case: Case) -> str:
    if case.layers > 1 or case.direction != "forward":
        return "one layer, forward in time, only"
    return ""


class _Convolution(TorchPeer):
    """A convolution over some steps, which the SRU's paper compares speed with."""

    same = False
    axes = (1, 2, 0)  # (B, D, T), PyTorch's order
    width: int

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op != "sru" or case.slices:
            return "it stands beside an SRU"
        return _one_plain_layer(case)

    def build(self, problem: Problem) -> np.ndarray:
        case = problem.case
        kind = getattr(self.torch, case.dtype)
        module = self.module_of(
            self.torch.nn.Conv1d(case.D, case.H, self.width, padding=1, dtype=kind)
        )
        self.trained = {f"?{name}": p for name, p in module.named_parameters()}
        # Of an even width padding gives one step too many.
        self.forward = lambda x: module(x)[:, :, : case.T]
        return problem.dy


class Convolution2(_Convolution):
    """Over two steps."""

    key = "conv2"
    name = "torch Conv1d, k = 2"
    note = "a convolution over two steps, with as many features"
    width = 2


class Convolution3(_Convolution):
    """Over three steps."""

    key = "conv3"
    name = "torch Conv1d, k = 3"
    note = "a convolution over three steps, with as many features"
    width = 3


class DilatedCNN(TorchPeer):
    """A causal convolutional network whose dilation doubles, beside a sliced network.

    Layers of H features over two steps each, 1, 2, 4, … steps apart, with ReLU between them, until
    the last output has seen the whole sequence; that output is the result.
    """

    key = "dilated-cnn"
    name = "dilated CNN (torch)"
    note = "convolutions over two steps, dilation doubling until they see the whole sequence"
    same = False

    @classmethod
    def applies(cls, case: Case) -> str:
        return _one_plain_layer(case) if case.slices else "it stands beside a sliced network"

    def build(self, problem: Problem) -> np.ndarray:
        case = problem.case
        nn = self.torch.nn
        layers: list[Any] = []
        width, reach, dilation = case.D, 1, 1
        while reach < case.T or not layers:
            layers.append(nn.ConstantPad1d((dilation, 0), 0.0))
            layers.append(nn.Conv1d(width, case.H, 2, dilation=dilation))
            layers.append(nn.ReLU())
            width, reach, dilation = case.H, reach + dilation, 2 * dilation
        network = nn.Sequential(*layers[:-1]).to(getattr(self.torch, case.dtype))
        network = self.module_of(network)
        self.trained = {f"?{name}": p for name, p in network.named_parameters()}

        def forward(x: Any) -> Any:
            return network(x.permute(1, 2, 0))[:, :, -1]

        self.forward = forward
        return problem.dy


class Products(TorchPeer):
    """The matrix products over all steps alone, by PyTorch's BLAS: what a layer cannot go below
    with it, were everything else free."""

    key = "products"
    name = "products alone (torch)"
    note = "only the matrix products of an SRU, by PyTorch's BLAS, without its recurrence"
    same = False

    @classmethod
    def applies(cls, case: Case) -> str:
        return "" if case.op == "sru" and not case.slices else "it stands beside an SRU"

    def build(self, problem: Problem) -> np.ndarray:
        rng = np.random.default_rng(2)
        case = problem.case
        kind = problem.dtype
        rows = case.T * case.B
        self.products = []
        for _, _, width in case.parts():
            wide = case.dirs * blocks(case, width) * case.H
            shapes = ((rows, width), (wide, width), (rows, wide))
            self.products.append(
                [
                    self.library.array(rng.standard_normal(s, np.float32).astype(kind))
                    for s in shapes
                ]
            )
        self.trained = {}
        self.forward = lambda x: x
        return problem.dy

    def run(self) -> None:
        for x, weight, du in self.products:
            self.torch.mm(x, weight.T)
            if self.training:
                self.torch.mm(du.T, x)
                self.torch.mm(du, weight)


PEERS = (Convolution2, Convolution3, DilatedCNN, Products)
