"""Handwritten digits as sequences: scikit-learn's bundled 8 x 8 images, read pixel by pixel."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import numpy as np

from penstock.training.errors import UserError, require
from penstock.training.tables import read_text

STEPS = 64
CLASSES = 10
_BRIGHTEST = 16.0


def normalise_pixels(pixels: np.ndarray) -> np.ndarray:
    """Scale pixels (N, 64) of value 0 (background) to 16 to sequences float32 (N, 64, 1) in
    [-1, 1], row by row from the top left.

    The background is -1 and not 0: a step whose input is 0 would add nothing to the state.
    """
    return (np.asarray(pixels, np.float32) * (2 / _BRIGHTEST) - 1).reshape(-1, STEPS, 1)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the 1797 images as sequences float32 (N, 64, 1) and the digits int64 (N,)."""
    images = require("sklearn.datasets").load_digits()
    return normalise_pixels(images.data), images.target.astype(np.int64)


def read_pixels(stream: IO[str], name: str) -> np.ndarray:
    """Read images from text, one a line: 64 numbers from 0 to 16, parted by commas or spaces.

    Args:
        stream: the text.
        name: what to call it in an error.

    Returns:
        sequences float32 (N, 64, 1).

    Raises:
        UserError: a line holds anything else.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(stream, 1):
        fields = line.replace(",", " ").split()
        if not fields:
            continue
        try:
            values = [float(field) for field in fields]
        except ValueError as error:
            raise UserError(f"{name}: line {number}: {error}") from error
        if len(values) != STEPS or not all(0 <= value <= _BRIGHTEST for value in values):
            raise UserError(
                f"{name}: line {number}: expected {STEPS} numbers from 0 to 16, the pixels of one "
                f"8 x 8 image, got {len(values)} numbers"
                + (f" from {min(values):g} to {max(values):g}" if len(values) == STEPS else "")
            )
        rows.append(values)
    return normalise_pixels(np.array(rows, np.float32).reshape(-1, STEPS))


def open_pixels(path: Path) -> np.ndarray:
    """Read a file, gzipped or not, with `read_pixels`."""
    return read_pixels(io.StringIO(read_text(path)), str(path))
