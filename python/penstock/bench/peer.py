"""What a contender is."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from penstock.bench.cases import Case
from penstock.bench.problem import Problem, TorchLibrary


class Peer(ABC):
    """A version of a case's work that is timed.

    A subclass names itself, says where it can be had and which cases it applies to, and takes a
    problem's inputs and weights; then :meth:`run` is one call. Whatever does not depend on the
    call (conversions, compilation) belongs in :meth:`prepare`.
    """

    #: In options and files.
    key: ClassVar[str]
    #: On screen.
    name: ClassVar[str]
    #: What differs from ours, for people; empty if nothing.
    note: ClassVar[str] = ""
    #: Whether it computes what ours does, from the same weights: then results are compared.
    same: ClassVar[bool] = True
    #: Whether it is measured only where a case names it.
    on_request: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    #: The module that it needs; penstock alone if empty.
    module: ClassVar[str] = ""

    @classmethod
    def available(cls, device: str) -> tuple[bool, str]:
        """Whether it can run on this machine, and if not, why, in words."""
        if device not in cls.devices:
            return False, f"not on {'a GPU' if device == 'cuda' else 'the CPU'}"
        if cls.module:
            package = cls.module.partition(".")[0]
            if importlib.util.find_spec(package) is None:
                return False, f"{package} is not installed"
            try:
                importlib.import_module(cls.module)
            except Exception as error:  # packages that compile on import raise anything
                return False, one_line(f"{cls.module} does not import here ({error})")
        return True, ""

    @classmethod
    @abstractmethod
    def applies(cls, case: Case) -> str:
        """Why it cannot do a case, in words; empty if it can."""

    @abstractmethod
    def prepare(self, problem: Problem, device: str) -> None:
        """Make everything that a call needs."""

    @abstractmethod
    def run(self) -> Any:
        """Make one call and return what it gives, as the caller would have it."""

    def wait(self) -> None:  # noqa: B027
        """Wait for what calls have started on a device."""

    def values(self) -> dict[str, np.ndarray]:
        """What one call gives, by name: y, and in training dx and gradients "d" + parameter.

        The arrays are laid out as ours, so that they can be compared; those that a version has
        only in another form may be left out.
        """
        return {}


def one_line(text: str, most: int = 160) -> str:
    """An error's first words."""
    found = " ".join(str(text).split())
    return found if len(found) <= most else found[: most - 1] + "…"


class TorchPeer(Peer):
    """A function of tensors in PyTorch, with gradients by autograd."""

    module = "torch"

    #: Gives the output from x; set by ``build``.
    forward: Callable[[Any], Any]
    #: Trained tensors by the name of our parameter, or by any name with a "?" in front.
    trained: dict[str, Any]
    #: The axes of ours in x and y, if the version has another order; None if not.
    axes: ClassVar[tuple[int, ...] | None] = None

    @classmethod
    def available(cls, device: str) -> tuple[bool, str]:
        found = super().available(device)
        if found[0] and device == "cuda":
            import torch

            if not torch.cuda.is_available():
                return False, "torch finds no CUDA device"
        return found

    @abstractmethod
    def build(self, problem: Problem) -> Any:
        """Set ``forward`` and ``trained``; return the gradient of the output, on the host."""

    def prepare(self, problem: Problem, device: str) -> None:
        self.library = TorchLibrary(device)
        self.torch = self.library.torch
        self.training = problem.case.training
        dy = self.build(problem)
        x = problem.x if self.axes is None else problem.x.transpose(self.axes)
        self.x = self.library.array(x)
        self.dy = None
        if self.training:
            self.x.requires_grad_()
            dy = dy if self.axes is None or dy.ndim != 3 else dy.transpose(self.axes)
            self.dy = self.library.array(dy)

    def run(self) -> Any:
        if not self.training:
            with self.torch.no_grad():
                return self.forward(self.x)
        self.x.grad = None
        for tensor in self.trained.values():
            tensor.grad = None
        y = self.forward(self.x)
        y.backward(self.dy)
        return y

    def wait(self) -> None:
        self.library.synchronize()

    def values(self) -> dict[str, np.ndarray]:
        y = self.run()
        found = {"y": self._ours(y)}
        if self.training:
            found["dx"] = self._ours(self.x.grad)
            for name, tensor in self.trained.items():
                if not name.startswith("?"):
                    found[f"d{name}"] = self.library.host(tensor.grad)
        return found

    def _ours(self, array: Any) -> np.ndarray:
        host = self.library.host(array)
        if self.axes is None or host.ndim != 3:
            return host
        return host.transpose(np.argsort(self.axes))

    def module_of(self, module: Any) -> Any:
        """A module on the device, in the case's type and mode, with its parameters trained."""
        module = module.to(self.library.device)
        module.train(self.training)
        return module
