"""Plans compaction from gates alone: what is kept of each layer, and why.

Each layer starts with its own closed rows and columns (a ``Draft``). Rules over the adapter's
blocks then remove more where that is exact. A rule is a function of a part of a block and the
drafts of its layers; transformation and budget only read the final :class:`Plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from finegates.adapters import Adapter, Block, HeadSizes, adapter_for, attentions, unwrap
from finegates.compaction.attention_rule import narrow_attention
from finegates.compaction.costs import Costs
from finegates.compaction.counts import block_products, block_weights, model_parameters
from finegates.compaction.draft import Draft
from finegates.compaction.feed_forward_rule import pair_feed_forward
from finegates.compaction.plans import BlockPlan, ExpertsPlan, LayerPlan, Plan, StreamPlan
from finegates.compaction.sides import choose_sides
from finegates.compaction.stream_rule import narrow_width
from finegates.gates.dense_form import in_dense_sizes
from finegates.gates.gated_experts import GatedExperts, gated_experts
from finegates.gates.gated_linear import gated_layers
from finegates.gates.prices import check_cost

__all__ = ["BlockPlan", "LayerPlan", "Plan", "plan_compaction"]


@torch.no_grad()
def plan_compaction(
    model: nn.Module, adapter: Adapter | None = None, cost: Costs | None = None
) -> Plan:
    """Plans what compaction keeps, without changing the model.

    Args:
        model: with or without gates, plain or wrapped by ``peft``. One from which dimensions were
            removed, while training or before it got gates again, is planned from the sizes of the
            dense model.
        adapter: describes the blocks; looked up if None. A model of unknown type is
            planned layer by layer, which is exact but does not narrow feed-forward pairs.
        cost: costs of matmuls and data movement. A side stays dense if its gather or scatter would
            cost more than its removal saves, except for heads, feed-forward pairs, and sides at a
            narrower residual stream. Heads are padded to efficient widths, and the plan predicts
            times. None gives the smallest model.

    Returns:
        a plan of the gated layers and of plain layers that a rule narrows.

    Raises:
        ValueError: a gate is on the meta device and has no values.
        TypeError: ``cost`` is not a cost model.
    """
    if cost is not None:
        check_cost(cost)
    plain = in_dense_sizes(unwrap(model))
    notes: list[str] = []
    if (gated_layers(plain) or gated_experts(plain)) and adapter is None:
        try:
            adapter = adapter_for(plain)
        except ValueError as error:
            notes.append(f"layer by layer only: {error}")
    chosen = choose(plain, adapter, () if adapter is None else adapter.blocks(plain), cost, notes)
    drafts, heads, experts = chosen.drafts, chosen.heads, chosen.experts
    width, joined = chosen.stream, chosen.joined
    # In the model's order, for readers.
    order = {name: index for index, (name, _) in enumerate(plain.named_modules())}
    layers = {
        name: drafts[name].finish(None if cost is None else chosen.seconds(name, cost))
        for name in sorted(drafts, key=order.__getitem__)
    }
    blocks = (
        ()
        if adapter is None or not (drafts or experts)
        else _block_plans(adapter, plain, layers, heads, experts)
    )
    counted = model_parameters(plain, layers, experts)
    if adapter is not None and heads:
        others = {
            id(module): adapter.removed_parameters(module, part, heads[path])
            for path, part in attentions(adapter, plain).items()
            if path in heads
            for module in [plain.get_submodule(path)]
        }
        counted = counted[0], counted[1] - sum(others.values())
    if width is not None:
        counted = counted[0], counted[1] - width.removed
    dense = None if cost is None else sum(
        cost.seconds(p.out_features, p.in_features, gathers=False, scatters_to=None)
        for p in layers.values()
    )  # fmt: skip
    return Plan(layers, heads, tuple(notes), blocks, tuple(joined), counted, dense, experts, width)


@dataclass(frozen=True)
class Choice:
    """What is kept of a model, before it is described as a plan.

    Attributes:
        drafts: of its layers, by path.
        heads: as in :class:`Plan`; so are the others.
        joined: see there.
        experts: see there.
        stream: see there.
        joint: of each layer that will be fused, all layers of its group, in order.
    """

    drafts: dict[str, Draft]
    heads: dict[str, HeadSizes]
    joined: list[str]
    experts: dict[str, ExpertsPlan]
    stream: StreamPlan | None
    joint: dict[str, tuple[str, ...]]

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
        adapter: see :func:`plan_compaction`; None plans layer by layer.
        blocks: of the model.
        cost: see :func:`plan_compaction`.
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


def _block_plans(
    adapter: Adapter,
    model: nn.Module,
    layers: dict[str, LayerPlan],
    heads: dict[str, HeadSizes],
    experts: dict[str, ExpertsPlan],
) -> tuple[BlockPlan, ...]:
    plans = []
    for block in adapter.blocks(model):
        paths = tuple(path for path in block.linears() if path in layers)
        times = [layers[path].seconds for path in paths]
        known = [time for time in times if time is not None]
        plans.append(
            BlockPlan(
                block.path,
                paths,
                tuple(part.path for part in block.attentions),
                None if block.feed_forward is None else block.feed_forward.path,
                (block_weights(model, block, {}), block_weights(model, block, layers, experts)),
                (block_products(model, block, {}), block_products(model, block, heads)),
                sum(known) if known else None,
                None if block.experts is None else block.experts.path,
            )
        )
    return tuple(plans)
