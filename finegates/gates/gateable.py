"""Checks which layers of a model can be gated, before any change."""

from __future__ import annotations

import fnmatch
import warnings
from collections import Counter
from collections.abc import Iterable

from torch import nn

from finegates.adapters import has_module
from finegates.gates.held_layers import holders
from finegates.gates.weight_reads import weight_reader
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.experts import is_experts
from finegates.modules.linear import check_numbers, looks_linear
from finegates.modules.slices import parameters_by_side


def matching_layers(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Finds the linear layers that match patterns, gateable or not.

    Args:
        model: plain or with LoRA layers; of nested linear layers only the outermost is listed.
        patterns: of ``fnmatch``.

    Raises:
        ValueError: a pattern matches nothing.
    """
    names: list[str] = []
    linear = [name for name, m in model.named_modules() if looks_linear(m)]
    # Neither compact layers nor the linear layers inside them are gated.
    compact = _compact_layers(model)
    linear = [n for n in linear if not any(n.startswith(f"{path}.") for path in compact)]
    # A LoRA layer contains linears of its own; the outermost one is the layer to gate.
    linear = [n for n in linear if not any(n.startswith(other + ".") for other in linear)]
    for pattern in patterns:
        matched = [name for name in linear if fnmatch.fnmatch(name, pattern)]
        if not matched:
            raise ValueError(f"pattern {pattern!r} matches no linear layer of the model")
        names += [name for name in matched if name not in names]
    return names


def check_gateable(model: nn.Module, names: Iterable[str]) -> None:
    """Raises for layers that cannot be gated; the model does not change.

    Args:
        model: plain or with LoRA layers.
        names: paths of the layers to gate.

    Raises:
        ValueError: a path does not exist, two paths name the same layer, the parent module reads
            the layer's weight directly, or a module holds the layer outside of the tree.
        TypeError: a layer is not linear-like, or quantised.
    """
    names = list(names)
    in_branches: dict[str, str] = {}
    uses = Counter(id(child) for m in model.modules() for child in m._modules.values())
    places: dict[tuple[int, str], str] = {}
    for name in names:
        if not has_module(model, name):
            raise ValueError(
                f"{type(model).__name__} has no layer {name}, where its architecture has one; name "
                "the layers to gate with GateConfig(preset='reference', modules=...)"
            )
        layer = model.get_submodule(name)
        try:
            check_numbers(layer)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        _check_used_once(model, name, uses[id(layer)], places)
        reader = _weight_reader_in_branches(model, name)
        if reader is not None:
            in_branches[name] = reader
    for name, path, attribute in holders(model, names):
        holder = f"{path}.{attribute}" if path else attribute
        raise ValueError(
            f"{name}: {holder} of {type(model.get_submodule(path)).__name__} holds this layer, or "
            "its weight, outside of the model's tree of modules, so it would go on using it "
            "without gates; register it as a module, or exclude the layer with patterns that "
            "match only the other layers"
        )
    if in_branches:
        name, reader = next(iter(in_branches.items()))
        others = f" (and {len(in_branches) - 1} more layers)" if len(in_branches) > 1 else ""
        warnings.warn(
            f"{name}{others}: {reader} reads the weight of this layer directly in some of the "
            "branches of its forward, where gates around the layer would be bypassed; a forward "
            "pass that takes one is refused, unless it is compiled",
            stacklevel=4,
        )


def check_removable(model: nn.Module, names: Iterable[str]) -> None:
    """Raises ValueError for layers that cannot lose dimensions while they are trained.

    Args:
        model: plain or with LoRA layers.
        names: paths of its layers to gate.
    """
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append(f"{path}.{name}")
    for path in names:
        module = model.get_submodule(path)
        if is_experts(module):
            raise ValueError(
                f"{path} holds stacked experts, whose dimensions cannot be removed while they are "
                "trained; set GateConfig(shrink=False), and compact afterwards"
            )
        try:
            found = parameters_by_side(module)
        except ValueError as error:
            raise ValueError(
                f"{path}: nothing can be removed while it is trained: {error}; set "
                "GateConfig(shrink=False)"
            ) from None
        for parameter, _, _ in found:
            places = owners[id(parameter)]
            if len(places) > 1:
                raise ValueError(
                    f"{places[0]} is also {places[1]}, so nothing can be removed from it while it "
                    "is trained; give each its own (copy.deepcopy), or set "
                    "GateConfig(shrink=False)"
                )


def check_dense(model: nn.Module) -> None:
    """Raises ValueError for a compact model."""
    for name in _compact_layers(model):
        raise ValueError(
            f"{name} is compact already, and independent gates go around dense layers; choose "
            "preset='structured', attach them to the model of finegates.uniform(model), or to "
            "named plain layers (GateConfig(preset='reference', modules=...))"
        )


def check_trainable(model: nn.Module) -> None:
    """Raises ValueError if gates could not be trained.

    That is, if parameters are on several devices or were made in inference mode.
    """
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"the model is spread over {', '.join(devices)}, but the penalty joins all gates on "
            "one device; load it without device_map, and use several devices through torchrun, "
            "each with the whole model"
        )
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode and can never be trained; make the model "
                "outside of it"
            )


def _compact_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, CompactLinear)]


def _check_used_once(
    model: nn.Module, name: str, uses: int, places: dict[tuple[int, str], str]
) -> None:
    parent, _, child = name.rpartition(".")
    place = (id(model.get_submodule(parent)), child)
    other = places.setdefault(place, name)
    if other == name and uses > 1:
        layer = model.get_submodule(name)
        paths = (path for path, m in model.named_modules(remove_duplicate=False) if m is layer)
        other = next(path for path in paths if path != name)
    if other != name:
        raise ValueError(
            f"{other} and {name} are the same layer, which cannot be gated twice; give "
            "each place its own layer (copy.deepcopy), or leave both without gates by naming "
            "the others: GateConfig(preset='reference', modules=...)"
        )


def _weight_reader_in_branches(model: nn.Module, name: str) -> str | None:
    """The class that reads a layer's weight in some branches, or None; raises if in all."""
    # A layer of peft passes the base layer's weight on to the parent module.
    found = weight_reader(model, name)
    if found is None:
        return None
    reader, always = type(found[0]).__name__, found[1]
    if always:
        raise ValueError(
            f"{name}: {reader} reads the weight of this layer directly, so gates around the layer "
            "would be bypassed; exclude it with patterns that match only the other layers"
        )
    return reader
