"""Packages of kernels for GPUs, through PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from penstock.bench.cases import GATES, Case
from penstock.bench.peer import TorchPeer
from penstock.bench.problem import Problem


def _plain(case: Case) -> str:
    if case.slices or case.layers > 1 or case.direction != "forward":
        return "one layer in one direction, not sliced"
    return ""


class FlashRNN(TorchPeer):
    """FlashRNN with one head. It takes the input's product, which PyTorch makes here."""

    key = "flashrnn"
    name = "FlashRNN"
    note = "one head, its own weights; the input's product by PyTorch"
    same = False
    devices = ("cuda",)
    module = "flashrnn"

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op not in ("gru", "lstm", "rnn"):
            return "it has no SRU"
        return _plain(case)

    def build(self, problem: Problem) -> np.ndarray:
        from flashrnn import flashrnn

        torch, case = self.torch, problem.case
        function = {"rnn": "elman"}.get(case.op, case.op)
        gates = GATES[case.op]
        biases = 4 if case.op == "gru" else gates  # that of R_n is kept apart from that of W_n
        options = {"dtype": getattr(torch, case.dtype), "device": self.library.device}
        scale = 1 / math.sqrt(case.H)
        weight = (scale * torch.randn(gates * case.H, case.D, **options)).requires_grad_()
        mixing = (scale * torch.randn(gates, 1, case.H, case.H, **options)).requires_grad_()
        bias = torch.zeros(biases, 1, case.H, **options).requires_grad_()
        states = 2 if case.op == "lstm" else 1
        initial = torch.zeros((states, case.B, 1, 1, case.H), **options)
        self.trained = {"?weight": weight, "?mixing": mixing, "?bias": bias}
        backend = "cuda_fused" if case.dtype in ("float16", "bfloat16") else "cuda"

        def forward(x: Any) -> Any:
            product = torch.nn.functional.linear(x.transpose(0, 1), weight)
            out, _ = flashrnn(
                product.reshape(case.B, case.T, gates, 1, case.H), mixing, bias, states=initial,
                function=function, backend=backend, dtype=case.dtype,
            )  # fmt: skip
            # (B, T, heads, H) as given back, to our order.
            return out[0].reshape(case.B, case.T, case.H).transpose(0, 1)

        self.forward = forward
        return problem.dy


class AcceleratedScan(TorchPeer):
    """An SRU without v in its gates, by PyTorch and the scan of accelerated-scan."""

    key = "accelerated-scan"
    name = "accelerated-scan"
    note = "an SRU whose gates do not see the state (v = 0), the only kind a scan can do"
    same = False
    devices = ("cuda",)
    module = "accelerated_scan.warp"

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op != "sru":
            return "it stands beside an SRU"
        if not 32 <= case.T <= 65536 or case.T & (case.T - 1):
            return "its scan takes 32 to 65536 steps, a power of two"
        return _plain(case) or ("" if case.D == case.H else "measured with D = H")

    def build(self, problem: Problem) -> np.ndarray:
        from accelerated_scan.warp import scan

        torch = self.torch
        weight = self.library.array(problem.parameters["layers.0.weight"][0]).requires_grad_()
        bias = self.library.array(problem.parameters["layers.0.bias"][0]).requires_grad_()
        scale = float(problem.parameters["layers.0.scale_x"])
        self.trained = {"?weight": weight, "?bias": bias}

        def forward(x: Any) -> Any:
            u, f, r = torch.nn.functional.linear(x, weight).chunk(3, dim=-1)
            f, r = torch.sigmoid(f + bias[0]), torch.sigmoid(r + bias[1])
            # Time comes last in its scan.
            gates = f.permute(1, 2, 0).contiguous()
            tokens = ((1 - f) * u).permute(1, 2, 0).contiguous()
            c = scan(gates, tokens).permute(2, 0, 1)
            skip = scale * x
            return skip + r * (c - skip)

        self.forward = forward
        return problem.dy


PEERS = (FlashRNN, AcceleratedScan)
