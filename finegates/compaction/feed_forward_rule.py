"""Exact removal of intermediate dimensions of a feed-forward part."""

from __future__ import annotations

import torch
from torch import nn

from finegates.adapters import FeedForward
from finegates.compaction.activations import activation_at_zero, activation_of, acts_on_numbers
from finegates.compaction.draft import Draft, all_linear
from finegates.head_rows import feed_forward_rows


def pair_feed_forward(
    part: FeedForward,
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
    4. If all rows of ``down`` are closed, all values are unread.

    Returns:
        whether ``gate`` and ``up`` read the same inputs, so that they can be fused.
    """
    paths = part.linears()
    if not any(path in drafts for path in paths):
        return False
    if not all_linear(model, paths):
        return False  # compact already
    if not part.narrows:
        notes.append(
            f"{part.up}, {part.down}: they keep their width, since the forward of the module that "
            "holds them is not the described one"
        )
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

    unread = ~down.cols if bool(down.rows.any()) else torch.ones_like(down.cols)  # rules 3 and 4
    constants = None
    if gate is not None:  # rule 2
        of_gate, of_up = feed_forward_rows(part, unread.numel())
        constant = ~up.rows[of_up]
        if at_zero == 0.0:
            constant = constant | ~gate.rows[of_gate]
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
    wide = {part.up: ~removed}
    if gate is not None:
        wide = {path: torch.ones_like(own[path].rows) for path in (part.up, gate.path)}
        wide[gate.path][of_gate] = ~removed
        wide[part.up][of_up] = ~removed
    for path, kept in wide.items():
        own[path].remove_rows(kept, "that nothing reads or that a pair makes zero")
        own[path].output_width = int(kept.sum())
    moved = "" if constants is None else f", their {part.activation}(0) moved into the bias"
    down.remove_cols(~removed, f"whose input is constant{moved}")
    down.input_width, down.constants = int((~removed).sum()), constants
    drafts.update({draft.path: draft for draft in (up, gate, down) if draft is not None})
    return joined


def _alike(up: Draft, gate: Draft, layers: dict[str, nn.Module]) -> bool:
    """Whether two layers read the same columns, and both or neither have a bias."""
    biases = [layers[draft.path].bias is None for draft in (up, gate)]
    return biases[0] == biases[1] and torch.equal(up.cols, gate.cols)
