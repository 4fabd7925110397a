"""What compaction keeps of each layer, and why; decided from gates alone, before any weight moves.

Each layer starts with its own closed rows and columns (a ``Draft``). The rules over the adapter's
blocks then remove more where that is exact. A new rule is a function that takes a part of a block
and the drafts of its layers; the transformation and the budget only read the finished
:class:`Plan`.
"""

from __future__ import annotations

import torch
from torch import nn

from finegates.adapters import Adapter, HeadSizes, adapter_for, unwrap
from finegates.compaction.draft import Draft, LayerPlan, Plan
from finegates.compaction.rules import narrow_attention, pair_feed_forward
from finegates.layers import gated_layers

__all__ = ["LayerPlan", "Plan", "plan_compaction"]


@torch.no_grad()
def plan_compaction(model: nn.Module, adapter: Adapter | None = None) -> Plan:
    """Decides what compaction keeps. Reads gate values only; the model is not changed.

    Args:
        model: with or without gates, plain or in a ``peft`` wrapper.
        adapter: describes the blocks; looked up by model type if None. A model of unknown type is
            planned layer by layer, which is exact but leaves the feed-forward pairs wide.

    Returns:
        a plan of the gated layers and of plain layers that a rule over a block narrows.

    Raises:
        ValueError: a gate lies on the meta device and has no values.
    """
    plain = unwrap(model)
    drafts = {name: Draft.of(name, layer) for name, layer in gated_layers(plain).items()}
    notes: list[str] = []
    heads: dict[str, HeadSizes] = {}
    if drafts and adapter is None:
        try:
            adapter = adapter_for(plain)
        except ValueError as error:
            notes.append(f"layer by layer only: {error}")
    if drafts and adapter is not None:
        for block in adapter.blocks(plain):
            if block.feed_forward is not None:
                pair_feed_forward(block.feed_forward, plain, drafts)
            for attention in block.attentions:
                sizes = narrow_attention(attention, adapter, plain, drafts, notes)
                if sizes is not None:
                    heads[attention.path] = sizes
    # In the model's order, for those who read it.
    order = {name: index for index, (name, _) in enumerate(plain.named_modules())}
    finished = {name: drafts[name].finish() for name in sorted(drafts, key=order.__getitem__)}
    return Plan(finished, heads, tuple(notes))
