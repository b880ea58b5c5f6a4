"""The commands of ``penstock``, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.bench import bench
from penstock.cli.evaluate import evaluate
from penstock.cli.info import info
from penstock.cli.predict import predict
from penstock.cli.train import train

app = typer.Typer(
    help="Fast recurrent layers: train a classifier, use it, and see how penstock is set up.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import penstock

        typer.echo(f"penstock {penstock.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


for _command in (info, train, evaluate, predict):
    app.command()(_command)
app.add_typer(bench)
