"""Fills layers of other sizes with those of a compact model, with zeros elsewhere."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, Attention, FeedForward, HeadSizes, has_module
from finegates.head_rows import feed_forward_rows, layer_rows, letters_of
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.linear import dense_weight, find_linear, is_conv1d
from finegates.modules.slices import note_sizes, parameters_by_side
from finegates.specs import NormSpec


class NotUniformError(ValueError):
    """The stock configuration cannot express the model."""


Filled = dict[str, tuple[Tensor, Tensor]]
"""Rows and columns that were written of each layer, int64, by path."""


class Layout:
    """Positions of heads and their dimensions in the stock model.

    Attributes:
        each: query heads of a group; None if heads keep their dense indices.
        heads: number of query heads.
        kv_heads: number of key-value heads.
        width: of a head.
    """

    def __init__(self, each: int | None, heads: int, kv_heads: int, width: int) -> None:
        self.each, self.heads, self.kv_heads, self.width = each, heads, kv_heads, width


def dense_layout(part: Attention) -> Layout:
    """That of a model whose heads keep their dense indices and sizes."""
    return Layout(None, part.heads, part.kv_heads, part.head_dim)


def group_counts(sizes: HeadSizes) -> list[int]:
    """Numbers of kept query heads of each kept key-value head."""
    return [sizes.groups.count(group) for group in range(len(sizes.kv_heads))]


def head_sizes(model: nn.Module, part: Attention) -> HeadSizes:
    """The kept heads of an attention, all of them if it was not narrowed."""
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


def feed_forward_width(model: nn.Module, feed: FeedForward) -> int:
    """Number of intermediate dimensions, kept ones if compact."""
    layer = model.get_submodule(feed.down)
    if isinstance(layer, CompactLinear):
        return layer.in_features
    return dense_weight(layer)[0].shape[1]


def fill_feed_forward(
    model: nn.Module, stock: nn.Module, feed: FeedForward, *, adapters: bool = False
) -> Filled:
    """Writes the layers of a feed-forward part, the first dimensions of each.

    Args:
        model: compact.
        stock: in which the layers are filled.
        feed: of both.
        adapters: see :func:`fill_layer`.
    """
    filled: Filled = {}
    if feed.path is not None and has_module(model, f"{feed.path}.gate_up"):
        assert feed.gate is not None
        joint = model.get_submodule(f"{feed.path}.gate_up")
        each = torch.arange(feed_forward_width(model, feed), device="cpu")
        for path, start in ((feed.gate, 0), (feed.up, each.numel())):
            filled[path] = fill_layer(stock, path, joint, rows=each, start=start, adapters=adapters)
        down = model.get_submodule(feed.down)
        return {**filled, feed.down: fill_layer(stock, feed.down, down, adapters=adapters)}
    rows = None
    if feed.is_fused:
        width, stock_width = (feed_forward_width(m, feed) for m in (model, stock))
        rows = torch.empty(2 * width, dtype=torch.int64, device="cpu")
        for mine, places in zip(
            feed_forward_rows(feed, width), feed_forward_rows(feed, stock_width), strict=True
        ):
            rows[mine] = places[:width]
    for path in feed.linears():
        of_layer = None if path == feed.down else rows
        layer = model.get_submodule(path)
        filled[path] = fill_layer(stock, path, layer, rows=of_layer, adapters=adapters)
    return filled


def fill_attention(
    model: nn.Module,
    stock: nn.Module,
    adapter: Adapter,
    part: Attention,
    sizes: HeadSizes,
    layout: Layout,
    *,
    adapters: bool = False,
) -> Filled:
    """Writes the layers of an attention, and its norms.

    Args:
        model: compact.
        stock: in which the layers are filled.
        adapter: describes both.
        part: the dense attention.
        sizes: its kept heads.
        layout: where heads are in the stock model.
        adapters: see :func:`fill_layer`.

    Raises:
        NotUniformError: a layer needs a bias that the stock one does not have, or a norm over all
            heads lost dimensions.
    """
    contexts = _places(sizes, layout, keys=False, rotated=False)
    places = {
        "q": _places(sizes, layout, keys=False),
        "k": _places(sizes, layout, keys=True),
        "v": _places(sizes, layout, keys=True, rotated=False),
        "g": contexts,
    }
    mine = layer_rows(part, len(sizes.heads), len(sizes.kv_heads), sizes.width)
    theirs = layer_rows(part, layout.heads, layout.kv_heads, layout.width)
    module = model.get_submodule(part.path)
    scale = 1.0 / adapter.query_scale(module, sizes) if layout.width == part.head_dim else 1.0
    joined, start = part.joint_linears() if sizes.fused else (), 0
    filled: Filled = {}
    for path in dict.fromkeys((part.q, part.k, part.v)):
        letters = letters_of(part, path)
        count = sum(mine[letter].numel() for letter in letters)
        rows = torch.empty(count, dtype=torch.int64, device="cpu")
        factors = torch.ones(count, dtype=torch.float64, device="cpu")
        for letter in letters:
            rows[mine[letter].flatten()] = theirs[letter].flatten()[places[letter]]
            if letter == "q":
                factors[mine[letter].flatten()] = scale
        layer = model.get_submodule(part.joint_path if path in joined else path)
        filled[path] = fill_layer(
            stock, path, layer, rows=rows, start=start, factors=factors, adapters=adapters
        )
        start = start + count if path in joined else 0
    norm = adapter.norm_of(module)
    if norm is not None and (sizes.dimensions is not None or len(sizes.heads) < part.heads):
        _fill_norms(stock, module, norm, part, sizes, layout, adapters)
    out = model.get_submodule(part.o)
    filled[part.o] = fill_layer(stock, part.o, out, cols=contexts, adapters=adapters)
    return filled


def _fill_norms(
    stock: nn.Module,
    module: nn.Module,
    spec: NormSpec,
    part: Attention,
    sizes: HeadSizes,
    layout: Layout,
    adapters: bool,
) -> None:
    """Writes the weights of norms over kept dimensions back to where they were.

    It undoes :func:`finegates.modules.narrowed.fit_norms`; dimensions that went are zero with any
    weight.
    """
    of_all = spec.over == "all"
    if of_all and (layout.each is not None or layout.width != part.head_dim):
        raise NotUniformError(f"{part.path} normalises all its heads together")
    inside = list(range(sizes.width)) if sizes.dimensions is None else _dimensions(sizes)
    for name, heads in zip(spec.names, (sizes.heads, sizes.kv_heads), strict=True):
        weight: Tensor = module.get_submodule(name).weight  # type: ignore[assignment]
        target: Tensor = stock.get_submodule(f"{part.path}.{name}").weight  # type: ignore[assignment]
        starts = heads if of_all else (0,)
        places = _index([start * sizes.head_dim + each for start in starts for each in inside])
        factors = weight.detach().to("cpu", torch.float64) + spec.offset
        factors = factors * math.sqrt(places.numel() / target.numel()) - spec.offset
        full = torch.zeros(target.numel(), dtype=weight.dtype, device="cpu")
        full[places] = factors.to(full)
        target.data = full
        if adapters:
            target.requires_grad_(weight.requires_grad)


def fill_heads(
    old: nn.Module, new: nn.Module, path: str, axis: int, sizes: HeadSizes, layout: Layout
) -> None:
    """Writes a parameter with entries for every head to the places of the kept heads.

    Args:
        old: the narrowed attention.
        new: the one with other heads, which is changed.
        path: of the parameter in both, as in specs; one that they do not have is left out.
        axis: of the heads in it.
        sizes: the kept heads.
        layout: where they are in the new attention.
    """
    owner, _, name = path.rpartition(".")
    try:
        small, full = (getattr(m.get_submodule(owner), name, None) for m in (old, new))
    except AttributeError:
        return  # an option that this model does not use
    if not isinstance(small, nn.Parameter) or not isinstance(full, nn.Parameter):
        return
    each = full.shape[axis] // layout.heads
    starts = _index(_head_places(sizes, layout))
    index = (starts[:, None] * each + torch.arange(each, device="cpu")).flatten()
    zeros = torch.zeros_like(full, dtype=small.dtype)
    full.data = zeros.index_copy(axis, index, small.detach().to(zeros.device))
    full.requires_grad_(small.requires_grad)


def _head_places(sizes: HeadSizes, layout: Layout) -> list[int]:
    """The query heads of the stock model that the kept ones become, see :func:`_places`."""
    if layout.each is None:  # rule 1
        return list(sizes.heads)
    return [  # rule 2
        group * layout.each + sizes.groups[:number].count(group)
        for number, group in enumerate(sizes.groups)
    ]


def _dimensions(sizes: HeadSizes) -> list[int]:
    """Dense dimension at each position of a narrow head; those of zeros are any that are left."""
    assert sizes.dimensions is not None
    left = iter(sorted(set(range(sizes.head_dim)) - set(sizes.dimensions)))
    return [next(left) if each < 0 else each for each in sizes.dimensions]


def _places(sizes: HeadSizes, layout: Layout, *, keys: bool, rotated: bool = True) -> Tensor:
    """Stock position of every position in the compact heads.

    1. A head starts at its dense index times the width, if heads keep their dense indices.
    2. Otherwise groups are numbered in order, and so are the query heads within their group.
    3. Inside a head, dimensions keep their order. Those of queries and keys get their dense
       positions if they are rotated pairs, or shared by all heads.

    Returns:
        int64 (heads * width,), for rows that are ordered by head.
    """
    count = len(sizes.kv_heads if keys else sizes.heads)
    groups = list(range(count)) if keys else list(sizes.groups)
    if not keys:
        starts = _head_places(sizes, layout)
    else:
        starts = list(sizes.kv_heads) if layout.each is None else groups
    inside = torch.arange(sizes.width, device="cpu").repeat(count, 1)  # (heads, width), rule 3
    if rotated and sizes.pairs is not None:
        pairs = _index(sizes.pairs)[_index(groups)]  # (heads, width / 2)
        inside = torch.cat([pairs, pairs + sizes.head_dim // 2], dim=-1)
    elif rotated and sizes.dimensions is not None:
        inside = _index(_dimensions(sizes)).expand(count, -1)
    return (_index(starts)[:, None] * layout.width + inside).flatten()


def _index(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def fill_layer(
    stock: nn.Module,
    path: str,
    layer: nn.Module,
    *,
    rows: Tensor | None = None,
    cols: Tensor | None = None,
    start: int = 0,
    factors: Tensor | None = None,
    adapters: bool = False,
) -> tuple[Tensor, Tensor]:
    """Writes a layer's weights into the stock layer at a path, zeros elsewhere.

    Args:
        rows: stock rows of the layer's outputs from ``start`` on; None for the same order.
        cols: stock columns of the layer's inputs; None for the same order.
        start: first output of the layer that belongs to this stock layer.
        factors: of the layer's outputs from ``start`` on, float64; None for ones.
        adapters: keep low-rank adapters, with factors of the stock sizes, and what the layer
            trains, and give the stock layer a bias if it needs one; otherwise adapters are merged.

    Returns:
        rows and columns that were written, int64.

    Raises:
        NotUniformError: the layer needs a bias that the stock one does not have.
        ValueError: it has an adapter other than plain LoRA, which is to be kept.
    """
    inner = layer.linear if isinstance(layer, CompactLinear) else layer
    weight, bias = dense_weight(find_linear(inner) if adapters else inner)
    known = (layer.rows, layer.cols) if isinstance(layer, CompactLinear) else (None, None)
    written, read = (
        torch.arange(size, device="cpu") if index is None else index.cpu()
        for index, size in zip(known, weight.shape, strict=True)
    )
    mine = torch.ones(written.shape, dtype=torch.bool, device="cpu")
    scale = None
    if rows is not None:
        mine = (written >= start) & (written < start + rows.numel())
        inside = written[mine] - start
        weight, written = weight[mine.to(weight.device)], rows[inside]
        bias = None if bias is None else bias[mine.to(bias.device)]
        if factors is not None and bool((factors != 1).any()):
            scale = factors[inside].to(weight)
            weight = weight * scale[:, None]
            bias = None if bias is None else bias * scale.to(bias)
    if cols is not None:
        read = cols[read]
    target = stock.get_submodule(path)
    full = torch.zeros_like(dense_weight(target)[0], dtype=weight.dtype)
    full[written[:, None], read] = weight.to(full)
    stored: Tensor = target.weight  # type: ignore[assignment]
    stored.data = (full if isinstance(target, nn.Linear) else full.T).contiguous()
    present: Tensor | None = target.bias  # type: ignore[assignment]
    needs_bias = bias is not None and bool(bias.any())
    if present is None and needs_bias and adapters:
        present = target.bias = nn.Parameter(full.new_zeros(full.shape[0]))
    if present is not None:
        present.data = torch.zeros_like(present, dtype=weight.dtype)
        if bias is not None:
            present[written] = bias.to(present)
    elif needs_bias:
        raise NotUniformError(
            f"{path} needs a bias (constants of removed dimensions), which {type(stock).__name__} "
            "does not have there"
        )
    if adapters:
        _keep_modes(find_linear(inner), target)
        target.training = layer.training
    if adapters and find_linear(inner) is not inner:
        stock.set_submodule(path, _with_adapters(inner, target, mine, scale, written, read))
    return written, read


def _keep_modes(old: nn.Module, new: nn.Module) -> None:
    """Trains the parameters of a linear layer if those of another one are trained."""
    weight, bias = (cast(nn.Parameter, old.weight), cast(nn.Parameter | None, old.bias))
    new.weight.requires_grad_(weight.requires_grad)
    if new.bias is not None:
        new.bias.requires_grad_((weight if bias is None else bias).requires_grad)


def _with_adapters(
    inner: nn.Module,
    target: nn.Module,
    mine: Tensor,
    scale: Tensor | None,
    written: Tensor,
    read: Tensor,
) -> nn.Module:
    """A low-rank layer around ``target`` whose factors have the given ones between zeros.

    Args:
        inner: the layer whose adapters are taken over.
        target: with its base weight in other sizes.
        mine: bool, which outputs of ``inner`` belong to ``target``.
        scale: of these; None for ones.
        written: rows of ``target`` that they get, int64.
        read: columns of ``target`` of the inputs, int64.
    """
    parameters_by_side(inner)  # raises for other adapters
    adapted: Any = copy.deepcopy(inner, {id(find_linear(inner)): target})
    adapted.fan_in_fan_out = adapted.is_target_conv_1d_layer = is_conv1d(target)
    outputs, inputs = dense_weight(target)[0].shape
    for name, first in adapted.lora_A.items():
        second = adapted.lora_B[name]
        rank, trained = first.weight.shape[0], first.weight.requires_grad
        full = first.weight.new_zeros(rank, inputs)
        full[:, read] = first.weight
        first.weight = nn.Parameter(full, requires_grad=trained)
        trained = second.weight.requires_grad
        rows = second.weight[mine.to(second.weight.device)]
        rows = rows if scale is None else rows * scale.to(rows)[:, None]
        full = second.weight.new_zeros(outputs, rank)
        full[written] = rows
        second.weight = nn.Parameter(full, requires_grad=trained)
    note_sizes(adapted)
    result: nn.Module = adapted
    return result
