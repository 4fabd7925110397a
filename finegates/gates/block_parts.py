"""Gates of the parts of a block, and the MACs that they keep (:mod:`finegates.gates.shared`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from finegates.adapters import Attention, Experts, FeedForward, Mixer, Undescribed
from finegates.gates.gate import FixedGate, Gate
from finegates.gates.prices import MACS, Prices
from finegates.gates.stochastic import StochasticGate
from finegates.head_rows import of_dimensions

Shared = StochasticGate | FixedGate
"""The gate of a dimension: constant where an earlier compaction closed some and no other may go."""

Read = Callable[[Shared], Tensor]


def reading(read: Callable[[StochasticGate], Tensor]) -> Read:
    """Reads constant gates as they are, and the others by a function."""
    return lambda gate: gate.values if isinstance(gate, FixedGate) else read(gate)


@dataclass(frozen=True)
class AttentionGates:
    """Gates of one attention; ``None`` where a dimension cannot be removed.

    Attributes:
        part: the attention.
        sizes: dense numbers of inputs of q, inputs of k and v, and outputs of o.
        inputs: (hidden,) of q, k and v; with cross-attention of q alone.
        memory: (hidden,) of k and v, with cross-attention only.
        scores: (units,), one for each set of dimensions of queries and keys that belong together
            (:func:`finegates.head_rows.score_units`).
        values: (kv_heads * head_dim,).
        heads: (heads,), or (kv_heads,) if the query heads of a group are removed together.
        outputs: (hidden,).
        width: (hidden,) of the residual stream; its inputs and outputs are products with it.
        whole: (1,), multiplies all outputs.
    """

    part: Attention
    sizes: tuple[int, int, int]
    inputs: Shared | None
    memory: Shared | None
    scores: Shared | None
    values: Shared | None
    heads: Shared | None
    outputs: Shared | None
    width: StochasticGate | None = None
    whole: StochasticGate | None = None

    def macs(
        self, read: Read, length: int, *, packed: bool = False, prices: Prices = MACS
    ) -> Tensor:
        """Multiply-accumulates of one token.

        1. Inputs and outputs of the four projections count as far as their gates are open.
        2. Keys and values of a group are kept while one of its query heads is.
        3. With ``packed``, a head without values is removed, and the remaining heads are padded to
           the width of the widest, as compaction does. The width is even with rotary embeddings,
           and unchanged where a norm or the architecture needs it.
        4. Without outputs nothing is read: heads are removed, or values where a norm reads heads.

        Args:
            read: gives the openness of each gate's dimensions, in [0, 1]; with ``packed`` zeros and
                ones.
            length: tokens of a sequence.
            packed: see rule 3.
            prices: of other kinds of work, with which the result is a time without the movement of
                data.
        """
        part = self.part
        reference = read(next(self.all_gates()))
        inputs, memory, outputs = (
            _opened(read, size, gate, self.width)
            for gate, size in zip(
                (self.inputs, self.memory if part.cross else self.inputs, self.outputs),
                self.sizes,
                strict=True,
            )
        )
        alive = reference.new_ones(()) if self.whole is None else read(self.whole).sum()
        if packed:
            alive = alive * (outputs > 0)
        if part.projected is not None:  # no gate between the projections
            q, k, v = part.projected
            linear = reference.new_zeros(()) + inputs * q + memory * (k + v)
            linear = prices.product * (linear + v * outputs * alive)
            linear = linear + prices.output * (q + k + v + outputs * alive)
            attended = prices.attention * part.products + prices.score * part.heads
            return linear + length * attended
        grouped = (part.kv_heads, part.heads // part.kv_heads)
        heads = reference.new_ones(grouped)  # (kv_heads, group)
        if self.heads is not None:
            heads = read(self.heads).view(part.kv_heads, -1).expand(grouped)
        scores = values = reference.new_ones(part.kv_heads, part.head_dim)  # (kv_heads, head_dim)
        if self.scores is not None:
            scores = of_dimensions(part, read(self.scores))
        if self.values is not None:
            values = read(self.values).view(part.kv_heads, part.head_dim)
        if part.narrows and part.norm == "all":  # rule 4
            values = values * alive
        elif part.narrows:
            heads = heads * alive
        else:
            outputs = outputs * alive
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
        priced = prices.product * linear + prices.output * (queries + outer + outputs)
        return priced + length * (prices.attention * products + prices.score * heads.sum())

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
        if part.rotates_some:
            scored = read * scores
            least = 2 + scored[:, part.rotated :].sum(-1).max()
            turned = scored[:, : part.rotated].sum() > 0
            width = torch.where(turned, width, torch.maximum(width, least))
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
        """The gates that exist and are not constant."""
        yield from _trained(self.all_gates())

    def all_gates(self) -> Iterator[Shared]:
        """The gates that exist."""
        named = (self.inputs, self.memory, self.scores, self.values, self.heads, self.outputs)
        yield from (gate for gate in (*named, self.width, self.whole) if gate is not None)


@dataclass(frozen=True)
class FeedForwardGates:
    """Gates of one feed-forward part.

    Attributes:
        part: the feed-forward part.
        sizes: dense numbers of its inputs and outputs.
        intermediate: dense number of intermediate dimensions.
        inputs: (hidden,), or None.
        hidden: (intermediate,), or None.
        outputs: (hidden,), or None.
        width: (hidden,) of the residual stream, or None.
        whole: (1,), multiplies all outputs, or None.
    """

    part: FeedForward
    sizes: tuple[int, int]
    intermediate: int
    inputs: Shared | None
    hidden: Shared | None
    outputs: Shared | None
    width: StochasticGate | None = None
    whole: StochasticGate | None = None

    def macs(
        self, read: Read, length: int, *, packed: bool = False, prices: Prices = MACS
    ) -> Tensor:
        """Multiply-accumulates of one token, see :meth:`AttentionGates.macs`."""
        widening = 1 if self.part.gate is None else 2
        width = _opened(read, self.intermediate, self.hidden)
        inputs, outputs = self.sizes
        outer = widening * _opened(read, inputs, self.inputs, self.width)
        written = _opened(read, outputs, self.outputs, self.width)
        if packed:  # rule 4
            width = width * (written > 0)
        alive = 1 if self.whole is None else read(self.whole).sum()
        each = prices.product * (outer + written) + prices.activation + prices.output * widening
        return _as_tensor(alive * (width * each + prices.output * written))

    def gates(self) -> Iterator[StochasticGate]:
        """The gates that exist and are not constant."""
        yield from _trained(self.all_gates())

    def all_gates(self) -> Iterator[Shared]:
        """The gates that exist."""
        named = (self.inputs, self.hidden, self.outputs, self.width, self.whole)
        yield from (gate for gate in named if gate is not None)


@dataclass(frozen=True)
class ExpertsGates:
    """The gate of the experts of one layer: ``hidden`` (experts * intermediate,)."""

    part: Experts
    hidden: StochasticGate

    def macs(
        self, read: Read, length: int, *, packed: bool = False, prices: Prices = MACS
    ) -> Tensor:
        """As for :meth:`AttentionGates.macs`; packed experts all have the width of the widest."""
        part = self.part
        widths = read(self.hidden).view(part.count, part.width).sum(-1)
        if packed:
            width = ((widths.max().clamp(min=1) / 8).ceil() * 8).clamp(max=part.width)
        else:
            width = widths.mean()
        return prices.product * part.active * part.matrices * part.hidden * width

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

    def all_gates(self) -> Iterator[Shared]:
        """The one gate."""
        yield self.hidden


@dataclass(frozen=True)
class MixerGates:
    """The gates of a part that keeps its inner sizes.

    Attributes:
        part: the part.
        sizes: dense numbers of its inputs and outputs.
        inputs: (hidden,) of all layers that read the residual stream, or None.
        outputs: (hidden,) of all layers that write to it, or None.
        read: outputs of the reading layers together.
        kept: weights of the layers between.
        written: inputs of the writing layers together.
    """

    part: Mixer
    sizes: tuple[int, int]
    inputs: Shared | None
    outputs: Shared | None
    read: int
    kept: int
    written: int

    def macs(
        self, read: Read, length: int, *, packed: bool = False, prices: Prices = MACS
    ) -> Tensor:
        """As for :meth:`AttentionGates.macs`."""
        inputs = _opened(read, self.sizes[0], self.inputs)
        outputs = _opened(read, self.sizes[1], self.outputs)
        linear = _as_tensor(self.read * inputs + self.written * outputs)
        linear = prices.product * (linear + self.kept) + prices.output * (self.read + outputs)
        return linear + length * prices.attention * self.part.products

    def gates(self) -> Iterator[StochasticGate]:
        """Those of both that exist and are not constant."""
        yield from _trained(self.all_gates())

    def all_gates(self) -> Iterator[Shared]:
        """Those of both that exist."""
        yield from (gate for gate in (self.inputs, self.outputs) if gate is not None)


@dataclass(frozen=True)
class Ungated:
    """A part without gates, of constant size.

    Attributes:
        part: the part.
        path: of its first layer, of stacked experts, or of a transformer layer.
        weights: of its layers together, of experts those that a token meets.
        products: multiply-accumulates per pair of a token and a token that it attends to.
        reference: a gate of another part, whose device and dtype counts have.
    """

    part: Attention | FeedForward | Mixer | Experts | Undescribed
    path: str
    weights: int
    products: int
    reference: StochasticGate

    def macs(
        self, read: Read, length: int, *, packed: bool = False, prices: Prices = MACS
    ) -> Tensor:
        """As for :meth:`AttentionGates.macs`."""
        count = prices.product * self.weights + length * prices.attention * self.products
        return read(self.reference).new_full((), count)

    def gates(self) -> Iterator[StochasticGate]:
        """None."""
        yield from ()

    def all_gates(self) -> Iterator[Shared]:
        """None."""
        yield from ()


Part = AttentionGates | FeedForwardGates | ExpertsGates | MixerGates | Ungated
Structure = tuple[Part, ...]


def part_macs(
    part: Part, read: Read, length: int, *, packed: bool = False, prices: Prices = MACS
) -> Tensor:
    """:meth:`AttentionGates.macs` of a part, for all its uses in a forward pass."""
    return part.part.uses * part.macs(read, length, packed=packed, prices=prices)


def _trained(gates: Iterable[Gate]) -> Iterator[StochasticGate]:
    yield from (gate for gate in gates if isinstance(gate, StochasticGate))


def _as_tensor(value: Tensor | float) -> Tensor:
    """A scalar, independent of torch's default device."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(float(value), dtype=torch.float32, device="cpu")


def _opened(read: Read, size: int, *gates: Shared | None) -> Tensor | int:
    """How many dimensions are open in all gates, all of them without a gate."""
    opened: Tensor | None = None
    for gate in gates:
        if gate is not None:
            opened = read(gate) if opened is None else opened * read(gate)
    return size if opened is None else opened.sum()
