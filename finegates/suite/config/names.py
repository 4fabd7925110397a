"""Names and folders of a configuration that become parts of paths: none leads anywhere else.

A workflow writes into the folder that ``results`` names, and in
``results/published/<tier>``. What it reads from a folder of the user's (``path``) may lie anywhere;
names that are put into a path may not climb out of the folder before them.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HUB = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_label(label: str, what: str = "label") -> None:
    """Raises ValueError for a name that cannot be part of a file's name."""
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"{what} {label!r}: use letters, digits, '-', '_' and '.', the first a letter or digit"
        )


def check_hub(hub: str) -> None:
    """Raises ValueError unless a hub id is one name, or an owner and a name."""
    if not _HUB.fullmatch(hub) or ".." in hub:
        raise ValueError(f"hub entry {hub!r} is not of the form owner/name")


def check_package(package: str) -> None:
    """Raises ValueError unless ``name/folder`` stays inside an installed top-level package."""
    name, _, inside = package.partition("/")
    if not _PACKAGE.fullmatch(name) or _leaves(inside):
        raise ValueError(
            f"package {package!r}: give an installed package's name and a folder in it, name/folder"
        )


def check_results(results: str) -> None:
    """Raises ValueError for a folder of results that hides where it is, or that is not its own.

    A relative one is in the repository; for a disk elsewhere, an absolute one says so openly.
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
