"""Unclipped gates whose values are the parameters, for the landscape in ω."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from finegates.gates.gate import DerivedGate, Gate
from finegates.gates.gated_linear import leaf_gates


class FreeGate(Gate):
    """A gate vector that is itself the parameter.

    Args:
        values: ω, shape (n,), of any sign and size.

    Attributes:
        copies: one gate vector for each row of a batch, (batch, 1, n), instead of ``values``; None
            if all rows have the same.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.size = values.numel()
        self.values = nn.Parameter(values.detach().clone())
        self.copies: Tensor | None = None

    @override
    def value(self) -> Tensor:
        return self.values if self.copies is None else self.copies

    @override
    def sample(self) -> Tensor:
        return self.value()

    @override
    def open_probability(self) -> Tensor:
        return (self.values != 0).to(self.values.dtype)


def free_gates(model: nn.Module) -> list[FreeGate]:
    """Replaces every gate of a model, in place, by a free gate with its evaluation value.

    A gate that several layers share remains shared, and a product of gates remains a product.

    Args:
        model: with gates, from ``finegates.attach``.

    Returns:
        the free gates, each once, in the order of ``leaf_gates``.
    """
    found: dict[nn.Module, FreeGate] = {
        gate: FreeGate(gate.value().double()) for gate in leaf_gates(model)
    }
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and child in found:
                module._modules[name] = found[child]
        if isinstance(module, DerivedGate):
            module.clips_at_zero = False  # a closed gate needs a gradient, too
    return list(found.values())


@torch.no_grad()
def set_values(gates: list[FreeGate], values: Tensor) -> None:
    """Copies one vector into all gates, in order.

    Args:
        gates: of a model.
        values: shape (sum of sizes,).
    """
    for gate, part in zip(gates, values.split([gate.size for gate in gates]), strict=True):
        gate.values.copy_(part)
