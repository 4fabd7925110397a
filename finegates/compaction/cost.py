"""Cost model: costs of a machine that predict times, and that are saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from finegates.compaction.costs import REQUIRED, Costs
from finegates.compaction.predicted_time import PredictedTime
from finegates.files import parse_json, write_text
from finegates.gates.shared import Sides
from finegates.gates.stochastic import StochasticGate
from finegates.gates.timing import Timer


@dataclass(frozen=True)
class CostModel(Costs):
    """Costs of a machine that predict times, and that are saved.

    The numbers are arguments by their names, see :class:`finegates.compaction.costs.Costs`.
    ``CostModel()`` has those of two cores of an x86 server CPU; :func:`finegates.calibrate`
    measures this machine.
    """

    def timer(
        self,
        model: nn.Module,
        length: int,
        sides: Sides | None = None,
        width: tuple[StochasticGate, tuple[str, ...]] | None = None,
    ) -> Timer:
        """Makes a function that predicts seconds from masks of gates.

        See :class:`finegates.gates.timing.Predicting`.
        """
        return PredictedTime(self, model, length, sides, width)

    def save(self, path: str | Path) -> None:
        """Writes the numbers as JSON, atomically."""
        write_text(path, json.dumps(self.as_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: the file is not a cost model; the message names it.
        """
        try:
            return cls.of(parse_json(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not a cost model: {error}") from error

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CostModel:
        """Makes a cost model from :meth:`as_dict`.

        Raises:
            ValueError: a number is missing or wrong.
            TypeError: there is an unknown one, or one that is not a number.
        """
        missing = [name for name in REQUIRED if name not in values]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        return cls(**values)
