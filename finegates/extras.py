"""Packages that the library needs for a part of what it does, installed as extras of finegates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def missing(what: str, package: str, extra: str) -> str:
    """The message for a package that is not installed: what needs it, and the remedy."""
    return (
        f"{what} needs the package {package!r}, which is not installed; install it with "
        f"pip install 'finegates[{extra}]'"
    )


@contextmanager
def needed_for(what: str, extra: str) -> Iterator[None]:
    """Within the block, the import of a package that is missing says what needs it and the remedy.

    Args:
        what: needs what is imported in the block.
        extra: of finegates that installs it.

    Raises:
        ImportError: in the block a package was not found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        raise ImportError(missing(what, name, extra), name=name) from error
