"""Architectures whose layers are all in one list."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn

from finegates.adapters.base import Adapter, base_prefix, unwrap
from finegates.adapters.fit import fitted
from finegates.blocks import Block


class LayerStackAdapter(Adapter):
    """An architecture whose layers are in one list, with equal descriptions.

    Attributes:
        stack: path of the list, below the base model.
    """

    stack: ClassVar[str]

    @abstractmethod
    def block(self, path: str, config: Any) -> Block:
        """The layer at a path, from the model's configuration."""

    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        """The part of the base model that holds the list: ``encoder`` of ``encoder.layer``."""
        return (f"{base_prefix(unwrap(model))}{self.stack.partition('.')[0]}",)

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """The blocks in the list, independent of the number in the configuration."""
        plain = unwrap(model)
        config: Any = plain.config
        stack = f"{base_prefix(plain)}{self.stack}"
        names = list(plain.get_submodule(stack)._modules)  # including layers that appear twice
        blocks = (self.block(f"{stack}.{name}", config) for name in names)
        found = (fitted(plain, block, self.head_width) for block in blocks)
        return tuple(block for block in found if block is not None)
