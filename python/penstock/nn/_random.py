"""Explicit random numbers: generators from seeds, dropout masks, state that can be saved.

Every random number comes from a ``numpy.random.Generator`` that somebody passed or seeded. Masks
for NumPy arrays are drawn from it directly. Masks for CuPy arrays are drawn on the device by a
Philox generator whose seed is one draw from the same host generator: nothing large crosses the
bus, and saving the host generator's state is still enough to resume exactly. CPU and GPU
therefore see different, but each reproducible, masks.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock._arrays import array_module

Seed = int | np.random.Generator | None

_LEVELS = 1 << 16  # dropout probabilities are realised as multiples of 1 / _LEVELS


def make_rng(seed: Seed) -> np.random.Generator:
    """Return a generator: a new one for an int (or None), the given one for a generator."""
    if isinstance(seed, np.random.Generator):
        return seed
    if seed is None:
        return np.random.default_rng()
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"seed: expected an int, a numpy.random.Generator or None, got {type(seed).__name__}"
        ) from None
    if value < 0:
        raise ValueError(f"seed: expected a non-negative int, got {value}")
    return np.random.default_rng(value)


def check_number(name: str, value: Any, expected: str = "a number") -> float:
    """Return ``value`` as a float after checking that it is a number; TypeError otherwise."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected {expected}, got {value!r:.50}") from None


def check_probability(name: str, p: float) -> float:
    """Return ``p`` as a float after checking 0 <= p < 1."""
    value = check_number(name, p, "a float in [0, 1)")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: expected a float in [0, 1), got {p}")
    return value


def dropout_mask(
    rng: np.random.Generator, p: float, shape: tuple[int, ...], like: Any, dtype: npt.DTypeLike
) -> Any:
    """Draw a mask that is 0 with probability ``p`` and 1 / (1 - p) otherwise.

    NumPy masks take 16 random bits an element, which realises the probability to within 2**-17.

    Args:
        rng: host generator the mask comes from.
        p: probability of a zero, 0 <= p < 1.
        shape: shape of the mask.
        like: array whose library (and device) the mask is made for.
        dtype: dtype of the mask.
    """
    if array_module(like) is np:
        kept = rng.integers(0, _LEVELS, shape, dtype=np.uint16) >= round(p * _LEVELS)
    else:
        kept = _uniform_on_device(int(rng.integers(0, 1 << 63)), shape, like) >= np.float32(p)
    kind = np.dtype(dtype)
    wide = kind if kind in (np.dtype(np.float32), np.dtype(np.float64)) else np.dtype(np.float32)
    mask = kept.astype(wide)
    mask *= 1.0 / (1.0 - p)
    return mask.astype(kind, copy=False)


def _uniform_on_device(seed: int, shape: tuple[int, ...], like: Any) -> Any:
    """float32 values uniform in [0, 1), of CuPy's Philox generator, on ``like``'s device."""
    xp = array_module(like)
    with like.device:
        if 0 in shape:
            return xp.empty(shape, dtype=np.float32)
        generator = xp.random.Generator(xp.random.Philox4x3210(seed))
        return generator.random(shape, dtype=np.float32)


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return the generator's state as a dict of plain Python values (JSON can hold it)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, np.ndarray):
            return {"__array__": value.tolist(), "dtype": str(value.dtype)}
        return value.item() if isinstance(value, np.generic) else value

    return dict(plain(rng.bit_generator.state))


def set_rng_state(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Restore what :func:`rng_state` returned; raises ValueError if it is another generator's."""

    def arrays(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "__array__" in value:
                return np.asarray(value["__array__"], dtype=value["dtype"])
            return {k: arrays(v) for k, v in value.items()}
        return value

    name = type(rng.bit_generator).__name__
    if not isinstance(state, Mapping) or state.get("bit_generator") != name:
        got = state.get("bit_generator") if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state: expected the state of a {name} generator, got {got!r}")
    rng.bit_generator.state = arrays(state)
