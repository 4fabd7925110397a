"""Fuses several layers with the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finegates.modules.compact_linear import CompactLinear


def fuse(layers: list[nn.Module]) -> nn.Module:
    """Fuses layers with the same inputs: their outputs are concatenated.

    Args:
        layers: ``CompactLinear`` with equal kept columns, or ``nn.Linear``; all or none have a
            bias.
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
    """Placeholder for one fused layer, which selects its outputs.

    Attributes:
        index: of the layer among the fused layers.
        count: number of fused layers; all have equally many outputs.
    """

    index: int
    count: int

    def __call__(self, product: Tensor) -> Tensor:
        """(..., count * n) to (..., n)."""
        return product.chunk(self.count, dim=-1)[self.index]


def take_apart(module: nn.Module, names: Sequence[str], joint: str) -> None:
    """Fuses layers with the same inputs into the submodule ``joint``.

    The module's forward still calls each layer. A pre-forward hook must replace their inputs by the
    output of the fused layer.

    Args:
        module: is changed; its layers are replaced by a :class:`Part` each.
        names: of its layers, with equally many outputs, otherwise as for :func:`fuse`.
        joint: name of the fused layer.
    """
    product = fuse([module.get_submodule(name) for name in names])
    for index, name in enumerate(names):
        delattr(module, name)  # a submodule's name must not be an attribute yet
        setattr(module, name, Part(index, len(names)))
    module.add_module(joint, product)


def multiply_states(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Replaces the input states of an attention by queries, keys and values.

    A pre-forward hook of a module whose ``q``, ``k`` and ``v`` are fused.

    Args:
        module: has the fused layer in its submodule ``qkv``.
        args: the states come first, unless they are the keyword ``hidden_states``.
        kwargs: keywords of the call.
    """
    if args:
        return (module.qkv(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": module.qkv(kwargs["hidden_states"])}
