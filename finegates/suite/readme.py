"""Updates quoted tables in README.md and theory/README.md.

Run ``finegates quote`` after publishing. A quote is between ``<!-- begin PATH -->`` and
``<!-- end PATH -->``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from finegates.files import write_text
from finegates.suite.paths import ROOT

QUOTING = ("README.md", "theory/README.md")
"""The files that quote, relative to the repository."""

_QUOTE = re.compile(r"<!-- begin (?P<path>\S+) -->\n.*?<!-- end (?P=path) -->", re.DOTALL)


def with_quotes(text: str, root: Path) -> str:
    """Replaces every quote with the current content of its file.

    Raises:
        FileNotFoundError: a quoted file does not exist.
    """

    def quote(match: re.Match[str]) -> str:
        path = match["path"]
        content = (root / path).read_text(encoding="utf-8").strip()
        return f"<!-- begin {path} -->\n{content}\n<!-- end {path} -->"

    return _QUOTE.sub(quote, text)


def quoted_files(text: str) -> list[str]:
    """Paths of the files that a text quotes."""
    return [match["path"] for match in _QUOTE.finditer(text)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command, which takes no arguments, and returns its exit status."""
    argparse.ArgumentParser(
        prog="finegates quote", description="Bring quoted tables up to date."
    ).parse_args(arguments)
    for name in QUOTING:
        write_text(ROOT / name, with_quotes((ROOT / name).read_text(encoding="utf-8"), ROOT))
    return 0
