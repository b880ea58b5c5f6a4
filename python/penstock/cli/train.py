"""``penstock train``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

_DATA, _MODEL, _TRAINING, _RUN = "Data", "Model", "Training", "Run"
_ROOT = Path("penstock-runs")


def train(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A .tsv or .csv file, gzipped or not, with a label and a text column. Without "
            "one, train on scikit-learn's handwritten digits, read pixel by pixel.",
            show_default=False,
        ),
    ] = None,
    *,
    label: Annotated[
        str | None,
        typer.Option(help="Label column; guessed if not given.", rich_help_panel=_DATA),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Text column; guessed if not given.", rich_help_panel=_DATA)
    ] = None,
    quotes: Annotated[
        bool | None,
        typer.Option(
            "--quotes/--no-quotes",
            help="Whether fields may stand in quotation marks. Default: yes for CSV, no for TSV.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(
            help="File whose rows choose the best epoch, instead of --dev-fraction.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="File to report the final figures on.", rich_help_panel=_DATA),
    ] = None,
    dev_fraction: Annotated[
        float, typer.Option(help="Share of the rows held out as dev set.", rich_help_panel=_DATA)
    ] = 0.1,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the rows held out for the final figures. Default: 0.2 for digits, "
            "otherwise none: the figures are then the dev set's.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(
            help="Cross-validate: train this many models, each tested on its own share of the "
            "rows. 0 trains one.",
            rich_help_panel=_DATA,
        ),
    ] = 0,
    limit: Annotated[
        int | None,
        typer.Option(help="Use this many rows, chosen at random.", rich_help_panel=_DATA),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="words, whitespace or characters.", rich_help_panel=_DATA)
    ] = "words",
    lowercase: Annotated[
        bool, typer.Option("--lowercase/--keep-case", help="Fold case.", rich_help_panel=_DATA)
    ] = True,
    min_count: Annotated[
        int,
        typer.Option(
            help="Rarer tokens count as unknown, unless --embeddings has them.",
            rich_help_panel=_DATA,
        ),
    ] = 2,
    max_length: Annotated[
        int | None,
        typer.Option(help="Cut texts down to this many tokens.", rich_help_panel=_DATA),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            help="Which part of a longer text goes: its end (the default), start or middle.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Labels are numbers: make two classes of them, below this one and from it on.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Word vectors to start from: word2vec (text or binary) or GloVe, gzipped or not.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    embedding_size: Annotated[
        int,
        typer.Option(help="Size of the embeddings without such a file.", rich_help_panel=_MODEL),
    ] = 100,
    embedding_scale: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of random initial embeddings. Default: 1 with the SRU, "
            "otherwise 0.1.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    freeze_embeddings: Annotated[
        bool,
        typer.Option(
            "--freeze-embeddings", help="Do not train the embeddings.", rich_help_panel=_MODEL
        ),
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            help="The recurrent layer: sru, gru, lstm, rnn, or with sliced- before the name.",
            rich_help_panel=_MODEL,
        ),
    ] = "sru",
    slices: Annotated[
        str | None,
        typer.Option(
            help="Of a sliced layer: into how many parts to cut, and these again. Default: 8,8; "
            "8 for digits.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    pad: Annotated[
        str | None,
        typer.Option(
            help="Of a sliced layer: the side on which texts are padded, left (the default) or "
            "right.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    bucket: Annotated[
        int | None,
        typer.Option(
            help="Of a sliced layer: pad texts to a multiple of so many tokens. With the value of "
            "--max-length all are of one length. Default: the product of --slices.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    hidden: Annotated[
        int | None,
        typer.Option(help="Features per layer and direction.", rich_help_panel=_MODEL),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Number of layers.", rich_help_panel=_MODEL)
    ] = None,
    bidirectional: Annotated[
        bool | None,
        typer.Option(
            "--bidirectional/--unidirectional",
            help="Read both ways.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Probability, on embeddings, between layers and before the output.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(help="From steps to one vector: last, max or mean.", rich_help_panel=_MODEL),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            help="Let the forget gates start out with memories of up to this many steps; 0: "
            "biases of 0, as published. Default: 64 for digits, otherwise 0.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of Adam.", rich_help_panel=_TRAINING)
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="Of the learning rate: cosine (down to 0 over all epochs) or constant.",
            rich_help_panel=_TRAINING,
        ),
    ] = "cosine",
    weight_decay: Annotated[
        float, typer.Option(help="Decoupled, as in AdamW.", rich_help_panel=_TRAINING)
    ] = 0.0,
    clip_norm: Annotated[
        float | None,
        typer.Option(help="Largest norm of the gradient; 0: any.", rich_help_panel=_TRAINING),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", rich_help_panel=_TRAINING)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many epochs without a better dev score; 0: never.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences per step.", rich_help_panel=_TRAINING)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Of everything random; the same seed gives the same bits.",
            rich_help_panel=_TRAINING,
        ),
    ] = 0,
    device: Annotated[
        str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=_TRAINING)
    ] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. Default: a new one in ./penstock-runs.",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, or else with the latest one of this data; its "
            "options are remembered.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Delete the run in --out and start again.", rich_help_panel=_RUN
        ),
    ] = False,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            help="Seconds between checkpoints within an epoch; 0: after every batch.",
            rich_help_panel=_RUN,
        ),
    ] = 30.0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the result alone.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Train a sequence classifier and leave it, with its figures, in a folder.

    Stop it with Ctrl-C, or kill it: --resume goes on from the last checkpoint, and gives the same
    bits as a run that was never stopped.
    """
    from rich.console import Console

    from penstock.cli.progress import ProgressPrinter
    from penstock.training import Interrupted, TrainConfig, UserError, run_training
    from penstock.training.runs import resume_config

    given = _given(context)
    if resume and overwrite:
        raise UserError("give --resume or --overwrite, not both")
    folder = _folder(out, file, resume, overwrite)
    config = resume_config(folder, given) if resume else TrainConfig(**given)
    console = Console()
    try:
        verb = "Going on with" if resume else "Training in"
        with ProgressPrinter(console, f"{verb} {folder}", quiet=quiet) as printer:
            metrics = run_training(
                config, folder, resume=resume, overwrite=overwrite, observer=printer
            )
    except Interrupted:
        console.print(
            f"Stopped; a checkpoint is written. Go on with:\n"
            f"  penstock train --resume --out {_quoted(folder)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    _conclude(console, folder, metrics)


def _given(context: typer.Context) -> dict[str, Any]:
    """Return the options named on the command line, under their names in `TrainConfig`."""
    from penstock.training import TrainConfig

    names = {field.name for field in fields(TrainConfig)}
    given: dict[str, Any] = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        key = "data" if name == "file" else name
        if key in names and value is not None and getattr(source, "name", "") == "COMMANDLINE":
            given[key] = str(value) if isinstance(value, Path) else value
    return given


def _run_name(data: Path | None) -> str:
    if data is None:
        return "digits"
    name = data.name.removesuffix(".gz")
    for suffix in (".tsv", ".csv"):
        name = name.removesuffix(suffix)
    return name or "run"


def _folder(out: Path | None, data: Path | None, resume: bool, overwrite: bool) -> Path:
    """Choose the run's folder, so that no run is ever overwritten unasked."""
    from penstock.training import UserError
    from penstock.training.runs import is_run, runs_of

    if out is not None:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file, not a folder")
        if is_run(out) and not (resume or overwrite):
            raise UserError(
                f"{out} holds a run already: go on with it (--resume), start it again "
                "(--overwrite), or name another folder"
            )
        if resume and not is_run(out):
            raise UserError(f"--resume: {out} holds no run")
        return out
    if overwrite:
        raise UserError("--overwrite needs --out, the folder of the run to delete")
    name = _run_name(data)
    folder, same = runs_of(_ROOT, name, None if data is None else str(data))
    if not resume:
        return folder
    if not same:
        what = "digits" if data is None else str(data)
        raise UserError(f"--resume: no run to go on with on {what} in {_ROOT}; name one with --out")
    return same[-1]


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _conclude(console: Any, folder: Path, metrics: dict[str, Any]) -> None:
    """Print the result, where it lies, and what to do with it."""

    def line(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    line()
    cross_validated = "folds" in metrics
    if metrics["accuracy"] is None:
        line(f"Trained for {metrics['epochs']} epochs; no rows were held out to test on.")
    elif cross_validated:
        line(
            f"Accuracy {100 * metrics['accuracy']:.1f} % on average over "
            f"{metrics['evaluated_on']} (standard deviation {100 * metrics['accuracy_sd']:.1f}), "
            f"macro F1 {100 * metrics['macro_f1']:.1f} %, {metrics['seconds']:.0f} s",
            "bold",
        )
    else:
        part = metrics["evaluated_on"]
        line(
            f"{part.capitalize()} accuracy {100 * metrics['accuracy']:.1f} % "
            f"({metrics['examples'][part]} sequences), "
            f"macro F1 {100 * metrics['macro_f1']:.1f} %, "
            f"from epoch {metrics['best_epoch']} of {metrics['epochs']}, "
            f"{metrics['seconds']:.0f} s of training",
            "bold",
        )
    files = {
        "model.safetensors": "the weights that were kept",
        "metrics.json": "all figures, the history and the options",
        "learning_curve.png": "loss and accuracy over the epochs",
        "checkpoint.safetensors": "the state of the training, for --resume",
    }
    if cross_validated:
        files = {"metrics.json": "all figures and the options", "fold-*": "one model for each fold"}
    line(f"Files in {folder}:")
    for name, meaning in files.items():
        line(f"  {name:<24}{meaning}")
    line("Next:")
    if cross_validated:
        first = _quoted(min(folder.glob("fold-[0-9]*")))
        line(f"  penstock predict {first} --text 'one more text'")
    elif metrics["task"] == "digits":
        line(f"  penstock evaluate {_quoted(folder)}")
        line("  penstock train FILE.tsv       # your own texts: columns label and text")
    else:
        line(f"  penstock evaluate {_quoted(folder)} FILE.tsv")
        line(f"  penstock predict {_quoted(folder)} --text 'one more text'")
