"""The result files of a tier, as measures of claims read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finegates.suite.runs.predictions import read_predictions

if TYPE_CHECKING:
    import pandas as pd


class MissingEvidenceError(LookupError):
    """What a measure needs is not among the results; the message says what."""


class NoisyEvidenceError(MissingEvidenceError):
    """A time was measured while the machine was too restless to tell; the message says how."""


class Evidence:
    """Tables of a tier by their path below its results folder, each read once.

    Args:
        folder: ``results/<tier>``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._frames: dict[str, pd.DataFrame] = {}

    def table(self, name: str) -> pd.DataFrame:
        """A CSV file as a frame.

        Raises:
            MissingEvidenceError: the tier has no such file.
        """
        import pandas as pd

        if name not in self._frames:
            path = self.folder / name
            if not path.is_file():
                raise MissingEvidenceError(f"no {name}")
            self._frames[name] = pd.read_csv(path)
        return self._frames[name]

    def predictions(self, record: str) -> pd.DataFrame | None:
        """A run's predictions of every validation row, or None where there are none.

        Args:
            record: path of its record, below the tier's results folder.

        Raises:
            RecordError: the record or the file is damaged.
        """
        path = self.folder / record
        return read_predictions(path) if path.is_file() else None
