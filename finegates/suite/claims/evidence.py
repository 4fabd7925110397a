"""Reads the result files of a tier for the measures of claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finegates.suite.runs.predictions import read_predictions

if TYPE_CHECKING:
    import pandas as pd


class MissingEvidenceError(LookupError):
    """The results lack data that a measure needs. The message names it."""


class NoisyEvidenceError(MissingEvidenceError):
    """A time was measured on a noisy machine. The message says how noisy."""


class Evidence:
    """Tables of a tier by their path relative to its results folder, cached.

    Args:
        folder: ``results/<tier>``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._frames: dict[str, pd.DataFrame] = {}

    def table(self, name: str) -> pd.DataFrame:
        """Reads a CSV file.

        Raises:
            MissingEvidenceError: the tier does not have this file.
        """
        import pandas as pd

        if name not in self._frames:
            path = self.folder / name
            if not path.is_file():
                raise MissingEvidenceError(f"no {name}")
            self._frames[name] = pd.read_csv(path)
        return self._frames[name]

    def predictions(self, record: str) -> pd.DataFrame | None:
        """A run's predictions of all validation rows, None if it stored none.

        Args:
            record: path of the run's record, relative to the tier's results folder.

        Raises:
            RecordError: the record or the file is corrupt.
        """
        path = self.folder / record
        return read_predictions(path) if path.is_file() else None
