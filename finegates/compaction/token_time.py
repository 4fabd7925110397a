"""Predicted time of one token, from what compaction keeps of a model.

It is the time of the linear layers, with gathers and scatters, of the matmuls and the softmax of
attention over a sequence, of the activations, and of what no gate touches.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from finegates.adapters import Block, HeadSizes, has_module
from finegates.compaction.choices import Choice
from finegates.compaction.costs import Costs
from finegates.compaction.counts import expert_macs
from finegates.gates.gated_linear import GatedLinear
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.linear import linear_shape
from finegates.modules.narrow_stream import MARK


def token_seconds(
    plain: nn.Module, blocks: Sequence[Block], chosen: Choice, cost: Costs, length: int
) -> float:
    """The predicted seconds of a token.

    Args:
        plain: the model in its dense sizes.
        blocks: of the model.
        chosen: what is kept of it.
        cost: the prices.
        length: tokens of a sequence.
    """
    total = rest_seconds(plain, chosen, cost)
    return total + sum(block_seconds(plain, block, chosen, cost, length) for block in blocks)


def rest_seconds(plain: nn.Module, chosen: Choice, cost: Costs) -> float:
    """The predicted seconds of a token outside the blocks, as for :func:`token_seconds`."""
    stream = chosen.stream
    if stream is None:  # of a compact model, hidden dimensions may have gone before
        kept, size = getattr(plain, MARK, (1, 1))
    else:
        kept, size = stream.kept.numel(), stream.stream.size
    return float(kept / size * cost.rest)


def block_seconds(
    plain: nn.Module, block: Block, chosen: Choice, cost: Costs, length: int
) -> float:
    """The predicted seconds of a token in all uses of a block, see :func:`token_seconds`."""
    prices = cost.prices()
    total = 0.0
    for path in (*block.linears(), *_fused(block)):
        draft = chosen.drafts.get(path)
        if draft is not None:
            total += chosen.seconds(path, cost)
        elif has_module(plain, path):  # otherwise it is fused with others, or not fused
            total += _present_seconds(plain.get_submodule(path), cost)
    for part in block.attentions:
        module = plain.get_submodule(part.path)
        sizes: HeadSizes | None = chosen.heads.get(part.path)
        sizes = sizes or getattr(module, "finegates_heads", None)
        heads, products = part.heads, part.products
        if sizes is not None:
            heads, products = len(sizes.heads), 2 * len(sizes.heads) * sizes.width
        total += length * (prices.attention * products + prices.score * heads)
    total += length * prices.attention * sum(part.products for part in block.mixers)
    feed = block.feed_forward
    if feed is not None:
        draft = chosen.drafts.get(feed.down)
        width = None if draft is None else draft.input_width
        if width is None:
            width = _shape(plain.get_submodule(feed.down))[0]
        total += prices.activation * width
    if block.experts is not None:
        total += prices.product * expert_macs(plain, block.experts, chosen.experts)
    return block.uses * total


def _fused(block: Block) -> list[str]:
    """Paths that layers of a block have once they are fused."""
    feed = block.feed_forward
    paths = [part.joint_path for part in block.attentions if part.joint]
    return paths if feed is None or feed.path is None else [*paths, f"{feed.path}.gate_up"]


def _present_seconds(layer: nn.Module, cost: Costs) -> float:
    """The seconds of a token in a layer as it is."""
    if isinstance(layer, CompactLinear):
        outputs, columns = layer.kept
        scattered = None if layer.rows is None else layer.out_features
        gathers = layer.cols is not None
        return cost.seconds(outputs, columns, gathers=gathers, scatters_to=scattered)
    columns, outputs = _shape(layer)
    return cost.seconds(outputs, columns, gathers=False, scatters_to=None)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a layer."""
    if isinstance(layer, CompactLinear):
        return layer.in_features, layer.out_features
    return linear_shape(layer.base if isinstance(layer, GatedLinear) else layer)
