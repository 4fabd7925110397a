"""Gates shared along the dependencies of a block, and their MACs.

Independent row and column gates leave most of a block in place: a dimension between two layers is
removed only if both close it, and a residual dimension is read by three projections. Here every
dimension that compaction can remove has one gate:

- ``inputs`` of queries, keys and values together, and of the feed-forward layers;
- ``scores``, the dimensions of queries and keys (of a rotated pair together);
- ``values``, the dimensions between v and o;
- ``heads``;
- ``hidden``, the feed-forward dimensions;
- ``outputs`` of o and of down.

The penalty is on the remaining multiply-accumulates of the whole model, so that the least important
dimensions close first in any layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finegates.adapters import Attention, Block, FeedForward, adapter_for
from finegates.gates.gate import DerivedGate, Gate, StochasticGate
from finegates.modules.linear import linear_shape

Read = Callable[[StochasticGate], Tensor]


@dataclass(frozen=True)
class AttentionGates:
    """Gates of one attention; ``None`` where a dimension cannot be removed.

    Attributes:
        part: the attention.
        inputs: (hidden,) of q, k and v; with cross-attention of q alone.
        memory: (hidden,) of k and v, with cross-attention only.
        scores: (kv_heads * head_dim,), or half as many with rotary embeddings.
        values: (kv_heads * head_dim,).
        heads: (heads,).
        outputs: (hidden,).
    """

    part: Attention
    inputs: StochasticGate
    memory: StochasticGate | None
    scores: StochasticGate | None
    values: StochasticGate | None
    heads: StochasticGate | None
    outputs: StochasticGate

    def macs(self, read: Read, length: int, *, packed: bool = False) -> Tensor:
        """Multiply-accumulates of one token.

        1. Inputs and outputs of the four projections count as far as their gates are open.
        2. Keys and values of a group are kept while one of its query heads is.
        3. With ``packed``, a head without values is removed, and the remaining heads are padded to
           the width of the widest, as compaction does. The width is even with rotary embeddings,
           and unchanged where a norm or the architecture needs it.

        Args:
            read: gives the openness of each gate's dimensions, in [0, 1]; with ``packed`` zeros and
                ones.
        """
        part = self.part
        reference = read(self.inputs)
        inputs, outputs = reference.sum(), read(self.outputs).sum()
        memory = inputs if self.memory is None else read(self.memory).sum()
        if part.projected is not None:  # no gate between the projections
            q, k, v = part.projected
            return inputs * q + memory * (k + v) + v * outputs + length * part.products
        grouped = (part.kv_heads, part.heads // part.kv_heads)
        heads = reference.new_ones(grouped)  # (kv_heads, group)
        if self.heads is not None:
            heads = read(self.heads).view(grouped)
        scores = values = reference.new_ones(part.kv_heads, part.head_dim)  # (kv_heads, head_dim)
        if self.scores is not None:
            scores = read(self.scores).view(part.kv_heads, -1)
            scores = torch.cat([scores, scores], dim=-1) if part.rotary else scores
        if self.values is not None:
            values = read(self.values).view(part.kv_heads, part.head_dim)
        if packed:  # rule 3
            heads = heads * (values.sum(-1, keepdim=True) > 0)
        group = 1 - (1 - heads).prod(-1)  # (kv_heads,), rule 2
        queries = (heads.sum(-1) * scores.sum(-1)).sum()  # outputs of q
        context = (heads.sum(-1) * values.sum(-1)).sum()  # inputs of o
        keyed = (group * (scores.sum(-1) + values.sum(-1))).sum()  # outputs of k and v
        linear = inputs * queries + memory * keyed + context * outputs  # rule 1
        products = queries + context  # per token attended to: q k^T and the weighted sum of v
        if packed:  # rule 3
            alive = (group[:, None] > 0).to(scores.dtype)
            width = torch.maximum((alive * scores).sum(-1), (alive * values).sum(-1)).max()
            width = width.clamp(min=1)
            if part.rotary:
                width = width + width % 2
            if part.qk_norm or not part.narrows:
                width = torch.full_like(width, part.head_dim)
            count = heads.sum().clamp(min=1)
            products = 2 * width * (part.heads if part.fixed_heads else count)
        return linear + length * products

    def gates(self) -> Iterator[StochasticGate]:
        """The gates that exist."""
        named = (self.inputs, self.memory, self.scores, self.values, self.heads, self.outputs)
        yield from (gate for gate in named if gate is not None)


@dataclass(frozen=True)
class FeedForwardGates:
    """Gates of one feed-forward part.

    Attributes:
        part: the feed-forward part.
        inputs: (hidden,).
        hidden: (intermediate,).
        outputs: (hidden,).
    """

    part: FeedForward
    inputs: StochasticGate
    hidden: StochasticGate
    outputs: StochasticGate

    def macs(self, read: Read, length: int, *, packed: bool = False) -> Tensor:
        """Multiply-accumulates of one token, see :meth:`AttentionGates.macs`."""
        widening = 1 if self.part.gate is None else 2
        width = read(self.hidden).sum()
        return width * (widening * read(self.inputs).sum() + read(self.outputs).sum())

    def gates(self) -> Iterator[StochasticGate]:
        """All three gates."""
        yield from (self.inputs, self.hidden, self.outputs)


Structure = tuple[AttentionGates | FeedForwardGates, ...]
Sides = dict[str, tuple[Gate | None, Gate | None]]


def build_structure(
    model: nn.Module, make: Callable[[str, int], StochasticGate]
) -> tuple[Structure, Sides]:
    """Builds the shared gates of a model; the model does not change.

    Args:
        model: a plain transformers model whose architecture has an adapter.
        make: makes a gate from a name (block path and role) and a size.

    Returns:
        the gates by part, and the row and column gates of every gated layer.

    Raises:
        ValueError: the architecture has no adapter.
    """
    parts: list[AttentionGates | FeedForwardGates] = []
    sides: Sides = {}
    for block in adapter_for(model).blocks(model):
        for gates, placed in _block_gates(block, model, make):
            parts.append(gates)
            sides.update(placed)
    return tuple(parts), sides


def _block_gates(
    block: Block, model: nn.Module, make: Callable[[str, int], StochasticGate]
) -> Iterator[tuple[AttentionGates | FeedForwardGates, Sides]]:
    for part in block.attentions:
        yield _attention_gates(part, model, make)
    feed = block.feed_forward
    if feed is not None:
        columns, width = linear_shape(model.get_submodule(feed.up))
        _, outputs = linear_shape(model.get_submodule(feed.down))
        gates = FeedForwardGates(
            feed,
            make(f"{feed.up}.inputs", columns),
            make(f"{feed.up}.hidden", width),
            make(f"{feed.down}.outputs", outputs),
        )
        sides: Sides = {path: (None, gates.inputs) for path in feed.linears()}
        sides[feed.down] = (gates.outputs, gates.hidden)
        yield gates, sides


def _attention_gates(
    part: Attention, model: nn.Module, make: Callable[[str, int], StochasticGate]
) -> tuple[AttentionGates, Sides]:
    columns, _ = linear_shape(model.get_submodule(part.q))
    memory, _ = linear_shape(model.get_submodule(part.k))
    _, outputs = linear_shape(model.get_submodule(part.o))
    size = part.kv_heads * part.head_dim
    scored = part.narrows and not part.qk_norm
    gates = AttentionGates(
        part,
        inputs=make(f"{part.path}.inputs", columns),
        memory=make(f"{part.path}.memory", memory) if part.cross else None,
        scores=make(f"{part.path}.scores", size // (1 + part.rotary)) if scored else None,
        values=make(f"{part.path}.values", size) if part.narrows else None,
        heads=make(f"{part.path}.heads", part.heads) if part.narrows else None,
        outputs=make(f"{part.path}.outputs", outputs),
    )
    each = part.heads // part.kv_heads
    device = gates.inputs.latent.device
    head = torch.arange(part.heads, device=device).repeat_interleave(part.head_dim)
    dimension = torch.arange(part.head_dim, device=device).repeat(part.heads)
    group = head // each
    rows: Gate | None = None
    if gates.scores is not None:
        width = part.head_dim // (1 + part.rotary)
        index = group * width + dimension % width
        if part.is_fused:  # the rows of keys and values follow the queries; they have no gates here
            index = torch.cat([index, index.new_full((2 * size,), -1)])
        rows = DerivedGate([(gates.scores, index)])
    cols: Gate | None = None
    if gates.values is not None and gates.heads is not None:
        cols = DerivedGate([(gates.values, group * part.head_dim + dimension), (gates.heads, head)])
    read = gates.inputs if gates.memory is None else gates.memory
    sides: Sides = {
        part.k: (None, read),
        part.v: (None, read),
        part.q: (rows, gates.inputs),
        part.o: (gates.outputs, cols),
    }
    return gates, sides
