"""Files and folders that appear whole or not at all, and texts that are read strictly."""

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
    """Gives a path beside ``path`` to write to, and renames it when the block ends without error.

    Makes the folder if needed. After an error ``path`` is as it was, and nothing lies beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keeps the suffix: some libraries choose the format by it.
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Gives an empty folder beside ``path`` to fill, which replaces it when the block ends without
    error.

    Makes the folder above if needed. After an error ``path`` is as it was, and nothing lies beside
    it; a kill between the two leaves the old folder or none.
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
    """Deletes what killed processes left beside ``path`` while they wrote it.

    Nobody else may be writing it: see ``finegates.suite.jobs.lock``.
    """
    path = Path(path)
    name = re.compile(rf"\.\d+\.{re.escape(path.name)}")
    for found in path.parent.glob(f".*.{glob.escape(path.name)}"):
        if name.fullmatch(found.name):
            shutil.rmtree(found) if found.is_dir() else found.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file (UTF-8) whole or not at all, making its folder if needed."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def parse_json(text: str) -> Any:
    """A JSON text as plain values, more strictly than ``json.loads``.

    Raises:
        ValueError: no JSON; a key that stands twice in an object; NaN or an infinity, which JSON
            does not have; nested more deeply than can be read.
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
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


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
    """SHA-256 of plain values, whatever the order of keys and the layout of the file they are in.

    Raises:
        ValueError: NaN or an infinity.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
