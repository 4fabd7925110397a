"""Takes the gates of a model away: replaced by constants, dropped, or folded into the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finegates.adapters import unwrap
from finegates.gates.bypass import stop_watching
from finegates.gates.dense_form import check_whole
from finegates.gates.gate import FixedGate
from finegates.gates.gated_experts import GatedExperts, gated_experts
from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.gates.gated_output import NAME, fold_output_gates, output_gates, remove_output_gates
from finegates.gates.parts import forget_attachment
from finegates.gates.removed_before import record_of, set_record
from finegates.modules.experts import gated_down
from finegates.modules.linear import dense_weight, find_linear
from finegates.modules.tying import move_tied_keys, note_untied, untie


@torch.no_grad()
def hold_gates(model: nn.Module) -> nn.Module:
    """Replaces every gate by its evaluation value, in place, and drops the penalty.

    Args:
        model: with or without gates.

    Returns:
        the same model; its outputs in evaluation mode do not change.

    Raises:
        ValueError: dimensions were removed from it while it was trained.
    """
    inner = unwrap(model)
    check_whole(inner, "hold_gates")
    layers: list[GatedLinear | GatedExperts] = [*gated_layers(inner).values()]
    layers += gated_experts(inner).values()
    for layer in layers:
        for side, gate in list(layer.gates()):
            setattr(layer, side, FixedGate(gate.value()).train(layer.training))
    held = {gate: FixedGate(gate.value()) for gate in output_gates(inner).values()}
    for path, gate in output_gates(inner).items():
        module = inner.get_submodule(path)
        module.add_module(NAME, held[gate].train(module.training))
    records = {module: record_of(module) for module in inner.modules()}
    forget_attachment(inner)
    for module, record in records.items():
        set_record(module, record)  # budgets count from it
    return model


def detach(model: nn.Module, *, fold: bool = False) -> nn.Module:
    """Removes the gates, in place.

    Args:
        model: with or without gates.
        fold: multiply the evaluation gates into weights and biases, so that the outputs in
            evaluation mode do not change (up to rounding). Needs plain linear layers: merge
            low-rank adapters first, or use ``finegates.compact``. A layer that shares its weight
            with the embeddings gets its own copy.

    Returns:
        the same model; with ``fold=False`` it computes the same as before gates were attached,
        except for trained biases, head and low-rank factors.

    Raises:
        ValueError: ``fold`` and a layer holds an unmerged low-rank adapter, or dimensions were
            removed while the model was trained.
    """
    inner = unwrap(model)
    check_whole(inner, "detach")
    layers = gated_layers(inner)
    if fold:
        for name, layer in layers.items():
            if find_linear(layer.base) is not layer.base and not getattr(
                layer.base, "merged", False
            ):
                raise ValueError(
                    f"layer {name} holds an unmerged low-rank adapter; merge it first, or call "
                    "finegates.compact, which merges"
                )
        for name, layer in layers.items():
            untie(inner, f"{name}.base")
            _fold(layer)
        for experts in gated_experts(inner).values():
            base: Any = experts.base
            base.down_proj.data = gated_down(base, experts.value()).data
        fold_output_gates(inner)
    remove_output_gates(inner)
    for name, gated in {**layers, **gated_experts(inner)}.items():
        inner.set_submodule(name, gated.base)
        move_tied_keys(inner, f"{name}.base", name)
    note_untied(inner, separate=True)
    forget_attachment(inner)
    stop_watching(inner)
    return model


@torch.no_grad()
def _fold(layer: GatedLinear) -> None:
    weight, bias = dense_weight(layer.base)
    if layer.cols is not None:
        weight.mul_(layer.cols.value().to(weight.dtype))
    if layer.rows is not None:
        rows = layer.rows.value().to(weight.dtype)
        weight.mul_(rows[:, None])
        if bias is not None:
            bias.mul_(rows)
