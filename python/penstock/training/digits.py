"""Handwritten digits as sequences: scikit-learn's bundled 8 x 8 images, read pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from penstock.training.errors import UserError, require

STEPS = 64
_SIDE = 8
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


def distort_images(sequences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate, scale, shear and shift each image a little, as another hand would have written it.

    Pixels between pixels are interpolated linearly, and background moves in from outside.

    Args:
        sequences: float32 (B, 64, 1), -1 the background.
        rng: draws one distortion for each image: up to 12 degrees, 10 %, 10 % and 0.8 pixels.

    Returns:
        a new array of the same shape.
    """
    count = len(sequences)
    angle, scale_y, scale_x, shear = rng.uniform(-1, 1, (4, count))
    angle, shear = angle * np.deg2rad(12), shear * 0.1
    scale_y, scale_x = 1 + 0.1 * scale_y, 1 + 0.1 * scale_x
    shift = rng.uniform(-0.8, 0.8, (2, count, 1, 1))
    centre = (_SIDE - 1) / 2
    y, x = np.mgrid[:_SIDE, :_SIDE] - centre
    # Where each pixel of the new image lies in the old one.
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    from_y = scale_y[:, None, None] * (cos * y - sin * x) + centre + shift[0]
    from_x = scale_x[:, None, None] * (sin * y + cos * x) + shear[:, None, None] * y
    from_x = from_x + centre + shift[1]
    # A border of background on each side takes up whatever lies outside.
    padded = np.full((count, _SIDE + 4, _SIDE + 4), -1, np.float32)
    padded[:, 2:-2, 2:-2] = sequences.reshape(count, _SIDE, _SIDE)
    from_y = np.clip(from_y + 2, 0, _SIDE + 2.999)
    from_x = np.clip(from_x + 2, 0, _SIDE + 2.999)
    top, left = from_y.astype(np.intp), from_x.astype(np.intp)
    down = (from_y - top).astype(np.float32)
    right = (from_x - left).astype(np.float32)
    image = np.arange(count)[:, None, None]
    upper = (1 - right) * padded[image, top, left] + right * padded[image, top, left + 1]
    lower = (1 - right) * padded[image, top + 1, left] + right * padded[image, top + 1, left + 1]
    distorted: np.ndarray = (1 - down) * upper + down * lower
    return distorted.reshape(count, STEPS, 1)


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
    """Read a file with `read_pixels`."""
    try:
        with path.open(encoding="utf-8") as stream:
            return read_pixels(stream, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
