"""Merges low-rank adapters of ``peft`` into plain layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.linear import dense_weight, find_linear, unmergeable


@torch.no_grad()
def merged_copy(model: nn.Module) -> nn.Module:
    """A copy without adapters, which shares all other parameters and buffers.

    Args:
        model: without gates; it does not change.

    Raises:
        ValueError: an adapter cannot be merged (:func:`low_rank_layers`).
    """
    memo: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for path in low_rank_layers(model):
        layer = model.get_submodule(path)
        memo[id(layer)] = take_hooks(layer, merged_layer(layer))
    return without_training_wrappers(copy.deepcopy(model, memo))


def low_rank_layers(model: nn.Module) -> list[str]:
    """Paths of low-rank layers outside gates; raises for adapters that cannot be merged."""
    paths = []
    for path, module in _outermost_peft(model):
        if _is_training_wrapper(module):
            continue
        try:
            find_linear(module)
        except TypeError:
            raise ValueError(
                f"{path}: {type(module).__name__} of peft is not a low-rank layer around a linear "
                "one; merge it with peft (merge_and_unload) before compacting"
            ) from None
        if getattr(module, "disable_adapters", False):
            # Also if it is merged: peft unmerges it at the next call.
            raise ValueError(
                f"{path}: its low-rank adapter is disabled; enable it or unload it before "
                "compacting, because it is unclear whether to merge it"
            )
        reason = unmergeable(module)
        if reason is not None:
            raise ValueError(
                f"{path}: {reason}; merge it with peft before compacting (merge_and_unload, which "
                "leaves gates where they are)"
            )
        paths.append(path)
    inside = {f"{path}.base" if path else "base" for path in gated_layers(model)}
    return [path for path in paths if path not in inside]


def _outermost_peft(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Outermost modules of peft, ignoring training wrappers."""
    seen: list[str] = []
    for path, module in model.named_modules():
        # Layers of third parties that build on peft are recognised by their method.
        if not (type(module).__module__.startswith("peft.") or hasattr(module, "get_base_layer")):
            continue
        if any(path.startswith(f"{outer}.") for outer in seen):
            continue
        if not _is_training_wrapper(module):
            seen.append(path)
        yield path, module


def _is_training_wrapper(module: nn.Module) -> bool:
    # peft's modules_to_save: a trained copy of a module next to the original.
    return hasattr(module, "original_module") and hasattr(module, "modules_to_save")


def without_training_wrappers(model: nn.Module) -> nn.Module:
    """Replaces each of ``peft``'s ``modules_to_save`` by the module that it uses, in place."""
    for path, module in list(model.named_modules()):
        if not _is_training_wrapper(module):
            continue
        active = module.active_adapters[0] if module.active_adapters else None
        trained = module.modules_to_save
        if active in trained and not getattr(module, "disable_adapters", False):
            chosen = trained[active]
        else:
            chosen = module.original_module
        assert isinstance(chosen, nn.Module)
        model = replaced(model, path, chosen)
    return model


def merged_layer(layer: nn.Module) -> nn.Module:
    """Merges a low-rank layer without gates into a plain layer."""
    weight, bias = dense_weight(layer)
    weight = weight.clone(memory_format=torch.contiguous_format)
    bias = None if bias is None else bias.clone()
    if not isinstance(find_linear(layer), nn.Linear):
        return CompactLinear(weight, bias)
    outputs, columns = weight.shape
    # On the meta device without initialisation: both parameters are replaced next.
    plain = nn.Linear(columns, outputs, bias=bias is not None, device="meta", dtype=weight.dtype)
    plain.weight = nn.Parameter(weight)
    plain.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]
    return plain


def take_hooks(old: nn.Module, new: nn.Module) -> nn.Module:
    """Moves the hooks of the old module to the new one, and returns the new one.

    Those of gated layers do not (:func:`finegates.compaction.carried_code.with_hooks_of`).
    """
    if new is old or isinstance(old, GatedLinear):
        return new
    for name, hooks in vars(old).items():
        # Dictionaries of hooks, and of their options.
        if name.startswith(("_forward_", "_backward_")) or name == "_is_full_backward_hook":
            setattr(new, name, hooks.copy() if hasattr(hooks, "copy") else hooks)
    return new


def replaced(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Replaces the module at a path everywhere; returns the model, or its replacement."""
    if not path:
        return module
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module
    return model
