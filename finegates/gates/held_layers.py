"""Finds modules that hold a layer outside of the model's tree of modules.

Gates take the place of a layer in the tree. A module that keeps the layer, or its weight, in a
list, a dict, a closure or an attribute that is not registered would go on using it without gates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module()))


def holders(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yields layers that a module holds outside of the tree.

    Args:
        model: contains the layers.
        names: their paths.

    Yields:
        the layer's path, the path of the module that holds it, and the attribute.
    """
    wanted: dict[int, str] = {}  # by identity; that of storages is negative
    inside: set[int] = set()
    for name in names:
        layer = model.get_submodule(name)
        for module in layer.modules():
            inside.add(id(module))
            wanted[id(module)] = name
        wanted.update((-storage_of(parameter), name) for parameter in layer.parameters())
    wanted.pop(0, None)
    in_tree = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        if id(module) in inside:
            continue
        for attribute, value in vars(module).items():
            if attribute not in _OF_TORCH:
                for found in _search(value, wanted, set(in_tree)):
                    yield wanted[found], path, attribute


def _search(value: Any, wanted: Mapping[int, str], seen: set[int]) -> Iterator[int]:
    key = -storage_of(value) if isinstance(value, Tensor) else id(value)
    if key in wanted:
        yield key
    if id(value) in seen:
        return
    seen.add(id(value))
    for inner in _parts(value):
        yield from _search(inner, wanted, seen)


def _parts(value: Any) -> Iterable[Any]:
    """The values that a container, function or module outside of the tree holds."""
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, nn.Module):
        return vars(value).values()
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        return _closure(value)
    return ()


def _closure(function: FunctionType) -> list[Any]:
    cells = [cell for cell in function.__closure__ or () if _is_filled(cell)]
    return [*(cell.cell_contents for cell in cells), *(function.__defaults__ or ())]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that has no value yet
        return False


def storage_of(tensor: Tensor) -> int:
    """The identity of a tensor's storage, which views share; 0 without one."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse
        return 0
