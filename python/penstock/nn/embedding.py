"""Embedding: rows of a table, with a deterministic backward pass.

The gradient of a table sums the incoming gradient over all uses of a row. Adding with
``np.add.at`` (or with atomics on a GPU) is slow (or of no fixed order), so uses are sorted by
row first, stably, and each run of equal rows is summed on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from penstock._arrays import array_module
from penstock.nn._random import Seed, make_rng
from penstock.nn.module import (
    Array,
    Layer,
    check_array,
    check_gradient,
    no_backprop,
    non_negative_int,
    positive_int,
    resolve_dtype,
    wide_dtype,
)
from penstock.nn.row_gradient import RowGradient


class EmbeddingOutput(NamedTuple):
    """``y`` (..., features). ``backprop(dy)`` -> :class:`EmbeddingGrads`."""

    y: Array
    backprop: Callable[..., EmbeddingGrads]


class EmbeddingGrads(NamedTuple):
    """``dx`` is None, since indices have no gradient; ``dparameters``: ``weight``'s, or empty."""

    dx: None
    dparameters: dict[str, Array | RowGradient]


def sum_runs_numpy(
    values: npt.NDArray[Any],
    order: npt.NDArray[Any],
    starts: npt.NDArray[Any],
    out: npt.NDArray[Any],
) -> None:
    """out[i] = sum of values[order[starts[i]:starts[i + 1]]], each in index order.

    Args:
        values: (N, D).
        order: (N,) row indices.
        starts: (R,) ascending positions in ``order``, the first 0; the last run ends at N.
        out: (R, D), overwritten.
    """
    if values.shape[1] <= 64:  # short rows: a Python step per run would cost more than the sums
        np.add.reduceat(values[order], starts, axis=0, out=out)
        return
    ends = np.append(starts[1:], order.size)
    single = np.flatnonzero(ends - starts == 1)
    out[single] = values[order[starts[single]]]
    repeated = np.flatnonzero(ends - starts > 1)
    for i, start, end in zip(
        repeated.tolist(), starts[repeated].tolist(), ends[repeated].tolist(), strict=True
    ):
        np.add.reduce(values[order[start:end]], axis=0, out=out[i])


def sum_runs_pairwise(xp: Any, values: Array, rows: Array) -> tuple[Array, Array]:
    """Sum runs of equal ``rows`` by repeatedly adding neighbours: few, large array operations.

    For devices, where a step per run would be slow; the order of additions depends on the runs
    alone. Takes ceil(log2(longest run)) rounds.

    Args:
        xp: the array library.
        values: (N, D), N >= 1, ordered by row.
        rows: (N,), ascending.

    Returns the distinct rows (R,) and their sums (R, D).
    """
    while True:
        first = xp.ones(rows.size, dtype=bool)
        first[1:] = rows[1:] != rows[:-1]
        starts = xp.flatnonzero(first)
        if starts.size == rows.size:
            return rows, values
        position = xp.arange(rows.size) - starts[xp.cumsum(first) - 1]
        keep = xp.flatnonzero(position % 2 == 0)
        partner = xp.minimum(keep + 1, rows.size - 1)
        paired = (keep + 1 < rows.size) & ~first[partner]
        zero = values.dtype.type(0)
        values = values[keep] + xp.where(paired[:, None], values[partner], zero)
        rows = rows[keep]


def sum_by_row(indices: Array, values: Array, num_rows: int) -> RowGradient:
    """Sum ``values[n]`` over all n with equal ``indices[n]``.

    Deterministic: additions happen in an order that depends on ``indices`` alone. Half types
    are summed in float32.

    Args:
        indices: (N,) integers in [0, num_rows).
        values: (N, D).
        num_rows: rows of the whole.
    """
    xp = array_module(values)
    kind, wide = values.dtype, wide_dtype(values.dtype)
    if indices.size == 0:
        return RowGradient(indices, values, num_rows)
    order = xp.argsort(indices, kind="stable")
    ordered = indices[order]
    if xp is np:
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        rows = ordered[starts]
        sums = np.empty((starts.size, values.shape[1]), dtype=wide)
        sum_runs_numpy(values.astype(wide, copy=False), order, starts, sums)
    else:
        rows, sums = sum_runs_pairwise(xp, values[order].astype(wide), ordered)
    return RowGradient(rows, sums.astype(kind, copy=False), num_rows)


class Embedding(Layer):
    """y = weight[x]: a table of ``num_embeddings`` rows of ``features`` values.

    Rows are drawn from a normal distribution of standard deviation ``scale``.

    Args:
        num_embeddings: number of rows.
        features: length of a row.
        padding_idx: a row that starts at zero and gets no gradient; None for no such row.
        frozen: keep the table out of ``parameters()`` (it is still saved); backprop is then
            free.
        row_gradient: give the table's gradient as a :class:`RowGradient` of the rows that were
            used, so that an update costs as much as these rows and not as the whole table.
            Optimisers then leave the other rows alone: no momentum or decay acts on them.
        weight: initial table (num_embeddings, features), copied; None to draw one.
        scale: standard deviation of the drawn rows.
        dtype: float32, float64, float16 or bfloat16.
        seed: int, generator or None (a fresh seed) for the drawn rows.
        device: where the table lies, "cpu" or "cuda[:N]".
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        padding_idx: int | None = None,
        frozen: bool = False,
        row_gradient: bool = False,
        weight: npt.ArrayLike | None = None,
        scale: float = 1.0,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.num_embeddings = positive_int("num_embeddings", num_embeddings)
        self.features = positive_int("features", features)
        if padding_idx is not None:
            padding_idx = non_negative_int("padding_idx", padding_idx)
        if padding_idx is not None and padding_idx >= self.num_embeddings:
            raise ValueError(
                f"padding_idx: expected 0 <= padding_idx < {self.num_embeddings} or None, "
                f"got {padding_idx}"
            )
        self.padding_idx = padding_idx
        self.frozen = bool(frozen)
        self.row_gradient = bool(row_gradient)
        kind = resolve_dtype(dtype)
        shape = (self.num_embeddings, self.features)
        if weight is None:
            drawn = np.float64 if kind == np.float64 else np.float32
            table = make_rng(seed).standard_normal(shape, dtype=drawn)
            table *= drawn(scale)
            table = table.astype(kind, copy=False)
            if padding_idx is not None:
                table[padding_idx] = 0
        else:
            given = np.asarray(weight)
            if given.shape != shape:
                raise ValueError(f"weight: expected shape {shape}, got {given.shape}")
            table = np.array(given, dtype=kind, order="C")
        if self.frozen:
            self._add_buffer("weight", table)
        else:
            self._add_parameter("weight", table)
        if device != "cpu":
            self.to(device)

    @property
    def weight(self) -> Array:
        """The live table, (num_embeddings, features)."""
        return self._buffers["weight"] if self.frozen else self._parameters["weight"]

    def __call__(
        self, x: Array, *, training: bool = False, need_grad: bool | None = None
    ) -> EmbeddingOutput:
        """Look up integer indices ``x`` of any shape.

        Raises TypeError unless ``x`` holds integers, and for NumPy arrays ValueError unless
        all are in [0, num_embeddings); on a GPU that check would wait for the device, and
        indices wrap around instead.
        """
        weight = self.weight
        xp = check_array("x", x, weight)
        if x.dtype.kind not in "iu":
            raise TypeError(f"x: expected integers, got dtype {x.dtype}")
        if xp is np and x.size and (x.min() < 0 or x.max() >= self.num_embeddings):
            raise ValueError(
                f"x: expected indices in [0, {self.num_embeddings}), "
                f"got values from {x.min()} to {x.max()}"
            )
        y = xp.take(weight, x, axis=0)
        if not (training if need_grad is None else need_grad):
            return EmbeddingOutput(y, no_backprop)
        shape = tuple(y.shape)
        flat = x.reshape(-1)

        def backprop(dy: Array) -> EmbeddingGrads:
            check_gradient("dy", dy, weight, shape)
            if self.frozen:
                return EmbeddingGrads(None, {})
            rows = flat if xp is np else flat % self.num_embeddings
            gradient = sum_by_row(rows, dy.reshape(-1, self.features), self.num_embeddings)
            if self.padding_idx is not None:
                gradient.values[gradient.rows == self.padding_idx] = 0
            return EmbeddingGrads(
                None, {"weight": gradient if self.row_gradient else gradient.dense()}
            )

        return EmbeddingOutput(y, backprop)

    def __repr__(self) -> str:
        return f"Embedding({self.num_embeddings}, {self.features}, frozen={self.frozen})"
