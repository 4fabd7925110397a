"""Cost of padding a compact model to one size for all layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from finegates.adapters import Block, has_module
from finegates.compaction.counts import block_weights
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.linear import layer_size, linear_shape

LOGGER = logging.getLogger(__name__)

MUCH = 0.5
"""Fraction of the removed weights that comes back at which the report is a warning."""


@dataclass(frozen=True)
class UniformCost:
    """Weights of the transformer layers, equal to the MACs of one token.

    Attributes:
        dense: of the dense model.
        compact: of the compact model.
        uniform: of the stock model, in which every layer has the sizes of the widest.
        widest: path of the layer with the widest feed-forward part; None without one.
        width: of that part, which all layers get.
        dense_width: of that part in the dense model.
    """

    dense: int
    compact: int
    uniform: int
    widest: str | None
    width: int
    dense_width: int

    @property
    def returned(self) -> float:
        """Fraction of the removed weights that comes back, 0 if none was removed."""
        removed = self.dense - self.compact
        return (self.uniform - self.compact) / removed if removed else 0.0

    def __str__(self) -> str:
        kept, padded = (100 * part / self.dense for part in (self.compact, self.uniform))
        text = f"kept {kept:.0f} % of the MACs, {padded:.0f} % once uniform"
        if self.widest is None or self.uniform == self.compact:
            return text
        return (
            f"{text}: the feed-forward part of {self.widest} ({self.width} of {self.dense_width}) "
            "is the widest, and all others are padded to it"
        )


def padding_cost(model: nn.Module, stock: nn.Module, blocks: Sequence[Block]) -> UniformCost:
    """Compares a compact model with its stock form.

    Args:
        model: compact, plain.
        stock: of the same class, with or without storage.
        blocks: of both.
    """
    widths = {
        block.path: _inputs(model, block.feed_forward.down)
        for block in blocks
        if block.feed_forward is not None
    }
    widest = max(widths, key=lambda path: widths[path][0], default=None)
    width, dense_width = (0, 0) if widest is None else widths[widest]
    return UniformCost(
        dense=sum(_dense_weights(model, block) for block in blocks),
        compact=sum(block_weights(model, block, {}) for block in blocks),
        uniform=sum(block_weights(stock, block, {}) for block in blocks),
        widest=widest,
        width=width,
        dense_width=dense_width,
    )


def report(cost: UniformCost) -> None:
    """Logs a cost, as a warning if many of the removed weights come back."""
    much = cost.returned > MUCH
    LOGGER.log(logging.WARNING if much else logging.INFO, "uniform: %s", cost)


def _inputs(model: nn.Module, path: str) -> tuple[int, int]:
    """Inputs of a layer, kept and dense."""
    layer = model.get_submodule(path)
    if isinstance(layer, CompactLinear):
        return layer.in_features, layer.dense_shape[1]
    return (linear_shape(layer)[0],) * 2


def _dense_weights(model: nn.Module, block: Block) -> int:
    """Dense weights that one token meets in a block, each time."""
    paths = list(block.linears())
    paths += [part.joint_path for part in block.attentions if part.joint]
    if block.feed_forward is not None and block.feed_forward.path is not None:
        paths.append(f"{block.feed_forward.path}.gate_up")
    if block.undescribed is not None:
        paths += block.undescribed.layers
    total = 0
    for path in paths:
        if has_module(model, path):
            layer = model.get_submodule(path)
            if isinstance(layer, CompactLinear):
                total += prod(layer.dense_shape)
            else:
                total += layer_size(layer)
    if block.experts is not None:
        total += block.experts.macs(block.experts.width)
    return block.uses * total
