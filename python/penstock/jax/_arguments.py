"""Arguments of the functions: what came, as arrays of JAX and as options, or an error in words."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from penstock.jax._calls import Call
from penstock.jax._primitives import Array, bind, check, name_of, spec_of

# Lengths may be of any integer type.
_DTYPES = ("float32", "float64", "float16", "bfloat16", "bool", "int32", "int64", "uint8")


def array(name: str, value: Any) -> Array:
    """value as an array of JAX.

    Raises:
        TypeError: it is not an array, its elements are of a type that no operation takes, or a
            dimension is symbolic: sizes of memory are told while a function is traced.
    """
    if not isinstance(value, (jax.Array, np.ndarray)) and not hasattr(value, "__jax_array__"):
        raise TypeError(
            f"{name}: expected an array of JAX or NumPy (actual: {type(value).__name__})"
        )
    dtype = getattr(value, "dtype", None)
    if dtype is not None and name_of(dtype) not in _DTYPES:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16 (actual: {dtype})")
    if not all(isinstance(n, int) for n in getattr(value, "shape", ())):
        raise TypeError(f"{name}: expected a shape of numbers (actual: {value.shape})")
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def lengths_array(lengths: Any, x: Array) -> Array:
    """Lengths of a batch of sequences as an array of int32 or int64.

    Values that are there to be read (not traced, and not on a GPU) are checked.

    x: (T, B, features).

    Raises:
        TypeError: lengths are not integers.
        ValueError: not one per sequence, or not from 0 to T.
    """
    if isinstance(lengths, (list, tuple)):
        lengths = np.asarray(lengths, None if lengths else np.int32)
    dtype = getattr(lengths, "dtype", None)
    if not hasattr(lengths, "shape") or dtype is None:
        raise TypeError(
            f"lengths: expected an array of integers (actual: {type(lengths).__name__})"
        )
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"lengths: expected integers (actual: {dtype})")
    if x.ndim == 3:  # else x is refused before anything is computed
        steps, batch = x.shape[:2]
        if lengths.shape != (batch,):
            raise ValueError(f"lengths: expected shape (B,) = ({batch},) (actual: {lengths.shape})")
        if _on_the_host(lengths):
            values = np.asarray(lengths)
            wrong = np.flatnonzero((values < 0) | (values > steps))
            if wrong.size:
                raise ValueError(
                    f"lengths: expected values from 0 to T = {steps} "
                    f"(actual: {values[wrong[0]]} at index {wrong[0]})"
                )
    if dtype not in (np.int32, np.int64):
        lengths = lengths.astype(np.int32)
    return jnp.asarray(lengths)


def _on_the_host(value: Any) -> bool:
    """Whether an array's values can be read now."""
    if isinstance(value, jax.core.Tracer):
        return False
    if not isinstance(value, jax.Array):
        return True
    return value.is_fully_addressable and all(d.platform == "cpu" for d in value.devices())


def word(name: str, value: Any) -> str:
    """An option that is a word. Which words there are is checked with the operands.

    Raises:
        TypeError: it is no string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string (actual: {type(value).__name__})")
    return str(value)


def flag(name: str, value: Any) -> bool:
    """An option that is true or false, and not traced.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False (actual: {type(value).__name__})")
    return bool(value)


def number(name: str, value: Any) -> float:
    """An option that is a number, and not traced.

    Raises:
        TypeError: it is no number.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name}: expected a number, not one that is traced")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number (actual: {type(value).__name__})") from None


def slices_of(slices: Any) -> tuple[int, ...]:
    """The numbers of parts, each at least 1.

    Raises:
        TypeError: not a list or tuple of integers.
        ValueError: a number is less than 1, or there are too many of them.
    """
    if not isinstance(slices, (list, tuple)):
        raise TypeError(
            f"slices: expected a list or tuple of integers (actual: {type(slices).__name__})"
        )
    numbers = []
    for i, n in enumerate(slices):
        if isinstance(n, jax.core.Tracer):
            raise TypeError(f"slices[{i}]: expected an integer, not one that is traced")
        try:
            numbers.append(operator.index(n))
        except TypeError:
            raise TypeError(
                f"slices[{i}]: expected an integer (actual: {type(n).__name__})"
            ) from None
        if not 1 <= numbers[-1] < 2**63:
            raise ValueError(f"slices[{i}]: expected at least 1, in 64 bits (actual: {n})")
    return tuple(numbers)


def sequence(name: str, expected: str, value: Any) -> Sequence[Any]:
    """A list or tuple.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: expected {expected} (actual: {type(value).__name__})")
    return value


def run(
    operation: str, operands: Mapping[str, Any], lengths: Any, options: Mapping[str, Any]
) -> list[Array]:
    """Check the arguments of a call and bind it: its outputs.

    ``operands`` may hold None for what is not given; x comes first.

    Raises:
        ValueError, TypeError: naming the argument that is wrong.
    """
    arrays = {name: array(name, value) for name, value in operands.items() if value is not None}
    if "x" not in arrays:
        raise TypeError("x: expected an array of JAX or NumPy (actual: NoneType)")
    if lengths is not None:
        arrays["lengths"] = lengths_array(lengths, arrays["x"])
    call = Call(operation, tuple(arrays), tuple(sorted(options.items())))
    check(call, tuple(map(spec_of, arrays.values())))
    return bind(call, tuple(arrays.values()))
