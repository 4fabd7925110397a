"""Layers of torch that multiply by their weights without calling a linear layer."""

from __future__ import annotations

from torch import nn

_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def why_whole(module: nn.Module) -> str | None:
    """Why a module of torch cannot be described, and what to do; None for all others."""
    kind = next((each for each in _WHOLE if isinstance(module, each)), None)
    if kind is None:
        return None
    return (
        f"nn.{kind.__name__} multiplies by weights of its attention without calling the layers, so "
        "gates around them would be bypassed (remedy: nn.Linear for queries, keys, values and "
        "outputs around torch.nn.functional.scaled_dot_product_attention)"
    )
