"""The tensors of a model by name: written once, and restored with their ties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finegates.formats.bounds import check_index_buffers
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.linear import codes_of


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers under all their names.

    Non-persistent buffers are included, buffers that compact layers derive from their indices are
    not. A compact layer's weight and bias have the layer's own name, independent of how it stores
    them.
    """
    layers = [
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, CompactLinear)
    ]
    products = {f"{path}.linear": path for path in layers}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, child = name.rpartition(".")
        yield (f"{products[owner]}.{child}" if owner in products else name), parameter
    made = {f"{path}.slots" for path in layers}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in made:
            yield name, buffer


def unique_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, ready for safetensors, and the aliases of tied tensors.

    Raises:
        ValueError: a tensor is quantised.
    """
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in named_tensors(model):
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        codes = codes_of(tensor)
        if codes is not None:
            raise ValueError(
                f"{name} is quantised ({codes}), which cannot be saved; save the model from before "
                "it was quantised, and quantise what is loaded"
            )
        first[id(tensor)] = name
        plain = tensor.detach().contiguous()
        pointer = plain.untyped_storage().data_ptr()
        # Views of one storage (an expanded buffer, a slice) are written as separate tensors.
        if plain.numel() and pointer in storages:
            plain = plain.clone()
        storages.add(pointer)
        tensors[name] = plain
    return tensors, aliases


def fill(
    model: nn.Module, stored: dict[str, Tensor], aliases: dict[str, str], *, copy: bool = True
) -> None:
    """Fills a model on the meta device with stored tensors; ties are restored.

    Args:
        model: all its tensors are replaced.
        stored: each tensor under one of its names.
        aliases: maps further names of a tensor to the stored one.
        copy: copy the tensors.

    Raises:
        ValueError: a tensor is missing, or differs from the model's in name, shape, dtype or
            indices.
    """
    expected = dict(named_tensors(model))
    unknown = sorted((stored.keys() | aliases.keys()) - expected.keys())
    if unknown:
        raise ValueError(f"tensor {unknown[0]} is stored, but the model does not have it")
    objects: dict[str, Tensor] = {}
    for name, empty in expected.items():
        source = aliases.get(name, name)
        if source not in stored:
            raise ValueError(f"tensor {name} is missing")
        tensor = stored[source]
        _check(name, tensor, empty)
        is_parameter = isinstance(empty, nn.Parameter)
        if source not in objects:
            # Tensors of a memory-mapped file are unaligned, so that matmuls may take other code
            # paths and round differently; a copy is aligned.
            tensor = tensor.clone() if copy else tensor
            objects[source] = nn.Parameter(tensor) if is_parameter else tensor
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        if isinstance(owner, CompactLinear) and is_parameter:
            owner = owner.linear
        tensors: dict[str, Any] = owner._parameters if is_parameter else owner._buffers
        tensors[child] = objects[source]
    check_index_buffers(model)
    for path, layer in model.named_modules():
        if isinstance(layer, CompactLinear):
            try:
                layer.place_outputs()
            except ValueError as error:
                raise ValueError(f"layer {path}: {error}") from None
        for name, value in vars(layer).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise ValueError(
                    f"{path}.{name} of {type(layer).__name__} is neither a parameter nor a buffer, "
                    "so a folder cannot hold it; write the model with torch.save"
                )


def _check(name: str, tensor: Tensor, empty: Tensor) -> None:
    """Raises ValueError unless a stored tensor fits the model's tensor of that name."""
    if tensor.shape != empty.shape:
        raise ValueError(
            f"tensor {name} has shape {tuple(tensor.shape)}, the model needs {tuple(empty.shape)}"
        )
    is_float = tensor.is_floating_point()
    if is_float != empty.is_floating_point() or not (is_float or tensor.dtype == empty.dtype):
        raise ValueError(f"tensor {name} is {tensor.dtype}, the model needs {empty.dtype}")
    if not (empty.is_meta or is_float or torch.equal(tensor, empty.to(tensor.device))):
        raise ValueError(f"tensor {name} has other indices than its heads' sizes give")
