"""What gates know of a cost model's predictions: times from masks.

They are apart from prices, which tables read without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from finegates.gates.prices import Cost
from finegates.gates.shared import Sides
from finegates.gates.stochastic import StochasticGate


class Timer(Protocol):
    """Predicts the seconds of a token."""

    def __call__(self, masks: Mapping[StochasticGate, Tensor]) -> float:
        """Maps masks, (dense_size,) by gate, to the seconds after compaction."""

    def original(self) -> float:
        """Gives the seconds of the dense model, before any compaction."""


@runtime_checkable
class Predicting(Cost, Protocol):
    """Predicts the time of a model on a machine; :class:`finegates.CostModel` does."""

    def check_model(self, model: nn.Module) -> None:
        """Raises ValueError if the costs were measured for another dtype or device."""

    def timer(
        self,
        model: nn.Module,
        length: int,
        sides: Sides | None = None,
        width: tuple[StochasticGate, tuple[str, ...]] | None = None,
    ) -> Timer:
        """Makes a function that predicts times from masks.

        Args:
            model: gated, or plain with the gates that it would get.
            length: tokens of a sequence.
            sides: of a plain model, the row and column gates of its layers.
            width: of a plain model, the gate of the residual stream and the modules that it gates.
        """


def predicting(cost: Cost) -> Predicting:
    """The costs of a configuration, which was checked to predict times."""
    assert isinstance(cost, Predicting)
    return cost
