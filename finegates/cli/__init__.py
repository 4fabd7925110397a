"""The command line: ``finegates``, or ``python -m finegates``.

Each command is a module of its own with two functions: ``add`` describes it to argparse, ``run``
does the work and returns the exit status. ``finegates.cli.program`` puts them together.
"""

from __future__ import annotations

from finegates.cli.program import main

__all__ = ["main"]
