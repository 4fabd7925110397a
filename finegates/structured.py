"""Gates that are shared along the dependencies of a block, and a budget on what they cost.

Independent row and column gates leave most of a block standing: a dimension between two layers goes
only if both close it, and a residual dimension is read by three projections. Here every dimension
that compaction can remove has one gate:

- ``inputs`` of queries, keys and values together, and of the feed-forward layers;
- ``scores``, the dimensions of queries and keys (of a rotated pair together);
- ``values``, the dimensions between v and o;
- ``heads``;
- ``hidden``, the feed-forward dimensions;
- ``outputs`` of o and of down.

The penalty is on the multiply-accumulates that remain, over the whole model, so that the cheapest
dimensions to lose go first wherever they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finegates.adapters import Attention, Block, FeedForward, adapter_for
from finegates.closing import choose_closed
from finegates.gates import DerivedGate, Gate, StochasticGate
from finegates.layers import linear_shape

# Where dimensions are put that are closed, and opened again, in sigmas of the penalty.
_SHUT, _REOPENED = 0.2, 3.0

Read = Callable[[StochasticGate], Tensor]


@dataclass(frozen=True)
class AttentionGates:
    """The gates of one attention; ``None`` where a dimension cannot go.

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
        """Multiply-accumulates of one token, if ``read`` gives how far each dimension is kept.

        With ``packed``, what is read are zeros and ones, and heads are padded to one width, as
        compaction does.
        """
        part = self.part
        reference = read(self.inputs)
        inputs, outputs = reference.sum(), read(self.outputs).sum()
        memory = inputs if self.memory is None else read(self.memory).sum()
        if part.projected is not None:  # nothing between the projections has a gate
            q, k, v = part.projected
            return inputs * q + memory * (k + v) + v * outputs + length * part.products
        grouped = (part.kv_heads, part.heads // part.kv_heads)
        heads = reference.new_ones(grouped)
        if self.heads is not None:
            heads = read(self.heads).view(grouped)
        scores = values = reference.new_ones(part.kv_heads, part.head_dim)
        if self.scores is not None:
            scores = read(self.scores).view(part.kv_heads, -1)
            scores = torch.cat([scores, scores], dim=-1) if part.rotary else scores
        if self.values is not None:
            values = read(self.values).view(part.kv_heads, part.head_dim)
        if packed:  # a head without values goes, and its queries and keys with it
            heads = heads * (values.sum(-1, keepdim=True) > 0)
        group = 1 - (1 - heads).prod(-1)  # keys and values stay while one of their heads does
        queries = (heads.sum(-1) * scores.sum(-1)).sum()
        context = (heads.sum(-1) * values.sum(-1)).sum()
        keyed = (group * (scores.sum(-1) + values.sum(-1))).sum()
        linear = inputs * queries + memory * keyed + context * outputs
        products = queries + context
        if packed:
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
        """Those that exist."""
        named = (self.inputs, self.memory, self.scores, self.values, self.heads, self.outputs)
        yield from (gate for gate in named if gate is not None)


@dataclass(frozen=True)
class FeedForwardGates:
    """The gates of one feed-forward part: ``inputs`` (hidden,), ``hidden`` (intermediate,),
    ``outputs`` (hidden,)."""

    part: FeedForward
    inputs: StochasticGate
    hidden: StochasticGate
    outputs: StochasticGate

    def macs(self, read: Read, length: int, *, packed: bool = False) -> Tensor:
        """As :meth:`AttentionGates.macs`."""
        widening = 1 if self.part.gate is None else 2
        width = read(self.hidden).sum()
        return width * (widening * read(self.inputs).sum() + read(self.outputs).sum())

    def gates(self) -> Iterator[StochasticGate]:
        """All three."""
        yield from (self.inputs, self.hidden, self.outputs)


Structure = tuple[AttentionGates | FeedForwardGates, ...]
Sides = dict[str, tuple[Gate | None, Gate | None]]


def build_structure(
    model: nn.Module, make: Callable[[str, int], StochasticGate]
) -> tuple[Structure, Sides]:
    """The shared gates of a model and where they go; the model is not changed.

    Args:
        model: a plain transformers model whose architecture has an adapter.
        make: from a name (block path and role) and a size to a gate.

    Returns:
        the gates by part, and for every gated layer its row and column gates.

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
        if part.is_fused:  # behind the queries come keys and values, which have no gates here
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


class MacsPenalty:
    """|kept MACs - goal|, both as fractions of the dense model's.

    The value counts the dimensions that are open at evaluation, so that the goal is met by the
    model that compaction will make; its gradient is that of the expectation under P(open), which is
    the same sum of products with probabilities in place of zeros and ones. It reaches gates within
    a few sigma of zero; the others follow the task alone until :meth:`close_least` closes what the
    goal has no room for.

    Args:
        structure: the gates of a model.
        target: the fraction of the dense MACs to remove.
        length: tokens of a sequence, for the attention products.
        ramp: the parts of the training between which the goal falls evenly from 1 to
            ``1 - target``.

    Attributes:
        progress: the part of the training that is over, in [0, 1]; the trainer sets it.
    """

    def __init__(
        self, structure: Structure, target: float, length: int, ramp: tuple[float, float]
    ) -> None:
        self.structure = structure
        self.target = target
        self.length = length
        self.ramp = ramp
        self.progress = 1.0
        with torch.no_grad():
            self.dense = float(self._macs(lambda gate: torch.ones_like(gate.latent)))

    def goal(self) -> float:
        """The fraction of the dense MACs to keep now."""
        begin, end = self.ramp
        if self.progress >= end:
            return 1.0 - self.target
        if self.progress <= begin:
            return 1.0
        return 1.0 - self.target * (self.progress - begin) / (end - begin)

    def expected(self) -> Tensor:
        """The expected kept fraction, differentiable."""
        return self._macs(lambda gate: gate.open_probability()) / self.dense

    @torch.no_grad()
    def realised(self, shift: float = 0.0) -> float:
        """The kept fraction at evaluation, if every centre were moved by ``shift``."""
        kept = self._macs(lambda gate: (gate.centre() + shift > 0).float(), packed=True)
        return float(kept) / self.dense

    @torch.no_grad()
    def floor(self) -> float:
        """The least fraction that can be kept by a model that still computes something.

        One part keeps one dimension of each gate, the one where that costs the least. The rest is
        what no gate can remove: the products of heads that keep their sizes.
        """
        least = []
        for part in self.structure:
            alive = {id(gate) for gate in part.gates()}

            def one(gate: StochasticGate, alive: set[int] = alive) -> Tensor:
                kept = torch.zeros_like(gate.latent)
                kept[0] = float(id(gate) in alive)
                return kept

            least.append(float(self._macs(one, packed=True)))
        return min(least) / self.dense

    def check_reachable(self) -> None:
        """Raises ValueError, with the largest target in reach, unless the target is."""
        floor = self.floor()
        if 1.0 - self.target < floor:
            raise ValueError(
                f"target {self.target} cannot be reached: with all closed that can be, {floor:.4f} "
                f"of the MACs stay at sequence_length={self.length}, so targets end at "
                f"{math.floor(1e4 * (1.0 - floor)) / 1e4:.4f}. What stays are the products of "
                "attention heads that cannot become narrower, and grows with sequence_length"
            )

    def __call__(self) -> Tensor:
        """The penalty, a differentiable scalar (float32)."""
        expected = self.expected()
        return (self.realised() + expected - expected.detach() - self.goal()).abs()

    @torch.no_grad()
    def close_least(self) -> float:
        """Closes what matters least for what it costs, until the goal is met; returns the kept
        fraction.

        All dimensions are ordered by importance (:meth:`StochasticGate.observe`) over the MACs that
        one of them stands for at present. Those in front are closed, by a little, so that noise may
        still open them in training; others that were closed are opened again. Nothing else moves.
        A dimension in front that would take too much with it stays open
        (:func:`finegates.closing.choose_closed`).

        Raises:
            ValueError: something has to be closed, and the importances do not say what: gates have
                no factor, or were never observed, or an importance is not finite. Nothing moves.
        """
        gates = list(self.gates())
        importance = [gate.importance for gate in gates if gate.importance is not None]
        if len(importance) < len(gates):
            raise ValueError("gates without a factor have no importance; choose 'structured'")
        if self.goal() < 1.0:
            self._check_importance()
        costs = [cost.clamp(min=1e-9 * self.dense) for cost in self._costs(gates)]
        sizes = [gate.size for gate in gates]

        def kept(closed: Tensor) -> float:
            parts = zip(gates, (~closed).float().split(sizes), strict=True)
            alive = {id(gate): part for gate, part in parts}
            return float(self._macs(lambda gate: alive[id(gate)], packed=True)) / self.dense

        chosen = choose_closed(torch.cat(importance) / torch.cat(costs), kept, self.goal())
        for gate, shut in zip(gates, chosen.split(sizes), strict=True):
            # The penalty's sigma is the noise's, and there without noise, too.
            sigma, centre = gate.preset.probability_std, gate.centre()
            gate.latent[shut & (centre > 0)] = -_SHUT * sigma
            gate.latent[~shut & (centre <= 0)] = _REOPENED * sigma
        return self.realised()

    def is_observed(self) -> bool:
        """Whether the gates' importances hold anything yet."""
        known = [gate.importance for gate in self.gates() if gate.importance is not None]
        return any(bool(importance.any()) for importance in known)

    def _check_importance(self) -> None:
        """Raises ValueError, with the place and the remedy, where importances say nothing."""
        for part in self.structure:
            path = part.part.path if isinstance(part, AttentionGates) else part.part.up
            for gate in part.gates():
                if gate.importance is not None and not bool(gate.importance.isfinite().all()):
                    raise ValueError(
                        f"an importance at {path} is not finite, so it cannot be decided what to "
                        "close: a gradient overflowed or was NaN when it was observed; observe the "
                        "steps alone that are taken, and set the gates' importance buffers "
                        "to zero before training again"
                    )
        if not self.is_observed():
            raise ValueError(
                "the importance of every gate is zero, so it cannot be decided what to close: no "
                "gradient has been observed; train with GateTrainer, or call "
                "StochasticGate.observe of each gate between the backward pass and the step. "
                "DeepSpeed, FSDP and LOMO take gradients away before that"
            )

    def _costs(self, gates: list[StochasticGate]) -> list[Tensor]:
        """By gate, the derivative of the kept MACs by how far each dimension is open."""
        with torch.enable_grad():
            opened = {id(g): (g.centre() > 0).float().requires_grad_() for g in gates}
            counted = self._macs(lambda gate: opened[id(gate)])
            return list(torch.autograd.grad(counted, [opened[id(gate)] for gate in gates]))

    def gates(self) -> Iterator[StochasticGate]:
        """Every gate of the model, once."""
        for part in self.structure:
            yield from part.gates()

    def _macs(self, read: Read, *, packed: bool = False) -> Tensor:
        counts = [part.macs(read, self.length, packed=packed) for part in self.structure]
        return torch.stack(counts).sum()
