"""A GRU in JAX."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from penstock.bench.cases import Case
from penstock.bench.peer import Peer
from penstock.bench.problem import Problem

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def full_precision(jax: Any, device: str) -> None:
    """Have float32 mean float32 on a GPU, where JAX would round factors to TF32."""
    if device == "cuda":
        jax.config.update("jax_default_matmul_precision", "highest")


class JaxScan(Peer):
    """A GRU by ``jax.lax.scan``, as one writes it for speed.

    The product with all inputs comes before the scan, with the biases that can be added there; one
    product a step for the three gates; all under jit. Training is its vjp, in one jit with forward.
    """

    key = "jax"
    name = "JAX, lax.scan"
    module = "jax"

    @classmethod
    def available(cls, device: str) -> tuple[bool, str]:
        found = super().available(device)
        if not found[0]:
            return found
        jax: Any = importlib.import_module("jax")

        try:
            jax.devices("gpu" if device == "cuda" else "cpu")
        except RuntimeError as error:
            return False, f"jax has no such device ({error})"
        return True, ""

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op != "gru" or case.slices or case.layers > 1 or case.dirs > 1:
            return "written for one layer of a GRU in one direction"
        return "float64 is off in JAX by default" if case.dtype == "float64" else ""

    def prepare(self, problem: Problem, device: str) -> None:
        jax: Any = importlib.import_module("jax")
        jnp: Any = importlib.import_module("jax.numpy")

        self.jax = jax
        self.device = device
        full_precision(jax, device)
        place = jax.devices("gpu" if device == "cuda" else "cpu")[0]

        def gru(parameters: Any, x: Any) -> Any:
            w, r, b, c = parameters
            hidden = r.shape[1]
            u = x @ w.T + (b + jnp.pad(c[: 2 * hidden], (0, hidden)))
            candidate = c[2 * hidden :]
            rt = r.T

            def step(h: Any, u_t: Any) -> Any:
                u_r, u_z, u_n = jnp.split(u_t, 3, axis=-1)
                q_r, q_z, q_n = jnp.split(h @ rt, 3, axis=-1)
                z = jax.nn.sigmoid(u_z + q_z)
                n = jnp.tanh(u_n + jax.nn.sigmoid(u_r + q_r) * (q_n + candidate))
                h = n + z * (h - n)
                return h, h

            h0 = jnp.zeros((x.shape[1], hidden), x.dtype)
            return jax.lax.scan(step, h0, u, reverse=problem.case.direction == "reverse")[1]

        def both(parameters: Any, x: Any, dy: Any) -> Any:
            y, vjp = jax.vjp(gru, parameters, x)
            return y, *vjp(dy)

        def put(array: np.ndarray) -> Any:
            return jax.device_put(array, place)

        parameters = tuple(put(problem.parameters[f"layers.0.{name}"][0]) for name in NAMES)
        x = put(problem.x)
        if problem.case.training:
            dy = put(problem.dy)
            compiled: Any = jax.jit(both)
            self.call: Callable[[], Any] = lambda: compiled(parameters, x, dy)
        else:
            compiled_forward: Any = jax.jit(gru)
            self.call = lambda: compiled_forward(parameters, x)
        self.last: Any = None

    def run(self) -> Any:
        self.last = self.call()
        if self.device == "cpu":  # calls start work and return; the others return results
            self.jax.block_until_ready(self.last)
        return self.last

    def wait(self) -> None:
        self.jax.block_until_ready(self.last)

    def values(self) -> dict[str, np.ndarray]:
        result = self.run()
        self.wait()
        if not isinstance(result, tuple):
            return {"y": np.asarray(result)}
        y, gradients, dx = result
        found = {"y": np.asarray(y), "dx": np.asarray(dx)}
        for name, gradient in zip(NAMES, gradients, strict=True):
            found[f"dlayers.0.{name}"] = np.asarray(gradient)
        return found


PEERS = (JaxScan,)
