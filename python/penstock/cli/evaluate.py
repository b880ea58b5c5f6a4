"""``penstock evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that penstock train made.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A labelled .tsv or .csv file, gzipped or not. Without one, the rows that the "
            "run itself held out.",
            show_default=False,
        ),
    ] = None,
    *,
    label: Annotated[
        str | None, typer.Option(help="Label column; by default as in the training data.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Text column; by default as in the training data.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the figures as JSON to this file as well.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Measure a trained model: accuracy, F1 for each class, and what is taken for what."""
    from penstock.training import TrainedModel, UserError
    from penstock.training.checkpoints import write_json_atomically

    model = TrainedModel(run, device)
    if file is None:
        part, figures = model.evaluate_held_out()
        source = f"the run's {part} set"
    elif not model.is_text:
        raise UserError("a run on digits is evaluated on its own test set: leave FILE out")
    else:
        figures = model.evaluate_file(file, label=label, text=text)
        source = str(file)
    figures = {"run": str(run), "source": source, **figures}
    if out is not None:
        write_json_atomically(out, figures)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        _show(figures)


#: A confusion matrix of more classes would not fit a terminal's width.
_WIDEST_MATRIX = 15


def _show(figures: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(
        f"Accuracy {100 * figures['accuracy']:.1f} %, macro F1 {100 * figures['macro_f1']:.1f} %, "
        f"loss {figures['loss']:.4f} on {figures['examples']} sequences of {figures['source']}",
        style="bold",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    classes = Table(box=box.SIMPLE_HEAD)
    for title in ("class", "precision %", "recall %", "F1 %", "sequences"):
        classes.add_column(title, justify="left" if title == "class" else "right")
    for name, row in figures["per_class"].items():
        classes.add_row(
            Text(name),
            *(f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")),
            str(row["examples"]),
        )
    console.print(classes)
    names = figures["labels"]
    if len(names) > _WIDEST_MATRIX:
        console.print("(confusion matrix: see --json)", highlight=False)
        return
    console.print("True class by row, predicted class by column:", highlight=False)
    matrix = Table(box=box.SIMPLE_HEAD)
    matrix.add_column("")
    for name in names:
        matrix.add_column(Text(name), justify="right")
    for name, counts in zip(names, figures["confusion_matrix"], strict=True):
        matrix.add_row(Text(name), *(str(count) if count else "·" for count in counts))
    console.print(matrix)
