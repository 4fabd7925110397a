"""Fuses several layers with the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
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
    # On the meta device, because an initialisation would draw random numbers.
    fused = nn.Linear(
        first.in_features,
        sum(layer.out_features for layer in plain),
        bias=first.bias is not None,
        device="meta",
        dtype=first.weight.dtype,
    )
    with torch.no_grad():
        fused.weight = nn.Parameter(torch.cat([layer.weight for layer in plain]))
        if first.bias is not None:
            fused.bias = nn.Parameter(torch.cat([layer.bias for layer in plain]))
    return fused


@dataclass(frozen=True)
class Part:
    """Placeholder for one of several fused layers, which selects its outputs.

    The size of the fused layer is not known yet when a model is loaded, only how it is divided.

    Attributes:
        start: number of shares before it.
        shares: number of its shares.
        total: number of all shares, into which the outputs divide evenly.
    """

    start: int
    shares: int
    total: int

    def __call__(self, product: Tensor) -> Tensor:
        """(..., all outputs) to (..., those of this layer)."""
        each = product.shape[-1] // self.total
        return product.narrow(-1, self.start * each, self.shares * each)


def take_apart(module: nn.Module, shares: Mapping[str, int], joint: str) -> None:
    """Fuses layers with the same inputs into the submodule ``joint``.

    The module's forward still calls each layer. A pre-forward hook must replace their inputs by the
    output of the fused layer.

    Args:
        module: is changed; its layers are replaced by a :class:`Part` each.
        shares: names of its layers, as for :func:`fuse`, and in what ratio their outputs are.
        joint: name of the fused layer.
    """
    product = fuse([module.get_submodule(name) for name in shares])
    start, total = 0, sum(shares.values())
    for name, count in shares.items():
        delattr(module, name)  # a submodule's name must not be an attribute yet
        setattr(module, name, Part(start, count, total))
        start += count
    module.add_module(joint, product)


def join_attention(module: nn.Module, shares: Mapping[str, int], joint: str) -> None:
    """Fuses projections of an attention module, whose forward stays.

    Args:
        module: is changed.
        shares: names of the projections, and in what ratio their outputs are.
        joint: ``qkv``, of what the module gets first, or ``kv``, of ``key_value_states``.
    """
    take_apart(module, shares, joint)
    hook = multiply_states if joint == "qkv" else multiply_encoded
    module.register_forward_pre_hook(hook, with_kwargs=True)


def multiply_states(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Replaces the input states of an attention by queries, keys and values.

    A pre-forward hook.

    Args:
        module: has the fused layer in its submodule ``qkv``.
        args: the states come first, unless they are the keyword ``hidden_states``.
        kwargs: keywords of the call.
    """
    if args:
        return (module.qkv(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": module.qkv(kwargs["hidden_states"])}


def multiply_encoded(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    """Replaces the encoder's states by keys and values, unless a cache has them.

    A pre-forward hook.

    Args:
        module: has the fused layer in its submodule ``kv``.
        args: stay as they are.
        kwargs: with the states as ``key_value_states``.
    """
    updated = getattr(kwargs.get("past_key_values"), "is_updated", {})
    if updated.get(module.layer_idx):
        return None
    return args, {**kwargs, "key_value_states": module.kv(kwargs["key_value_states"])}


def join_gate(module: nn.Module, gate: str, up: str) -> nn.Module:
    """Fuses gate and up of a feed-forward module, whose forward stays, as ``gate_up``.

    Args:
        module: is changed; its forward reads its one argument in these two layers alone.
        gate: name of the gate projection.
        up: name of the other layer; both have the same inputs.
    """
    take_apart(module, {gate: 1, up: 1}, "gate_up")
    module.finegates_joined = True  # type: ignore[assignment]
    module.register_forward_pre_hook(_widen)
    return module


def _widen(module: Any, args: Any) -> Any:
    """Replaces the input states of the feed-forward part by gate and up."""
    return module.gate_up(args[0])
