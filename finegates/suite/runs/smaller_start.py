"""Smaller initial models: pruned in one shot, or with fewer layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from finegates.adapters import adapter_for, unwrap
from finegates.gates.attachment import attach_fixed
from finegates.pruning.calibration import calibration_batches, left_unchanged
from finegates.pruning.sensitivity import measure_sensitivity
from finegates.pruning.to_budget import prune
from finegates.suite.baselines.independent import IndependentGroups
from finegates.suite.config.methods import PruningSettings


def prune_once(
    model: nn.Module,
    settings: PruningSettings,
    rows: Sequence[Mapping[str, Any]],
    collator: Callable[[list[Any]], Any],
    length: int,
    seed: int,
    progress: bool,
) -> nn.Module:
    """Prunes a model in place before training, calibrated on training rows.

    Args:
        model: a classifier, with or without low-rank adapters.
        settings: settings with a target.
        rows: tokenized training rows.
        collator: makes a batch of rows.
        length: tokens at which MACs are counted.
        seed: seed of the drawn rows, and of the order of criterion ``random``.
        progress: show a progress bar.
    """
    if settings.target is None:
        raise ValueError("prune.match needs the record of the run that is matched")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)[: settings.rows].tolist()
    calibration = [rows[place] for place in order]
    if settings.dimensions == "independent":
        return _prune_independent(
            model, calibration, collator, settings.target, settings.steps, length
        )
    return prune(
        model,
        calibration,
        target=settings.target,
        criterion=settings.criterion,
        steps=settings.steps,
        dimensions=settings.dimensions,
        collator=collator,
        sequence_length=length,
        seed=seed,
        progress=progress,
    )


def _prune_independent(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    collator: Callable[[list[Any]], Any],
    target: float,
    steps: int,
    length: int,
) -> nn.Module:
    """``finegates.prune`` with criterion ``taylor``, on independent rows and columns."""
    groups = IndependentGroups(unwrap(model), length)
    with left_unchanged(model):
        batches = calibration_batches(rows, collator, 16, model)
        for step in range(1, steps + 1):
            importance = measure_sensitivity(model, groups, batches, lambda: None).absolute
            worth = {gate: importance[gate] / cost for gate, cost in groups.costs().items()}
            groups.close(worth, 1.0 - target * step / steps)
    return attach_fixed(model, groups.values())


def keep_layers(model: nn.Module, kept: Callable[[int], Iterable[int]]) -> nn.Module:
    """Keeps some layers of an encoder, in place.

    Args:
        model: an encoder with all layers in one ``nn.ModuleList``.
        kept: maps the number of layers to the increasing indices of those to keep.

    Returns:
        the same model, with the new number of layers in its configuration.

    Raises:
        ValueError: the layers are in several lists.
    """
    inner = unwrap(model)
    paths = [block.path.rpartition(".")[0] for block in adapter_for(inner).blocks(inner)]
    if len(set(paths)) != 1:
        raise ValueError(f"layers of {type(inner).__name__} are in {sorted(set(paths))}, not one")
    parent, _, name = paths[0].rpartition(".")
    stack = inner.get_submodule(paths[0])
    assert isinstance(stack, nn.ModuleList)
    setattr(inner.get_submodule(parent), name, nn.ModuleList(stack[i] for i in kept(len(stack))))
    inner.config.num_hidden_layers = len(inner.get_submodule(paths[0]))  # type: ignore[union-attr,arg-type]
    return model
