"""Writes one page for each module from its docstrings, as plain text with literals."""

from __future__ import annotations

import pkgutil
import re
import shutil
from pathlib import Path
from typing import Any

import finegates
import theory

DOCS = Path(__file__).resolve().parents[1]
PAGES = DOCS / "modules"

_LITERAL = re.compile(r"(``.*?``|`.*?`)", re.DOTALL)


def modules() -> list[str]:
    """Dotted names of all public modules of the packages, sorted."""
    found = [
        module.name
        for package in (finegates, theory)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return sorted(name for name in found if not any(p[0] == "_" for p in name.split(".")))


def write_pages(folder: Path) -> list[str]:
    """Writes a page for each module and an index; returns the modules' names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = modules()
    for name in names:
        line = "=" * len(name)
        text = f"{name}\n{line}\n\n.. automodule:: {name}\n"
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    listed = "".join(f"   {name}\n" for name in names)
    head = (
        "Modules\n=======\n\nEvery module, with what it defines.\n\n.. toctree::\n   :maxdepth: 1\n"
    )
    (folder / "index.rst").write_text(f"{head}\n{listed}", encoding="utf-8")
    return names


def plain(line: str) -> str:
    """Escapes the characters of a docstring's line that reStructuredText would interpret.

    ``|x|`` is an absolute value here, not a substitution, and ``z_`` is a name, not a link.
    """
    parts = _LITERAL.split(line)
    parts[::2] = [re.sub(r"(?<!\\)\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def _escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain("\n".join(lines)).split("\n")


def setup(app: Any) -> dict[str, bool]:
    """Connects the extension to Sphinx."""
    app.connect("builder-inited", lambda app: write_pages(PAGES))
    # Before napoleon, which inserts links of its own.
    app.connect("autodoc-process-docstring", _escape, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
