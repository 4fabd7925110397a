"""A fuzzing target: a reader of untrusted files, as a function of bytes.

For any bytes it reads a valid file or raises the error that its documentation names. Anything else
is a failure. The result must satisfy its invariants, and side effects of reading are watched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watch import watched


class AcceptedInvalid(AssertionError):
    """An invalid file was accepted: an invariant does not hold."""


def must(condition: bool, what: str) -> None:
    """Raises AcceptedInvalid unless the condition holds."""
    if not condition:
        raise AcceptedInvalid(what)


SHARED = Path(tempfile.mkdtemp(prefix="fuzz"))
"""Folder of the files to read, and data that several targets share."""


class Target:
    """A reader of files.

    Attributes:
        seeds: valid files, where mutations start.
        refusals: errors that an invalid file may raise.
        tree: the format whose values, not only bytes, can be replaced: ``json``, ``yaml`` or None.
        accepted, refused: counts.
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
        # Import late imports now, because an import performs acts that reading must not.
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
