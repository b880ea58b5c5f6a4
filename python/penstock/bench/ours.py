"""Our own contenders."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from penstock.bench.cases import Case
from penstock.bench.peer import Peer
from penstock.bench.problem import Library, Problem, make_layer, our_library

_RECURRENT = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_SRU = ("weight", "weight_c", "bias")


class Ours(Peer):
    """penstock's functions: NumPy arrays, on a GPU tensors of PyTorch or arrays of CuPy."""

    key = "penstock"
    name = "penstock"
    #: Further arguments of the functions in training.
    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def applies(cls, case: Case) -> str:
        return ""

    def prepare(self, problem: Problem, device: str) -> None:
        self.library: Library = our_library(device)
        self.case = self.case_of(problem.case)
        self.parameters = problem.parameters
        self.x = self.library.array(problem.x)
        self.dy = self.library.array(problem.dy) if self.case.training else None
        self._take_parameters()

    def case_of(self, case: Case) -> Case:
        """The case that is run in a given one's place."""
        return case

    def _take_parameters(self) -> None:
        names = _SRU if self.case.op == "sru" else _RECURRENT
        prefix = "levels" if self.case.slices else "layers"
        self.names = [
            [f"{prefix}.{i}.{name}" for name in names] for i in range(len(self.case.parts()))
        ]
        self.arrays = [
            tuple(self.library.array(self.parameters[name]) for name in level)
            for level in self.names
        ]
        if self.case.op != "sru":
            self.scales: list[dict[str, float]] = [{} for _ in self.names]
        elif self.case.slices:
            self.scales = [{"scale_x": float(self.parameters.get("scale_x", 1.0))}]
        else:
            self.scales = [
                {"scale_x": float(self.parameters[f"layers.{i}.scale_x"])}
                for i in range(self.case.layers)
            ]

    def run(self) -> Any:
        return self.call(self.x, self.dy)

    def call(self, x: Any, dy: Any) -> tuple[Any, Any, list[Any]]:
        """The output, the input's gradient (None without ``dy``), and those of parameters."""
        import penstock

        case, need = self.case, dy is not None
        options = self.options if need else {}
        if case.slices:
            run: Any = penstock.sliced
            out = run(
                case.op, x, self.arrays, slices=case.slices,
                direction=case.direction,
                need_grad=need, **self.scales[0], **options,
            )  # fmt: skip
            if out.backprop is None:
                return out.y, None, []
            grads = out.backprop(dy)
            return out.y, grads.dx, [g for level in grads.dlevels for g in level]
        function: Any = getattr(penstock, case.op)
        steps, y = [], x
        for arrays, scale in zip(self.arrays, self.scales, strict=True):
            layer = function(
                y, *arrays, direction=case.direction, need_grad=need, **scale, **options
            )
            y = layer[0]
            steps.append(layer[-1])
        if not need:
            return y, None, []
        found: list[Any] = []
        dx = dy
        for step in reversed(steps):
            grads = step(dx)
            dx = grads.dx
            found[:0] = grads[1:5] if case.op != "sru" else grads[1:4]
        return y, dx, found

    def wait(self) -> None:
        self.library.synchronize()

    def values(self) -> dict[str, np.ndarray]:
        return self._named(self.call(self.x, self.dy))

    def _named(self, result: tuple[Any, Any, list[Any]]) -> dict[str, np.ndarray]:
        y, dx, gradients = result
        found = {"y": self.library.host(y)}
        if dx is not None:
            found["dx"] = self.library.host(dx)
            names = [name for level in self.names for name in level]
            for name, gradient in zip(names, gradients, strict=True):
                found[f"d{name}"] = self.library.host(gradient)
        return found


class OursRecomputing(Ours):
    """Gates computed again in the backward pass instead of kept."""

    key = "penstock-recompute"
    name = "penstock, recompute=True"
    note = "keeps only the states for the backward pass; where a case names it"
    on_request = True
    options: ClassVar[dict[str, Any]] = {"recompute": True}

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op == "sru":
            return "the SRU keeps no gates"
        return "" if case.training else "there is no backward pass"


class OursInvariant(Ours):
    """No sequence's result depends on how many others a call has."""

    key = "penstock-invariant"
    name = "penstock, batch-invariant"
    note = "under penstock.set_batch_invariant(True); where a case names it"
    on_request = True
    devices = ("cpu",)

    def call(self, x: Any, dy: Any) -> tuple[Any, Any, list[Any]]:
        import penstock

        before = penstock.get_batch_invariant()
        penstock.set_batch_invariant(True)
        try:
            return super().call(x, dy)
        finally:
            penstock.set_batch_invariant(before)


class OursWhole(Ours):
    """The network that is not sliced, beside a sliced one."""

    key = "penstock-whole"
    name = "penstock, not sliced"
    note = "the plain network over the whole sequence, a gradient of every step's output"
    same = False
    last_only = False

    @classmethod
    def applies(cls, case: Case) -> str:
        return "" if case.slices else "the case is not sliced"

    def case_of(self, case: Case) -> Case:
        return Case(**{**case.as_json(), "slices": ()})

    def prepare(self, problem: Problem, device: str) -> None:
        super().prepare(problem, device)
        if self.case.training and not self.last_only:
            self.dy = self.library.array(problem.dy_whole)

    def _take_parameters(self) -> None:
        self.parameters = make_layer(self.case, self.case.dtype).state_dict()
        super()._take_parameters()


class OursWholeLast(OursWhole):
    """Likewise, but the gradient is that of the last state, as in the sliced network's task."""

    key = "penstock-whole-last"
    name = "penstock, not sliced (last)"
    note = "the plain network over the whole sequence, a gradient of the last state alone"
    last_only = True

    @classmethod
    def applies(cls, case: Case) -> str:
        if not case.slices or not case.training:
            return "the case is not the training of a sliced network"
        return ""

    def run(self) -> Any:
        import penstock

        function: Any = getattr(penstock, self.case.op)
        (arrays,), (scale,) = self.arrays, self.scales
        out = function(self.x, *arrays, direction=self.case.direction, **scale)
        if self.case.op == "sru":  # whose last state is not its last output
            return out.backprop(dc_last=self.dy)
        return out.backprop(dh_last=self.dy)


OURS: tuple[type[Peer], ...] = (Ours, OursRecomputing, OursInvariant, OursWhole, OursWholeLast)
