"""Protects existing weights from random initialisation by transformers.

A class that wraps a model and calls ``post_init`` initialises every module without a mark, as it
must for its own new layers.
"""

from __future__ import annotations

from itertools import chain

from torch import nn

_MARK = "_is_hf_initialized"


def mark_initialised(model: nn.Module) -> nn.Module:
    """Marks modules, parameters and buffers as ``from_pretrained`` does; returns the model."""
    for thing in chain(model.modules(), model.parameters(), model.buffers()):
        setattr(thing, _MARK, True)
    return model
