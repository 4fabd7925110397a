"""Fits a description from the configuration to the model's actual modules.

Pruning tools and users change modules without changing the configuration: they remove heads, a
layer, or a part of it. Sizes are therefore read from the weights.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from finegates.adapters.base import has_module
from finegates.blocks import Attention, Block, FeedForward
from finegates.modules.dense_shapes import dense_shape


def fitted(model: nn.Module, block: Block, head_width: str) -> Block | None:
    """Fits a block to the model.

    Missing parts are dropped. The heads of attentions follow from the sizes of their weights; if
    these are not heads of one width, they are kept (``narrows=False``).

    Args:
        model: plain; dense, gated or compact.
        block: from the configuration.
        head_width: attribute of an attention module with the width of its heads, by which its
            forward splits them.

    Returns:
        the block, or None if it has no parts left.
    """
    attentions = tuple(
        _fitted_attention(model, part, head_width)
        for part in block.attentions
        if _is_there(model, part)
    )
    feed = block.feed_forward
    feed = feed if feed is not None and _is_there(model, feed) else None
    if not attentions and feed is None:
        return None
    return dataclasses.replace(block, attentions=attentions, feed_forward=feed)


def _is_there(model: nn.Module, part: Attention | FeedForward) -> bool:
    """Whether the model has any layer of the part, fused or not."""
    paths = list(part.linears())
    if isinstance(part, Attention) and part.joint:
        paths.append(part.joint_path)
    if isinstance(part, FeedForward) and part.path is not None:
        paths.append(f"{part.path}.gate_up")
    return any(has_module(model, path) for path in paths)


def _fitted_attention(model: nn.Module, part: Attention, head_width: str) -> Attention:
    module = model.get_submodule(part.path)
    narrowed = getattr(module, "finegates_heads", None)
    found = _projected(model, part)
    if found is None:
        return part
    # A narrowed module's attributes are those of its narrow heads.
    width = getattr(module, head_width, part.head_dim) if narrowed is None else narrowed.head_dim
    queries, keys, values, contexts = found
    heads, kv_heads = contexts // width, values // width
    each = part.heads // part.kv_heads
    fits = (
        queries == contexts == heads * width
        and keys == values == kv_heads * width
        and heads == each * kv_heads > 0
    )
    if fits:
        return dataclasses.replace(part, heads=heads, kv_heads=kv_heads, head_dim=width)
    return dataclasses.replace(part, narrows=False, joint="", projected=(queries, keys, values))


def _projected(model: nn.Module, part: Attention) -> tuple[int, int, int, int] | None:
    """Dense output sizes of q, k and v and the input size of o; None where they are unknown."""
    o = dense_shape(model, part.o)
    if o is None:
        return None
    contexts = o[0]
    if part.is_fused:
        whole = dense_shape(model, part.q)
        if whole is None:
            return None
        keys = (whole[1] - contexts) // 2
        return whole[1] - 2 * keys, keys, keys, contexts
    joint = dense_shape(model, part.joint_path) if part.joint else None
    shapes = {letter: dense_shape(model, getattr(part, letter)) for letter in "qkv"}
    sizes = {letter: shape[1] for letter, shape in shapes.items() if shape is not None}
    if joint is not None and part.joint == "qkv":
        keys = (joint[1] - contexts) // 2
        sizes = {"q": joint[1] - 2 * keys, "k": keys, "v": keys}
    elif joint is not None:
        sizes |= dict.fromkeys("kv", joint[1] // 2)
    if len(sizes) < 3:
        return None
    return sizes["q"], sizes["k"], sizes["v"], contexts
