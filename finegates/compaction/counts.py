"""MACs and parameters of transformer layers, now or after a plan."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType

from torch import nn

from finegates.adapters import Attention, Block, Experts, HeadSizes, has_module
from finegates.compaction.plans import ExpertsPlan, LayerPlan
from finegates.gates.gated_linear import GatedLinear, leaf_gates
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.experts import expert_shape, numbers_at_width
from finegates.modules.kinds import between_gates
from finegates.modules.linear import find_linear, layer_size


def block_weights(
    model: nn.Module,
    block: Block,
    layers: Mapping[str, LayerPlan],
    experts: Mapping[str, ExpertsPlan] = MappingProxyType({}),
) -> int:
    """Weights that one token meets in the block's layers, each time, equal to its MACs.

    Args:
        model: plain; dense, gated or compact.
        block: of the model.
        layers: plans of the layers to compact, by path.
        experts: plans of stacked experts, by path.
    """
    weights = 0
    for path in block.linears():
        if path in layers:
            weights += layers[path].kept_weights
        elif has_module(model, path):  # otherwise fused with others, counted below
            weights += present_weights(model.get_submodule(path))
    if block.undescribed is not None:
        for path in block.undescribed.layers:
            planned = layers.get(path)
            weights += (
                planned.kept_weights if planned else present_weights(model.get_submodule(path))
            )
    for part in block.attentions:
        if part.joint and has_module(model, part.joint_path):
            weights += present_weights(model.get_submodule(part.joint_path))
    feed = block.feed_forward
    if feed is not None and feed.path is not None and has_module(model, f"{feed.path}.gate_up"):
        weights += present_weights(model.get_submodule(f"{feed.path}.gate_up"))
    if block.experts is not None:
        weights += expert_macs(model, block.experts, experts)
    return block.uses * weights


def expert_macs(model: nn.Module, part: Experts, plans: Mapping[str, ExpertsPlan]) -> int:
    """Multiply-accumulates of one token in the experts that it goes to.

    Args:
        model: as for :func:`block_weights`.
        part: the experts.
        plans: of stacked experts, by path.
    """
    if part.path in plans:
        return part.macs(plans[part.path].width)
    return part.macs(expert_shape(between_gates(model.get_submodule(part.path)))[2])


def block_products(model: nn.Module, block: Block, heads: Mapping[str, HeadSizes]) -> int:
    """MACs of the block's attentions per pair of a token and an attended token.

    They are the widths of queries and of values, summed over the heads.

    Args:
        model: as for :func:`block_weights`.
        block: of the model.
        heads: planned head sizes, by path of the attention.
    """
    mixed = sum(part.products for part in block.mixers)
    return block.uses * (mixed + sum(_products(model, part, heads) for part in block.attentions))


def _products(model: nn.Module, part: Attention, heads: Mapping[str, HeadSizes]) -> int:
    module = model.get_submodule(part.path)
    sizes: HeadSizes | None = heads.get(part.path) or getattr(module, "finegates_heads", None)
    return part.products if sizes is None else 2 * len(sizes.heads) * sizes.width


def model_parameters(
    model: nn.Module,
    layers: Mapping[str, LayerPlan],
    experts: Mapping[str, ExpertsPlan] = MappingProxyType({}),
) -> tuple[int, int]:
    """Counts parameters before and after; shared tensors once, without gates.

    Args:
        model: plain; dense, gated or compact.
        layers: plans of the layers to compact, by path.
        experts: plans of stacked experts, by path.
    """
    gates = {id(p) for gate in leaf_gates(model) for p in gate.parameters()}
    before = sum(p.numel() for p in model.parameters() if id(p) not in gates)
    # Every compact layer has its own weight; what it shared may remain in another module.
    bases = {path: between_gates(model.get_submodule(path)) for path in layers}
    inside = {id(module) for base in bases.values() for module in base.modules()}
    left = {
        id(p): p.numel()
        for module in model.modules()
        if id(module) not in inside
        for p in module._parameters.values()
        if p is not None and id(p) not in gates
    }
    after = sum(left.values())
    for path, plan in layers.items():
        has_bias = find_linear(bases[path]).bias is not None or plan.constants is not None
        after += plan.kept_weights + (plan.kept_out if has_bias else 0)
    for path, narrower in experts.items():
        part = narrower.part
        base = between_gates(model.get_submodule(path))
        sizes = (numbers_at_width(base, width) for width in (narrower.width, part.width))
        kept, dense = sizes
        after += kept - dense
    return before, after


def present_weights(layer: nn.Module) -> int:
    """Weights of a layer of a linear-like class: dense if gated, kept if compact."""
    if isinstance(layer, CompactLinear):
        return prod(layer.kept)
    return layer_size(layer.base if isinstance(layer, GatedLinear) else layer)
