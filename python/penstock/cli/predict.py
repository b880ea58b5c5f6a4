"""``penstock predict``."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

    from penstock.training import TrainedModel

_FORMATS = ("tsv", "json")


def predict(
    run: Annotated[Path, typer.Argument(help="Folder that penstock train made.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A .tsv or .csv file with a text column, or any other file with one text per "
            "line; each may be gzipped. Without one, and without --text, standard input. For a "
            "run on digits: 64 pixels from 0 to 16 per line.",
            show_default=False,
        ),
    ] = None,
    *,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", help="A text to classify; may be given several times."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Text column; by default as in the training data.")
    ] = None,
    output_format: Annotated[
        str, typer.Option("--format", "-f", help="tsv, or json: one object per line.")
    ] = "tsv",
    out: Annotated[
        Path | None, typer.Option(help="Write to this file instead of standard output.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Print each text's label, its probability, and the probability of every class."""
    from penstock.training import TrainedModel, UserError
    from penstock.training.checkpoints import write_text_atomically
    from penstock.training.metrics import softmax

    if output_format not in _FORMATS:
        raise UserError(f"--format: expected {' or '.join(_FORMATS)}, got {output_format!r}")
    if file is not None and text:
        raise UserError("give FILE or --text, not both")
    if file is None and not text and sys.stdin.isatty():
        raise UserError("nothing to read: give FILE, --text, or texts on standard input")
    model = TrainedModel(run, device)
    probabilities = softmax(_score(model, file, text, column))
    lines = _formatted(probabilities, model.labels, output_format)
    if out is not None:
        write_text_atomically(out, "".join(lines))
        return
    for line in lines:
        sys.stdout.write(line)
    sys.stdout.flush()


def _score(
    model: TrainedModel, file: Path | None, texts: list[str] | None, column: str | None
) -> np.ndarray:
    from penstock.training.digits import open_pixels, read_pixels
    from penstock.training.tables import read_table, read_text, separator_of

    if not model.is_text:
        if texts:
            features = read_pixels(io.StringIO("\n".join(texts)), "--text")
        elif file is not None:
            features = open_pixels(file)
        else:
            features = read_pixels(io.StringIO(_standard_input()), "standard input")
        return model.score_features(features)
    if texts:
        return model.score_texts(texts)
    if file is None:
        return model.score_texts(_lines(_standard_input()))
    if separator_of(file) is not None:
        table = read_table(
            file,
            text=column or model.input_spec["text_column"],
            quotes=model.input_spec["quotes"],
            with_labels=False,
        )
        return model.score_texts(table.texts)
    return model.score_texts(_lines(read_text(file)))


def _standard_input() -> str:
    from penstock.training.tables import decoded

    # Not sys.stdin's own decoding, which depends on the locale.
    return decoded(sys.stdin.buffer.read(), "standard input")


def _lines(text: str) -> list[str]:
    # Not splitlines(): a text may hold a character that Unicode counts as a line end.
    return [line.rstrip("\r\n") for line in io.StringIO(text, newline="\n")]


def _formatted(probabilities: np.ndarray, labels: list[str], output_format: str) -> Iterator[str]:
    if output_format == "tsv":
        yield "\t".join(["label", "probability", *(f"p({name})" for name in labels)]) + "\n"
    for row in probabilities:
        best = int(row.argmax())
        if output_format == "tsv":
            values = [f"{row[best]:.6g}", *(f"{p:.6g}" for p in row)]
            yield "\t".join([labels[best], *values]) + "\n"
        else:
            record = {
                "label": labels[best],
                "probability": float(row[best]),
                "probabilities": dict(zip(labels, map(float, row), strict=True)),
            }
            yield json.dumps(record, ensure_ascii=False) + "\n"
