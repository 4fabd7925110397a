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

With ``GateConfig.parts``, every attention and feed-forward part also has one gate, ``whole``, which
multiplies all its outputs: closed, the residual branch adds zero.

With ``GateConfig.width``, one gate on the residual stream multiplies all outputs that are added to
it (:mod:`finegates.gates.gated_output` for those that are not of linear layers), so that its closed
dimensions are zero everywhere.

The inner dimensions are ``heads`` and ``hidden`` alone. Without them a layer stays contiguous: no
gather before its matmul, and no scatter after it.

The penalty is on the remaining multiply-accumulates of the whole model, so that the least important
dimensions close first in any layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from finegates.adapters import (
    Adapter,
    Attention,
    Block,
    Experts,
    FeedForward,
    Mixer,
    Undescribed,
    adapter_for,
)
from finegates.adapters.stock_sizes import StockKeys
from finegates.gates.block_parts import (
    AttentionGates,
    ExpertsGates,
    FeedForwardGates,
    MixerGates,
    Part,
    Shared,
    Structure,
    Ungated,
)
from finegates.gates.config import Dimensions
from finegates.gates.gate import DerivedGate, FixedGate, Gate
from finegates.gates.stochastic import StochasticGate
from finegates.head_rows import layer_rows, letters_of, score_units
from finegates.modules.linear import layer_size, linear_shape

Sides = dict[str, tuple[Gate | None, Gate | None]]
Before = Mapping[str, Tensor]
"""What an earlier compaction left: bool masks (n,) of dimensions, by the name of their gate."""

_Dense = Attention | FeedForward | Mixer | Experts | Undescribed
_NOTHING: Before = MappingProxyType({})


def build_structure(
    model: nn.Module,
    make: Callable[[str, int], StochasticGate],
    *,
    experts: bool = True,
    adapter: Adapter | None = None,
    dimensions: Dimensions = "all",
    stock: StockKeys | None = None,
    width: StochasticGate | None = None,
    before: Before = _NOTHING,
    parts: bool = False,
) -> tuple[Structure, Sides]:
    """Builds the shared gates of a model; the model does not change.

    Args:
        model: a plain transformers model whose architecture has an adapter.
        make: makes a gate from a name (block path and role) and a size.
        experts: whether stacked experts get gates; otherwise they count with their sizes.
        adapter: describes the blocks; looked up if None.
        dimensions: ``"all"``, or ``"inner"`` for heads and feed-forward dimensions only.
        stock: names of the sizes that may change, each equally in all layers; None: all may.
        width: the gate of the residual stream, which all blocks write through; None without.
        before: of dimensions that get no gate otherwise; they get a constant one.
        parts: whether every attention and feed-forward part has a gate as a whole.

    Returns:
        the gates by part, and the row and column gates of every gated layer.

    Raises:
        ValueError: no layer of the model is described, or no part has such dimensions.
    """
    found: list[Part | _Dense] = []
    sides: Sides = {}
    maker = _Maker(make, before, _device(model), parts)
    for block in (adapter or adapter_for(model)).blocks(model):
        for gates, placed in _block_gates(block, model, maker, dimensions, stock, width):
            found.append(gates)
            sides.update(placed)
        if experts and block.experts is not None:
            part = block.experts
            gate = make(f"{part.path}.hidden", part.count * part.width)
            found.append(ExpertsGates(part, gate))
            sides[part.path] = (None, gate)
        elif block.experts is not None:
            found.append(block.experts)
        if block.undescribed is not None:
            found.append(block.undescribed)
    return _counted(found, model), sides


def _counted(parts: Sequence[Part | _Dense], model: nn.Module) -> Structure:
    """The parts, with the weights of those without gates."""
    gated = [part for part in parts if not isinstance(part, _Dense)]
    reference = next((gate for part in gated for gate in part.gates()), None)
    if parts and reference is None:
        raise ValueError(
            f"{type(model).__name__} has neither heads nor feed-forward dimensions that can be "
            "removed; choose dimensions='all'"
        )
    found: list[Part] = []
    for part in parts:
        if isinstance(part, _Dense):
            assert reference is not None
            part = _ungated(part, model, reference)
        found.append(part)
    return tuple(found)


def _ungated(part: _Dense, model: nn.Module, reference: StochasticGate) -> Ungated:
    """A part that keeps its sizes."""
    if isinstance(part, Experts):
        return Ungated(part, part.path, part.macs(part.width), 0, reference)
    if isinstance(part, Undescribed):
        weights = sum(layer_size(model.get_submodule(path)) for path in part.layers)
        return Ungated(part, part.path, weights, 0, reference)
    shapes = [linear_shape(model.get_submodule(path)) for path in part.linears()]
    weights = sum(columns * rows for columns, rows in shapes)
    products = 0 if isinstance(part, FeedForward) else part.products
    return Ungated(part, part.linears()[0], weights, products, reference)


@dataclass(frozen=True)
class _Maker:
    """Makes the gates of a model.

    Attributes:
        make: see :func:`build_structure`.
        before: see there.
        device: of constant gates.
        parts: see :func:`build_structure`.
    """

    make: Callable[[str, int], StochasticGate]
    before: Before
    device: torch.device
    parts: bool

    def gate(self, name: str, size: int, *, trained: bool) -> Shared | None:
        """A gate; if it is not trained, a constant one for removed dimensions, or None."""
        if trained:
            return self.make(name, size)
        mask = self.before.get(name)
        return None if mask is None else FixedGate(mask.to(self.device, torch.float32))

    def whole(self, path: str) -> StochasticGate | None:
        """The gate of a part as a whole, by the path of its module or first layer, or None."""
        return self.make(f"{path}.whole", 1) if self.parts else None


def _block_gates(
    block: Block,
    model: nn.Module,
    maker: _Maker,
    dimensions: Dimensions,
    stock: StockKeys | None,
    width: StochasticGate | None,
) -> Iterator[tuple[Part | _Dense, Sides]]:
    inner = dimensions == "inner"
    for part in block.attentions:
        heads = not inner or (has_free_heads(part) and (stock is None or bool(stock.heads)))
        # Heads of zeros would fill up groups of uneven sizes, at positions between others.
        grouped = inner and part.even and stock is None and _closes_groups(part, maker.before)
        count = part.kv_heads if grouped else part.heads
        yield _attention_gates(
            part, model, maker, count, width, outer=not inner, trains_heads=heads
        )
    for mixer in block.mixers:
        yield _mixer_gates(mixer, model, maker, trained=not inner)
    feed = block.feed_forward
    if feed is not None:
        hidden = stock is None or bool(stock.intermediate)
        yield _feed_forward_gates(feed, model, maker, width, outer=not inner, trains_hidden=hidden)


def _closes_groups(part: Attention, before: Before) -> bool:
    """Whether heads that an earlier compaction removed were all heads of their groups."""
    mask = before.get(f"{part.path}.heads")
    each = part.heads // part.kv_heads
    return mask is None or bool((mask.view(-1, each).sum(1) % each == 0).all())


def _feed_forward_gates(
    feed: FeedForward,
    model: nn.Module,
    maker: _Maker,
    width: StochasticGate | None,
    *,
    outer: bool,
    trains_hidden: bool,
) -> tuple[FeedForwardGates | FeedForward, Sides]:
    columns, _ = linear_shape(model.get_submodule(feed.up))
    intermediate, outputs = linear_shape(model.get_submodule(feed.down))
    inputs = maker.gate(f"{feed.up}.inputs", columns, trained=outer)
    hidden = maker.gate(f"{feed.up}.hidden", intermediate, trained=trains_hidden)
    written = maker.gate(f"{feed.down}.outputs", outputs, trained=outer)
    whole = maker.whole(feed.up)
    gates = FeedForwardGates(
        feed, (columns, outputs), intermediate, inputs, hidden, written, width, whole
    )
    sides: Sides = {} if inputs is None else dict.fromkeys(feed.linears(), (None, inputs))
    sides[feed.down] = (_written(outputs, written, width, whole), hidden)
    sides = {path: pair for path, pair in sides.items() if pair != (None, None)}
    return (gates, sides) if sides else (feed, {})


def _written(
    size: int, outputs: Shared | None, width: StochasticGate | None, whole: StochasticGate | None
) -> Gate | None:
    """The row gate of a layer that writes ``size`` numbers to the residual stream."""
    gates = [gate for gate in (outputs, width, whole) if gate is not None]
    if not gates or (len(gates) == 1 and whole is None):
        return gates[0] if gates else None
    device = _of_indices(gates[0])
    each = torch.arange(size, device=device)
    return DerivedGate([(g, torch.zeros_like(each) if g is whole else each) for g in gates])


def has_free_heads(part: Attention) -> bool:
    """Whether removing a head leaves nothing of it in any layer."""
    # A norm over all heads reads keys that no gate of a query head closes.
    shares_keys = part.norm == "all" and part.kv_heads < part.heads
    return part.narrows and not part.fixed_heads and not shares_keys


def _mixer_gates(
    part: Mixer, model: nn.Module, maker: _Maker, *, trained: bool
) -> tuple[MixerGates | Mixer, Sides]:
    shapes = {path: linear_shape(model.get_submodule(path)) for path in part.linears()}
    sizes = (shapes[part.reads[0]][0], shapes[part.writes[0]][1])
    inputs = maker.gate(f"{part.path}.inputs", sizes[0], trained=trained)
    outputs = maker.gate(f"{part.path}.outputs", sizes[1], trained=trained)
    if (inputs, outputs) == (None, None):
        return part, {}
    gates = MixerGates(
        part,
        sizes,
        inputs,
        outputs,
        sum(shapes[path][1] for path in part.reads),
        sum(shapes[path][0] * shapes[path][1] for path in part.inner),
        sum(shapes[path][0] for path in part.writes),
    )
    sides: Sides = {} if inputs is None else dict.fromkeys(part.reads, (None, inputs))
    if outputs is not None:
        sides |= dict.fromkeys(part.writes, (outputs, None))
    return gates, sides


def _attention_gates(
    part: Attention,
    model: nn.Module,
    maker: _Maker,
    heads: int,
    width: StochasticGate | None,
    *,
    outer: bool,
    trains_heads: bool,
) -> tuple[AttentionGates | Attention, Sides]:
    columns, _ = linear_shape(model.get_submodule(part.q))
    memory, _ = linear_shape(model.get_submodule(part.k))
    _, outputs = linear_shape(model.get_submodule(part.o))
    size = part.kv_heads * part.head_dim
    units = int(score_units(part).max()) + 1

    def gate(role: str, size: int, exists: bool = True, *, trained: bool = outer) -> Shared | None:
        return maker.gate(f"{part.path}.{role}", size, trained=trained) if exists else None

    gates = AttentionGates(
        part,
        (columns, memory, outputs),
        inputs=gate("inputs", columns),
        memory=gate("memory", memory, part.cross),
        scores=gate("scores", units, part.narrows and not part.fixed_scores),
        values=gate("values", size, part.narrows),
        heads=gate("heads", heads, part.narrows, trained=trains_heads),
        outputs=gate("outputs", outputs),
        width=width,
        whole=maker.whole(part.path),
    )
    if next(gates.all_gates(), None) is None:
        return part, {}
    each = part.heads // part.kv_heads
    device = _of_indices(next(gates.all_gates()))
    head = torch.arange(part.heads, device=device).repeat_interleave(part.head_dim)
    dimension = torch.arange(part.head_dim, device=device).repeat(part.heads)
    group = head // each
    sources: list[tuple[Gate, Tensor]] = []
    if gates.values is not None:
        sources.append((gates.values, group * part.head_dim + dimension))
    if gates.heads is not None:
        sources.append((gates.heads, head * gates.heads.size // part.heads))
    cols: Gate | None = DerivedGate(sources) if sources else None
    read = gates.memory if part.cross else gates.inputs
    sides: Sides = {
        part.k: (_score_rows(part, part.k, gates, model), read),
        part.v: (None, read),
        part.q: (_score_rows(part, part.q, gates, model), gates.inputs),
        part.o: (_written(outputs, gates.outputs, width, gates.whole), cols),
    }
    return gates, {path: pair for path, pair in sides.items() if pair != (None, None)}


def _device(model: nn.Module) -> torch.device:
    """The model's device, or the CPU if it has no storage."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def _of_indices(gate: Shared) -> torch.device:
    """A gate's device, or the CPU if it has no storage: sizes give the indices."""
    device = gate.latent.device if isinstance(gate, StochasticGate) else gate.values.device
    return torch.device("cpu") if device.type == "meta" else device


def _score_rows(part: Attention, path: str, gates: AttentionGates, model: nn.Module) -> Gate | None:
    """The row gate of a projection.

    It gates scores in the rows of queries and, under a norm, which reads its own inputs, in those
    of keys. If the norm reads all heads, it also gates the heads.
    """
    of_heads = part.norm == "all" and gates.heads is not None
    if gates.scores is None and not of_heads:
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
    device = _of_indices(next(gates.all_gates()))
    sources: list[tuple[Gate, Tensor]] = []
    if gates.scores is not None:
        sources.append((gates.scores, unit.to(device)))
    if of_heads and gates.heads is not None:
        place = torch.where(head < 0, head, head * gates.heads.size // part.heads)
        sources.append((gates.heads, place.to(device)))
    return DerivedGate(sources)
