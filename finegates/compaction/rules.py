"""Exact removals from the structure of a block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, Attention, FeedForward, HeadSizes, has_module
from finegates.compaction.activations import activation_at_zero, activation_of, acts_on_numbers
from finegates.compaction.cost import CostModel
from finegates.compaction.draft import Draft
from finegates.gates.gated_linear import GatedLinear
from finegates.modules.likeness import unlikeness
from finegates.modules.linear import is_linear


def pair_feed_forward(
    part: FeedForward,
    adapter: Adapter,
    model: nn.Module,
    drafts: dict[str, Draft],
    notes: list[str],
) -> bool:
    """Removes constant and unread intermediate dimensions from all their layers.

    1. Without a gate projection, a closed row of ``up`` makes the value phi(0) for every input;
       this constant moves into the bias of ``down``.
    2. With a gate projection, phi(gate) * up is zero if ``up`` is closed, or if ``gate`` is closed
       and phi(0) = 0.
    3. A closed column of ``down`` makes the value unread.

    Returns:
        whether ``gate`` and ``up`` read the same inputs, so that they can be fused.
    """
    paths = part.linears()
    if not any(path in drafts for path in paths):
        return False
    if not _all_linear(model, paths):
        return False  # compact already
    classes = adapter.feed_forward_classes
    if part.path is not None and classes:
        reason = unlikeness(model.get_submodule(part.path), classes)
        if reason is not None:
            notes.append(f"{part.path}: it keeps its width: {reason}")
            return False
    layers = {path: model.get_submodule(path) for path in paths}
    own = {path: drafts.get(path) or Draft.open(path, layer) for path, layer in layers.items()}
    up, down = own[part.up], own[part.down]
    gate = None if part.gate is None else own[part.gate]
    phi = activation_of(part, model)
    if not acts_on_numbers(phi):
        notes.append(
            f"{part.up}, {part.down}: they keep their width, since {type(phi).__name__} between "
            "them is not known to act elementwise"
        )
        return False
    at_zero = activation_at_zero(phi)

    unread = ~down.cols  # (intermediate,), rule 3
    constants = None
    if gate is not None:  # rule 2
        constant = ~up.rows
        if at_zero == 0.0:
            constant = constant | ~gate.rows
    elif at_zero is None:
        constant = torch.zeros_like(up.rows)
    else:  # rule 1
        constant = ~up.rows
        if at_zero != 0.0 and bool((constant & ~unread).any()):
            constants = (constant & ~unread).to(torch.float64) * at_zero
    removed = unread | constant
    joined = part.path is not None and gate is not None and _alike(up, gate, layers)
    if not bool(removed.any()):
        joined = joined and not bool(up.cols.all())
        if joined and gate is not None:
            drafts.update({up.path: up, gate.path: gate})
        return joined
    for draft in (up, gate):
        if draft is not None:
            draft.remove_rows(~removed, "that nothing reads or that a pair makes zero")
            draft.output_width = int((~removed).sum())
    moved = "" if constants is None else f", their {part.activation}(0) moved into the bias"
    down.remove_cols(~removed, f"whose input is constant{moved}")
    down.input_width, down.constants = int((~removed).sum()), constants
    drafts.update({draft.path: draft for draft in (up, gate, down) if draft is not None})
    return joined


def _alike(up: Draft, gate: Draft, layers: dict[str, nn.Module]) -> bool:
    """Whether two layers read the same columns, and both or neither have a bias."""
    biases = [layers[draft.path].bias is None for draft in (up, gate)]
    return biases[0] == biases[1] and torch.equal(up.cols, gate.cols)


def narrow_attention(
    part: Attention,
    adapter: Adapter,
    model: nn.Module,
    drafts: dict[str, Draft],
    notes: list[str],
    multiple: int = 1,
) -> HeadSizes | None:
    """Removes heads and their dimensions that cannot affect the output.

    Let g be a key-value head, h a query head of its group, and d a dimension.

    1. A value (g, d) is used iff its row of v is open and some head h has its column of o open.
    2. A head without used values outputs zero for all scores, so its rows of q are removed.
    3. A score dimension (g, d) is used iff its row of k and the row of q of some head h are open.
    4. Rotary embeddings mix dimensions d and d + head_dim / 2: a pair is removed only if both its
       rows of k, or both its rows of q in every h, are closed.
    5. Norms over the dimensions of q and k keep all of them.
    6. A key-value head is removed with the last of its query heads.
    7. Used dimensions are packed to one width per module, rounded up to a multiple of ``multiple``
       (at most the dense width) and padded with zeros; scores keep their scale.

    Returns:
        the new sizes; None if the module does not change (its layers may still lose rows).
    """
    paths = part.linears()
    if not any(path in drafts for path in paths):
        return None
    if not _all_linear(model, paths):
        return None  # compact already
    layers = {path: model.get_submodule(path) for path in paths}
    if not part.narrows:
        notes.append(f"{part.path}: its heads keep their sizes")
        return None
    reason = _obstacle(part, adapter, model)
    if reason is not None:
        notes.append(f"{part.path}: its heads keep their sizes: {reason}")
        return None
    own = {path: drafts.get(path) or Draft.open(path, layer) for path, layer in layers.items()}
    q, k, v, o = _head_masks(part, own)

    counts = v[:, None] & o  # (kv_heads, group, head_dim), rule 1
    alive = counts.any(-1)  # (kv_heads, group), rule 2
    q = q & alive[..., None]
    scored = k & q.any(1)  # (kv_heads, head_dim), rule 3
    if part.rotary:  # rule 4
        half = part.head_dim // 2
        turned = (k[:, :half] | k[:, half:]) & (q[..., :half] | q[..., half:]).any(1)
        scored = torch.cat([turned, turned], dim=-1)
    if part.qk_norm:  # rule 5
        scored = alive.any(1, keepdim=True).expand_as(k)
    valued = counts.any(1)  # (kv_heads, head_dim)

    kept = torch.ones_like(alive) if part.fixed_heads else alive.clone()
    if not bool(kept.any()):
        kept[0, 0] = True  # the module, and a cache in it, need at least one head
    groups = kept.any(1)  # (kv_heads,), rule 6
    # Rule 7: one width for scores and values of all kept heads.
    width = max(1, int(scored.sum(-1).max()), int(valued.sum(-1).max()))
    width = -(-width // multiple) * multiple
    if part.rotary:
        width += width % 2
    width = min(width, part.head_dim)
    if part.qk_norm:
        width = part.head_dim
    packed = width < part.head_dim
    narrower = packed or not bool(kept.all())
    masks = {
        "q": q & scored[:, None],
        "k": k & scored,
        "v": v & valued,
        "o": counts,
    }
    shrinks = narrower or any(
        not bool((mask == before).all())
        for mask, before in zip(masks.values(), _head_masks(part, own), strict=True)
    )
    same_input = bool(part.joint) and _same_input(part, own, layers)
    fused = same_input and (shrinks or not bool(own[part.joint_linears()[0]].cols.all()))
    if not shrinks and not fused:
        return None

    sizes = HeadSizes(
        heads=tuple(kept.flatten().nonzero().flatten().tolist()),
        groups=tuple((groups.cumsum(0) - 1)[kept.nonzero()[:, 0]].tolist()),
        kv_heads=tuple(groups.nonzero().flatten().tolist()),
        head_dim=part.head_dim,
        width=width,
        pairs=_pairs(scored[groups], width) if part.rotary and packed else None,
        fused=fused,
    )
    score_slots = _slots(scored, width, packed, part.rotary)
    value_slots = _slots(valued, width, packed, False)
    each = part.heads // part.kv_heads
    head_start = _starts(kept.flatten(), width).view(-1, each, 1)
    group_start = _starts(groups, width).view(-1, 1)
    places = {
        "q": head_start + score_slots[:, None],
        "k": group_start + score_slots,
        "v": group_start + value_slots,
        "o": head_start + value_slots[:, None],
    }
    _apply(part, own, masks, places, sizes)
    own[part.q].scale = adapter.query_scale(model.get_submodule(part.path), sizes)
    drafts.update(own)
    return sizes if narrower or fused else None


def _obstacle(part: Attention, adapter: Adapter, model: nn.Module) -> str | None:
    """The reason why an adapter cannot narrow an attention's module, or None."""
    module = model.get_submodule(part.path)
    if not adapter.attention_classes:
        return None
    reason = unlikeness(module, adapter.attention_classes)
    if reason is None and part.qk_norm != isinstance(getattr(module, "q_norm", None), nn.Module):
        reason = (
            f"{type(module).__name__} does not normalise queries and keys as "
            f"{type(adapter).__name__} describes it (qk_norm = {part.qk_norm})"
        )
    return reason


def _head_masks(part: Attention, own: dict[str, Draft]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks of the kept dimensions of q, k, v and o.

    Those of q and o are (kv_heads, group, head_dim), those of k and v (kv_heads, head_dim).
    """
    queries, keys = part.heads * part.head_dim, part.kv_heads * part.head_dim
    if part.is_fused:
        q, k, v = own[part.q].rows.split((queries, keys, keys))
    else:
        q, k, v = own[part.q].rows, own[part.k].rows, own[part.v].rows
    grouped = (part.kv_heads, part.heads // part.kv_heads, part.head_dim)
    single = (part.kv_heads, part.head_dim)
    return q.view(grouped), k.view(single), v.view(single), own[part.o].cols.view(grouped)


def _same_input(part: Attention, own: dict[str, Draft], layers: dict[str, nn.Module]) -> bool:
    """Whether fusible layers read the same columns, and all or none have a bias."""
    first, *others = paths = part.joint_linears()
    biases = {layers[path].bias is None for path in paths}
    return len(biases) == 1 and all(torch.equal(own[path].cols, own[first].cols) for path in others)


def _slots(used: Tensor, width: int, packed: bool, rotary: bool) -> Tensor:
    """Position of every dimension in its head of the new width, (kv_heads, head_dim)."""
    if not packed:
        return torch.arange(used.shape[-1], device=used.device).expand(used.shape)
    if not rotary:
        return used.cumsum(-1) - 1
    first = used[:, : used.shape[-1] // 2].cumsum(-1) - 1
    return torch.cat([first, first + width // 2], dim=-1)


def _pairs(used: Tensor, width: int) -> tuple[tuple[int, ...], ...]:
    """The kept pairs of every kept key-value head, padded with pair 0.

    The values of padded pairs are zero.
    """
    lists = [row.nonzero().flatten().tolist() for row in used[:, : used.shape[-1] // 2]]
    return tuple(tuple(kept + [0] * (width // 2 - len(kept))) for kept in lists)


def _starts(kept: Tensor, width: int) -> Tensor:
    """First position of every kept head in a sequence of heads."""
    return (kept.cumsum(0) - 1) * width


def _apply(
    part: Attention,
    own: dict[str, Draft],
    masks: dict[str, Tensor],
    places: dict[str, Tensor],
    sizes: HeadSizes,
) -> None:
    queries, keys = (len(heads) * sizes.width for heads in (sizes.heads, sizes.kv_heads))
    flat = {name: mask.flatten() for name, mask in masks.items()}
    written = {name: places[name].expand_as(masks[name]).flatten()[flat[name]] for name in masks}
    why = "that no score or value needs"
    if part.is_fused:
        draft = own[part.q]
        draft.remove_rows(torch.cat([flat["q"], flat["k"], flat["v"]]), why)
        draft.output_width = queries + 2 * keys
        parts = [written["q"], written["k"] + queries, written["v"] + queries + keys]
        draft.write = _unless_all(torch.cat(parts), draft.output_width)
    else:
        for name, path, total in (
            ("q", part.q, queries),
            ("k", part.k, keys),
            ("v", part.v, keys),
        ):
            own[path].remove_rows(flat[name], why)
            own[path].output_width = total
            own[path].write = _unless_all(written[name], total)
    out = own[part.o]
    out.remove_cols(flat["o"], "whose value is zero")
    out.input_width = queries
    out.read = _unless_all(written["o"], queries)


def _unless_all(index: Tensor, size: int) -> Tensor | None:
    return None if index.numel() == size else index


def _all_linear(model: nn.Module, paths: tuple[str, ...]) -> bool:
    """Whether the model still has these layers, none of them compact or fused."""
    return all(
        has_module(model, path) and is_linear(_base(model.get_submodule(path))) for path in paths
    )


def _base(layer: nn.Module) -> nn.Module:
    return layer.base if isinstance(layer, GatedLinear) else layer


def choose_sides(drafts: Sequence[Draft], cost: CostModel) -> None:
    """Keeps a side dense if removing it would not pay; changes the drafts.

    Args:
        drafts: one layer, or several with the same kept columns that will be fused.
        cost: the cost model.
    """
    first = drafts[0]
    # Options for the inputs: (gather?, columns). A narrow input leaves no choice.
    inputs = [(False, first.cols.numel() if first.input_width is None else first.input_width)]
    if first.input_width is not None or bool(first.cols.all()):
        inputs = [(first.read is not None, int(first.cols.sum()))]
    else:
        inputs.append((True, int(first.cols.sum())))
    # Options for the outputs: (scattered size or None, rows). Fused layers do not scatter.
    kept = sum(int(draft.rows.sum()) for draft in drafts)
    narrow = any(draft.output_width is not None for draft in drafts)
    total = sum(
        draft.rows.numel() if draft.output_width is None else draft.output_width for draft in drafts
    )
    outputs: list[tuple[int | None, int]] = [(None, total)]
    if narrow or kept == total:
        outputs = [(total if kept < total else None, kept)]
    elif len(drafts) == 1:
        outputs.append((total, kept))
    # The cheapest combination; sides that it keeps dense become dense in every draft.
    _, gathers, scatters = min(
        (cost.seconds(rows, columns, gathers=g, scatters_to=s), g, s is not None)
        for g, columns in inputs
        for s, rows in outputs
    )
    for draft in drafts:
        if draft.input_width is None and not gathers and not bool(draft.cols.all()):
            draft.reasons.append("reads all columns: gathering would not pay")
            draft.cols = torch.ones_like(draft.cols)
        if draft.output_width is None and not scatters and not bool(draft.rows.all()):
            draft.reasons.append("writes all rows: scattering would not pay")
            draft.rows = torch.ones_like(draft.rows)
