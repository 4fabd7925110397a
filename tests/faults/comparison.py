"""Compares results folders byte for byte, except for times; they must be equal after any fault."""

from __future__ import annotations

import json
import re
from pathlib import Path

from finegates.suite.runs.signed import without_times

TIMED_FOLDERS = {"logs", "benchmarks", "timing"}
"""Folders of measured times and of printed output."""

TIMED_FILES = {"report.html"}
"""Files that show those times as well."""

TIMED_KEYS = {"pretraining.json": ("startup_s", "wall_s")}
"""Keys with times, in JSON files that are not records."""

UNFINISHED = {"checkpoints"}


def contents(results: Path) -> dict[str, bytes]:
    """Every file of a results folder by name, without the times of records and similar files."""
    return {
        str(path.relative_to(results)): _content(path)
        for path in sorted(results.rglob("*"))
        if path.is_file() and _counts(path.relative_to(results))
    }


def differences(found: Path, expected: Path, *, finished: bool = True) -> list[str]:
    """Files in which two results folders differ, and how.

    Args:
        found: a results folder.
        expected: that of an undisturbed run.
        finished: whether ``found`` must have every file; if not, the files that it has must be
            complete.
    """
    ours, theirs = contents(found), contents(expected)
    told = [f"{name}: too many" for name in sorted(ours.keys() - theirs.keys())]
    told += [
        f"{name}: another content" for name in ours if ours[name] != theirs.get(name, ours[name])
    ]
    if finished:
        told += [f"{name}: missing" for name in sorted(theirs.keys() - ours.keys())]
    return told


def _counts(name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    folders = set(name.parts[:-1])
    return not (hidden or folders & (TIMED_FOLDERS | UNFINISHED) or name.name in TIMED_FILES)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    dropped = TIMED_KEYS.get(path.name)
    if dropped is None and "runs" not in path.parts:
        return content
    try:
        values = json.loads(content)
    except ValueError:
        return content  # half of a record: report a difference
    kept = without_times(values)
    return json.dumps({k: v for k, v in kept.items() if k not in (dropped or ())}).encode()


def fragments(results: Path) -> list[str]:
    """Temporary files left by killed writers."""
    names = (str(path.relative_to(results)) for path in results.rglob(".*"))
    return sorted(name for name in names if re.match(r"\.\d+\.", Path(name).name))
