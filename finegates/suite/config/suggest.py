"""Suggestions for misspelt names in error messages.

    python finegates/suite/config/suggest.py lokal local smoke

prints the clause for ``lokal`` among the other two. The Makefile calls it as a file, because a
package that is not installed cannot be imported.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


def nearest(name: str, known: Iterable[object]) -> str:
    """A clause that suggests the nearest known name and lists the known ones."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names)})"


if __name__ == "__main__":
    print(nearest(sys.argv[1], sys.argv[2:]))
