"""The error type for mistakes of the person who runs a command."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(ValueError):
    """Bad input from the user: a wrong option, file or column.

    The command line prints the message alone, with no traceback, and exits with status 2.
    """


def require(module: str, extra: str = "train") -> ModuleType:
    """Import an optional dependency.

    Args:
        module: name to import, for example ``"pandas"`` or ``"sklearn.datasets"``.
        extra: the extra of penstock that installs it.

    Raises:
        UserError: it is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"this needs {package}, which could not be imported ({error}); "
            f"install it with: pip install '.[{extra}]' in a clone of penstock"
        ) from error


class RunError(RuntimeError):
    """A run that cannot go on for a reason that lies in its course and not in its input.

    The command line prints the message alone and exits with status 1.
    """
