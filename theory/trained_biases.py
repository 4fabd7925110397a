"""Flat directions that trained biases add to those of gates or low-rank factors.

With gates, low-rank factors or neither, the outputs of a block do not change along these affine
directions of the biases b of its linear layers:

- *keys*: a bias on a dimension of keys that no rotation turns adds the same number to all scores of
  a query, and softmax ignores it. Not if scores depend on a key's position without the query, or
  keys are normed.
- *values*: attention weights sum to 1, so that a value's bias adds a constant to the outputs of its
  heads, which the bias of the output layer takes away.
- *means*: a constant on all outputs of a layer that only norms with a subtraction of the mean read.

So plain attention of width d with biases has 2d, plus one for every such layer. They are flat
subspaces, and no saddles. They add up with the directions of gates or factors, which move no bias.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from finegates.adapters import Attention, adapter_for
from finegates.head_rows import score_units
from theory.factor_directions import centred_layers
from theory.flatness import clips, layer_of, sees_key_positions


def biases(model: nn.Module) -> list[Tensor]:
    """Biases of the layers that gates would wrap, those that presets train."""
    found = [layer_of(model, path).bias for path in adapter_for(model).gated(model)]
    return [bias for bias in found if isinstance(bias, Tensor)]


def bias_directions(model: nn.Module) -> int:
    """Number of flat directions of the biases alone; see the module's docstring.

    Args:
        model: of an architecture with an adapter, without gates, all of its layers gated.
    """
    adapter = adapter_for(model)
    parts = [part for block in adapter.blocks(model) for part in block.attentions]
    found = sum(_of_keys(model, part) + _of_values(model, part) for part in parts)
    return found + sum(_has_bias(model, path) for path in set(centred_layers(model)))


def _has_bias(model: nn.Module, path: str) -> bool:
    return isinstance(layer_of(model, path).bias, Tensor)


def _of_keys(model: nn.Module, part: Attention) -> int:
    if part.projected is not None or part.norm or part.fixed_scores or clips(model, part):
        return 0
    if not _has_bias(model, part.k) or sees_key_positions(model, part):
        return 0
    if part.rotary is None:
        return part.kv_heads * part.head_dim
    _, sizes = np.unique(score_units(part).numpy()[0], return_counts=True)
    return part.kv_heads * int(np.sum(sizes == 1))  # dimensions that are not in a rotated pair


def _of_values(model: nn.Module, part: Attention) -> int:
    if part.projected is not None or clips(model, part):
        return 0
    both = _has_bias(model, part.v) and _has_bias(model, part.o)
    return part.kv_heads * part.head_dim if both else 0
