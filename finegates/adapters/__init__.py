"""Adapters: what the modules of an architecture are, the only place with module names.

To add an architecture, describe its modules (:mod:`finegates.adapters.descriptions`).
"""

from __future__ import annotations

from torch import nn

from finegates.adapters.base import Adapter, attentions, has_module, unwrap
from finegates.adapters.described import DescribedAdapter, register
from finegates.adapters.registered import REGISTERED
from finegates.blocks import (
    Attention,
    Block,
    Experts,
    FeedForward,
    HeadSizes,
    Mixer,
    Stream,
    Undescribed,
)
from finegates.modules.torch_layers import why_whole
from finegates.specs import (
    AttentionSpec,
    FeedForwardSpec,
    MixerSpec,
    NormSpec,
    RotarySpec,
    StreamSpec,
    is_named_cross,
)

__all__ = [
    "Adapter",
    "Attention",
    "AttentionSpec",
    "Block",
    "Experts",
    "FeedForward",
    "FeedForwardSpec",
    "HeadSizes",
    "Mixer",
    "MixerSpec",
    "NormSpec",
    "RotarySpec",
    "Stream",
    "StreamSpec",
    "Undescribed",
    "adapter_for",
    "attentions",
    "has_module",
    "is_named_cross",
    "register",
    "unwrap",
]

_REMEDY = (
    "register one with finegates.adapters.register, or on the command line with --specs FILE.py "
    "(finegates.describe(model, inputs) looks for one); to gate layers one by one all the same, "
    "name the layers with GateConfig(preset='reference', modules=...)"
)

DESCRIBED = DescribedAdapter()


def adapter_for(model: nn.Module) -> Adapter:
    """Looks up the adapter of a transformers model.

    Args:
        model: a transformers model, or a ``peft`` model around one.

    Raises:
        ValueError: none of its modules has a description.
    """
    plain = unwrap(model)
    if DESCRIBED.blocks(plain):
        return DESCRIBED
    model_type = getattr(getattr(plain, "config", None), "model_type", None)
    raise ValueError(
        f"no module of this {type(plain).__name__} (model type {model_type!r}) has a description"
        f"{_registered()}: {_of_torch(plain) or _REMEDY}"
    )


def _registered() -> str:
    """The classes of descriptions that were added, for messages; empty without."""
    names = dict.fromkeys(name for _, name in REGISTERED)
    return f" (registered: {', '.join(names)})" if names else ""


def _of_torch(model: nn.Module) -> str | None:
    """Why layers of torch in a model have no description, and the remedy, or None."""
    return next(filter(None, map(why_whole, model.modules())), None)
