"""Stock transformers models from compact ones, padded to one size for all layers.

A stock configuration has one feed-forward width and one number of heads for all layers. Sizes that
differ from layer to layer are padded with zeros to the largest, as far as the configuration can
express it; the residual stream is padded to its full width. The result is larger than the compact
model and loads anywhere with ``from_pretrained``.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import (
    Adapter,
    Attention,
    Block,
    FeedForward,
    HeadSizes,
    adapter_for,
    has_module,
    unwrap,
)
from finegates.formats.absent import drop_modules
from finegates.formats.module_settings import check_modules, seen_lengths, set_seen_lengths
from finegates.formats.padding import UniformCost, padding_cost, report
from finegates.formats.structure import bare_model, parts_of
from finegates.gates.gated_linear import gated_layers
from finegates.initialisation import mark_initialised
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.linear import dense_weight
from finegates.modules.tying import shares_embeddings
from finegates.specs import NormSpec


class NotUniformError(ValueError):
    """The stock configuration cannot express the model."""


@torch.no_grad()
def uniform(model: nn.Module) -> nn.Module:
    """Pads a compact model to a stock model of the same class.

    Args:
        model: a result of :func:`finegates.compact`; it does not change.

    Returns:
        a model on the CPU in evaluation mode without layers of this library, with the dtypes and
        generation settings of ``model``. ``save_pretrained`` writes it, and ``from_pretrained`` of
        its class loads it. Its outputs are equal up to rounding, because sums contain more zeros.
        The fraction of removed weights that comes back is logged, as a warning if it is more than
        half (:func:`uniform_cost`).

    Raises:
        NotUniformError: a layer needs a bias that the architecture does not have, or the output
            layer needs its own weight, but the architecture ties it to the embeddings.
        ValueError: the model has gates or unmerged adapters; its architecture has no adapter; the
            configuration describes a weight that the model does not have; or a setting of a module
            differs from the configuration.
    """
    model = unwrap(model)
    if gated_layers(model):
        raise ValueError("the model has gates; compact it first")
    for path, layer in model.named_modules():
        if isinstance(layer, CompactLinear):
            layer.check_plain(path)
    adapter = adapter_for(model)
    structure = parts_of(model)
    as_configured = bare_model(structure, model)
    blocks = adapter.blocks(model)
    sizes = {part.path: _sizes(model, part) for block in blocks for part in block.attentions}
    config, layout = _stock_config(model, adapter, blocks, sizes)
    with torch.device("cpu"):  # independent of the default device
        stock: nn.Module = type(model)(config)
    drop_modules(stock, structure["absent"])
    if shares_embeddings(stock) and not shares_embeddings(model):
        raise NotUniformError(
            f"the output layer of {type(model).__name__} always shares the embeddings' weight, and "
            "gates changed it here; do not gate that layer"
        )
    report(padding_cost(model, stock, blocks))
    described = {path for block in blocks for path in block.linears()}
    others = _compact_layers(model, stock) - described
    norms = {
        f"{part.path}.{name}"
        for block in blocks
        for part in block.attentions
        if (spec := adapter.norm_of(model.get_submodule(part.path))) is not None
        for name in spec.names
    }
    _take_over(model, stock, described | others | norms)
    check_modules(model, as_configured)
    for block in blocks:
        if block.feed_forward is not None:
            _fill_feed_forward(model, stock, block.feed_forward)
        for part in block.attentions:
            _fill_attention(model, stock, adapter, part, sizes[part.path], layout)
    for path in sorted(others):
        _fill(stock, path, model.get_submodule(path))
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        stock.generation_config = copy.deepcopy(settings)
    set_seen_lengths(stock, seen_lengths(model))
    return mark_initialised(stock).eval()


@torch.no_grad()
def uniform_cost(model: nn.Module) -> UniformCost:
    """Predicts the MACs per token and the widest layer after :func:`uniform`.

    Args:
        model: a result of :func:`finegates.compact`; it does not change.

    Returns:
        the weights of the transformer layers, dense, compact and uniform, and the widest part; its
        ``str`` is one line.

    Raises:
        ValueError: the model has gates, or its architecture has no adapter.
    """
    model = unwrap(model)
    if gated_layers(model):
        raise ValueError("the model has gates; compact it first")
    adapter = adapter_for(model)
    blocks = adapter.blocks(model)
    sizes = {part.path: _sizes(model, part) for block in blocks for part in block.attentions}
    config, _ = _stock_config(model, adapter, blocks, sizes)
    with torch.device("meta"):
        stock: nn.Module = type(model)(config)
    return padding_cost(model, stock, blocks)


def _compact_layers(model: nn.Module, stock: nn.Module) -> set[str]:
    """Paths of compact layers that are also in the stock model."""
    there = {path for path, _ in stock.named_modules()}
    return {path for path, m in model.named_modules() if isinstance(m, CompactLinear)} & there


def _take_over(model: nn.Module, stock: nn.Module, filled: set[str]) -> None:
    """Copies every tensor of the same name and shape into a stock model.

    Each keeps the model's dtype: some architectures keep some tensors in a wider one.

    Args:
        filled: paths of the layers that are filled separately.

    Raises:
        ValueError: a tensor of the stock model would keep its random initial values.
    """
    mine = _tensors(model)
    wanted = stock.state_dict().keys()
    for name, tensor in _tensors(stock).items():
        found = mine.get(name)
        if found is not None and found.shape == tensor.shape:
            tensor.data = found.detach().to(tensor.device, copy=True)
        elif name in wanted and name.rpartition(".")[0] not in filled:
            has = f"shape {tuple(found.shape)}" if found is not None else "none of that name"
            raise ValueError(
                f"{name}: the configuration of the {type(model).__name__} describes shape "
                f"{tuple(tensor.shape)}, the model has {has}; the stock model would keep random "
                "numbers there. Change the configuration, or the module back to what it describes"
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names, including non-persistent ones."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


class _Layout:
    """Positions of heads and their dimensions in the stock model.

    Attributes:
        each: query heads of a group; None if heads keep their dense indices.
        heads: number of query heads.
        kv_heads: number of key-value heads.
        width: of a head.
    """

    def __init__(self, each: int | None, heads: int, kv_heads: int, width: int) -> None:
        self.each, self.heads, self.kv_heads, self.width = each, heads, kv_heads, width


def _stock_config(
    model: nn.Module, adapter: Adapter, blocks: tuple[Block, ...], sizes: dict[str, HeadSizes]
) -> tuple[Any, _Layout]:
    config: Any = copy.deepcopy(model.config)
    keys = adapter.stock_keys(model)
    feeds = [block.feed_forward for block in blocks if block.feed_forward is not None]
    width = max(_width(model, feed) for feed in feeds)
    setattr(config, keys["intermediate"], max(1, width))
    first = next(part for block in blocks for part in block.attentions)
    layout = _Layout(None, first.heads, first.kv_heads, first.head_dim)
    if "width" in keys:
        layout.width = max(each.width for each in sizes.values())
        setattr(config, keys["width"], layout.width)
    if "heads" in keys:
        each = max(max(_counts(found)) for found in sizes.values())
        groups = max(len(found.kv_heads) for found in sizes.values())
        # Without it the width would be derived from the number of heads.
        config.head_dim = first.head_dim
        layout = _head_layout(config, keys, first, (each, groups))
    return config, layout


def _head_layout(
    config: Any, keys: dict[str, str], part: Attention, least: tuple[int, int]
) -> _Layout:
    """Sets the smallest number of heads that the configuration accepts.

    For example, Llama's number of heads must divide the hidden size.

    Args:
        config: is changed.
        keys: of the numbers of heads in it.
        part: an attention of the dense model, whose numbers are accepted.
        least: query heads of a group, and groups, that some layer needs.
    """
    each, groups = (
        range(needed, dense + 1)
        for needed, dense in zip(least, (part.heads // part.kv_heads, part.kv_heads), strict=True)
    )
    for heads in sorted(itertools.product(each, groups), key=math.prod):
        layout = _Layout(heads[0], math.prod(heads), heads[1], part.head_dim)
        setattr(config, keys["heads"], layout.heads)
        setattr(config, keys["kv_heads"], layout.kv_heads)
        if _is_valid(config):
            break
    return layout


def _is_valid(config: Any) -> bool:
    """Whether a configuration's values are consistent, as far as its class checks."""
    try:
        config.validate()
    except Exception:  # from huggingface_hub, where only recent versions have it
        return False
    return True


def _counts(sizes: HeadSizes) -> list[int]:
    return [sizes.groups.count(group) for group in range(len(sizes.kv_heads))]


def _sizes(model: nn.Module, part: Attention) -> HeadSizes:
    found = getattr(model.get_submodule(part.path), "finegates_heads", None)
    if isinstance(found, HeadSizes):
        return found
    each = part.heads // part.kv_heads
    return HeadSizes(
        heads=tuple(range(part.heads)),
        groups=tuple(head // each for head in range(part.heads)),
        kv_heads=tuple(range(part.kv_heads)),
        head_dim=part.head_dim,
        width=part.head_dim,
    )


def _width(model: nn.Module, feed: FeedForward) -> int:
    layer = model.get_submodule(feed.down)
    if isinstance(layer, CompactLinear):
        return layer.in_features
    return dense_weight(layer)[0].shape[1]


def _fill_feed_forward(model: nn.Module, stock: nn.Module, feed: FeedForward) -> None:
    if feed.path is not None and has_module(model, f"{feed.path}.gate_up"):
        assert feed.gate is not None
        joint = model.get_submodule(f"{feed.path}.gate_up")
        each = torch.arange(_width(model, feed), device="cpu")
        _fill(stock, feed.gate, joint, rows=each)
        _fill(stock, feed.up, joint, rows=each, start=each.numel())
        _fill(stock, feed.down, model.get_submodule(feed.down))
        return
    for path in feed.linears():
        _fill(stock, path, model.get_submodule(path))


def _fill_attention(
    model: nn.Module,
    stock: nn.Module,
    adapter: Adapter,
    part: Attention,
    sizes: HeadSizes,
    layout: _Layout,
) -> None:
    queries = _places(sizes, layout, keys=False)
    keys = _places(sizes, layout, keys=True)
    values = _places(sizes, layout, keys=True, rotated=False)
    module = model.get_submodule(part.path)
    scale = 1.0 / adapter.query_scale(module, sizes) if layout.width == part.head_dim else 1.0
    if part.is_fused:
        totals = [layout.heads * layout.width, layout.kv_heads * layout.width]
        places = torch.cat([queries, keys + totals[0], values + sum(totals)])
        _fill(stock, part.q, model.get_submodule(part.q), rows=places)
    else:
        joined, start = part.joint_linears() if sizes.fused else (), 0
        for path, places in ((part.q, queries), (part.k, keys), (part.v, values)):
            layer = model.get_submodule(part.joint_path if path in joined else path)
            factor = scale if path == part.q else 1.0
            _fill(stock, path, layer, rows=places, start=start, scale=factor)
            start = start + places.numel() if path in joined else 0
    norm = adapter.norm_of(module)
    if norm is not None and sizes.dimensions is not None:
        _fill_norms(stock, module, norm, part, sizes)
    contexts = _places(sizes, layout, keys=False, rotated=False)
    _fill(stock, part.o, model.get_submodule(part.o), cols=contexts)


def _fill_norms(
    stock: nn.Module, module: nn.Module, spec: NormSpec, part: Attention, sizes: HeadSizes
) -> None:
    """Writes the weights of norms over a head's kept dimensions back to where they were.

    It undoes :func:`finegates.modules.narrowed.fit_norms`; dimensions that went are zero with any
    weight.
    """
    if spec.over != "head":
        raise NotUniformError(f"{part.path} normalises all its heads together")
    dimensions = _index(_dimensions(sizes))
    for name in spec.names:
        weight: Tensor = module.get_submodule(name).weight  # type: ignore[assignment]
        factors = weight.detach().to(torch.float64) + spec.offset
        factors = factors * math.sqrt(sizes.width / sizes.head_dim) - spec.offset
        full = torch.zeros(sizes.head_dim, dtype=weight.dtype, device="cpu")
        full[dimensions] = factors.to(full)
        target: Tensor = stock.get_submodule(f"{part.path}.{name}").weight  # type: ignore[assignment]
        target.data = full


def _dimensions(sizes: HeadSizes) -> list[int]:
    """Dense dimension at each position of a narrow head; those of zeros are any that are left."""
    assert sizes.dimensions is not None
    left = iter(sorted(set(range(sizes.head_dim)) - set(sizes.dimensions)))
    return [next(left) if each < 0 else each for each in sizes.dimensions]


def _places(sizes: HeadSizes, layout: _Layout, *, keys: bool, rotated: bool = True) -> Tensor:
    """Stock position of every position in the compact heads.

    1. A head starts at its dense index times the width, if heads keep their dense indices.
    2. Otherwise groups are numbered in order, and so are the query heads within their group.
    3. Inside a head, dimensions keep their order; rotated pairs get their dense positions.

    Returns:
        int64 (heads * width,).
    """
    count = len(sizes.kv_heads if keys else sizes.heads)
    groups = list(range(count)) if keys else list(sizes.groups)
    if layout.each is None:  # rule 1
        starts = list(sizes.kv_heads if keys else sizes.heads)
    elif keys:  # rule 2
        starts = list(range(count))
    else:
        starts = [
            group * layout.each + groups[:number].count(group)
            for number, group in enumerate(groups)
        ]
    inside = torch.arange(sizes.width, device="cpu").repeat(count, 1)  # (heads, width), rule 3
    if rotated and sizes.pairs is not None:
        pairs = _index(sizes.pairs)[_index(groups)]  # (heads, width / 2)
        inside = torch.cat([pairs, pairs + sizes.head_dim // 2], dim=-1)
    elif rotated and sizes.dimensions is not None:
        inside = _index(_dimensions(sizes)).expand(count, -1)
    return (_index(starts)[:, None] * layout.width + inside).flatten()


def _index(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _fill(
    stock: nn.Module,
    path: str,
    layer: nn.Module,
    *,
    rows: Tensor | None = None,
    cols: Tensor | None = None,
    start: int = 0,
    scale: float = 1.0,
) -> None:
    """Writes a layer's weights into the stock layer at a path, zeros elsewhere.

    Args:
        rows: stock rows of the layer's outputs from ``start`` on; None for the same order.
        cols: stock columns of the layer's inputs; None for the same order.
        start: first output of the layer that belongs to this stock layer.
        scale: factor of all values.
    """
    if isinstance(layer, CompactLinear):
        weight, bias = layer.weight, layer.bias
        written = (
            torch.arange(weight.shape[0], device="cpu") if layer.rows is None else layer.rows.cpu()
        )
        read = (
            torch.arange(weight.shape[1], device="cpu") if layer.cols is None else layer.cols.cpu()
        )
    else:
        weight, bias = dense_weight(layer)
        written, read = (
            torch.arange(weight.shape[0], device="cpu"),
            torch.arange(weight.shape[1], device="cpu"),
        )
    if rows is not None:
        mine = (written >= start) & (written < start + rows.numel())
        weight, written = weight[mine.to(weight.device)], rows[written[mine] - start]
        bias = None if bias is None else bias[mine.to(bias.device)]
    if cols is not None:
        read = cols[read]
    target = stock.get_submodule(path)
    full = torch.zeros_like(dense_weight(target)[0], dtype=weight.dtype)
    full[written[:, None], read] = weight.to(full) * scale
    stored: Tensor = target.weight  # type: ignore[assignment]
    stored.data = (full if isinstance(target, nn.Linear) else full.T).contiguous()
    present: Tensor | None = target.bias  # type: ignore[assignment]
    if present is not None:
        present.data = torch.zeros_like(present, dtype=weight.dtype)
        if bias is not None:
            present[written] = bias.to(present) * scale
    elif bias is not None and bool(bias.any()):
        raise NotUniformError(
            f"{path} needs a bias (constants of removed dimensions), which {type(stock).__name__} "
            "does not have there"
        )
