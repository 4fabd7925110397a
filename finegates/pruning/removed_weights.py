"""Importance of groups from the weights that they remove.

Removing a dimension removes rows and columns of several layers. With a score S for every single
weight, the importance of the dimension is the sum of S over the weights that are removed with it at
present:

- ``magnitude``: ``S_ij = W_ij^2``, the squared Frobenius norm of the removed weights;
- ``second_moment``: ``S_ij = W_ij^2 E x_j^2``, the expected squared contribution of the weight to
  its output; its root is the score of Wanda (Sun et al., arXiv 2306.11695).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from finegates.adapters import unwrap
from finegates.gates.block_parts import (
    AttentionGates,
    FeedForwardGates,
    MixerGates,
    Part,
    Read,
    Shared,
    Ungated,
)
from finegates.gates.calls import refuse_uncalled
from finegates.head_rows import feed_forward_rows, layer_rows, letters_of, of_dimensions
from finegates.modules.linear import dense_weight
from finegates.pruning.calibration import Batch, single_rows, to_device, without_padding
from finegates.pruning.groups import SharedGroups, Vectors
from finegates.training.label_use import LabelUse
from finegates.training.micro_batches import count_items

Masks = dict[str, tuple[Tensor | None, Tensor | None]]


def removed_squares(
    model: nn.Module, groups: SharedGroups, moments: Mapping[str, Tensor] | None = None
) -> Vectors:
    """Importance of each dimension from its removed weights, float32, (n,) by gate.

    Args:
        model: dense; low-rank terms count as merged.
        groups: of the model.
        moments: ``E x_j^2`` (in,) by layer; None means 1 (``magnitude``).
    """
    inner = unwrap(model)
    squares = {}
    for path in groups.layers():
        square = dense_weight(inner.get_submodule(path))[0].float().square()
        square = square if moments is None else square * moments[path].to(square.device)
        squares[path] = square.cpu()

    def kept(read: Read) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device="cpu")
        for part in groups.structure:
            masks = _masks(part, read)
            for path, (rows, cols) in masks.items():
                square = squares[path]
                by_row = square.sum(1) if cols is None else square @ cols
                total = total + (by_row.sum() if rows is None else rows @ by_row)
        return total

    return groups.slopes(kept)


def _masks(part: Part, read: Read) -> Masks:
    """By layer, which rows and columns stay."""
    if isinstance(part, AttentionGates):
        return _attention_masks(part, read)
    if isinstance(part, FeedForwardGates):
        return _feed_forward_masks(part, read)
    if isinstance(part, MixerGates):
        inputs, outputs = _read(read, part.inputs), _read(read, part.outputs)
        reads = dict.fromkeys(part.part.reads, (None, inputs))
        return {**reads, **dict.fromkeys(part.part.writes, (outputs, None))}
    if isinstance(part, Ungated):
        return {}
    raise ValueError(f"{part.part.path}: stacked experts are not pruned at once; train gates")


def _read(read: Read, *gates: Shared | None) -> Tensor | None:
    """The product of those gates that exist."""
    product: Tensor | None = None
    for gate in gates:
        if gate is not None:
            product = read(gate) if product is None else product * read(gate)
    return product


def _feed_forward_masks(gates: FeedForwardGates, read: Read) -> Masks:
    inputs, outputs = (_read(read, g, gates.width) for g in (gates.inputs, gates.outputs))
    hidden = _read(read, gates.hidden)
    if hidden is None:
        hidden = torch.ones(gates.intermediate, dtype=torch.float32, device="cpu")
    if gates.whole is not None:
        hidden = hidden * read(gates.whole)
    wide = [path for path in gates.part.linears() if path != gates.part.down]
    rows = hidden
    if gates.part.is_fused:
        order = torch.cat(feed_forward_rows(gates.part, hidden.numel()))
        rows = torch.zeros_like(torch.cat([hidden] * 2)).index_put(
            (order,), torch.cat([hidden, hidden])
        )
    return {**dict.fromkeys(wide, (rows, inputs)), gates.part.down: (outputs, hidden)}


def _attention_masks(gates: AttentionGates, read: Read) -> Masks:
    """Masks of the rows and columns of q, k, v and o, as products of gates."""
    part = gates.part
    inputs, outputs = (_read(read, g, gates.width) for g in (gates.inputs, gates.outputs))
    memory = _read(read, gates.memory, gates.width) if part.cross else inputs
    if part.projected is not None:
        return {
            part.k: (None, memory),
            part.v: (None, memory),
            part.q: (None, inputs),
            part.o: (outputs, None),
        }
    each = part.heads // part.kv_heads
    reference = read(next(gates.all_gates()))
    heads = reference.new_ones(part.heads) if gates.heads is None else read(gates.heads)
    heads = heads.view(part.kv_heads, -1).expand(part.kv_heads, each)  # or one for a group
    if gates.whole is not None:
        heads = heads * read(gates.whole)
    grouped = heads[..., None]
    scores = values = reference.new_ones(part.kv_heads, part.head_dim)
    if gates.scores is not None:
        scores = of_dimensions(part, read(gates.scores))
    if gates.values is not None:
        values = read(gates.values).view(part.kv_heads, part.head_dim)
    used = 1 - (1 - heads).prod(-1, keepdim=True)
    masks = {
        "q": grouped * scores[:, None],
        "g": grouped * values[:, None],
        "k": used * scores,
        "v": used * values,
    }
    context = masks["g"].flatten()
    rows = layer_rows(part, part.heads, part.kv_heads, part.head_dim)
    found: Masks = {part.o: (outputs, context)}
    for path in dict.fromkeys((part.q, part.k, part.v)):
        letters = letters_of(part, path)
        places = torch.cat([rows[letter].flatten() for letter in letters])
        kept = torch.cat([masks[letter].flatten() for letter in letters])
        ordered = torch.zeros_like(kept).index_put((places,), kept)
        found[path] = (ordered, inputs if path == part.q else memory)
    return found


@torch.no_grad()
def measure_moments(
    model: nn.Module, groups: SharedGroups, batches: Sequence[Batch], tick: Callable[[], object]
) -> dict[str, Tensor]:
    """Measures ``E x_j^2`` of every layer's inputs, float32 (in,), without padding.

    Closed dimensions have the values that they would have in the pruned model.

    Args:
        model: in evaluation mode; it does not change.
        groups: of the model.
        batches: need no labels.
        tick: called after each batch.
    """
    inner = unwrap(model)
    device = next(model.parameters()).device
    encoder_decoder = bool(getattr(getattr(inner, "config", None), "is_encoder_decoder", False))
    values = groups.values()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def before(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        _, cols = values.get(path, (None, None))

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = inputs[0] if cols is None else inputs[0] * cols.to(inputs[0])
            flat = x.float().flatten(0, -2)
            sums[path] = sums.get(
                path, torch.zeros((), dtype=torch.float32, device=device)
            ) + flat.square().sum(0)
            counts[path] = counts.get(path, 0) + len(flat)
            return (x, *inputs[1:])

        return hook

    def after(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        rows, _ = values.get(path, (None, None))
        return lambda module, inputs, y: y if rows is None else y * rows.to(y)

    handles = []
    try:
        for path in groups.layers():
            layer = inner.get_submodule(path)
            handles.append(layer.register_forward_pre_hook(before(path)))
            handles.append(layer.register_forward_hook(after(path)))
        if groups.width is not None:
            closed = groups.open[groups.width]
            handles += [
                inner.get_submodule(path).register_forward_hook(
                    lambda module, inputs, y: y * closed.to(y)
                )
                for path in groups.outputs
            ]
        for batch in batches:
            placed = to_device(batch, device)
            for row in single_rows(placed, int(count_items(placed, LabelUse())[1])):
                model(**without_padding(row, encoder_decoder=encoder_decoder))
            tick()
    finally:
        for handle in handles:
            handle.remove()
    refuse_uncalled([path for path in groups.layers() if path not in sums], "the calibration set")
    return {path: (total / counts[path]).cpu() for path, total in sums.items()}
