"""The stacked experts of mixture-of-experts layers: their sizes, and narrower ones.

transformers stores the weights of all E experts of a layer in parameters of three dimensions and
describes their layout by attributes of the module: transposed or not, gate and up concatenated or
interleaved, with or without biases.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_WIDTHS = ("intermediate_dim", "intermediate_size", "moe_intermediate_size")
_MARKS = ("is_transposed", "is_concatenated", "has_bias", "has_gate")
IMPLEMENTATION = "_experts_implementation"
"""Attribute of a configuration with the name of the function that computes the experts."""


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds stacked experts of transformers in a known layout."""
    if "down_proj" not in module._parameters:  # true of nearly all modules, which are asked often
        return False
    if not _is_marked(module) or getattr(module, "has_post_expert_norm", False):
        return False
    names = {name for name, _ in module.named_parameters(recurse=False)}
    return {_wide(module), "down_proj"} <= names <= {*_parameters(module)}


def _is_marked(module: nn.Module) -> bool:
    """Whether transformers chooses by name the function that computes these experts."""
    return all(isinstance(getattr(module, name, None), bool) for name in _MARKS)


def compute_experts_by(model: nn.Module, name: str) -> None:
    """Chooses the function that computes stacked experts of any layout, in the configurations."""
    for config in _configs(model):
        setattr(config, IMPLEMENTATION, name)


@contextmanager
def experts_computed_by(model: nn.Module, name: str) -> Iterator[None]:
    """Within the block, stacked experts are computed so (:func:`compute_experts_by`)."""
    before = [(config, getattr(config, IMPLEMENTATION, None)) for config in _configs(model)]
    compute_experts_by(model, name)
    try:
        yield
    finally:
        for config, earlier in before:
            setattr(config, IMPLEMENTATION, earlier)


def _configs(model: nn.Module) -> list[Any]:
    """The configurations that stacked experts of a model ask, each once."""
    asked = [getattr(module, "config", None) for module in model.modules() if _is_marked(module)]
    return [*{id(config): config for config in asked if config is not None}.values()]


def expert_shape(module: Any) -> tuple[int, int, int]:
    """Number of experts E, of inputs and outputs H, of intermediate dimensions I."""
    count, first, second = module.down_proj.shape
    width, outputs = (first, second) if module.is_transposed else (second, first)
    return count, outputs, width


def gated_down(module: Any, gate: Tensor) -> Tensor:
    """The down projections with their inputs multiplied by a gate (E, I)."""
    down: Tensor = module.down_proj
    gate = gate.to(down.dtype)
    return down * (gate[:, :, None] if module.is_transposed else gate[:, None, :])


@torch.no_grad()
def narrowed_experts(
    module: Any, kept: Tensor, width: int, gate: Tensor | None = None
) -> nn.Module:
    """Experts with some of their intermediate dimensions; the given module is not changed.

    All get one width. Dimensions that an expert does not need are zeros, which add nothing.

    Args:
        module: see :func:`is_experts`.
        kept: bool (E, I).
        width: at least the number of dimensions that any expert keeps.
        gate: (E, I), multiplied into the down projections; None: ones.
    """
    count, _, before = expert_shape(module)
    # The kept dimensions of each expert in front, in their order; then zeros.
    order = torch.argsort(~kept, dim=1, stable=True)[:, :width].to(module.down_proj.device)
    there = kept.to(order.device).gather(1, order)  # (E, width)

    def chosen(tensor: Tensor, axis: int, places: Tensor, mask: Tensor) -> Tensor:
        shape = [count if d == 0 else -1 if d == axis else 1 for d in range(tensor.dim())]
        target = list(tensor.shape)
        target[axis] = places.shape[1]
        found = tensor.gather(axis, places.view(shape).expand(target))
        return torch.where(mask.view(shape), found, torch.zeros_like(found)).contiguous()

    down = module.down_proj if gate is None else gated_down(module, gate)
    new = {"down_proj": chosen(down.detach(), 1 if module.is_transposed else 2, order, there)}
    wide, mask = order, there
    if module.has_gate and module.is_concatenated:
        wide, mask = torch.cat([order, order + before], 1), torch.cat([there, there], 1)
    elif module.has_gate:
        wide = torch.stack([2 * order, 2 * order + 1], -1).flatten(1)
        mask = there.repeat_interleave(2, 1)
    name = _wide(module)
    axis = 2 if module.is_transposed else 1
    new[name] = chosen(getattr(module, name).detach(), axis, wide, mask)
    if f"{name}_bias" in module._parameters:
        new[f"{name}_bias"] = chosen(getattr(module, f"{name}_bias").detach(), 1, wide, mask)
    return _with_parameters(module, new, width)


def empty_experts(module: Any, width: int) -> nn.Module:
    """Experts of another width without storage (meta device).

    Raises:
        ValueError: the module does not hold stacked experts of a known layout, or these are
            narrower already.
    """
    if not is_experts(module):
        raise ValueError(f"{type(module).__name__} does not hold stacked experts")
    count, _, before = expert_shape(module)
    if not 0 < width <= before:
        raise ValueError(f"experts of width {before} cannot get width {width}")
    kept = torch.zeros(count, before, dtype=torch.bool, device="cpu")
    kept[:, :width] = True
    new = {}
    for name, tensor in module.named_parameters(recurse=False):
        shape = list(tensor.shape)
        for axis, size in _axes(module, name).items():
            assert shape[axis] == size * before
            shape[axis] = size * width
        new[name] = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return _with_parameters(module, new, width)


@torch.no_grad()
def fill_experts(module: Any, small: Any) -> None:
    """Gives experts the numbers of narrower ones in their first dimensions, and zeros behind.

    Args:
        module: see :func:`is_experts`; its parameters are replaced.
        small: of the same class, with at most as many dimensions.
    """
    before, width = expert_shape(module)[2], expert_shape(small)[2]
    first = torch.arange(width, dtype=torch.int64, device="cpu")
    for name, tensor in module.named_parameters(recurse=False):
        full = getattr(small, name).detach().to("cpu", copy=True)
        for axis, times in _axes(module, name).items():
            places = first
            if times == 2:
                apart = module.is_concatenated
                places = (
                    torch.cat([first, before + first])
                    if apart
                    else torch.arange(2 * width, device="cpu")
                )
            shape = list(full.shape)
            shape[axis] = times * before
            full = full.new_zeros(shape).index_copy(axis, places, full)
        tensor.data = full


def numbers_at_width(module: Any, width: int) -> int:
    """Number of parameters that the experts of a module have at a width."""
    before = expert_shape(module)[2]
    return sum(
        tensor.numel() // before * width if _axes(module, name) else tensor.numel()
        for name, tensor in module.named_parameters(recurse=False)
    )


def _wide(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _parameters(module: Any) -> tuple[str, ...]:
    wide = _wide(module)
    return (wide, "down_proj", f"{wide}_bias", "down_proj_bias")


def _axes(module: Any, name: str) -> dict[int, int]:
    """The axes of a parameter that grow with the width, with their lengths in widths."""
    times = 2 if module.has_gate else 1
    wide = _wide(module)
    return {
        "down_proj": {1 if module.is_transposed else 2: 1},
        wide: {2 if module.is_transposed else 1: times},
        f"{wide}_bias": {1: times},
    }.get(name, {})


def _with_parameters(module: Any, new: dict[str, Tensor], width: int) -> nn.Module:
    before = expert_shape(module)[2]
    # deepcopy takes what its memo holds for copied: the old weights are not doubled.
    memo: dict[int, object] = {}
    for name, tensor in module.named_parameters(recurse=False):
        if name in new:
            memo[id(tensor)] = nn.Parameter(new[name], requires_grad=tensor.requires_grad)
    config = module.config
    memo[id(config)] = config  # the model's own, which others change through the model
    result: Any = copy.deepcopy(module, memo)
    for name in _WIDTHS:
        if isinstance(getattr(result, name, None), int):
            setattr(result, name, width)
    result.finegates_width = (width, before)
    narrowed: nn.Module = result
    return narrowed
