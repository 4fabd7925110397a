"""Checks names of a configuration that become parts of paths.

A workflow writes only into the folder ``results`` and into ``results/published/<tier>``. It may
read from any folder of the user (``path``). Names that become part of a path must not leave their
parent folder.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HUB = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_label(label: str, what: str = "label") -> None:
    """Raises ValueError for a name that cannot be part of a file name."""
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"{what} {label!r}: use letters, digits, '-', '_' and '.', the first a letter or digit"
        )


def check_hub(hub: str) -> None:
    """Raises ValueError unless a hub id is ``name`` or ``owner/name``."""
    if not _HUB.fullmatch(hub) or ".." in hub:
        raise ValueError(f"hub entry {hub!r} is not of the form owner/name")


def check_package(package: str) -> None:
    """Raises ValueError unless ``name/folder`` is inside a top-level package."""
    name, _, inside = package.partition("/")
    if not _PACKAGE.fullmatch(name) or _leaves(inside):
        raise ValueError(
            f"package {package!r}: give an installed package's name and a folder in it, name/folder"
        )


def check_results(results: str) -> None:
    """Raises ValueError for a folder of results that is ambiguous or reserved.

    A relative folder is inside the repository. A folder elsewhere must be given as an absolute
    path.
    """
    path = PurePosixPath(results)
    if ".." in path.parts or not path.parts or not path.name:
        raise ValueError(
            f"results {results!r}: name a folder of this repository, or an absolute path, "
            "without '..'"
        )
    if re.search(r"[{}\s]", results):
        raise ValueError(f"results {results!r}: no braces or blanks, they mean something to rules")
    if "published" in path.parts:
        raise ValueError(
            f"results {results!r}: results/published holds committed copies, written by "
            "snakemake publish alone"
        )


def _leaves(inside: str) -> bool:
    path = PurePosixPath(inside)
    return path.is_absolute() or ".." in path.parts
