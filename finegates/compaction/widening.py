"""Gives a gated model that shrank while it was trained its dense sizes again.

The rows and columns that were removed come back as zeros, behind gates that are closed for good, so
that the outputs in evaluation mode are the same up to the rounding of sums with zeros.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from finegates.compaction.carried_code import carry_hooks
from finegates.gates.dense_form import DenseForm, dense_form
from finegates.gates.gated_linear import gated_layers
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.kinds import between_gates
from finegates.modules.slices import parameters_by_side, put_back


@torch.no_grad()
def widened(model: nn.Module) -> nn.Module:
    """The dense gated form of a model that lost dimensions.

    Args:
        model: plain, of any kind; it does not change.

    Raises:
        ValueError: settings changed after the removal, or a smaller layer got a hook, which the
            dense model does not have.

    Returns:
        the model itself if nothing was removed from it. Otherwise a new one, which shares the
        tensors of the layers that kept their sizes.
    """
    parts = {
        path: _widened(module, form)
        for path, module in model.named_modules()
        if (form := dense_form(module)) is not None
    }
    if not parts:
        return model
    if "" in parts:
        return parts[""]
    memo: dict[int, object] = {id(p): p for p in (*model.parameters(), *model.buffers())}
    memo |= {id(model.get_submodule(path)): part for path, part in parts.items()}
    return copy.deepcopy(model, memo)


def _widened(model: nn.Module, form: DenseForm) -> nn.Module:
    changed = form.differences(model)
    if changed:
        raise ValueError(
            f"{changed[0]} of {type(model).__name__} changed after dimensions were removed from "
            f"it ({len(changed)} such settings), and would be lost; undo the change (unmerge or "
            "enable adapters, for example) and make it on the result, or save the model with "
            "finegates.save and compact what finegates.load gives"
        )
    memo: dict[int, object] = {
        id(constant): gate.widened() for gate, constant in form.gates.values()
    }
    config = getattr(model, "config", None)
    memo[id(config)] = config
    dense = copy.deepcopy(form.model, memo)
    for path in dict.fromkeys((*gated_layers(dense), *form.layers)):
        _fill_layer(between_gates(dense.get_submodule(path)), model, path, form)
    for path, module in dense.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = getattr(model.get_submodule(path), name)
    for name, buffer in model.named_buffers():
        owner, _, child = name.rpartition(".")
        try:
            place = dense.get_submodule(owner)._buffers
        except AttributeError:  # of a smaller layer or its gates
            continue
        if (known := place.get(child)) is not None and known.shape == buffer.shape:
            place[child] = buffer
    device = next(model.parameters()).device
    if getattr(model, "generation_config", None) is not None:
        dense.generation_config = copy.deepcopy(model.generation_config)
    carry_hooks(model, dense)
    dense.train(model.training)
    return dense if device.type == "meta" else dense.to(device)


def _fill_layer(base: nn.Module, model: nn.Module, path: str, form: DenseForm) -> None:
    """Gives the dense layer at a path the parameters of the present one, between zeros."""
    layer = model.get_submodule(path)
    layer = layer.linear if isinstance(layer, CompactLinear) else layer
    present = parameters_by_side(between_gates(layer))
    sides = form.layers.get(path)
    for (empty, *axes), (parameter, *_) in zip(parameters_by_side(base), present, strict=True):
        if sides is None:
            full = parameter
        else:
            cuts = tuple(
                (axis, index) for axis, index in zip(axes, sides, strict=True) if axis is not None
            )
            numbers = put_back(parameter.detach(), cuts, empty.shape)
            full = nn.Parameter(numbers, requires_grad=parameter.requires_grad)
        for module in base.modules():
            for name, known in module._parameters.items():
                if known is empty:
                    module._parameters[name] = full
