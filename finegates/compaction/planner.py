"""Plans compaction from gates alone: what is kept of each layer, and why.

The choice (:mod:`finegates.compaction.choices`) is described with its sizes, parameters and
predicted times; transformation and budget only read the final :class:`Plan`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from finegates.adapters import Adapter, Block, adapter_for, attentions, unwrap
from finegates.compaction.choices import Choice, choose
from finegates.compaction.costs import Costs
from finegates.compaction.counts import block_products, block_weights, model_parameters
from finegates.compaction.plans import BlockPlan, LayerPlan, Plan, Times
from finegates.compaction.token_time import block_seconds, token_seconds
from finegates.gates.dense_form import in_dense_sizes
from finegates.gates.gated_experts import gated_experts
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
    described = () if adapter is None else adapter.blocks(plain)
    chosen = choose(plain, adapter, described, cost, notes)
    drafts, heads, experts = chosen.drafts, chosen.heads, chosen.experts
    width, joined = chosen.stream, chosen.joined
    # In the model's order, for readers.
    order = {name: index for index, (name, _) in enumerate(plain.named_modules())}
    layers = {
        name: drafts[name].finish(None if cost is None else chosen.seconds(name, cost))
        for name in sorted(drafts, key=order.__getitem__)
    }
    blocks = _block_plans(described, plain, layers, chosen, cost) if drafts or experts else ()
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
    times = None if cost is None else _times(plain, described, chosen, layers, cost)
    return Plan(layers, heads, tuple(notes), blocks, tuple(joined), counted, times, experts, width)


def _times(
    model: nn.Module,
    blocks: Sequence[Block],
    chosen: Choice,
    layers: dict[str, LayerPlan],
    cost: Costs,
) -> Times | None:
    """Predicted times of a token in a model before and after compaction; None if unknown."""
    if blocks and cost.length is not None:
        before, after = (
            token_seconds(model, blocks, each, cost, cost.length) for each in (Choice(), chosen)
        )
        return Times(before, after, cost.length)
    if not layers:
        return None
    dense = sum(
        cost.seconds(p.out_features, p.in_features, gathers=False, scatters_to=None)
        for p in layers.values()
    )
    return Times(dense, sum(p.seconds for p in layers.values() if p.seconds is not None), None)


def _block_plans(
    blocks: Sequence[Block],
    model: nn.Module,
    layers: dict[str, LayerPlan],
    chosen: Choice,
    cost: Costs | None,
) -> tuple[BlockPlan, ...]:
    plans = []
    for block in blocks:
        paths = tuple(path for path in block.linears() if path in layers)
        seconds: float | None
        if cost is not None and cost.length is not None:
            seconds = block_seconds(model, block, chosen, cost, cost.length)
        else:
            known = [t for t in (layers[path].seconds for path in paths) if t is not None]
            seconds = block.uses * sum(known) if known else None
        plans.append(
            BlockPlan(
                block.path,
                paths,
                tuple(part.path for part in block.attentions),
                None if block.feed_forward is None else block.feed_forward.path,
                (
                    block_weights(model, block, {}),
                    block_weights(model, block, layers, chosen.experts),
                ),
                (block_products(model, block, {}), block_products(model, block, chosen.heads)),
                seconds,
                None if block.experts is None else block.experts.path,
            )
        )
    return tuple(plans)
