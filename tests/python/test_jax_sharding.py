"""penstock.jax over two devices of the host: data parallel training by shard_map and by jit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

jax = pytest.importorskip("jax")

# The number of devices is set before JAX starts, so each program has a process of its own.
HEAD = """
import jax, jax.numpy as jnp, numpy as np, penstock.jax as pj
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
try:
    from jax import shard_map
except ImportError:
    from jax.experimental.shard_map import shard_map
assert len(jax.devices()) == 2
mesh = Mesh(np.array(jax.devices()), ("data",))
rng = np.random.default_rng(0)
def draw(*shape):
    return (0.3 * rng.standard_normal(shape)).astype(np.float32)
T, B, D, H = 7, 6, 5, 8
x, target = draw(T, B, D), draw(T, B, H)
lengths = np.array([7, 3, 0, 5, 7, 1], np.int32)
cells = {
    "gru": (lambda p, x, n: pj.gru(x, p["w"], p["r"], p["b"], lengths=n).y,
            {"w": draw(1, 3 * H, D), "r": draw(1, 3 * H, H), "b": draw(1, 3 * H)}),
    "sru": (lambda p, x, n: pj.sru(x, p["w"], p["v"], p["b"], lengths=n).y,
            {"w": draw(1, 4 * H, D), "v": draw(1, 2, H), "b": draw(1, 2, H)}),
    "sliced": (lambda p, x, n: pj.sliced("lstm", x, [(p["w"], p["r"]), (p["u"], p["s"])],
                                         slices=(2,), lengths=n).y[None],
               {"w": draw(1, 4 * H, D), "r": draw(1, 4 * H, H),
                "u": draw(1, 4 * H, H), "s": draw(1, 4 * H, H)}),
}
def close(a, b):
    for m, n in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(m, n, rtol=1e-5, atol=1e-6)
"""

SHARD_MAP = """
import inspect
checked = "check_vma" if "check_vma" in inspect.signature(shard_map).parameters else "check_rep"
# Older versions check what they cannot know of other libraries' operations.
for check in ([True, False] if checked == "check_vma" else [False]):
    for name, (f, p) in cells.items():
        def loss(p, x, target, n):
            return ((f(p, x, n) - target[: f(p, x, n).shape[0]]) ** 2).sum()

        def local(p, x, target, n):
            if check:  # JAX knows that p is the same everywhere, and sums its gradients itself
                value, grads = jax.value_and_grad(loss)(p, x, target, n)
            else:
                value, grads = jax.value_and_grad(loss)(p, x, target, n)
                grads = jax.lax.psum(grads, "data")
            return jax.lax.psum(value, "data"), grads

        specs = (P(), P(None, "data"), P(None, "data"), P("data"))
        step = shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), **{checked: check})
        expected = jax.value_and_grad(loss)(p, x, target, lengths)
        close(jax.jit(step)(p, x, target, lengths), expected)

        # The gradient of a sharded function.
        def whole(p, x, target, n):
            each = shard_map(lambda *a: jax.lax.psum(loss(*a), "data"), mesh=mesh,
                             in_specs=specs, out_specs=P(), **{checked: check})
            return each(p, x, target, n)
        close(jax.jit(jax.value_and_grad(whole))(p, x, target, lengths), expected)

        # Inference, without jit.
        y = shard_map(f, mesh=mesh, in_specs=(P(), P(None, "data"), P("data")),
                      out_specs=P(None, "data"), **{checked: check})(p, x, lengths)
        close(y, f(p, x, lengths))
        # vmap inside
        def mapped(p, x, n):
            return jax.vmap(lambda x: f(p, x, n))(jnp.stack([x, -x]))
        y = jax.jit(shard_map(mapped, mesh=mesh, in_specs=(P(), P(None, "data"), P("data")),
                              out_specs=P(None, None, "data"), **{checked: check}))(p, x, lengths)
        close(y[0], f(p, x, lengths))
print("done")
"""

JIT = """
for name, (f, p) in cells.items():
    def loss(p, x, n):
        return (f(p, x, n) ** 2).sum()
    expected = jax.value_and_grad(loss)(p, x, lengths)
    rows = jax.device_put(x, NamedSharding(mesh, P(None, "data")))
    same = jax.device_put(lengths, NamedSharding(mesh, P()))
    found = jax.jit(jax.value_and_grad(loss))(p, rows, same)
    close(found, expected)
    # on the second device
    second = jax.device_put((p, x, lengths), jax.devices()[1])
    found = jax.jit(jax.value_and_grad(loss))(*second)
    assert found[0].devices() == {jax.devices()[1]}
    close(found, expected)
print("done")
"""

# Meshes whose axes are a part of an array's type; older versions of JAX have none.
EXPLICIT = """
explicit = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
rows = jax.device_put(x, NamedSharding(explicit, P(None, "data")))
for name in ("gru", "sliced"):
    f, p = cells[name]
    def loss(p, x):
        return (f(p, x, None) ** 2).sum()
    expected = jax.value_and_grad(loss)(p, x)
    with jax.set_mesh(explicit):
        close(jax.jit(jax.value_and_grad(loss))(p, rows), expected)
        close(f(p, rows, None), f(p, x, None))
        # Spread over the axis that is mapped.
        several = np.stack([x, -x, 2 * x, 0 * x])
        spread = jax.device_put(several, NamedSharding(explicit, P("data")))
        def mapped(p, xs):
            return (jax.vmap(lambda x: f(p, x, None))(xs) ** 2).sum()
        both = jax.value_and_grad(mapped)
        close(jax.jit(both)(p, spread), both(p, several))
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0))
        close(jax.jit(each)(p, spread), each(p, several))
        total = jax.shard_map(lambda p, x: jax.lax.psum(loss(p, x), "data"),
                              in_specs=(P(), P(None, "data")), out_specs=P())
        close(jax.jit(jax.value_and_grad(total))(p, rows), expected)
print("done")
"""


@pytest.mark.parametrize(
    "program", [SHARD_MAP, JIT, EXPLICIT], ids=["shard_map", "jit", "explicit"]
)
def test_two_devices(program: str) -> None:
    if program is EXPLICIT and not hasattr(jax, "set_mesh"):
        pytest.skip("this JAX has no explicit axes")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HEAD + program)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == ["done"]
