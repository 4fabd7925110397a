"""Atomic writes of files and folders, and strict reading of JSON."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, and renames it to ``path`` if the block succeeds.

    Makes the folder if needed. After an error ``path`` is unchanged and the temporary file is
    deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keeps the suffix, because some libraries infer the format from it.
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder, which replaces ``path`` if the block succeeds.

    Makes the parent folder if needed. After an error ``path`` is unchanged and the new folder is
    deleted; a process killed during the replacement leaves the old folder or none.
    """
    path = Path(path)
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if path.exists():
            shutil.rmtree(path)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_fragments(path: str | Path) -> None:
    """Deletes temporary files that killed processes left for ``path``.

    No other process may be writing it: see ``finegates.suite.jobs.lock``.
    """
    path = Path(path)
    name = re.compile(rf"\.\d+\.{re.escape(path.name)}")
    for found in path.parent.glob(f".*.{glob.escape(path.name)}"):
        if name.fullmatch(found.name):
            shutil.rmtree(found) if found.is_dir() else found.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file (UTF-8) atomically, making its folder if needed."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def parse_json(text: str) -> Any:
    """Parses a JSON text, more strictly than ``json.loads``.

    Raises:
        ValueError: it is not JSON, repeats a key in an object, contains NaN or an infinity, or is
            nested too deeply.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} appears twice")
        found[key] = value
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, independent of key order and file layout.

    Raises:
        ValueError: NaN or an infinity.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
