"""What gates know of a cost model: the price of each kind of work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from finegates.arguments import named


@dataclass(frozen=True)
class Prices:
    """Price of each kind of work of one token; the defaults count multiply-accumulates.

    Attributes:
        product: of a multiply-accumulate in a linear layer.
        attention: of one in the matmuls of attention.
        score: of a token that one head attends to, for its softmax.
        output: of an output of a linear layer.
        activation: of an intermediate value of a feed-forward part.
    """

    product: float = 1.0
    attention: float = 1.0
    score: float = 0.0
    output: float = 0.0
    activation: float = 0.0


MACS = Prices()
"""Prices that count multiply-accumulates."""


class Cost(Protocol):
    """Costs of a machine, as configurations hold them; :class:`finegates.CostModel` has them."""

    @property
    def length(self) -> int | None:
        """Tokens of the sequences that were measured; None if unknown."""

    def prices(self) -> Prices:
        """The prices in seconds, without the movement of data."""

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain values."""


def check_cost(cost: object) -> None:
    """Raises TypeError unless the argument predicts times."""
    if isinstance(cost, type) or not callable(getattr(cost, "timer", None)):
        raise TypeError(
            f"cost must be a CostModel, got {named(cost)}; measure one: "
            "finegates.calibrate(model), or read one: CostModel.load(file)"
        )


def check_length(cost: Cost, length: int) -> None:
    """Raises ValueError if costs were measured at sequences of another length."""
    if cost.length not in (None, length):
        raise ValueError(
            f"the cost model was measured at sequences of {cost.length} tokens, and "
            f"sequence_length is {length}; give the same to both"
        )


class UnreachableTimeError(ValueError):
    """Gates cannot meet a wanted time.

    Args:
        target: the fraction of the predicted time to remove.
        floor: the fraction that stays with every possible gate closed.
        length: tokens of a sequence.

    Attributes:
        least: the least ``target_time`` that can be met.
    """

    def __init__(self, target: float, floor: float, length: int) -> None:
        self.least = math.ceil(1e4 * floor) / 1e4
        super().__init__(
            f"target_time {1.0 - target:.4g} cannot be reached: with every possible gate closed, "
            f"{floor:.4f} of the dense model's predicted time stay at sequence_length={length}, so "
            f"target_time starts at {self.least:.4f}. The rest is work that no gate removes; "
            "parts=True and width=True add gates. To resume a training, attach gates with the "
            "costs that it began with: finegates.load(checkpoint).finegates_config"
        )
