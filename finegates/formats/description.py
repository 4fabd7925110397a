"""The file ``finegates.json``, which describes what a folder holds and carries its own SHA-256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finegates.files import content_digest, parse_json, write_text

STRUCTURE = "finegates.json"
TENSORS = "model.safetensors"
DIGEST = "sha256"
"""The key of a description's own digest: of all other keys."""


class FolderError(ValueError):
    """A folder does not hold a model that can be trusted; says which folder and why."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.folder = folder
        self.reason = reason


def write_description(folder: Path, structure: dict[str, Any]) -> None:
    """Writes a description with its digest, whole or not at all.

    Args:
        folder: an existing one.
        structure: plain values; gets the digest.
    """
    structure[DIGEST] = content_digest(structure)
    write_text(folder / STRUCTURE, json.dumps(structure, indent=2, sort_keys=True) + "\n")


def read_description(
    folder: Path, form: str, version: int, error: type[FolderError]
) -> dict[str, Any]:
    """Reads the description in a folder, without its digest, which is checked.

    Args:
        folder: of the model.
        form: the format that it must be of.
        version: of that format.
        error: what is raised.

    Raises:
        FolderError: it is missing, damaged, of another format or version; of the class ``error``.
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
        raise error(folder, f"{STRUCTURE} is damaged: its {DIGEST} is not the one of what it says")
    return structure
