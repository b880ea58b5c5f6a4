"""What stacked recurrent layers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from penstock.nn._random import Seed, make_rng
from penstock.nn.module import Array, Layer


class Cells(Layer):
    """Holds a stack's cells under the names "0", "1", ..."""

    def __init__(self, cells: Sequence[Layer]) -> None:
        super().__init__()
        for i, cell in enumerate(cells):
            setattr(self, str(i), cell)


def two_generators(seed: Seed) -> tuple[np.random.Generator, np.random.Generator]:
    """Generators for initial values and for masks: a seed's masks do not depend on the sizes."""
    if isinstance(seed, np.random.Generator):
        return seed, seed
    first = make_rng(seed)
    return first, np.random.default_rng(first.bit_generator.seed_seq.spawn(1)[0])  # type: ignore[attr-defined]


def without_padding(xp: Any, x: Array, lengths: Any, mask_pad: Any = None) -> Array:
    """Zero padded steps of ``x`` (T, B, D): what stands there, NaN included, must not matter.

    The operations see to that themselves; this is for what comes before them.
    """
    steps, batch = x.shape[:2]
    padded = None
    if mask_pad is not None:
        padded = xp.asarray(mask_pad)
        if tuple(padded.shape) != (steps, batch):
            raise ValueError(
                f"mask_pad: expected shape ({steps}, {batch}) as (T, B), got {tuple(padded.shape)}"
            )
        padded = padded.astype(bool)
    if lengths is not None:
        beyond = xp.arange(steps)[:, None] >= xp.asarray(lengths)
        padded = beyond if padded is None else padded | beyond
    return x if padded is None else xp.where(padded[..., None], x.dtype.type(0), x)
