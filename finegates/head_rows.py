"""Rows of heads in their projections, and groups of rows that go together.

Architectures store the rows of queries, keys and values in different orders. All rules read and
write them by index, so that they hold for every order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finegates.blocks import Attention, FeedForward, Layout


def head_rows(layout: Layout, heads: int, kv_heads: int, width: int) -> dict[str, Tensor]:
    """The row of every dimension of every head in its projection.

    Args:
        layout: ``qkv``: all queries, then all keys, then all values, where they are one layer, and
            each from 0 on where they are three; ``heads``: q, k, v of the first head, then of the
            second, ...; ``groups``: the queries of the first key-value head, its key, its value,
            then of the second, ...; ``multi_query``: all queries, then the one key and the one
            value; ``gated_queries``: the query of a head, then the gate of its output, and keys and
            values in layers of their own.
        heads: number H of query heads.
        kv_heads: number K of key-value heads.
        width: of each, W.

    Returns:
        int64, ``q`` (H, W), ``k`` and ``v`` (K, W), and with ``gated_queries`` ``g`` (H, W).
    """

    def count(*shape: int) -> Tensor:
        size = 1
        for length in shape:
            size *= length
        return torch.arange(size, dtype=torch.int64, device="cpu").view(shape)

    each = heads // kv_heads
    if layout == "heads":
        rows = count(heads, 3, width)
        return {"q": rows[:, 0], "k": rows[:, 1], "v": rows[:, 2]}
    if layout == "groups":
        rows = count(kv_heads, each + 2, width)
        queries = rows[:, :each].reshape(heads, width)
        return {"q": queries, "k": rows[:, each], "v": rows[:, each + 1]}
    if layout == "multi_query":
        rows = count(heads + 2, width)
        return {"q": rows[:heads], "k": rows[heads : heads + 1], "v": rows[heads + 1 :]}
    if layout == "gated_queries":
        rows = count(heads, 2, width)
        keys = count(kv_heads, width)
        return {"q": rows[:, 0], "g": rows[:, 1], "k": keys, "v": keys.clone()}
    queries, keys = count(heads, width), count(kv_heads, width)
    return {"q": queries, "k": keys, "v": keys.clone()}


def layer_rows(part: Attention, heads: int, kv_heads: int, width: int) -> dict[str, Tensor]:
    """:func:`head_rows` of an attention with other sizes.

    The rows of q, k and v are concatenated if ``qkv`` is one layer.
    """
    rows = head_rows(part.layout, heads, kv_heads, width)
    if part.layout == "qkv" and part.is_fused:
        rows["k"] = rows["k"] + heads * width
        rows["v"] = rows["v"] + (heads + kv_heads) * width
    return rows


def letters_of(part: Attention, path: str) -> tuple[str, ...]:
    """Which of ``q``, ``g``, ``k`` and ``v`` the layer at a path outputs."""
    given = {"q": part.q, "k": part.k, "v": part.v}
    if part.layout == "gated_queries":
        given = {"q": part.q, "g": part.q, "k": part.k, "v": part.v}
    return tuple(letter for letter, layer in given.items() if layer == path)


def score_units(part: Attention) -> Tensor:
    """Dimensions of queries and keys that are removed together.

    These are rotated pairs, and dimensions of all heads that share them.

    Returns:
        int64 (kv_heads, head_dim), numbers from 0 on.
    """
    dimension = torch.arange(part.head_dim, dtype=torch.int64, device="cpu")
    unit = dimension
    if part.rotary is not None:
        rotated = part.head_dim if part.rotary.rotated is None else part.rotary.rotated
        half = rotated // 2
        pair = dimension % max(half, 1) if part.rotary.pairs == "half" else dimension // 2
        unit = torch.where(dimension < rotated, pair, dimension - half)
    if part.shares_scores:
        return unit.expand(part.kv_heads, -1)
    count = int(unit.max()) + 1
    return unit + count * torch.arange(part.kv_heads, device="cpu")[:, None]


def of_dimensions(part: Attention, units: Tensor) -> Tensor:
    """Numbers of units (:func:`score_units`) as numbers of their dimensions.

    This is arithmetic without indexing, which does not wait for a device.

    Args:
        part: the attention.
        units: (number of units,).

    Returns:
        (kv_heads, head_dim).
    """
    rows = units.view(1 if part.shares_scores else part.kv_heads, -1)
    if part.rotary is not None:
        rotated = part.head_dim if part.rotary.rotated is None else part.rotary.rotated
        pairs, passed = rows[:, : rotated // 2], rows[:, rotated // 2 :]
        if part.rotary.pairs == "half":
            rows = torch.cat([pairs, pairs, passed], dim=-1)
        else:
            rows = torch.cat([pairs.repeat_interleave(2, dim=-1), passed], dim=-1)
    return rows.expand(part.kv_heads, -1)


def feed_forward_rows(part: FeedForward, width: int) -> tuple[Tensor, Tensor]:
    """For every intermediate dimension, its row in the layer for gate and in that for up.

    Args:
        part: with a gate projection.
        width: number of intermediate dimensions.

    Returns:
        int64 (width,) each; the same numbers where they are two layers.
    """
    each = torch.arange(width, dtype=torch.int64, device="cpu")
    if not part.is_fused:
        return each, each
    return (each, each + width) if part.layout == "halves" else (2 * each, 2 * each + 1)
