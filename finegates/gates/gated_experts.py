"""Gates over the intermediate dimensions of stacked experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finegates.gates.gate import Gate
from finegates.modules.experts import expert_shape, gated_down, is_experts
from finegates.modules.kinds import GatedLayer


class GatedExperts(GatedLayer):
    """Multiplies what the down projections of experts read by a gate.

    Every call makes the gated weights of all experts once, as many numbers as the down projections
    have.

    Args:
        base: stacked experts of transformers (:func:`finegates.modules.experts.is_experts`).
        cols: gate over the intermediate dimensions of all experts, (E * I,), one expert after the
            other.

    Raises:
        TypeError: the base holds no such experts.
        ValueError: the gate's size is not theirs.
    """

    cols: Gate

    def __init__(self, base: nn.Module, cols: Gate) -> None:
        super().__init__()
        if not is_experts(base):
            raise TypeError(f"{type(base).__name__} holds no stacked experts that are known here")
        self.count, _, self.width = expert_shape(base)
        if cols.size != self.count * self.width:
            raise ValueError(f"the gate has size {cols.size}, not {self.count} x {self.width}")
        self.base = base
        self.rows = None
        self.cols = cols

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the experts."""
        down = gated_down(self.base, self.cols().view(self.count, self.width))
        return torch.func.functional_call(self.base, {"down_proj": down}, args, kwargs)

    def gates(self) -> Iterator[tuple[str, Gate]]:
        """Yields ``("cols", gate)``."""
        yield "cols", self.cols

    def value(self) -> Tensor:
        """The evaluation gate, (E, I), in the dtype of the weights."""
        dtype: torch.dtype = self.base.down_proj.dtype  # type: ignore[assignment]
        return self.cols.value().detach().to(dtype).view(self.count, self.width)


def gated_experts(model: nn.Module) -> dict[str, GatedExperts]:
    """The experts of a model that have gates, by module path."""
    return {
        path: module for path, module in model.named_modules() if isinstance(module, GatedExperts)
    }
