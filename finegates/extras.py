"""Optional packages, installed as extras of finegates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def missing(what: str, package: str, extra: str) -> str:
    """Message for a missing package: what needs it, and how to install it."""
    return (
        f"{what} needs the package {package!r}, which is not installed; install it with "
        f"pip install 'finegates[{extra}]'"
    )


@contextmanager
def needed_for(what: str, extra: str) -> Iterator[None]:
    """Within the block, the error for a missing package names the extra to install.

    Args:
        what: the feature that needs the package.
        extra: of finegates that installs it.

    Raises:
        ImportError: a package was not found in the block.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        raise ImportError(missing(what, name, extra), name=name) from error
