"""Committed copies of results."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from finegates.files import whole_folder


def publish(files: Iterable[str | Path], source: Path, target: Path) -> None:
    """Copies files and atomically replaces all earlier copies.

    Args:
        files: files below ``source``; repeated files are copied once.
        source: results folder.
        target: folder of the copies, which keep their relative paths.
    """
    copied = list(dict.fromkeys(map(Path, files)))
    with whole_folder(target) as aside:
        for path in copied:
            copy = aside / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    print(f"published {len(copied)} files to {target}")
