"""What an earlier compaction removed from a model that gets gates again.

A compact model is gated in its dense sizes (:mod:`finegates.compaction.reopening`): the rows and
columns that were removed are zeros. Gates of removed dimensions are closed for good, and dimensions
that get no gate have a constant one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter
from finegates.gates.gate import Gate
from finegates.gates.parts import BEFORE, LOST
from finegates.gates.shared import Before, build_structure
from finegates.gates.stochastic import StochasticGate

Kept = Mapping[str, tuple[Tensor, Tensor]]
"""Rows (out,) and columns (in,) that are kept, bool, by path of the dense layer."""


def note_before(model: nn.Module, kept: Kept, adapter: Adapter | None = None) -> bool:
    """Records in a model in its dense sizes what was removed from it.

    A dimension is removed if none of its rows and columns is kept in any layer.

    Args:
        model: plain, without gates; the record is set on it.
        kept: of the layers that lost some.
        adapter: describes the blocks; looked up if None.

    Returns:
        whether every layer keeps exactly what the gates of its dimensions say, which is not so if
        layers with the same inputs kept different ones.
    """
    names: dict[StochasticGate, str] = {}

    def make(name: str, size: int) -> StochasticGate:
        gate = StochasticGate(size, "structured", device="meta")
        names[gate] = name
        return gate

    _, sides = build_structure(model, make, adapter=adapter)
    masks = {
        name: torch.zeros(gate.size, dtype=torch.bool, device="cpu") for gate, name in names.items()
    }
    for path, pair in sides.items():
        for gate, mask in zip(pair, kept.get(path, (None, None)), strict=True):
            if gate is None:
                continue
            present = (
                torch.ones(gate.size, dtype=torch.bool, device="cpu") if mask is None else mask
            )
            for leaf, index in gate.uses():
                assert isinstance(leaf, StochasticGate)
                masks[names[leaf]][index.cpu()[present & (index.cpu() >= 0)]] = True
    set_before(model, {name: mask for name, mask in masks.items() if not bool(mask.all())})

    def read(leaf: Gate) -> Tensor:
        assert isinstance(leaf, StochasticGate)
        return masks[names[leaf]].float()

    return all(
        bool(mask.all()) if gate is None else torch.equal(gate.combined(read) > 0, mask)
        for path, pair in kept.items()
        for gate, mask in zip(sides.get(path, (None, None)), pair, strict=True)
    )


def set_before(model: nn.Module, masks: Before) -> None:
    """Sets a record as :func:`note_before` does.

    Args:
        model: plain, in its dense sizes, without gates.
        masks: of the gates that lost dimensions, by name.
    """
    if masks:
        vars(model)[BEFORE] = dict(masks)


def before_of(model: nn.Module) -> Before:
    """The record that :func:`note_before` set on a model; empty without."""
    found: Before = vars(model).get(BEFORE, {})
    return found


def set_lost(model: nn.Module, masks: Before) -> None:
    """Records of which removed dimensions the weights are gone, if not of all of them.

    Args:
        model: as for :func:`set_before`.
        masks: of the gates, by name: false where the model has zeros instead of weights.
    """
    vars(model)[LOST] = dict(masks)


def lost_of(model: nn.Module) -> Before:
    """The record of :func:`set_lost`, or that of all removed dimensions without one.

    A model with constant gates that is pruned again has all weights that it had before.
    """
    found: Before = vars(model).get(LOST, before_of(model))
    return found


def record_of(model: nn.Module) -> dict[str, Before]:
    """Both records of a model, for :func:`set_record`."""
    return {name: vars(model)[name] for name in (BEFORE, LOST) if name in vars(model)}


def set_record(model: nn.Module, record: Mapping[str, Before]) -> None:
    """Sets what :func:`record_of` gave."""
    vars(model).update(record)


def mask_of(before: Before, name: str, size: int) -> Tensor | None:
    """What was left of a gate's dimensions, bool (size,), or None for all.

    Args:
        before: of the model.
        name: of the gate.
        size: number of its dimensions; where it is the number of groups of heads, a group is left
            if one of its heads is.
    """
    mask = before.get(name)
    return None if mask is None else mask.view(size, -1).any(1)
