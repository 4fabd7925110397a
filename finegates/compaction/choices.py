"""What compaction keeps of a model, chosen by rules over its blocks.

Each layer starts with its own closed rows and columns (a ``Draft``). Rules over the adapter's
blocks then remove more where that is exact. A rule is a function of a part of a block and the
drafts of its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from finegates.adapters import Adapter, Block, HeadSizes
from finegates.compaction.attention_rule import narrow_attention
from finegates.compaction.costs import Costs
from finegates.compaction.draft import Draft
from finegates.compaction.feed_forward_rule import pair_feed_forward
from finegates.compaction.plans import ExpertsPlan, StreamPlan
from finegates.compaction.sides import choose_sides
from finegates.compaction.stream_rule import narrow_width
from finegates.gates.gated_experts import GatedExperts
from finegates.gates.gated_linear import gated_layers


@dataclass(frozen=True)
class Choice:
    """What is kept of a model, before it is described as a plan; by default everything.

    Attributes:
        drafts: of its layers, by path.
        heads: as in :class:`finegates.compaction.plans.Plan`; so are the others.
        joined: see there.
        experts: see there.
        stream: see there.
        joint: of each layer that will be fused, all layers of its group, in order.
    """

    drafts: dict[str, Draft] = field(default_factory=dict)
    heads: dict[str, HeadSizes] = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)
    experts: dict[str, ExpertsPlan] = field(default_factory=dict)
    stream: StreamPlan | None = None
    joint: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def seconds(self, path: str, cost: Costs) -> float:
        """Predicted time of one token in a drafted layer.

        Fused layers gather once, which is counted for the first, and scatter all or none.
        """
        members = self.joint.get(path, (path,))
        scattered = any(self.drafts[member].scatters for member in members)
        return self.drafts[path].seconds(cost, joined=path != members[0], scattered=scattered)


@torch.no_grad()
def choose(
    plain: nn.Module,
    adapter: Adapter | None,
    blocks: Sequence[Block],
    cost: Costs | None,
    notes: list[str],
) -> Choice:
    """Chooses what is kept of a model in its dense sizes.

    Args:
        plain: with or without gates.
        adapter: see :func:`finegates.plan_compaction`; None plans layer by layer.
        blocks: of the model.
        cost: see :func:`finegates.plan_compaction`.
        notes: get the removals that are not possible.
    """
    drafts = {name: Draft.of(name, layer) for name, layer in gated_layers(plain).items()}
    heads: dict[str, HeadSizes] = {}
    joined: list[str] = []
    if drafts and adapter is not None:
        multiple = 1 if cost is None else cost.head_multiple
        for block in blocks:
            feed = block.feed_forward
            if feed is not None and pair_feed_forward(feed, plain, drafts, notes):
                assert feed.path is not None
                joined.append(feed.path)
            for attention in block.attentions:
                sizes = narrow_attention(attention, adapter, plain, drafts, notes, multiple)
                if sizes is not None:
                    heads[attention.path] = sizes
    width = None if adapter is None else narrow_width(plain, adapter, drafts)
    joint = _joint_products(blocks, heads, joined)
    if cost is not None:
        for path in drafts:
            members = joint.get(path, (path,))
            if path == members[0]:
                choose_sides([drafts[name] for name in members], cost)
    return Choice(drafts, heads, joined, _experts_plans(blocks, plain), width, joint)


def _experts_plans(blocks: Sequence[Block], model: nn.Module) -> dict[str, ExpertsPlan]:
    """The dimensions of gated experts that stay."""
    plans = {}
    for block in blocks:
        part = block.experts
        module = None if part is None else model.get_submodule(part.path)
        if part is None or not isinstance(module, GatedExperts):
            continue
        values = module.value()
        if values.is_meta:
            raise ValueError(f"the gate of {part.path} is on the meta device and has no values")
        plans[part.path] = ExpertsPlan(part, (values != 0).cpu())
    return plans


def _joint_products(
    blocks: Sequence[Block], heads: dict[str, HeadSizes], joined: list[str]
) -> dict[str, tuple[str, ...]]:
    """Maps each layer that will be fused to all layers of its group, in order."""
    joint: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        for part in block.attentions:
            if part.path in heads and heads[part.path].fused:
                paths = part.joint_linears()
                joint |= dict.fromkeys(paths, paths)
        feed = block.feed_forward
        if feed is not None and feed.gate is not None and feed.path in joined:
            pair = (feed.gate, feed.up)
            joint |= dict.fromkeys(pair, pair)
    return joint
