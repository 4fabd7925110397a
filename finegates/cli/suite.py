"""Commands that belong to the suite, which reproduces and audits the paper.

The library does not import the suite: a command's function is looked up when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from finegates.cli.failures import SUITE_EXTRA, lacks

SUITE = {
    "verify": ("finegates.suite.verify:main", "check that results are as their jobs wrote them"),
    "compare": ("finegates.suite.compare:main", "set two trees of results against each other"),
    "quote": ("finegates.suite.readme:main", "bring the tables quoted in the README up to date"),
    "scaling": ("finegates.suite.scaling.command:main", "write what the paper tier costs"),
}
"""By command: the function that runs it, and what it does."""


def run(command: str, words: Sequence[str]) -> int:
    """Runs a command of the suite, which reads its own words.

    Args:
        command: of :data:`SUITE`.
        words: what was written after it.

    Returns:
        its exit status.

    Raises:
        CommandError: a package that the suite needs is not installed.
    """
    module, _, name = SUITE[command][0].partition(":")
    # Some packages are imported when they are needed, not with the module.
    try:
        function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), name)
        return function(list(words))
    except ModuleNotFoundError as error:
        raise lacks(error, f"finegates {command}", SUITE_EXTRA) from error
