"""Base classes of the library's layers, for modules that must not import them."""

from __future__ import annotations

from typing import Any

from torch import nn


class GatedLayer(nn.Module):
    """A linear layer between gates.

    Attributes:
        base: the layer itself.
        rows: the gate over its outputs, or None.
        cols: the gate over its inputs, or None.
    """

    base: nn.Module
    rows: Any
    cols: Any


class CompactLayer(nn.Module):
    """A linear layer whose removed rows and columns are not stored.

    Attributes:
        keeps_stock_layout: whether weight and bias are those of a stock ``nn.Linear``.
    """

    keeps_stock_layout: bool


def between_gates(layer: nn.Module) -> nn.Module:
    """The layer between gates, or the given module if it has no gates."""
    return layer.base if isinstance(layer, GatedLayer) else layer


def has_gates(model: nn.Module) -> bool:
    """Whether any layer of the model has gates around it."""
    return any(isinstance(module, GatedLayer) for module in model.modules())
