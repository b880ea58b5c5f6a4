"""The command ``penstock``.

This module imports nothing beyond the standard library, so that a missing package gives a
message and not a traceback; the commands import what they need when they run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those after the program's name; None takes the process's own.

    Returns:
        the exit status: 0, 1 if a run failed, 2 for a mistake of the user, 130 if interrupted.
    """
    try:
        import typer

        from penstock.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(
            f"penstock: error: the command needs {error.name}, which is not installed; "
            "install it with: pip install '.[train]' in a clone of penstock",
            file=sys.stderr,
        )
        return 2
    command: Any = typer.main.get_command(app)
    given = sys.argv[1:] if arguments is None else list(arguments)
    status = 0
    try:
        # What command.main() does, less its own way of reporting errors.
        with command.make_context("penstock", given) as context:
            command.invoke(context)
    except typer.Exit as done:
        status = int(done.exit_code)
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        print("penstock: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Leave nothing for the interpreter to
        # flush into the closed pipe on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        found = _report(error)
        if found is None:
            raise
        status = found
    return status


def _report(error: Any) -> int | None:
    """Print one line about a mistake of the user; return the status, None for any other error."""
    # Imported here because a traceback from `info` must not depend on the training code.
    from penstock.training.errors import RunError, UserError

    status: int | None = 2
    if isinstance(error, (UserError, RunError)):
        _print_error(str(error))
        status = 2 if isinstance(error, UserError) else 1
    elif isinstance(error, OSError):
        named = error.strerror and error.filename is not None
        _print_error(f"{error.filename}: {error.strerror}" if named else str(error))
    elif hasattr(error, "format_message") and hasattr(error, "exit_code"):
        # A usage error of click, which typer brings along under a name that depends on its version.
        message = error.format_message()
        status = int(error.exit_code)
        if type(error).__name__ != "NoArgsIsHelpError":
            _print_error(message)
        elif message:  # otherwise the help has been printed
            print(message)
    else:
        status = None
    return status


def _print_error(message: str) -> None:
    print("penstock: error:", " ".join(message.split()), file=sys.stderr)
