"""The command line: ``finegates``, or ``python -m finegates``.

Each command is a module with two functions: ``add`` registers it with argparse, ``run`` executes it
and returns the exit status. ``finegates.cli.program`` combines them.
"""

from __future__ import annotations

from finegates.cli.program import main

__all__ = ["main"]
