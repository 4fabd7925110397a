"""Records on disk, each with a SHA-256 of its own content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from finegates.files import content_digest, parse_json, write_text
from finegates.suite.config.load import ConfigError, validated
from finegates.suite.config.section import Section

FORMAT_VERSION = 2


UNSIGNED_VERSION = 1
"""The format version of records without a digest of their own."""


DIGEST = "sha256"
"""The key of a record's own digest: of all other keys, see ``finegates.files.content_digest``."""


TIMES = ("timing",)
"""The keys of a record that hold durations and memory. All others are the same whenever the same
run is done again on the same machine, at the same commit."""


class RecordError(ValueError):
    """A record cannot be read. The message names the file and the fault."""


def write_signed(record: Section, path: str | Path) -> None:
    """Writes a record of any kind with its digest, atomically."""
    values = {**record.model_dump(), "format_version": FORMAT_VERSION}
    signed = {**values, DIGEST: content_digest(values)}
    write_text(path, json.dumps(signed, indent=1, allow_nan=False) + "\n")


def is_signed(record: Any) -> bool:
    """Whether a record has a digest of its own content."""
    return bool(record.format_version != UNSIGNED_VERSION)


def without_times(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record's plain values without those that differ in a rerun.

    These are its times, and its digest, which depends on them.
    """
    return {key: value for key, value in values.items() if key not in (*TIMES, DIGEST)}


_Model = TypeVar("_Model", bound=Section)


def read_signed(model: type[_Model], path: str | Path) -> _Model:
    """Reads a record of any kind.

    Raises:
        RecordError: as :func:`signed_values`, or the record does not follow the schema.
    """
    try:
        return validated(model, signed_values(path), path, strict=True)
    except ConfigError as error:
        raise RecordError(f"record does not fit its schema: {error}") from error


def signed_values(path: str | Path) -> dict[str, Any]:
    """Reads the plain values of a record of any kind and checks its digest.

    Returns:
        the values without the digest.

    Raises:
        RecordError: the file is missing, is not JSON, has another format version, or does not
            match its digest.
    """
    try:
        raw = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read record {path}: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"record {path} is damaged ({error}); delete it and run again") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version not in (FORMAT_VERSION, UNSIGNED_VERSION):
        raise RecordError(
            f"record {path} has format version {version!r}, expected {FORMAT_VERSION}"
        )
    if version == FORMAT_VERSION and raw.pop(DIGEST, None) != content_digest(raw):
        raise RecordError(
            f"record {path} is damaged (its content does not have the digest that it names); "
            "delete it and run again"
        )
    return dict(raw)
