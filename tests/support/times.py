"""The predicted time of a dense or compact model, read from the modules that it has."""

from __future__ import annotations

from torch import nn

from finegates.adapters import adapter_for
from finegates.compaction import CostModel
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.linear import linear_shape


def seconds_of_modules(model: nn.Module, cost: CostModel, length: int) -> float:
    """Seconds of a token, independent of plans.

    Args:
        model: dense or compact, not narrower in its residual stream.
        cost: the prices; ``attention`` is known.
        length: tokens of a sequence.
    """
    total = cost.rest
    modules = dict(model.named_modules())

    def of(path: str) -> float:
        layer = modules[path]
        if isinstance(layer, CompactLinear):
            outputs, columns = layer.kept
            scattered = None if layer.rows is None else layer.out_features
            gathers = layer.cols is not None
            return cost.seconds(outputs, columns, gathers=gathers, scatters_to=scattered)
        columns, outputs = linear_shape(layer)
        return cost.seconds(outputs, columns, gathers=False, scatters_to=None)

    for block in adapter_for(model).blocks(model):
        paths = {path for path in block.linears() if path in modules}
        for part in block.attentions:
            if part.joint and part.joint_path in modules:
                paths = {p for p in paths if p not in part.joint_linears()} | {part.joint_path}
            sizes = getattr(modules[part.path], "finegates_heads", None)
            heads = part.heads if sizes is None else len(sizes.heads)
            width = part.head_dim if sizes is None else sizes.width
            total += length * heads * (2 * width * (cost.attention or 0.0) + cost.score)
        feed = block.feed_forward
        if feed is not None:
            if f"{feed.path}.gate_up" in modules:
                paths = {p for p in paths if p not in (feed.gate, feed.up)}
                paths |= {f"{feed.path}.gate_up"}
            down = modules[feed.down]
            total += cost.activation * (
                down.in_features if isinstance(down, CompactLinear) else linear_shape(down)[0]
            )
        total += sum(of(path) for path in paths)
    return total
