"""The command ``finegates scaling [--measure]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from finegates.suite.scaling.page import write


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="finegates scaling", description="Write docs/scaling.md.")
    parser.add_argument("--measure", action="store_true", help="measure activations first")
    write(parser.parse_args(arguments).measure)
    return 0
