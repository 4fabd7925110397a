"""The transformer layers of a model of any kind, and what they are called with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from finegates.compaction.certificate import InFloat64, floats
from finegates.modules.linear import is_linear

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and keyword arguments of a module."""


def find_layers(model: nn.Module) -> list[str]:
    """Paths of the layers of a model, each outside of the others.

    Layers are items of ``nn.ModuleList`` and ``nn.Sequential`` that have modules inside, and
    ``GradientCheckpointingLayer``. Of such modules inside each other, the outer one is the layer if
    it has linear layers apart from the inner ones, such as the attention next to a list of experts.
    """
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
        or (path.rpartition(".")[2].isdigit() and any(True for _ in module.children()))
    }
    linear = [path for path, module in model.named_modules() if is_linear(module)]
    layers: list[str] = []
    for path in found:  # an outer module comes before those inside it
        if path.startswith(tuple(f"{layer}." for layer in layers)):
            continue
        inside = tuple(f"{each}." for each in found if each.startswith(f"{path}."))
        own = [each for each in linear if each.startswith(f"{path}.")]
        if any(not each.startswith(inside) for each in own):
            layers.append(path)
    return layers


@dataclass(frozen=True)
class Calls:
    """A forward pass.

    Attributes:
        model: the call of the model, without a cache.
        layers: the first call of each layer that is called, by path.
        outputs: the floating-point numbers that the model gives.
    """

    model: Call
    layers: dict[str, Call]
    outputs: list[Tensor]


def layer_calls(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> Calls:
    """What a model and its layers are called with in a forward pass.

    Args:
        model: in float64.
        layers: its layers by path.
        inputs: keyword arguments of its forward.
    """
    calls: dict[str, Call] = {}
    handles = []
    for path, layer in layers.items():

        def before(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            if path not in calls:
                copied = {name: _as_now(value) for name, value in kwargs.items()}
                calls[path] = tuple(map(_as_now, args)), copied

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
    given = {
        name: value.to(torch.float64)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        given["use_cache"] = False
    try:
        with torch.no_grad(), InFloat64():
            outputs = list(floats(model(**given)))
    finally:
        for handle in handles:
            handle.remove()
    return Calls(((), given), {path: calls[path] for path in layers if path in calls}, outputs)


def _as_now(value: Any) -> Any:
    """An argument as it is at present: a copy of a cache, which the model fills."""
    return copy.deepcopy(value) if hasattr(value, "get_seq_length") else value
