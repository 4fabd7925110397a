"""Reads and writes ``finegates.json``, which contains its own SHA-256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finegates.files import content_digest, parse_json, write_text

STRUCTURE = "finegates.json"
TENSORS = "model.safetensors"
DIGEST = "sha256"
"""Key of a description's SHA-256, over all other keys."""


class FolderError(ValueError):
    """A folder does not contain a valid model."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.folder = folder
        self.reason = reason


def write_description(folder: Path, structure: dict[str, Any]) -> None:
    """Writes a description with its SHA-256, atomically.

    Args:
        folder: an existing one.
        structure: plain values; the SHA-256 is added to them.
    """
    structure[DIGEST] = content_digest(structure)
    write_text(folder / STRUCTURE, json.dumps(structure, indent=2, sort_keys=True) + "\n")


def read_description(
    folder: Path, form: str, version: int, error: type[FolderError]
) -> dict[str, Any]:
    """Reads the description in a folder, checks its SHA-256 and drops it.

    Args:
        folder: of the model.
        form: the required format.
        version: of that format.
        error: the class of errors to raise.

    Raises:
        FolderError: it is missing, corrupt, or of another format or version; of class ``error``.
    """
    if not folder.is_dir():
        raise error(folder, "is not a folder")
    try:
        structure = parse_json((folder / STRUCTURE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(folder, f"{STRUCTURE} is missing") from None
    except ValueError as fault:
        raise error(folder, f"{STRUCTURE} is not JSON: {fault}") from fault
    if not isinstance(structure, dict) or structure.get("format") != form:
        raise error(folder, f"{STRUCTURE} is not of the format {form!r}")
    found = structure.get("version")
    if found != version:
        raise error(folder, f"has format version {found!r}; this finegates reads version {version}")
    if structure.pop(DIGEST, None) != content_digest(structure):
        raise error(folder, f"{STRUCTURE} is corrupt: its content does not match its {DIGEST}")
    return structure
