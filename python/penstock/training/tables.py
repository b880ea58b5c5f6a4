"""Reading labelled text from TSV and CSV files, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.training.errors import UserError, require

#: Column names tried, in this order, when none is given.
LABEL_NAMES = (
    "label", "labels", "class", "target", "category", "sentiment", "stars", "rating", "score",
    "polarity", "y",
)  # fmt: skip
TEXT_NAMES = (
    "text", "sentence", "review", "document", "comment", "content", "question", "message",
    "body", "tweet", "x",
)  # fmt: skip

_SUFFIXES = {".tsv": "\t", ".csv": ","}


@dataclass(frozen=True)
class TextTable:
    """Texts with their labels, in the order of the file.

    Attributes:
        texts: N texts.
        labels: N labels as written in the file; empty when the file was read without labels.
        label_column: name of the label column, None when read without labels.
        text_column: name of the text column.
    """

    texts: list[str]
    labels: list[str]
    label_column: str | None
    text_column: str

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: np.ndarray) -> TextTable:
        """Return the rows at `indices` (N',), in that order."""
        return TextTable(
            [self.texts[i] for i in indices],
            [self.labels[i] for i in indices] if self.labels else [],
            self.label_column,
            self.text_column,
        )


def separator_of(path: Path) -> str | None:
    """Return the field separator that a file's name implies, None for any other file."""
    name = path.name.lower().removesuffix(".gz")
    return _SUFFIXES.get(Path(name).suffix)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """Return the UTF-8 text in a file, which is gzipped if its name ends in .gz.

    Raises:
        UserError: the file is missing, unreadable or something else.
    """
    try:
        data = path.read_bytes()
        return decoded(gzip.decompress(data) if path.name.lower().endswith(".gz") else data, path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def decoded(data: bytes, name: object) -> str:
    """Decode UTF-8; the UserError for anything else says `name`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text: {error}") from error


def _find_column(columns: list[str], wanted: str | None, names: tuple[str, ...]) -> str | None:
    if wanted is not None:
        return wanted if wanted in columns else None
    by_lower = {column.strip().lower(): column for column in reversed(columns)}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _column_error(
    kind: str, option: str, wanted: str | None, path: Path, columns: list[str]
) -> UserError:
    found = ", ".join(repr(column) for column in columns)
    if wanted is not None:
        return UserError(f"{path} has no {kind} column {wanted!r}; columns found: {found}")
    return UserError(
        f"cannot tell which column of {path} holds the {kind}; columns found: {found}; "
        f"name it with {option} NAME"
    )


def _read_frame(path: Path, separator: str, quotes: bool | None) -> Any:
    pandas = require("pandas")
    # A TSV file seldom follows the quoting rules of CSV: a quotation mark there is text, and to
    # read it as quoting would swallow line ends and join rows.
    use_quotes = separator == "," if quotes is None else quotes
    hint = "" if use_quotes else "; if its fields are quoted as in CSV, add --quotes"
    try:
        with warnings.catch_warnings():
            # pandas only warns when it drops fields that the header has no name for.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            return pandas.read_csv(
                path,
                sep=separator,
                quoting=csv.QUOTE_MINIMAL if use_quotes else csv.QUOTE_NONE,
                # Without this a bare carriage return inside a text would end the row.
                lineterminator="\n",
                dtype=str,
                keep_default_na=False,  # "NA" and "null" are words
                index_col=False,
                encoding="utf-8-sig",
                compression="gzip" if path.name.lower().endswith(".gz") else None,
                on_bad_lines="error",
            )
    except pandas.errors.EmptyDataError as error:
        raise UserError(f"{path} is empty") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    except pandas.errors.ParserError as error:
        message = " ".join(str(error).removeprefix("Error tokenizing data. C error: ").split())
        raise UserError(f"cannot parse {path}: {message}{hint}") from error
    except pandas.errors.ParserWarning as error:
        raise UserError(f"{path}: rows have more fields than the header names{hint}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_table(
    path: Path,
    *,
    label: str | None = None,
    text: str | None = None,
    quotes: bool | None = None,
    with_labels: bool = True,
) -> TextTable:
    """Read a text table whose first line names the columns.

    A row with fewer fields than columns counts as one whose last fields are empty. A text may be
    empty, a label may not.

    Args:
        path: a file whose name ends in .tsv or .csv, or either followed by .gz; UTF-8.
        label: name of the label column; None guesses among `LABEL_NAMES`.
        text: name of the text column; None guesses among `TEXT_NAMES`.
        quotes: whether a field may stand in quotation marks, as CSV has it. None means yes for
            CSV and no for TSV.
        with_labels: False reads the texts alone, and asks for no label column.

    Raises:
        UserError: the file is missing, unreadable or empty, a column is missing or cannot be
            guessed, or a row has no label.
    """
    separator = separator_of(path)
    if separator is None:
        raise UserError(f"{path}: expected a name ending in .tsv, .csv, .tsv.gz or .csv.gz")
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    frame = _read_frame(path, separator, quotes)
    columns = [str(column).rstrip("\r") for column in frame.columns]
    frame.columns = columns
    if frame.empty:
        raise UserError(f"{path} has a header but no rows")
    text_column = _find_column(columns, text, TEXT_NAMES)
    if text_column is None:
        raise _column_error("text", "--text" if with_labels else "--column", text, path, columns)
    label_column = _find_column(columns, label, LABEL_NAMES) if with_labels else None
    if with_labels and label_column is None:
        raise _column_error("label", "--label", label, path, columns)
    if label_column == text_column:
        raise UserError(
            f"the label and the text cannot be the same column of {path}: {text_column!r}"
        )
    # Files with Windows line ends leave a carriage return at the end of the last column.
    texts = [str(value).rstrip("\r") for value in frame[text_column]]
    labels: list[str] = []
    if label_column is not None:
        labels = [str(value).strip() for value in frame[label_column]]
        if "" in labels:
            raise UserError(
                f"{path}: row {labels.index('') + 1} below the header has an empty label"
            )
    return TextTable(texts, labels, label_column, text_column)


def two_classes(table: TextTable, threshold: float, path: Path) -> TextTable:
    """Make two labels of numbers: those below `threshold`, and the others.

    Args:
        table: read with its labels.
        threshold: the least label of the upper class.
        path: of the table, for errors.

    Raises:
        UserError: a label is no number.
    """
    below, above = f"<{threshold:g}", f">={threshold:g}"
    labels = []
    for row, label in enumerate(table.labels, 1):
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise UserError(
                f"--threshold: expected numbers in column {table.label_column!r} of {path}, got "
                f"{label!r} in row {row} below the header"
            )
        labels.append(above if value >= threshold else below)
    return TextTable(table.texts, labels, table.label_column, table.text_column)


def sorted_labels(labels: list[str]) -> list[str]:
    """Return the distinct labels: by value if all are numbers, otherwise alphabetically."""
    names = sorted(set(labels))
    try:
        return sorted(names, key=float)
    except ValueError:
        return names
