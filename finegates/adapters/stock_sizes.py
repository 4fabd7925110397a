"""Sizes that a stock configuration sets for all layers, found by building the model.

Configurations name one size in many ways, and a name may be accepted without an effect. So names
are tried on the meta device: one counts if the built model has exactly the size that it asks for,
in every layer, while all other sizes of the layers stay.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finegates.adapters.base import Adapter
from finegates.blocks import Attention, Block
from finegates.modules.dense_shapes import dense_shape

_INTERMEDIATE: tuple[tuple[str, ...], ...] = (
    ("intermediate_size",),
    ("ffn_dim",),
    ("encoder_ffn_dim", "decoder_ffn_dim"),
    ("ffn_hidden_size",),
    ("hidden_dim",),
    ("n_inner",),
    ("d_ff",),
)
_EXPERTS = (("moe_intermediate_size",), ("intermediate_size",))
_WIDTH = (("d_kv",),)
_HEADS = ("num_attention_heads", "num_heads")
_KV_HEADS = "num_key_value_heads"

HeadCounts = tuple[int, int]
"""Key-value heads, and query heads of each."""


@dataclass(frozen=True)
class StockKeys:
    """Names of sizes in a configuration, each empty if the configuration cannot say it.

    Attributes:
        intermediate: of the feed-forward dimensions; an encoder-decoder may have two names.
        experts: of the intermediate dimensions of stacked experts.
        width: of the width of a head.
        heads: of the numbers of query heads and, where it has one, of key-value heads. The width of
            a head does not follow from them.
    """

    intermediate: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


def stock_keys(model: nn.Module, adapter: Adapter) -> StockKeys:
    """Finds the names of the sizes that a model's configuration can change.

    Args:
        model: plain; dense, gated or compact. It does not change.
        adapter: describes it.
    """
    trial = _Trial(model, adapter)
    feeds = [block.feed_forward for block in trial.blocks if block.feed_forward is not None]
    attentions = [part for block in trial.blocks for part in block.attentions]
    intermediate: tuple[str, ...] = ()
    if feeds:
        dense = (width for _, width, _ in _feed_sizes(trial.stock, trial.blocks))
        asked = max(1, max(width or 1 for width in dense) // 2)
        intermediate = _first(_INTERMEDIATE, lambda names: trial.sets_width(names, asked))
    stacks = [block.experts for block in trial.blocks if block.experts is not None]
    experts: tuple[str, ...] = ()
    if stacks:
        narrow = max(1, stacks[0].width // 2)
        experts = _first(_EXPERTS, lambda names: trial.sets_expert_width(names, narrow))
    width: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    if attentions:
        narrow = max(1, attentions[0].head_dim // 2)
        width = _first(_WIDTH, lambda names: trial.sets_head_width(names, narrow))
        second = (_KV_HEADS,) if hasattr(model.config, _KV_HEADS) else ()
        heads = _first([(name, *second) for name in _HEADS], trial.sets_heads)
    return StockKeys(intermediate, experts, width, heads)


def head_counts(config: Any, keys: StockKeys, part: Attention) -> list[HeadCounts]:
    """The numbers of heads that a configuration accepts, fewest query heads first.

    For example, Llama's number of query heads must divide its hidden size.

    Args:
        config: does not change.
        keys: with names for the numbers of heads.
        part: an attention of the dense model.
    """
    config = copy.deepcopy(config)
    found = []
    for counts in itertools.product(
        range(1, part.kv_heads + 1), range(1, part.heads // part.kv_heads + 1)
    ):
        set_heads(config, keys, counts, part.head_dim)
        if counts == (part.kv_heads, part.heads // part.kv_heads) or is_valid(config):
            found.append(counts)
    return sorted(found, key=math.prod)


def set_heads(config: Any, keys: StockKeys, counts: HeadCounts, width: int) -> None:
    """Sets the numbers of heads in a configuration, and the width that each of them has."""
    kv_heads, each = counts
    for name, value in zip(keys.heads, (kv_heads * each, kv_heads), strict=False):
        setattr(config, name, value)
    # Without it the width would be derived from the number of heads.
    with suppress(AttributeError):  # a property that follows from the number of heads
        config.head_dim = width


def with_layer_widths(
    model: nn.Module, adapter: Adapter, config: Any, name: str, widths: Sequence[int]
) -> Any | None:
    """A configuration with a feed-forward width of its own for each layer.

    Recent versions of transformers store them (``per_layer_config``), and some classes build their
    layers from them.

    Args:
        model: whose class is asked.
        adapter: describes it.
        config: with one width for all layers; does not change.
        name: of the width.
        widths: of the layers, in their order.

    Returns:
        the configuration, or None if the class does not build these widths from it.
    """
    known = hasattr(type(config), "per_layer_config") and not config.is_heterogeneous
    if not known or getattr(config, "num_hidden_layers", 0) != len(widths):
        return None
    changed = copy.deepcopy(config)
    changed.per_layer_config = {layer: {name: width} for layer, width in enumerate(widths)}
    stock = _built(type(model), copy.deepcopy(changed))
    if stock is None:
        return None
    found = [width for _, width, _ in _feed_sizes(stock, adapter.blocks(stock))]
    return changed if found == list(widths) else None


def is_valid(config: Any) -> bool:
    """Whether a configuration's values are consistent, as far as its class checks."""
    try:
        config.validate()
    except Exception:  # from huggingface_hub, where only recent versions have it
        return False
    return True


def _first(
    names: Sequence[tuple[str, ...]], works: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...]:
    return next((each for each in names if works(each)), ())


class _Trial:
    """Builds a model's class from changed configurations, and compares its layers.

    Attributes:
        stock: as the model's own configuration builds it, on the meta device.
        blocks: its blocks.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self._model, self._adapter = model, adapter
        self._config: Any = model.config
        self.stock = _built(type(model), copy.deepcopy(self._config))
        self.blocks = () if self.stock is None else adapter.blocks(self.stock)

    def sets_width(self, names: tuple[str, ...], asked: int) -> bool:
        """Whether names set the feed-forward width, and nothing else."""
        changed = self._changed(dict.fromkeys(names, asked))
        if changed is None:
            return False
        stock, blocks = changed
        dense = _feed_sizes(self.stock, self.blocks)
        expected = [(inputs, asked, outputs) for inputs, _, outputs in dense]
        same = _attention_sizes(blocks) == _attention_sizes(self.blocks)
        grown = {(width, asked) for _, width, _ in dense if width is not None}
        same = same and self._other_tensors_fit(stock, grown)
        return same and _feed_sizes(stock, blocks) == expected

    def sets_expert_width(self, names: tuple[str, ...], asked: int) -> bool:
        """Whether names set the width of stacked experts, and nothing else."""
        changed = self._changed(dict.fromkeys(names, asked))
        if changed is None:
            return False
        assert self.stock is not None
        stock, blocks = changed
        dense = _expert_widths(self.blocks)
        same = _attention_sizes(blocks) == _attention_sizes(self.blocks)
        same = same and _feed_sizes(stock, blocks) == _feed_sizes(self.stock, self.blocks)
        stacks = {block.experts.path for block in self.blocks if block.experts is not None}
        before, after = (
            {n: shape for n, shape in _shapes(m).items() if n.rpartition(".")[0] not in stacks}
            for m in (self.stock, stock)
        )
        return same and before == after and _expert_widths(blocks) == [asked] * len(dense)

    def sets_head_width(self, names: tuple[str, ...], asked: int) -> bool:
        """Whether names set the width of a head, and nothing else."""
        changed = self._changed(dict.fromkeys(names, asked))
        if changed is None:
            return False
        stock, blocks = changed
        expected = [
            (heads, kv_heads, asked) for heads, kv_heads, _ in _attention_sizes(self.blocks)
        ]
        same = _feed_sizes(stock, blocks) == _feed_sizes(self.stock, self.blocks)
        return same and _attention_sizes(blocks) == expected

    def sets_heads(self, names: tuple[str, ...]) -> bool:
        """Whether names set the numbers of heads, and nothing else."""
        part = next(part for block in self.blocks for part in block.attentions)
        each = part.heads // part.kv_heads
        keys = StockKeys(heads=names)
        if not all(type(getattr(self._config, name, None)) is int for name in names):
            return False
        options = [
            counts
            for counts in head_counts(self._config, keys, part)
            if math.prod(counts) < part.heads and (len(names) > 1 or each == 1)
        ]
        if not options:
            return False
        config = copy.deepcopy(self._config)
        set_heads(config, keys, options[-1], part.head_dim)
        stock = _built(type(self._model), config)
        if stock is None:
            return False
        blocks = self._adapter.blocks(stock)
        kv_heads, group = options[-1]
        asked = (kv_heads * group, kv_heads, part.head_dim)
        same = _feed_sizes(stock, blocks) == _feed_sizes(self.stock, self.blocks)
        fewer = {(part.heads, kv_heads * group), (part.kv_heads, kv_heads)}
        same = same and self._other_tensors_fit(stock, fewer)
        return same and _attention_sizes(blocks) == [asked] * len(_attention_sizes(self.blocks))

    def _other_tensors_fit(self, stock: nn.Module, sizes: set[tuple[int, int]]) -> bool:
        """Whether tensors of no described layer keep their shapes, or follow a size that changed.

        For example, Phi's norms of queries have the hidden size over the number of heads, not the
        width of a head that the configuration says.

        Args:
            stock: of the changed configuration.
            sizes: before and after, of which multiples may change.
        """
        assert self.stock is not None
        described = {path for block in self.blocks for path in block.linears()}
        after = _shapes(stock)
        return all(
            old == new or any(new * before == old * now for before, now in sizes)
            for name, shape in _shapes(self.stock).items()
            if name.rpartition(".")[0] not in described and len(after.get(name, ())) == len(shape)
            for old, new in zip(shape, after[name], strict=True)
        )

    def _changed(self, values: dict[str, int]) -> tuple[nn.Module, tuple[Block, ...]] | None:
        config = copy.deepcopy(self._config)
        for name, value in values.items():
            present = getattr(config, name, "")
            if present is not None and type(present) is not int:
                return None
            setattr(config, name, value)
        stock = _built(type(self._model), config)
        return None if stock is None else (stock, self._adapter.blocks(stock))


def _built(kind: type[nn.Module], config: Any) -> nn.Module | None:
    """A model on the meta device, or None if its class does not accept the configuration."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return kind(config)
    except Exception:  # classes raise what they like
        return None


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.shape for name, tensor in tensors}


def _attention_sizes(blocks: Sequence[Block]) -> list[tuple[int, int, int]]:
    parts = (part for block in blocks for part in block.attentions)
    return [(part.heads, part.kv_heads, part.head_dim) for part in parts]


def _expert_widths(blocks: Sequence[Block]) -> list[int]:
    return [block.experts.width for block in blocks if block.experts is not None]


def _feed_sizes(
    model: nn.Module | None, blocks: Sequence[Block]
) -> list[tuple[int | None, int | None, int | None]]:
    """Inputs, intermediate dimensions and outputs of all feed-forward parts."""
    found = []
    for block in blocks:
        if block.feed_forward is not None and model is not None:
            up = dense_shape(model, block.feed_forward.up) or (None, None)
            down = dense_shape(model, block.feed_forward.down) or (None, None)
            found.append((up[0], down[0], down[1]))
    return found
