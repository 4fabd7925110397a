"""Committed copies of results."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from finegates.files import whole_folder


def publish(files: Iterable[str | Path], source: Path, target: Path) -> None:
    """Copies files, which replace the earlier copies as a whole or not at all.

    Args:
        files: below ``source``; a file that is given twice is copied once.
        source: folder of results.
        target: folder of the copies, which get the same paths below it.
    """
    copied = list(dict.fromkeys(map(Path, files)))
    with whole_folder(target) as aside:
        for path in copied:
            copy = aside / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    print(f"published {len(copied)} files to {target}")
