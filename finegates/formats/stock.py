"""Stock transformers models from compact ones, padded to one size for all layers.

A stock configuration has one feed-forward width and one number of heads for all layers. Sizes that
differ from layer to layer are padded with zeros to the largest, as far as the configuration can
express it. A few classes take a feed-forward width for each layer. The residual stream is padded to
its full width, unless its norms allow another (:mod:`finegates.formats.stock_stream`). The result
is larger than the compact model, unless its layers have equal sizes (``GateConfig.uniform``), and
loads anywhere with ``from_pretrained``.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import (
    Adapter,
    Block,
    HeadSizes,
    adapter_for,
    unwrap,
)
from finegates.adapters.stock_sizes import head_counts, set_heads, stock_keys, with_layer_widths
from finegates.compaction.filling import (
    Layout,
    dense_layout,
    feed_forward_width,
    fill_attention,
    fill_feed_forward,
    fill_heads,
    fill_layer,
    group_counts,
    head_sizes,
)
from finegates.compaction.filling import NotUniformError as NotUniformError
from finegates.formats.absent import drop_modules
from finegates.formats.card import model_card, stock_card
from finegates.formats.module_settings import check_modules, seen_lengths, set_seen_lengths
from finegates.formats.padding import UniformCost, padding_cost, report
from finegates.formats.stock_stream import padded, scale_normed_rows, stream_of, with_width
from finegates.formats.structure import bare_model, check_config, parts_of
from finegates.gates.gated_linear import gated_layers
from finegates.initialisation import mark_initialised
from finegates.modules.cards import set_card
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.experts import expert_shape, fill_experts
from finegates.modules.tying import shares_embeddings


@torch.no_grad()
def uniform(model: nn.Module, *, card: str | None = None) -> nn.Module:
    """Pads a compact model to a stock model of the same class.

    Args:
        model: a result of :func:`finegates.compact`; it does not change.
        card: of ``model``, which ``save_pretrained`` of the result writes with other instructions;
            by default :func:`finegates.model_card` without scores; an empty text leaves it out.

    Returns:
        a model on the CPU in evaluation mode without layers of this library, with the dtypes and
        generation settings of ``model``. ``save_pretrained`` writes it, and ``from_pretrained`` of
        its class loads it. Its outputs are equal up to rounding, because sums contain more zeros.
        The fraction of removed weights that comes back is logged, as a warning if it is more than
        half (:func:`uniform_cost`).

    Raises:
        NotUniformError: a layer needs a bias that the architecture does not have, or the output
            layer needs its own weight, but the architecture ties it to the embeddings.
        ValueError: the model has gates, unmerged adapters or no configuration; no layer of it is
            described; the configuration describes a weight that the model does not have; or a
            setting of a module differs from the configuration.
    """
    model = unwrap(model)
    if gated_layers(model):
        raise ValueError("the model has gates; compact it first")
    for path, layer in model.named_modules():
        if isinstance(layer, CompactLinear):
            layer.check_plain(path)
    check_config(model)
    adapter = adapter_for(model)
    structure = parts_of(model)
    as_configured = bare_model(structure, model)
    blocks = adapter.blocks(model)
    sizes = {part.path: head_sizes(model, part) for block in blocks for part in block.attentions}
    config, layouts = _stock_config(model, adapter, blocks, sizes)
    stream = stream_of(model, adapter)
    hidden = 0
    if stream is not None:
        hidden = with_width(model, config, stream, blocks[0].attentions[0].head_dim)
    # Independent of the default device, and without a trace in the random state.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        stock: nn.Module = type(model)(config)
    drop_modules(stock, structure["absent"])
    if shares_embeddings(stock) and not shares_embeddings(model):
        raise NotUniformError(
            f"the output layer of {type(model).__name__} always shares the embeddings' weight, and "
            "gates changed it here; do not gate that layer"
        )
    given = model
    if stream is not None:
        model = padded(given, stock, stream, hidden)
    cost = padding_cost(model, stock, blocks)
    report(cost)
    described = {
        path
        for block in blocks
        for part in (*block.attentions, block.feed_forward)
        if part is not None
        for path in part.linears()
    }
    others = _compact_layers(model, stock) - described
    norms = {
        f"{part.path}.{name}"
        for block in blocks
        for part in block.attentions
        if (spec := adapter.norm_of(model.get_submodule(part.path))) is not None
        and sizes[part.path].dimensions is not None
        for name in spec.names
    }
    per_head = {
        (part, path): axis
        for block in blocks
        for part in block.attentions
        for path, axis in adapter.per_head(model.get_submodule(part.path)).items()
        if len(sizes[part.path].heads) < part.heads
    }
    owners = {f"{part.path}.{path}".rpartition(".")[0] for part, path in per_head}
    stacks = {block.experts.path for block in blocks if block.experts is not None}
    _take_over(model, stock, described | others | norms | owners | stacks)
    check_modules(given, as_configured)
    _fill_experts(model, stock, blocks)
    for (part, path), axis in per_head.items():
        mine, theirs = (m.get_submodule(part.path) for m in (model, stock))
        fill_heads(mine, theirs, path, axis, sizes[part.path], layouts[part.path])
    for block in blocks:
        if block.feed_forward is not None:
            fill_feed_forward(model, stock, block.feed_forward)
        for part in block.attentions:
            fill_attention(model, stock, adapter, part, sizes[part.path], layouts[part.path])
    if stream is not None:
        scale_normed_rows(stock, adapter, blocks, stream.size, hidden)
    for path in sorted(others):
        fill_layer(stock, path, model.get_submodule(path))
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        stock.generation_config = copy.deepcopy(settings)
    set_seen_lengths(stock, seen_lengths(model))
    set_card(
        stock, stock_card(model_card(model) if card is None else card, type(model).__name__, cost)
    )
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
        ValueError: the model has gates or no configuration, or no layer of it is described.
    """
    model = unwrap(model)
    if gated_layers(model):
        raise ValueError("the model has gates; compact it first")
    check_config(model)
    adapter = adapter_for(model)
    blocks = adapter.blocks(model)
    sizes = {part.path: head_sizes(model, part) for block in blocks for part in block.attentions}
    config, _ = _stock_config(model, adapter, blocks, sizes)
    stream = stream_of(model, adapter)
    if stream is not None:
        with_width(model, config, stream, blocks[0].attentions[0].head_dim)
    with torch.device("meta"):
        stock: nn.Module = type(model)(config)
    return padding_cost(model, stock, blocks)


def _fill_experts(model: nn.Module, stock: nn.Module, blocks: tuple[Block, ...]) -> None:
    """Writes the numbers of experts that became narrower.

    Raises:
        NotUniformError: the stock model's experts are narrower still.
    """
    for part in (block.experts for block in blocks if block.experts is not None):
        mine, theirs = (m.get_submodule(part.path) for m in (model, stock))
        width, room = (expert_shape(module)[2] for module in (mine, theirs))
        if width > room:
            raise NotUniformError(
                f"{part.path} holds experts of width {width}, and the configuration of "
                f"{type(model).__name__} gives them the {room} dimensions of another part; store "
                "the model with finegates.save"
            )
        if width < room or hasattr(mine, "finegates_width"):
            fill_experts(theirs, mine)


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


def _stock_config(
    model: nn.Module, adapter: Adapter, blocks: tuple[Block, ...], sizes: dict[str, HeadSizes]
) -> tuple[Any, dict[str, Layout]]:
    """The configuration of the stock model, and the layout of its heads by path."""
    config: Any = copy.deepcopy(model.config)
    keys = stock_keys(model, adapter)
    feeds = [block.feed_forward for block in blocks if block.feed_forward is not None]
    widths = [max(1, feed_forward_width(model, feed)) for feed in feeds]
    for name in keys.intermediate:
        setattr(config, name, max(widths))
    stacks = [block.experts.path for block in blocks if block.experts is not None]
    expert_widths = [expert_shape(model.get_submodule(path))[2] for path in stacks]
    for name in keys.experts:
        setattr(config, name, max(expert_widths))
    if len(keys.intermediate) == 1 and len(set(widths)) > 1:
        config = with_layer_widths(model, adapter, config, keys.intermediate[0], widths) or config
    parts = [part for block in blocks for part in block.attentions]
    layouts = {part.path: dense_layout(part) for part in parts}
    if parts and keys.width:
        width = max(each.width for each in sizes.values())
        for name in keys.width:
            setattr(config, name, width)
        for layout in layouts.values():
            layout.width = width
    # Some configurations can say numbers of heads of which each is the same in all layers.
    free = keys.heads and not any(part.fixed_heads for part in parts)
    if parts and free:
        each = max(max(group_counts(found)) for found in sizes.values())
        groups = max(len(found.kv_heads) for found in sizes.values())
        counts = next(
            (k, q) for k, q in head_counts(config, keys, parts[0]) if k >= groups and q >= each
        )
        set_heads(config, keys, counts, parts[0].head_dim)
        for path in layouts:
            layouts[path] = Layout(counts[1], math.prod(counts), counts[0], parts[0].head_dim)
    return config, layouts
