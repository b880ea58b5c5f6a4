"""What a call computes, in shapes and names alone: all that there is while a function is traced."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock import _core

# (dtype, shape)
Spec = tuple[str, tuple[int, ...]]
Specs = tuple[Spec, ...]

# The axis of an operand that holds the batch. Parameters have none.
_BATCH_AXES = {
    "x": 1, "x_skip": 1, "mask_pad": 1, "lengths": 0, "h0": 0, "c0": 0, "mask_c": 0,
}  # fmt: skip
# A workspace starts at a multiple of 256 bytes, XLA's buffers at one of 64 or, on CUDA, of 128: the
# handlers pass over what lies before.
_WORKSPACE_SLACK = 256
_WITHOUT_GRADIENT = ("lengths", "mask_pad")


@dataclass(frozen=True)
class Output:
    """Name, shape and batch axis of a result."""

    name: str
    shape: tuple[int, ...]
    batch_axis: int


@dataclass(frozen=True)
class Call:
    """An operation, the names of the operands that it is given, and its options, sorted."""

    operation: str
    operands: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    def option(self, name: str) -> Any:
        return dict(self.options)[name]

    def batch_axes(self) -> tuple[int | None, ...]:
        return tuple(_BATCH_AXES.get(name) for name in self.operands)

    def differentiable(self) -> tuple[bool, ...]:
        return tuple(name not in _WITHOUT_GRADIENT for name in self.operands)

    def outputs(self, specs: Specs) -> tuple[Output, ...]:
        """What a forward pass returns for operands that have been checked."""
        shapes = {name: shape for name, (_, shape) in zip(self.operands, specs, strict=True)}
        steps, batch, _ = shapes["x"]

        def width(parameter: str) -> int:
            shape = shapes[parameter]
            return shape[0] * shape[2]

        if self.operation == "sliced":
            name = "bias" if self.option("cell") == "sru" else "weight_hh"
            slices = self.option("slices")
            outputs = []
            for level in range(len(slices) + 1):
                parts = 1
                for n in slices[: len(slices) - level]:
                    parts *= n
                shape = (parts, batch, width(f"levels[{level}].{name}"))
                outputs.append(Output(f"levels[{level}]", shape, 1))
            return tuple(outputs)
        state = (batch, width("bias" if self.operation == "sru" else "weight_hh"))
        last = {"sru": ("c_last",), "lstm": ("h_last", "c_last")}.get(self.operation, ("h_last",))
        return (
            Output("y", (steps, *state), 1),
            *(Output(name, state, 0) for name in last),
        )

    def sizes(self, run: str, specs: Specs, *, cuda: bool, extra: Mapping[str, Spec]) -> Any:
        """Bytes of (workspace, reserve), each at least 1, of a pass over arrays on one platform.

        Args:
            run: "infer", "forward" (which keeps what "backward" needs) or "backward".
            specs: of the operands.
            cuda: the platform, else the CPU.
            extra: the gradients that a backward pass is given.

        Raises:
            ValueError, TypeError: an operand is wrong; the message names it.
        """
        return _sizes(
            self, run, specs, tuple(extra.items()), cuda, bool(_core.batch_invariant())
        )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _sizes(
    call: Call,
    run: str,
    specs: Specs,
    extra: Sequence[tuple[str, Spec]],
    cuda: bool,
    batch_invariant: bool,  # what sizes depend on, besides
) -> tuple[int, int]:
    operands = {**dict(zip(call.operands, specs, strict=True)), **dict(extra)}
    workspace, reserve = _core.xla_bytes(call.operation, run, cuda, operands, dict(call.options))
    return workspace + _WORKSPACE_SLACK, max(1, reserve)
