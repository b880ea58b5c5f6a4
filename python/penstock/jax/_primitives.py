# What is called here, JAX leaves untyped, or has in some versions only.
# mypy: disable-error-code="no-untyped-call,attr-defined"
"""The operations as JAX sees them: three primitives, each an XLA custom call.

``infer`` is what the functions bind. It can be batched, by one call over a larger batch where the
parameters are shared, and differentiated: its derivative is a ``jax.custom_vjp`` of the other two,
``forward``, which also returns what is kept (the reserve), and ``backward``. That order, and not a
custom_vjp around everything, is what lets the gradient of a mapped function run as one call, too:
``vmap`` finds ``infer`` first. Once differentiated, each mapped element needs parameters' gradients
of its own, so ``forward`` and ``backward`` are mapped one element after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from penstock import _core
from penstock.jax._calls import Call, Spec, Specs

Array = Any

_PLATFORMS = ("cpu", "cuda")


def _register_targets() -> None:
    names = {"cpu": "cpu", "cuda": "CUDA"}
    for operation, run, platform, capsule in _core.xla_handlers():
        jax.ffi.register_ffi_target(
            f"penstock_{operation}_{run}", capsule, platform=names[platform], api_version=1
        )


@functools.cache
def _cuda_is_here() -> bool:
    """Whether JAX and the library both have CUDA devices."""
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return False
    return bool(devices) and bool(_core.config()["cuda_available"])


@functools.cache
def name_of(dtype: Any) -> str:
    """Such as "bfloat16"; remembered, because NumPy takes its time to tell."""
    return str(dtype)


def spec_of(array: Any) -> Spec:
    return name_of(array.dtype), tuple(array.shape)


def _specs(arrays: Sequence[Any]) -> Specs:
    return tuple(map(spec_of, arrays))


def _reserve_bytes(call: Call, specs: Specs) -> int:
    """The same for all platforms: where a traced function will run is not known yet."""
    platforms = (False, True) if _cuda_is_here() else (False,)
    return max(call.sizes("forward", specs, cuda=cuda, extra={})[1] for cuda in platforms)


def check(call: Call, specs: Specs) -> None:
    """Check a call's operands.

    Raises:
        ValueError, TypeError: naming the operand that is wrong.
    """
    call.sizes("infer", specs, cuda=False, extra={})


# ---- custom calls --------------------------------------------------------------------------------


def _attributes(call: Call) -> dict[str, Any]:
    def attribute(value: Any) -> Any:
        if isinstance(value, tuple):
            return np.asarray(value, np.int64)
        return np.float64(value) if isinstance(value, float) else value

    return {name: attribute(value) for name, value in call.options}


def _custom_call(
    call: Call,
    run: str,
    names: Sequence[str],
    operands: Sequence[Array],
    results: Sequence[tuple[str, tuple[int, ...], Any]],
) -> list[Array]:
    """`results` are names, shapes and types, the last one the workspace, which is not returned."""
    types = [jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in results]
    target = jax.ffi.ffi_call(f"penstock_{call.operation}_{run}", types)
    made = target(
        *operands,
        operands=",".join(names),
        results=",".join(name for name, _, _ in results),
        **_attributes(call),
    )
    return list(made)[:-1]


def _run_forward(*operands: Array, call: Call, keep: bool, platform: str) -> list[Array]:
    specs = _specs(operands)
    dtype = operands[0].dtype
    run = "forward" if keep else "infer"
    workspace, _ = call.sizes(run, specs, cuda=platform == "cuda", extra={})
    results = [(output.name, output.shape, dtype) for output in call.outputs(specs)]
    if keep:
        results.append(("reserve", (_reserve_bytes(call, specs),), jnp.uint8))
    results.append(("workspace", (workspace,), jnp.uint8))
    return _custom_call(call, "forward", call.operands, operands, results)


def _run_backward(
    *operands: Array, call: Call, given: tuple[str, ...], platform: str
) -> list[Array]:
    """`operands`: those of forward, the reserve, and the gradients of the outputs in `given`."""
    count = len(call.operands)
    inputs, gradients = operands[:count], operands[count + 1 :]
    names = [f"d{name}" for name in given]
    workspace, _ = call.sizes(
        "backward", _specs(inputs), cuda=platform == "cuda",
        extra=dict(zip(names, _specs(gradients), strict=True)),
    )  # fmt: skip
    results = [
        (f"d{name}", x.shape, x.dtype)
        for name, x, wanted in zip(call.operands, inputs, call.differentiable(), strict=True)
        if wanted
    ]
    results.append(("workspace", (workspace,), jnp.uint8))
    return _custom_call(call, "backward", (*call.operands, "reserve", *names), operands, results)


# ---- primitives ----------------------------------------------------------------------------------


def _aval_like(aval: Any, shape: Sequence[int], dtype: Any) -> Any:
    """An abstract value of another shape that varies over the same axes of a mesh."""
    sharding = getattr(aval, "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return aval.update(
            shape=tuple(shape), dtype=np.dtype(dtype), weak_type=False, sharding=None
        )
    whole = jax.sharding.PartitionSpec(*(None,) * len(shape))
    return aval.update(
        shape=tuple(shape), dtype=np.dtype(dtype), weak_type=False,
        sharding=jax.sharding.NamedSharding(sharding.mesh, whole),
    )  # fmt: skip


def _infer_avals(*avals: Any, call: Call) -> list[Any]:
    outputs = call.outputs(_specs(avals))
    return [_aval_like(avals[0], output.shape, avals[0].dtype) for output in outputs]


def _forward_avals(*avals: Any, call: Call) -> list[Any]:
    reserve = (_reserve_bytes(call, _specs(avals)),)
    return [*_infer_avals(*avals, call=call), _aval_like(avals[0], reserve, np.uint8)]


def _backward_avals(*avals: Any, call: Call, given: tuple[str, ...]) -> list[Any]:
    inputs = avals[: len(call.operands)]
    return [
        _aval_like(avals[0], aval.shape, aval.dtype)
        for aval, wanted in zip(inputs, call.differentiable(), strict=True)
        if wanted
    ]


@functools.lru_cache(maxsize=1024)
def _compiled(primitive: Any, parameters: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return jax.jit(functools.partial(primitive.bind, **dict(parameters)))


def _primitive(name: str, avals: Callable[..., Any], run: Callable[..., Any]) -> Any:
    primitive = Primitive(name)
    primitive.multiple_results = True

    def evaluate(*operands: Array, **parameters: Any) -> Any:
        return _compiled(primitive, tuple(sorted(parameters.items())))(*operands)

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(avals)
    for platform in _PLATFORMS:
        lowering = mlir.lower_fun(functools.partial(run, platform=platform), multiple_results=True)
        mlir.register_lowering(primitive, lowering, platform=platform)
    return primitive


_infer = _primitive("penstock", _infer_avals, functools.partial(_run_forward, keep=False))
_forward = _primitive(
    "penstock_forward", _forward_avals, functools.partial(_run_forward, keep=True)
)
_backward = _primitive("penstock_backward", _backward_avals, _run_backward)


# ---- derivatives ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _differentiable(call: Call) -> Any:
    wanted = call.differentiable()

    def outputs_of(*operands: Array) -> tuple[Array, ...]:
        return tuple(_infer.bind(*operands, call=call))

    def forward(*operands: Any) -> tuple[tuple[Array, ...], Any]:
        inputs = tuple(operand.value for operand in operands)
        *outputs, reserve = _forward.bind(*inputs, call=call)
        return tuple(outputs), (inputs, reserve)

    def backward(kept: Any, gradients: tuple[Any, ...]) -> tuple[Array | None, ...]:
        inputs, reserve = kept
        outputs = call.outputs(_specs(inputs))
        given = {
            output.name: gradient
            for output, gradient in zip(outputs, gradients, strict=True)
            if not isinstance(gradient, jax.custom_derivatives.SymbolicZero)
        }
        operands = varying_alike((*inputs, reserve, *given.values()))
        found = iter(_backward.bind(*operands, call=call, given=tuple(given)))
        return tuple(next(found) if has_gradient else None for has_gradient in wanted)

    function = jax.custom_vjp(outputs_of)
    function.defvjp(forward, backward, symbolic_zeros=True)
    return function


def _infer_jvp(primals: Sequence[Array], tangents: Sequence[Any], *, call: Call) -> Any:
    def tangent(primal: Array, given: Any, wanted: bool) -> Any:
        if not wanted:
            return np.zeros(primal.shape, jax.dtypes.float0)
        return ad.instantiate_zeros(given)

    whole = tuple(
        tangent(*each) for each in zip(primals, tangents, call.differentiable(), strict=True)
    )
    return jax.jvp(_differentiable(call), tuple(primals), whole)


def _no_second_derivative(*_: Any, call: Call, **__: Any) -> Any:
    raise NotImplementedError(
        f"penstock.jax.{call.operation}: expected to be differentiated once, in reverse mode "
        "(actual: a derivative of its gradient)"
    )


ad.primitive_jvps[_infer] = _infer_jvp
ad.primitive_jvps[_forward] = _no_second_derivative
ad.primitive_jvps[_backward] = _no_second_derivative


# ---- vmap ----------------------------------------------------------------------------------------


def _one_by_one(primitive: Any) -> Callable[..., Any]:
    def rule(operands: Sequence[Array], dims: Sequence[int | None], **parameters: Any) -> Any:
        operands = tuple(map(_whole, operands))
        mapped = [
            jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True) if d is not None
        ]

        def one(elements: list[Array]) -> list[Array]:
            rest = iter(elements)
            arrays = [x if d is None else next(rest) for x, d in zip(operands, dims, strict=True)]
            return primitive.bind(*arrays, **parameters)

        results = jax.lax.map(one, mapped)
        return results, (0,) * len(results)

    return rule


def _merged(x: Array, dim: int | None, axis: int, size: int) -> Array:
    """The mapped axis in front of the batch, both as one."""
    if dim is None:
        x = jnp.broadcast_to(jnp.expand_dims(x, axis), (*x.shape[:axis], size, *x.shape[axis:]))
    else:
        x = jnp.moveaxis(x, dim, axis)
    return x.reshape(*x.shape[:axis], size * x.shape[axis + 1], *x.shape[axis + 2 :])


def _infer_batched(operands: Sequence[Array], dims: Sequence[int | None], *, call: Call) -> Any:
    axes = call.batch_axes()
    if any(axis is None and dim is not None for axis, dim in zip(axes, dims, strict=True)):
        return _one_by_one(_infer)(operands, dims, call=call)
    operands = tuple(map(_whole, operands))
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    batch = [n for i, n in enumerate(operands[0].shape) if i != dims[0]][1]
    merged = [
        x if axis is None else _merged(x, dim, axis, size)
        for x, dim, axis in zip(operands, dims, axes, strict=True)
    ]
    results = _infer.bind(*merged, call=call)
    outputs = call.outputs(_specs(merged))
    split = [
        y.reshape(*y.shape[:axis], size, batch, *y.shape[axis + 1 :])
        for y, axis in ((y, output.batch_axis) for y, output in zip(results, outputs, strict=True))
    ]
    return split, tuple(output.batch_axis for output in outputs)


batching.primitive_batchers[_infer] = _infer_batched
batching.primitive_batchers[_forward] = _one_by_one(_forward)
batching.primitive_batchers[_backward] = _one_by_one(_backward)


# ---- meshes of devices ---------------------------------------------------------------------------


def _aval_of(x: Array) -> Any:
    return jax.typeof(x) if hasattr(jax, "typeof") else jax.core.get_aval(x)


def _varying_axes(x: Array) -> frozenset[Any]:
    """The axes of a mesh over which x is known to vary; none outside of shard_map."""
    aval = _aval_of(x)
    kind = getattr(aval, "manual_axis_type", None)
    return getattr(aval, "vma", None) or getattr(kind, "varying", None) or frozenset()


def varying_alike(operands: Sequence[Array]) -> tuple[Array, ...]:
    """The operands, all of them varying over each axis over which one of them does.

    That is how a parameter that is the same everywhere gets the sum of all gradients.
    """
    varying = [_varying_axes(x) for x in operands]
    axes = frozenset().union(*varying)
    if not axes:
        return tuple(operands)

    def cast(x: Array, missing: tuple[Any, ...]) -> Array:
        if not missing:
            return x
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(x, missing, to="varying")
        return jax.lax.pvary(x, missing)

    return tuple(
        cast(x, tuple(sorted(axes - own))) for x, own in zip(operands, varying, strict=True)
    )


def _whole(x: Array) -> Array:
    """x, gathered if its type says that it is spread over devices (explicit axes of a mesh)."""
    sharding = getattr(_aval_of(x), "sharding", None)
    if sharding is None or all(axis is None for axis in sharding.spec):
        return x
    spec = jax.sharding.PartitionSpec(*(None,) * x.ndim)
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(sharding.mesh, spec))


def bind(call: Call, operands: Sequence[Array]) -> list[Array]:
    """The outputs of a call whose operands have been checked."""
    if any(isinstance(x, jax.core.Tracer) for x in operands):
        operands = varying_alike(tuple(map(_whole, operands)))
    return _infer.bind(*operands, call=call)


_register_targets()
