"""The gradient of a table of which few rows were used."""

from __future__ import annotations

from typing import Any, NamedTuple

from penstock._arrays import array_module

Array = Any  # numpy.ndarray or cupy.ndarray


class RowGradient(NamedTuple):
    """A gradient (num_rows, D) that is zero outside some rows.

    ``rows``: (R,) distinct integers, ascending. ``values``: (R, D), their gradients.
    ``num_rows``: rows of the whole.

    Optimisers of :mod:`penstock.optim` take it in the place of an array, and then change only
    these rows, of the parameter and of their state alike.
    """

    rows: Array
    values: Array
    num_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """The whole gradient's shape."""
        return (self.num_rows, int(self.values.shape[1]))

    def dense(self) -> Array:
        """The whole gradient, (num_rows, D)."""
        xp = array_module(self.values)
        whole = xp.zeros(self.shape, dtype=self.values.dtype)
        whole[self.rows] = self.values
        return whole
