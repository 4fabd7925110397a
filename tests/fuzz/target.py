"""What is fuzzed: a reader of files of others, as a function of bytes.

It takes any, and either reads a valid file or refuses it with the error that its documentation
names; all else is a failure. What is read is checked for what must hold of it, and what is done in
reading is watched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watch import watched


class AcceptedInvalid(AssertionError):
    """A file was read that does not hold what it must."""


def must(condition: bool, what: str) -> None:
    """Raises AcceptedInvalid unless the condition holds."""
    if not condition:
        raise AcceptedInvalid(what)


SHARED = Path(tempfile.mkdtemp(prefix="fuzz"))
"""Where the files that are read lie, and what several targets share."""


class Target:
    """Something that reads a file.

    Attributes:
        seeds: valid files, where mutations start.
        refusals: the errors that an invalid file may raise.
        tree: the format whose values, not only bytes, can be replaced: ``json``, ``yaml`` or None.
        accepted, refused: how often each happened.
    """

    def __init__(
        self,
        seeds: list[bytes],
        refusals: type[Exception],
        read: Callable[[Path, bytes], Callable[[], Any]],
        tree: str | None = None,
    ) -> None:
        self.seeds = seeds
        self.refusals = refusals
        self.tree = tree
        self.accepted = self.refused = 0
        self._read = read
        # What is imported late is imported now: an import does what reading must not.
        for seed in seeds:
            with tempfile.TemporaryDirectory(dir=SHARED) as folder:
                read(Path(folder), seed)()

    def __call__(self, content: bytes) -> bool:
        """Whether the content was accepted; unexpected errors are raised."""
        with tempfile.TemporaryDirectory(dir=SHARED) as folder:
            reader = self._read(Path(folder), content)
            try:
                with watched():
                    reader()
            except self.refusals:
                self.refused += 1
                return False
        self.accepted += 1
        return True
