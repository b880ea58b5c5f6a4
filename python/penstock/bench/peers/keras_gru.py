"""The GRU of Keras 3, over JAX or PyTorch."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import numpy as np

from penstock.bench.cases import Case
from penstock.bench.peer import Peer, one_line
from penstock.bench.peers.jax_scan import full_precision
from penstock.bench.problem import Problem, TorchLibrary


class KerasGRU(Peer):
    """``keras.layers.GRU``, batch first as Keras has it, with ``reset_after=True``.

    Over JAX, all of a call is under jit, as in ``model.fit``; over PyTorch, Keras itself loops over
    the steps. KERAS_BACKEND chooses; without it JAX where it is there, else PyTorch.
    """

    key = "keras"
    name = "keras.layers.GRU"
    note = "over JAX under jit, or over PyTorch; KERAS_BACKEND chooses"

    @classmethod
    def available(cls, device: str) -> tuple[bool, str]:
        if importlib.util.find_spec("keras") is None:
            return False, "keras is not installed"
        if "KERAS_BACKEND" not in os.environ:
            for backend in ("jax", "torch"):
                if importlib.util.find_spec(backend) is not None:
                    os.environ["KERAS_BACKEND"] = backend
                    break
        try:
            keras: Any = importlib.import_module("keras")
        except Exception as error:  # whatever its backend raises
            return False, one_line(f"keras does not import here ({error})")
        backend = keras.config.backend()
        if backend not in ("jax", "torch"):
            return False, f"measured over JAX or PyTorch only (KERAS_BACKEND is {backend})"
        if backend == "jax":
            jax: Any = importlib.import_module("jax")

            if (jax.default_backend() == "cpu") != (device == "cpu"):
                return False, f"Keras' JAX is on {jax.default_backend()}"
        return True, ""

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op != "gru" or case.slices:
            return "it is a GRU, and does not slice"
        if case.layers > 1 or case.direction != "forward":
            return "measured for one layer in one direction"
        return "" if case.dtype == "float32" else "measured in float32"

    def prepare(self, problem: Problem, device: str) -> None:
        keras: Any = importlib.import_module("keras")

        from penstock.convert import to_keras_gru

        case = problem.case
        self.training = case.training
        layer = keras.layers.GRU(case.H, return_sequences=True, reset_after=True, dtype="float32")
        layer.build((case.B, case.T, case.D))
        layer.set_weights(to_keras_gru(problem.layer)[0])
        x = np.ascontiguousarray(problem.x.transpose(1, 0, 2))
        dy = np.ascontiguousarray(problem.dy.transpose(1, 0, 2))
        self.library: Any = None
        self.last: Any = None
        if keras.config.backend() == "torch":
            self._prepare_torch(layer, x, dy, device)
        else:
            self._prepare_jax(layer, x, dy, device)

    def _prepare_torch(self, layer: Any, x: np.ndarray, dy: np.ndarray, device: str) -> None:
        self.library = TorchLibrary(device)
        torch = self.library.torch
        weights = [variable.value for variable in layer.trainable_variables]
        x_t, dy_t = self.library.array(x), self.library.array(dy)
        if not self.training:

            def infer() -> Any:
                with torch.no_grad():
                    return layer(x_t)

            self.call = infer
            return
        x_t.requires_grad_()

        def train() -> Any:
            y = layer(x_t, training=True)
            return y, *torch.autograd.grad(y, [x_t, *weights], dy_t)

        self.call = train

    def _prepare_jax(self, layer: Any, x: np.ndarray, dy: np.ndarray, device: str) -> None:
        jax: Any = importlib.import_module("jax")
        full_precision(jax, device)

        trained = [variable.value for variable in layer.trainable_variables]
        others = [variable.value for variable in layer.non_trainable_variables]
        x_j, dy_j = jax.device_put(x), jax.device_put(dy)

        def forward(weights: Any, x: Any) -> Any:
            return layer.stateless_call(weights, others, x, training=self.training)[0]

        def both(weights: Any, x: Any, dy: Any) -> Any:
            y, vjp = jax.vjp(forward, weights, x)
            gradients, dx = vjp(dy)
            return y, dx, *gradients

        if self.training:
            compiled = jax.jit(both)
            self.call = lambda: compiled(trained, x_j, dy_j)
        else:
            compiled_forward = jax.jit(forward)
            self.call = lambda: compiled_forward(trained, x_j)
        self.waits = jax.block_until_ready
        self.each = jax.default_backend() == "cpu"

    def run(self) -> Any:
        self.last = self.call()
        if self.library is None and self.each:
            self.waits(self.last)
        return self.last

    def wait(self) -> None:
        if self.library is None:
            self.waits(self.last)
        else:
            self.library.synchronize()

    def values(self) -> dict[str, np.ndarray]:
        result = self.run()
        self.wait()
        arrays = result if isinstance(result, tuple) else (result,)
        host = np.asarray if self.library is None else self.library.host
        return {
            name: host(array).transpose(1, 0, 2)
            for name, array in zip(("y", "dx"), arrays, strict=False)
        }


PEERS = (KerasGRU,)
