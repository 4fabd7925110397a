"""Exact removal of attention heads and of their dimensions.

Shapes: K key-value heads, H query heads, W dimensions of a dense head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, Attention, HeadSizes
from finegates.compaction.draft import Draft, all_linear
from finegates.head_rows import layer_rows, letters_of, score_units


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
    4. Dimensions that belong together (:func:`finegates.head_rows.score_units`: rotated pairs, and
       those of all heads if one table or one norm serves them) are removed only if all their rows
       of k, or all those of q, are closed.
    5. A norm over dimensions reads what it normalises, so its dimensions are removed only if their
       rows of both q and k are closed; with a norm over all heads, this holds for heads as well.
    6. A key-value head is removed with the last of its query heads.
    7. Used dimensions are packed to one width per module, rounded up to a multiple of ``multiple``
       (at most the dense width) and padded with zeros; scores keep their scale. If every key-value
       head needs the same number of query heads, heads of zeros fill up the smaller groups.
    8. If all rows of o are closed, no value is used. The module stays, with one head of zeros.

    Returns:
        the new sizes; None if the module does not change (its layers may still lose rows).
    """
    paths = part.linears()
    if not any(path in drafts for path in paths):
        return None
    if not all_linear(model, paths):
        return None  # compact already
    layers = {path: model.get_submodule(path) for path in paths}
    reason = adapter.obstacle(model, part)
    if reason is not None:
        notes.append(f"{part.path}: its heads keep their sizes: {reason}")
        return None
    own = {path: drafts.get(path) or Draft.open(path, layer) for path, layer in layers.items()}
    before = _head_masks(part, own)
    q, k, v, o = (before[letter] for letter in "qkvo")  # (K, H / K, W) or, of k and v, (K, W)

    if not bool(own[part.o].rows.any()):  # rule 8
        o = torch.zeros_like(o)
    counts = o if part.value_bias else v[:, None] & o  # (K, H / K, W), rule 1
    alive = counts.any(-1)  # (K, H / K), rules 2 and 6
    kept = torch.ones_like(alive) if part.fixed_heads else _kept_heads(part, alive, q, k)
    q = q & (kept if part.norm == "all" else alive)[..., None]
    k = k & (kept if part.norm == "all" else alive).any(1)[:, None]
    scored = _scored(part, q, k, alive)  # (K, W), rules 3 to 5
    valued = counts.any(1)  # (K, W)
    groups = kept.any(1)  # (K,)
    # Rule 7: one width for scores and values of all kept heads.
    width = _width(part, scored[groups], valued, multiple)
    packed = width < part.head_dim
    masks = {"q": q & scored[:, None], "k": k & scored, "v": v & valued}
    masks["o"] = counts
    if "g" in before:
        masks["g"] = before["g"] & counts
    shrinks = packed or not bool(kept.all())
    shrinks = shrinks or any(not torch.equal(masks[name], before[name]) for name in masks)
    same_input = bool(part.joint) and _same_input(part, own, layers)
    fused = same_input and (shrinks or not bool(own[part.joint_linears()[0]].cols.all()))
    if not shrinks and not fused:
        return None

    positions, dimensions = _score_positions(part, scored, groups, width, packed)
    sizes = HeadSizes(
        heads=tuple(kept.flatten().nonzero().flatten().tolist()),
        groups=tuple((groups.cumsum(0) - 1)[kept.nonzero()[:, 0]].tolist()),
        kv_heads=tuple(groups.nonzero().flatten().tolist()),
        head_dim=part.head_dim,
        width=width,
        pairs=_pairs(scored[groups], width) if _turns_by_head(part) and packed else None,
        fused=fused,
        dimensions=dimensions,
    )
    _apply(
        part, own, masks, _Places(part, sizes, kept, positions, _value_positions(valued, packed))
    )
    scale = adapter.query_scale(model.get_submodule(part.path), sizes)
    if scale != 1.0:
        draft = own[part.q]
        draft.scale = torch.ones(draft.rows.shape, dtype=torch.float64, device="cpu")
        draft.scale[_rows(part)["q"].flatten()] = scale
    drafts.update(own)
    return sizes if _changes_heads(sizes, part) or fused else None


def _changes_heads(sizes: HeadSizes, part: Attention) -> bool:
    """Whether heads or their dimensions differ from those of the dense module."""
    return sizes.width < part.head_dim or len(sizes.heads) < part.heads


def _kept_heads(part: Attention, alive: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Which query heads stay, (K, H / K)."""
    kept = alive.clone()
    if part.norm == "all":
        kept |= q.any(-1)
        kept[:, 0] |= k.any(-1) & ~kept.any(1)
    if not bool(kept.any()):
        kept[0, 0] = True  # the module, and a cache in it, need at least one head
    if part.even:
        most = int(kept.sum(1).max())
        for index in kept.any(1).nonzero().flatten().tolist():
            missing = most - int(kept[index].sum())
            kept[index, (~kept[index]).nonzero().flatten()[:missing]] = True
    return kept


def _scored(part: Attention, q: Tensor, k: Tensor, alive: Tensor) -> Tensor:
    """Which dimensions of queries and keys count, (K, W)."""
    if part.fixed_scores:
        return alive.any(1, keepdim=True).expand_as(k)
    units = score_units(part)
    used = torch.zeros(2, int(units.max()) + 1, dtype=torch.bool, device="cpu")
    used[0, units[k]] = True
    used[1, units[q.any(1)]] = True
    counts = used.any(0) if part.norm else used.all(0)
    return counts[units]


def _width(part: Attention, scored: Tensor, valued: Tensor, multiple: int) -> int:
    """The common width of the heads that stay."""
    if part.fixed_scores:
        return part.head_dim
    width = max(1, int(scored.sum(-1).max()), int(valued.sum(-1).max()))
    if part.rotates_some and not bool(scored[:, : part.rotated].any()):
        width = max(width, 2 + int(scored[:, part.rotated :].sum(-1).max()))  # a pair of zeros
    width = -(-width // multiple) * multiple
    if part.rotary is not None and part.rotary.rotated in (None, part.head_dim):
        width += width % 2
    return min(width, part.head_dim)


def _turns_by_head(part: Attention) -> bool:
    """Whether every head may keep rotated pairs of its own."""
    return part.rotary is not None and not part.shares_scores


def _score_positions(
    part: Attention, scored: Tensor, groups: Tensor, width: int, packed: bool
) -> tuple[Tensor, tuple[int, ...] | None]:
    """Position of each dimension of queries and keys in a narrow head, (K, W).

    If all heads share their dimensions, also the dense dimension at each position.
    """
    if not packed:
        return torch.arange(part.head_dim, device="cpu").expand(scored.shape), None
    if part.rotary is None:
        positions = scored.cumsum(-1) - 1
        if not part.shares_scores:
            return positions, None
        return positions, _filled(scored[0].nonzero().flatten().tolist(), width)
    if not part.shares_scores:
        first = scored[:, : part.head_dim // 2].cumsum(-1) - 1
        return torch.cat([first, first + width // 2], dim=-1), None
    dimensions = _turned_dimensions(part, scored[groups][0], width)
    positions = torch.zeros(part.head_dim, dtype=torch.int64, device="cpu")
    for position, dimension in enumerate(dimensions):
        if dimension >= 0:
            positions[dimension] = position
    return positions.expand(scored.shape), dimensions


def _turned_dimensions(part: Attention, scored: Tensor, width: int) -> tuple[int, ...]:
    """The dense dimension at each position of a narrow head, rotated pairs first.

    Positions of zeros hold -1.
    """
    assert part.rotary is not None
    rotated = part.head_dim if part.rotary.rotated is None else part.rotary.rotated
    half = rotated // 2
    if part.rotary.pairs == "half":
        pairs = scored[:half].nonzero().flatten().tolist()
    else:
        pairs = [p for p in range(half) if bool(scored[2 * p])]
    passed = [d for d in range(rotated, part.head_dim) if bool(scored[d])]
    if part.rotates_some and not pairs:
        pairs = [-1]  # some modules need at least one
    if rotated == part.head_dim:  # nothing behind the pairs: zeros are pairs, too
        pairs += [-1] * (width // 2 - len(pairs))
    if part.rotary.pairs == "half":
        turned = [*pairs, *(-1 if p < 0 else p + half for p in pairs)]
    else:
        turned = [d for p in pairs for d in ((-1, -1) if p < 0 else (2 * p, 2 * p + 1))]
    return _filled([*turned, *passed], width)


def _filled(dimensions: list[int], width: int) -> tuple[int, ...]:
    return (*dimensions, *[-1] * (width - len(dimensions)))


def _value_positions(valued: Tensor, packed: bool) -> Tensor:
    """Position of each dimension of values in a narrow head, (K, W)."""
    if not packed:
        return torch.arange(valued.shape[-1], device="cpu").expand(valued.shape)
    return valued.cumsum(-1) - 1


def _rows(part: Attention) -> dict[str, Tensor]:
    return layer_rows(part, part.heads, part.kv_heads, part.head_dim)


def _head_masks(part: Attention, own: dict[str, Draft]) -> dict[str, Tensor]:
    """What is kept so far: of q, o and g (K, H / K, W), of k and v (K, W)."""
    paths = {"q": part.q, "g": part.q, "k": part.k, "v": part.v}
    masks = {letter: own[paths[letter]].rows[rows] for letter, rows in _rows(part).items()}
    masks["o"] = own[part.o].cols
    grouped = (part.kv_heads, part.heads // part.kv_heads, part.head_dim)
    return {
        letter: mask if letter in "kv" else mask.view(grouped) for letter, mask in masks.items()
    }


def _same_input(part: Attention, own: dict[str, Draft], layers: dict[str, nn.Module]) -> bool:
    """Whether fusible layers read the same columns, and all or none have a bias."""
    first, *others = paths = part.joint_linears()
    biases = {layers[path].bias is None for path in paths}
    return len(biases) == 1 and all(torch.equal(own[path].cols, own[first].cols) for path in others)


def _pairs(used: Tensor, width: int) -> tuple[tuple[int, ...], ...]:
    """The kept pairs of every kept key-value head, padded with pair 0.

    The values of padded pairs are zero.
    """
    lists = [row.nonzero().flatten().tolist() for row in used[:, : used.shape[-1] // 2]]
    return tuple(tuple(kept + [0] * (width // 2 - len(kept))) for kept in lists)


@dataclass(frozen=True)
class _Places:
    """Positions of the dense heads' dimensions in the narrow heads.

    Attributes:
        part: the dense attention.
        sizes: of the narrow one.
        kept: the query heads that stay, (K, H / K).
        scores: positions of dimensions of queries and keys in a head, (K, W).
        values: the same of values.
    """

    part: Attention
    sizes: HeadSizes
    kept: Tensor
    scores: Tensor
    values: Tensor

    def rows(self) -> dict[str, Tensor]:
        """The new row of every dense row that is kept.

        It is (K, H / K, W) for q and g, (K, W) for k and v; for o it is the new column.
        """
        heads, kv_heads, width = len(self.sizes.heads), len(self.sizes.kv_heads), self.sizes.width
        new = layer_rows(self.part, heads, kv_heads, width)
        new["o"] = torch.arange(heads * width, device="cpu").view(heads, width)
        head = (self.kept.flatten().cumsum(0) - 1).clamp(min=0).view(self.kept.shape)[..., None]
        group = (self.kept.any(1).cumsum(0) - 1).clamp(min=0)[:, None]
        places = {}
        for letter, rows in new.items():
            inside = (self.scores if letter in "qk" else self.values).clamp(0, width - 1)
            if letter in "kv":
                places[letter] = rows[group, inside]
            else:
                places[letter] = rows[head, inside[:, None]]
        return places


def _apply(
    part: Attention, own: dict[str, Draft], masks: dict[str, Tensor], places: _Places
) -> None:
    """Removes the rows and columns that no mask keeps, and places the others."""
    old, new = _rows(part), places.rows()
    total = layer_rows(
        part, len(places.sizes.heads), len(places.sizes.kv_heads), places.sizes.width
    )
    for path in dict.fromkeys((part.q, part.k, part.v)):
        draft = own[path]
        kept = torch.zeros_like(draft.rows)
        row = torch.zeros(draft.rows.shape, dtype=torch.int64, device="cpu")
        for letter in letters_of(part, path):
            kept[old[letter].flatten()] = masks[letter].flatten()
            row[old[letter].flatten()] = new[letter].expand_as(masks[letter]).flatten()
        draft.remove_rows(kept, "that no score or value needs")
        draft.output_width = sum(total[letter].numel() for letter in letters_of(part, path))
        draft.write = _unless_all(row[kept], draft.output_width)
    out = own[part.o]
    kept = masks["o"].flatten()
    out.remove_cols(kept, "whose value is zero")
    out.input_width = len(places.sizes.heads) * places.sizes.width
    out.read = _unless_all(new["o"].expand_as(masks["o"]).flatten()[kept], out.input_width)


def _unless_all(index: Tensor, size: int) -> Tensor | None:
    return None if index.numel() == size else index
