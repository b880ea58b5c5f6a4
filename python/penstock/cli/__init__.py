"""The command ``penstock``.

This module imports nothing beyond the standard library, so that a missing package gives a
message and not a traceback; the commands import what they need when they run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those after the program's name; None takes the process's own.

    Returns:
        the exit status: 0, 1 if a run failed, 2 for a mistake of the user, 130 if interrupted.
    """
    try:
        from penstock.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(
            f"penstock: error: the command needs {error.name}, which is not installed; "
            "install it with: pip install 'penstock[train]'",
            file=sys.stderr,
        )
        return 2
    try:
        app(args=None if arguments is None else list(arguments), prog_name="penstock")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    except KeyboardInterrupt:
        print("penstock: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Leave nothing for the interpreter to
        # flush into the closed pipe on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Imported here because a traceback from `info` must not depend on the training code.
        from penstock.training.errors import RunError, UserError

        if isinstance(error, (UserError, RunError)):
            print(f"penstock: error: {error}", file=sys.stderr)
            return 2 if isinstance(error, UserError) else 1
        raise
    return 0
