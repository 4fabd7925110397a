"""Gates shared along the dependencies of a block, and their MACs.

Independent row and column gates leave most of a block in place: a dimension between two layers is
removed only if both close it, and a residual dimension is read by three projections. Here every
dimension that compaction can remove has one gate:

- ``inputs`` of queries, keys and values together, and of the feed-forward layers;
- ``scores``, the dimensions of queries and keys (of a rotated pair together, and of all heads if
  they use one table of angles or one norm);
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

from finegates.adapters import Adapter, Attention, Block, Experts, FeedForward, Mixer, adapter_for
from finegates.gates.gate import DerivedGate, Gate
from finegates.gates.stochastic import StochasticGate
from finegates.head_rows import layer_rows, letters_of, of_dimensions, score_units
from finegates.modules.linear import linear_shape

Read = Callable[[StochasticGate], Tensor]


@dataclass(frozen=True)
class AttentionGates:
    """Gates of one attention; ``None`` where a dimension cannot be removed.

    Attributes:
        part: the attention.
        inputs: (hidden,) of q, k and v; with cross-attention of q alone.
        memory: (hidden,) of k and v, with cross-attention only.
        scores: (units,), one for each set of dimensions of queries and keys that belong together
            (:func:`finegates.head_rows.score_units`).
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
            scores = of_dimensions(part, read(self.scores))
        if self.values is not None:
            values = read(self.values).view(part.kv_heads, part.head_dim)
        if packed and part.norm != "all":  # rule 3
            heads = heads * (values.sum(-1, keepdim=True) > 0)
        group = 1 - (1 - heads).prod(-1)  # (kv_heads,), rule 2
        keyed = group
        if part.norm == "all" and part.kv_heads < part.heads:
            keyed = torch.ones_like(group)  # no gate closes all keys of a group
        queries = (heads.sum(-1) * scores.sum(-1)).sum()  # outputs of q
        context = (heads.sum(-1) * values.sum(-1)).sum()  # inputs of o
        outer = (keyed * scores.sum(-1)).sum() + (group * values.sum(-1)).sum()  # outputs of k, v
        linear = inputs * queries + memory * outer + context * outputs  # rule 1
        if part.layout == "gated_queries":
            linear = linear + inputs * context  # q also outputs a gate for every value
        products = queries + context  # per token attended to: q k^T and the weighted sum of v
        if packed:  # rule 3
            width = self._packed_width(scores, values, group, keyed)
            products = 2 * width * self._packed_heads(heads)
        return linear + length * products

    def _packed_width(self, scores: Tensor, values: Tensor, group: Tensor, keyed: Tensor) -> Tensor:
        """Width of the kept heads after compaction.

        Args:
            scores: (kv_heads, head_dim), 1 where kept.
            values: the same of values.
            group: (kv_heads,), 1 where values stay.
            keyed: (kv_heads,), 1 where keys stay.
        """
        part = self.part
        alive, read = ((mask[:, None] > 0).to(scores.dtype) for mask in (group, keyed))
        width = torch.maximum((read * scores).sum(-1), (alive * values).sum(-1)).max()
        width = width.clamp(min=1)
        if part.fixed_scores or not part.narrows:
            return torch.full_like(width, part.head_dim)
        if part.rotary is not None and part.rotary.rotated in (None, part.head_dim):
            width = width + width % 2
        return width

    def _packed_heads(self, heads: Tensor) -> Tensor | int:
        """Number of query heads after compaction, for ``heads`` (kv_heads, each)."""
        part = self.part
        if part.fixed_heads:
            return part.heads
        if not part.even:
            return heads.sum().clamp(min=1)
        groups = heads.sum(-1)
        alive = (groups > 0).sum()
        if part.norm == "all" and part.kv_heads < part.heads:
            alive = torch.full_like(alive, part.kv_heads)
        return (alive * groups.max()).clamp(min=1)

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


@dataclass(frozen=True)
class ExpertsGates:
    """The gate of the experts of one layer: ``hidden`` (experts * intermediate,)."""

    part: Experts
    hidden: StochasticGate

    def macs(self, read: Read, length: int, *, packed: bool = False) -> Tensor:
        """As for :meth:`AttentionGates.macs`; packed experts all have the width of the widest."""
        part = self.part
        widths = read(self.hidden).view(part.count, part.width).sum(-1)
        if packed:
            width = ((widths.max().clamp(min=1) / 8).ceil() * 8).clamp(max=part.width)
        else:
            width = widths.mean()
        return part.active * part.matrices * part.hidden * width

    def levelled(self, importance: Tensor) -> Tensor:
        """Importances (experts * intermediate,) by rank within their expert.

        Experts have one width, so they lose dimensions together: each of them its least important
        ones. Importances of equal rank are replaced by their mean over the experts.
        """
        ranked, order = importance.view(self.part.count, -1).sort(dim=1)
        mean = ranked.mean(0, keepdim=True).expand_as(ranked)
        return torch.empty_like(ranked).scatter(1, order, mean).flatten()

    def gates(self) -> Iterator[StochasticGate]:
        """The one gate."""
        yield self.hidden


@dataclass(frozen=True)
class MixerGates:
    """The gates of a part that keeps its inner sizes.

    Attributes:
        part: the part.
        inputs: (hidden,) of all layers that read the residual stream.
        outputs: (hidden,) of all layers that write to it.
        read: outputs of the reading layers together.
        kept: weights of the layers between.
        written: inputs of the writing layers together.
    """

    part: Mixer
    inputs: StochasticGate
    outputs: StochasticGate
    read: int
    kept: int
    written: int

    def macs(self, read: Read, length: int, *, packed: bool = False) -> Tensor:
        """As for :meth:`AttentionGates.macs`."""
        linear = self.read * read(self.inputs).sum() + self.written * read(self.outputs).sum()
        return linear + self.kept + length * self.part.products

    def gates(self) -> Iterator[StochasticGate]:
        """Both."""
        yield from (self.inputs, self.outputs)


Part = AttentionGates | FeedForwardGates | ExpertsGates | MixerGates
Structure = tuple[Part, ...]
Sides = dict[str, tuple[Gate | None, Gate | None]]


def build_structure(
    model: nn.Module,
    make: Callable[[str, int], StochasticGate],
    *,
    experts: bool = True,
    adapter: Adapter | None = None,
) -> tuple[Structure, Sides]:
    """Builds the shared gates of a model; the model does not change.

    Args:
        model: a plain transformers model whose architecture has an adapter.
        make: makes a gate from a name (block path and role) and a size.
        experts: whether stacked experts get gates.
        adapter: describes the blocks; looked up if None.

    Returns:
        the gates by part, and the row and column gates of every gated layer.

    Raises:
        ValueError: the architecture has no adapter.
    """
    parts: list[Part] = []
    sides: Sides = {}
    for block in (adapter or adapter_for(model)).blocks(model):
        for gates, placed in _block_gates(block, model, make):
            parts.append(gates)
            sides.update(placed)
        if experts and block.experts is not None:
            part = block.experts
            gate = make(f"{part.path}.hidden", part.count * part.width)
            parts.append(ExpertsGates(part, gate))
            sides[part.path] = (None, gate)
    return tuple(parts), sides


def _block_gates(
    block: Block, model: nn.Module, make: Callable[[str, int], StochasticGate]
) -> Iterator[tuple[AttentionGates | FeedForwardGates | MixerGates, Sides]]:
    for part in block.attentions:
        yield _attention_gates(part, model, make)
    for mixer in block.mixers:
        yield _mixer_gates(mixer, model, make)
    feed = block.feed_forward
    if feed is not None:
        columns, _ = linear_shape(model.get_submodule(feed.up))
        width, outputs = linear_shape(model.get_submodule(feed.down))
        gates = FeedForwardGates(
            feed,
            make(f"{feed.up}.inputs", columns),
            make(f"{feed.up}.hidden", width),
            make(f"{feed.down}.outputs", outputs),
        )
        sides: Sides = {path: (None, gates.inputs) for path in feed.linears()}
        sides[feed.down] = (gates.outputs, gates.hidden)
        yield gates, sides


def _mixer_gates(
    part: Mixer, model: nn.Module, make: Callable[[str, int], StochasticGate]
) -> tuple[MixerGates, Sides]:
    shapes = {path: linear_shape(model.get_submodule(path)) for path in part.linears()}
    gates = MixerGates(
        part,
        make(f"{part.path}.inputs", shapes[part.reads[0]][0]),
        make(f"{part.path}.outputs", shapes[part.writes[0]][1]),
        sum(shapes[path][1] for path in part.reads),
        sum(shapes[path][0] * shapes[path][1] for path in part.inner),
        sum(shapes[path][0] for path in part.writes),
    )
    sides: Sides = {path: (None, gates.inputs) for path in part.reads}
    return gates, {**sides, **{path: (gates.outputs, None) for path in part.writes}}


def _attention_gates(
    part: Attention, model: nn.Module, make: Callable[[str, int], StochasticGate]
) -> tuple[AttentionGates, Sides]:
    columns, _ = linear_shape(model.get_submodule(part.q))
    memory, _ = linear_shape(model.get_submodule(part.k))
    _, outputs = linear_shape(model.get_submodule(part.o))
    size = part.kv_heads * part.head_dim
    scored = part.narrows and not part.fixed_scores
    units = int(score_units(part).max()) + 1
    gates = AttentionGates(
        part,
        inputs=make(f"{part.path}.inputs", columns),
        memory=make(f"{part.path}.memory", memory) if part.cross else None,
        scores=make(f"{part.path}.scores", units) if scored else None,
        values=make(f"{part.path}.values", size) if part.narrows else None,
        heads=make(f"{part.path}.heads", part.heads) if part.narrows else None,
        outputs=make(f"{part.path}.outputs", outputs),
    )
    each = part.heads // part.kv_heads
    device = gates.inputs.latent.device
    head = torch.arange(part.heads, device=device).repeat_interleave(part.head_dim)
    dimension = torch.arange(part.head_dim, device=device).repeat(part.heads)
    group = head // each
    cols: Gate | None = None
    if gates.values is not None and gates.heads is not None:
        cols = DerivedGate([(gates.values, group * part.head_dim + dimension), (gates.heads, head)])
    read = gates.inputs if gates.memory is None else gates.memory
    sides: Sides = {
        part.k: (_score_rows(part, part.k, gates, model), read),
        part.v: (None, read),
        part.q: (_score_rows(part, part.q, gates, model), gates.inputs),
        part.o: (gates.outputs, cols),
    }
    return gates, sides


def _score_rows(part: Attention, path: str, gates: AttentionGates, model: nn.Module) -> Gate | None:
    """The row gate of a projection.

    It gates scores in the rows of queries and, under a norm, which reads its own inputs, in those
    of keys. If the norm reads all heads, it also gates the heads.
    """
    if gates.scores is None:
        return None
    gated = [letter for letter in ("qk" if part.norm else "q") if letter in letters_of(part, path)]
    if not gated:
        return None
    _, size = linear_shape(model.get_submodule(path))
    rows = layer_rows(part, part.heads, part.kv_heads, part.head_dim)
    unit, head = (torch.full((size,), -1, dtype=torch.int64, device="cpu") for _ in range(2))
    units, each = score_units(part), part.heads // part.kv_heads
    numbers = torch.arange(part.heads, device="cpu")[:, None]
    for letter in gated:
        unit[rows[letter]] = units.repeat_interleave(each, 0) if letter == "q" else units
        if letter == "q" or each == 1:
            head[rows[letter]] = numbers.expand(rows[letter].shape)
    device = gates.inputs.latent.device
    sources: list[tuple[Gate, Tensor]] = [(gates.scores, unit.to(device))]
    if part.norm == "all" and gates.heads is not None:
        sources.append((gates.heads, head.to(device)))
    return DerivedGate(sources)
