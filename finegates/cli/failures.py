"""What the command line says when the work fails: one line that names thing, place and remedy."""

from __future__ import annotations

from finegates.extras import missing

SUITE_EXTRA = "suite"
"""The extra of the package with what tables in Parquet and the commands of the suite need."""


class CommandError(Exception):
    """The work cannot be done; the message names the thing, the place and the remedy."""


_EXPLAINED = (
    *(CommandError, ValueError, TypeError, KeyError),
    *(OSError, ImportError, RuntimeError, ArithmeticError),
)
"""Kinds that this library and those below it raise with a message for people."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line; its kind as well where the message alone says little."""
    if isinstance(error, _EXPLAINED) and message_of(error):
        return message_of(error)
    told = ": ".join(filter(None, (type(error).__name__, message_of(error))))
    return f"{told}; --traceback shows where"


def message_of(error: BaseException) -> str:
    """The message of an error on one line, as it is."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


def lacks(error: ImportError, what: str, extra: str) -> CommandError:
    """The error for a package that is not installed.

    Args:
        error: of the import.
        what: needs the package.
        extra: of finegates that installs it.
    """
    return CommandError(missing(what, error.name or str(error), extra))
