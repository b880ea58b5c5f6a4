"""``penstock info``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show version, instruction set, BLAS, threads, and whether CUDA is on or why it is not."""
    import penstock

    if as_json:
        typer.echo(json.dumps(penstock.config(), indent=2, default=str))
    else:
        penstock.show_config()
