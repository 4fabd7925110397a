"""Several layers with the same inputs as one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finegates.modules.compact_linear import CompactLinear


def fuse(layers: list[nn.Module]) -> nn.Module:
    """One layer whose outputs are those of several with the same inputs, one after another.

    Args:
        layers: ``CompactLinear`` with equal kept columns, or ``nn.Linear``; a bias in all or none.
    """
    plain = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(plain) < len(layers):
        return CompactLinear.stacked(
            [layer for layer in layers if isinstance(layer, CompactLinear)]
        )
    first = plain[0]
    fused = nn.Linear(
        first.in_features,
        sum(layer.out_features for layer in plain),
        bias=first.bias is not None,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    with torch.no_grad():
        fused.weight.copy_(torch.cat([layer.weight for layer in plain]))
        if fused.bias is not None:
            fused.bias.copy_(torch.cat([layer.bias for layer in plain]))
    return fused


@dataclass(frozen=True)
class Part:
    """Stands in a module for one of its layers, and finds its outputs among those of the product.

    Attributes:
        index: of the layer among those that became the product.
        count: how many these are; all have equally many outputs.
    """

    index: int
    count: int

    def __call__(self, product: Tensor) -> Tensor:
        """(..., count * n) to (..., n)."""
        return product.chunk(self.count, dim=-1)[self.index]


def take_apart(module: nn.Module, names: Sequence[str], joint: str) -> None:
    """Makes one product, in the submodule ``joint``, of layers with the same inputs.

    The module's forward, which calls each layer, then has to be given the product in place of their
    inputs: a hook before it does that.

    Args:
        module: is changed; at the layers' names it has a :class:`Part` of the product.
        names: of its layers, equally many outputs each, otherwise as :func:`fuse` takes them.
        joint: the name of the product.
    """
    product = fuse([module.get_submodule(name) for name in names])
    for index, name in enumerate(names):
        delattr(module, name)  # a name of submodules holds nothing else
        setattr(module, name, Part(index, len(names)))
    module.add_module(joint, product)


def multiply_states(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Replaces the states that an attention gets by their queries, keys and values.

    A hook before the forward of a module whose ``q``, ``k`` and ``v`` were taken apart.

    Args:
        module: has the product in its submodule ``qkv``.
        args: the states come first, if they are not the keyword ``hidden_states``.
        kwargs: the keywords of the call.
    """
    if args:
        return (module.qkv(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": module.qkv(kwargs["hidden_states"])}
