"""Models whose numbers are there already: nothing of transformers starts them at random again.

A class that takes a model in and calls ``post_init`` initialises whatever has no mark, as it must
for its own new layers.
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
