"""Commands of the suite, which reproduces and audits the paper.

The library does not import the suite: a command's function is imported when it runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from finegates.cli.failures import SUITE_EXTRA, lacks

SUITE = {
    "verify": ("finegates.suite.verify:main", "check the SHA-256 digests of results"),
    "compare": ("finegates.suite.compare:main", "compare two folders of results"),
    "quote": ("finegates.suite.readme:main", "bring the tables quoted in the README up to date"),
    "scaling": ("finegates.suite.scaling.command:main", "write the costs of the paper tier"),
}
"""Function and description of each command."""


def run(command: str, words: Sequence[str]) -> int:
    """Runs a command of the suite, which parses its own arguments.

    Args:
        command: of :data:`SUITE`.
        words: its arguments.

    Returns:
        its exit status.

    Raises:
        CommandError: a package that the suite needs is not installed.
    """
    module, _, name = SUITE[command][0].partition(":")
    # Some packages are imported inside functions, not with the module.
    try:
        function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), name)
        return function(list(words))
    except ModuleNotFoundError as error:
        raise lacks(error, f"finegates {command}", SUITE_EXTRA) from error
