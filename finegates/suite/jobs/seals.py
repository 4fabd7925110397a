"""Seals: the SHA-256 of a job's output, stored next to the file.

A disk may flip a bit, and a copy may stop half way, but Snakemake only compares dates. Every job
therefore seals its outputs and checks the seals of its inputs. The seal of ``a.csv`` is
``.a.csv.sha256``, that of a folder is ``.sha256`` inside it. ``sha256sum --check`` reads both.
``finegates verify`` checks all seals of a tier.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from finegates.files import file_digest, write_text

SUFFIX = ".sha256"

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


class SealError(ValueError):
    """A file does not match its seal. The message names it and the remedy."""


def seal(path: str | Path) -> None:
    """Writes the seal of a file or folder, if it exists, atomically."""
    path = Path(path)
    if not path.exists():
        return
    place = _place(path)
    lines = [f"{file_digest(f)}  {f.relative_to(place.parent)}\n" for f in _files(path)]
    write_text(place, "".join(lines))


def break_seal(path: str | Path) -> None:
    """Removes the seal of a file or folder that will be rewritten."""
    path = Path(path)
    for place in (path / SUFFIX, path.with_name(f".{path.name}{SUFFIX}")):
        if place.is_file():
            place.unlink()


def is_sealed(path: str | Path) -> bool:
    """Whether a file or folder has a seal, intact or not."""
    return _place(Path(path)).is_file()


def check_seal(path: str | Path) -> bool:
    """Compares a file or folder with its seal.

    Returns:
        whether there is a seal. Files of the user are not sealed and pass.

    Raises:
        SealError: the content has changed since it was sealed.
    """
    path = Path(path)
    place = _place(path)
    if not place.is_file():
        return False
    expected = _read(place)
    found = {str(f.relative_to(place.parent)): f for f in _files(path)}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise SealError(_message(path, f"{name} is missing"))
        if name not in expected:
            raise SealError(_message(path, f"its seal does not know {name}"))
        if file_digest(found[name]) != expected[name]:
            raise SealError(_message(path, f"the sha256 of {name} is not the one in {place.name}"))
    return True


def damaged(folder: str | Path, skip: Iterable[str | Path] = ()) -> tuple[int, list[str]]:
    """Checks every seal below a folder.

    Args:
        folder: any folder.
        skip: folders in it to leave out.

    Returns:
        the number of files and folders with an intact seal, and a message for each corrupt one.
    """
    count, messages = 0, []
    for place in sorted(Path(folder).rglob(f"*{SUFFIX}")):
        if not place.name.startswith(".") or {Path(s) for s in skip} & set(place.parents):
            continue
        path = (
            place.parent if place.name == SUFFIX else place.with_name(place.name[1 : -len(SUFFIX)])
        )
        if not path.exists():
            continue  # deleted, so Snakemake makes it again
        try:
            count += check_seal(path)
        except SealError as error:
            messages.append(str(error))
        except FileNotFoundError:
            continue  # a job has just started to rewrite it
    return count, messages


def _place(path: Path) -> Path:
    return path / SUFFIX if path.is_dir() else path.with_name(f".{path.name}{SUFFIX}")


def _files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    # Hidden files belong to tools: the seal, a time stamp.
    return sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith("."))


def _read(place: Path) -> dict[str, str]:
    found = {}
    for line in place.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise SealError(f"the seal {place} is damaged; delete it and what it seals, run again")
        found[match[2]] = match[1]
    return found


def _message(path: Path, reason: str) -> str:
    return (
        f"{path} is not as its job wrote it: {reason}. Delete {path} and run again: it is made "
        "again where it is needed"
    )
