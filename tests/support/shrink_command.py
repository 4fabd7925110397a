"""``finegates shrink`` with a few short epochs, and the contents of its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finegates.cli import main, outcome

LENGTH = 8
QUICK = ["--epochs", "3", "--batch-size", "8", "--max-length", str(LENGTH)]


def shrink(places: dict[str, Path], out: Path, *options: str) -> int:
    words = ["shrink", str(places["model"]), "--train", str(places["train"]), "--out", str(out)]
    return main([*words, *QUICK, *options])


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / outcome.SUMMARY).read_text())


def contents(out: Path) -> dict[str, Any]:
    """The files of a result by name, without times, which differ between runs."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in out.iterdir()}
    found[outcome.SUMMARY] = {k: v for k, v in summary(out).items() if k != "timing"}
    return found
