"""Runs a file that registers descriptions, ``--specs`` on the command line."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from finegates.cli.failures import CommandError, message_of

_NAME = "finegates_specs"
"""The name of the file as a module."""


def run_specs(path: Path) -> None:
    """Runs a file of Python code that registers descriptions or classes.

    The names of ``finegates.adapters`` are defined in it, as what :func:`finegates.describe` prints
    needs them. As for a script, modules next to the file can be imported.

    Args:
        path: of the file.

    Raises:
        CommandError: the file does not exist, or its code fails.
    """
    from finegates import adapters

    if not path.is_file():
        raise CommandError(
            f"--specs {path}: no such file; name a Python file that registers descriptions, such "
            "as what finegates.describe prints"
        )
    spec = importlib.util.spec_from_loader(
        _NAME, importlib.machinery.SourceFileLoader(_NAME, str(path))
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module).update({name: getattr(adapters, name) for name in adapters.__all__})
    sys.modules[_NAME] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the code may do anything
        told = ": ".join(filter(None, (type(error).__name__, message_of(error))))
        raise CommandError(
            f"--specs {path}{_line(error, path)}: {told}; correct the file"
        ) from error


def _line(error: Exception, path: Path) -> str:
    """The line of a file in which an error arose."""
    if isinstance(error, SyntaxError):
        return ""  # its message says it
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f", line {lines[-1]}" if lines else ""
