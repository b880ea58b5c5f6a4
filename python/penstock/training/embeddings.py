"""Reading word vectors: word2vec (text and binary) and GloVe, gzipped or not."""

from __future__ import annotations

import gzip
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from penstock.training.errors import UserError

_HEAD = 4096


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    with path.open("rb") as stream:
        gzipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if gzipped else path.open("rb")  # type: ignore[return-value]


def _header(line: bytes) -> tuple[int, int] | None:
    """Return (words, size) if `line` is word2vec's first line, None if it is a vector's."""
    fields = line.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[0]), int(fields[1])
    return None


def _is_binary(head: bytes, size: int) -> bool:
    """Tell whether `head`, what follows word2vec's first line, holds raw float32 values."""
    _, _, values = head.lstrip(b"\n").partition(b" ")
    # Written out, `size` numbers take at least two characters each.
    return bool(values[: 2 * size].translate(None, b"0123456789+-.eE \t\r\n"))


def _read_binary(
    stream: IO[bytes], path: Path, words: int, size: int, wanted: Collection[str]
) -> dict[str, np.ndarray]:
    vectors: dict[str, np.ndarray] = {}
    buffer = b""
    position = 0

    def need(count: int) -> None:
        nonlocal buffer, position
        if len(buffer) - position < count:
            buffer = buffer[position:] + stream.read(max(count, 1 << 20))
            position = 0

    for number in range(words):
        need(4 * size + 1024)
        end = buffer.find(b" ", position)
        start = end + 1
        if end < 0 or len(buffer) - start < 4 * size:
            raise UserError(
                f"{path}: ends after {number} of {words} vectors of size {size} "
                "(cut short, or not in word2vec's binary format)"
            )
        word = buffer[position:end].lstrip(b"\n").decode("utf-8", errors="replace")
        if word in wanted and word not in vectors:
            vectors[word] = np.frombuffer(buffer, "<f4", size, start).astype(np.float32)
        position = start + 4 * size
    return vectors


def _read_text(
    stream: IO[bytes], path: Path, first: bytes, size: int | None, wanted: Collection[str]
) -> dict[str, np.ndarray]:
    vectors: dict[str, np.ndarray] = {}
    number = 0 if first else 1
    line = first or stream.readline()
    while line:
        number += 1
        line = line.rstrip()
        if line:
            if size is None:
                size = len(line.split(b" ")) - 1
            # From the right: some of GloVe's words hold spaces.
            word_bytes, *fields = line.rsplit(b" ", size)
            if size < 1 or len(fields) != size:
                raise UserError(
                    f"{path}: line {number}: expected a word and {size} numbers, "
                    f"got {line[:60].decode('utf-8', errors='replace')!r}"
                )
            word = word_bytes.decode("utf-8", errors="replace")
            if word in wanted and word not in vectors:
                try:
                    vectors[word] = np.array([float(field) for field in fields], np.float32)
                except ValueError as error:
                    raise UserError(f"{path}: line {number}: {error}") from error
        line = stream.readline()
    return vectors


def read_embeddings(path: Path, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], int]:
    """Read the vectors of the wanted words.

    The format is told from the content: word2vec's files start with a line "words size", in
    binary ones raw little-endian float32 values follow each word; GloVe's have no such line.

    Args:
        path: the file, gzipped or not.
        wanted: words to keep; the others are skipped, so that large files fit in memory.

    Returns:
        word -> float32 (size,), and size.

    Raises:
        UserError: the file is missing, cut short, of another format, or holds no wanted word.
    """
    try:
        with _open(path) as stream:
            first = stream.readline()
            header = _header(first)
            if header is None:
                if len(first.split()) < 3:
                    raise UserError(f"{path} holds no word vectors in word2vec's or GloVe's format")
                size = len(first.rstrip().split(b" ")) - 1
                vectors = _read_text(stream, path, first, size, wanted)
            else:
                words, size = header
                head = stream.read(_HEAD)
                stream.seek(len(first))
                if _is_binary(head, size):
                    vectors = _read_binary(stream, path, words, size, wanted)
                else:
                    vectors = _read_text(stream, path, b"", size, wanted)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not vectors:
        raise UserError(f"{path} holds a vector for none of the {len(wanted)} words of the data")
    for word, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise UserError(f"{path}: the vector of {word!r} is not finite")
    return vectors, size
