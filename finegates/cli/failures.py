"""One-line error messages of the command line."""

from __future__ import annotations

from finegates.extras import missing

SUITE_EXTRA = "suite"
"""The extra that Parquet tables and the commands of the suite need."""


class CommandError(Exception):
    """The command failed; the message names the problem, its place and the remedy."""


_EXPLAINED = (
    *(CommandError, ValueError, TypeError, KeyError),
    *(OSError, ImportError, RuntimeError, ArithmeticError),
)
"""Exception classes whose messages are meant for users."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line, with its class unless meant for users."""
    if isinstance(error, _EXPLAINED) and message_of(error):
        return message_of(error)
    told = ": ".join(filter(None, (type(error).__name__, message_of(error))))
    return f"{told}; --traceback shows the traceback"


def message_of(error: BaseException) -> str:
    """The message of an error, on one line."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


def lacks(error: ImportError, what: str, extra: str) -> CommandError:
    """The error for a package that is not installed.

    Args:
        error: of the import.
        what: the feature that needs the package.
        extra: of finegates that installs it.
    """
    return CommandError(missing(what, error.name or str(error), extra))
