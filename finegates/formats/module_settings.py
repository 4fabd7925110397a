"""Compares the settings of modules with those that a configuration gives.

A file contains tensors and a configuration. An activation, scale or epsilon that was changed by
hand is in neither, and would be lost on loading. So the classes and plain attributes of a model's
modules are compared with those that its class and configuration give.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from finegates.formats.bounds import LARGEST
from finegates.formats.written_settings import written_by_calls
from finegates.wrappers import own_forward

# Of training, of this process, stored elsewhere, or without effect on outputs.
_FREE = frozenset(
    (
        "training",
        "gradient_checkpointing",
        "name_or_path",
        "vocab_size",
        "layer_idx",
        "warnings_issued",
        "all_tied_weights_keys",
        "onednn_from",
        "keeps_stock_layout",
        "active_adapter",
        "targeted_module_names",
    )
)
# Set by every call from the size of the image, in modules with such a method.
_OF_THE_INPUT, _RESIZES = ("shift_size", "window_size"), "set_shift_and_window_size"
_SEEN = "max_seq_len_cached"
_UNKNOWN = object()


class ModuleSettingsError(ValueError):
    """A module differs from what the model's class and configuration give."""


def check_modules(model: nn.Module, rebuilt: nn.Module) -> None:
    """Raises ModuleSettingsError if modules differ in class or settings.

    Args:
        model: whose modules may have been changed.
        rebuilt: the model that its class and configuration give, with or without storage.
    """
    expected = dict(rebuilt.named_modules(remove_duplicate=False))
    # Read from source, which is rarely needed.
    written = functools.cache(lambda: written_by_calls(model))
    for path, module in model.named_modules(remove_duplicate=False):
        where = path or "the model"
        if path not in expected:
            raise ModuleSettingsError(
                f"{where} ({type(module).__name__}) is not among the modules that "
                f"{type(model).__name__} and its configuration give, so it would be lost; remove it"
            )
        other = expected.pop(path)
        if not _same_class(module, other):
            raise ModuleSettingsError(
                f"{where} is of {_name(type(module))}, and the configuration of "
                f"{type(model).__name__} gives {_name(type(other))}, which would be loaded; "
                "change the configuration, or the module back"
            )
        if own_forward(module) is not None and own_forward(other) is None:
            raise ModuleSettingsError(
                f"{where}.forward was replaced by {_name(own_forward(module))} in this module "
                f"alone, and that of {_name(type(other))} would be loaded; delete it from the "
                "module, or save the weights with torch.save"
            )
        for name, (mine, theirs) in _differences(module, other):
            if theirs is None and name in written()[type(module)]:
                continue  # of the last call
            raise ModuleSettingsError(
                f"{where}.{name} is {mine!r}, and the configuration of {type(model).__name__} "
                f"gives {theirs!r}, which would be loaded; change the configuration, or the "
                "module back"
            )
    for path, other in expected.items():
        parent, _, name = path.rpartition(".")
        called = vars(model.get_submodule(parent)).get(name)
        if called is not None:
            raise ModuleSettingsError(
                f"{path} is {_name(called)}, and the configuration of {type(model).__name__} gives "
                f"{_name(type(other))}, which would be loaded; change the configuration, or the "
                "module back"
            )
        raise ModuleSettingsError(
            f"{path} is missing, which {type(model).__name__} and its configuration give; set it "
            "to None in its module if it is not used, or put it back"
        )


def _same_class(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are of one class; ``torch.nn.utils.parametrize`` makes one for each."""
    if not all(is_parametrized(each) for each in (module, other)):
        return type(module) is type(other)
    return type(module).__mro__[1] is type(other).__mro__[1]


def seen_lengths(model: nn.Module) -> dict[str, dict[str, int]]:
    """Longest inputs seen by rotary embeddings that grow their tables.

    Returns:
        lengths by module path and attribute; empty for models without such embeddings.
    """
    found: dict[str, dict[str, int]] = {}
    for path, module in model.named_modules():
        lengths = {
            name: int(value)
            for name, value in vars(module).items()
            if name.endswith(_SEEN) and isinstance(value, int | Tensor)
        }
        if lengths:
            found[path] = lengths
    return found


def set_seen_lengths(model: nn.Module, stored: Any) -> None:
    """Restores the lengths of :func:`seen_lengths`.

    Raises:
        ValueError: a module has no such length, or a value is not a length.
    """
    for path, lengths in dict(stored).items():
        module = model.get_submodule(path)
        for name, length in dict(lengths).items():
            if not name.endswith(_SEEN) or not hasattr(module, _SEEN):
                raise ValueError(f"{path}.{name} is not a length that the model keeps")
            if type(length) is not int or not 0 < length <= LARGEST:
                raise ValueError(f"{path}.{name} = {length!r} is not the length of an input")
            setattr(module, name, length)


def _differences(module: nn.Module, other: nn.Module) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name, value in vars(other).items():
        if name.startswith("_") or name in _FREE or name.endswith(_SEEN):
            continue
        if name not in vars(module) or (name in _OF_THE_INPUT and hasattr(module, _RESIZES)):
            continue
        own = vars(module)[name]
        if _is_without_storage(own, value):
            continue
        mine, theirs = _plain(own), _plain(value)
        # Values unknown on both sides are distinct objects, such as configurations.
        if mine != theirs:
            yield name, (_shown(own, mine), _shown(value, theirs))


def _is_without_storage(*values: Any) -> bool:
    """Whether all are tensors, at least one of them on the meta device."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    return len(tensors) == len(values) and any(tensor.is_meta for tensor in tensors)


def _shown(value: Any, plain: Any) -> Any:
    return f"of {_name(type(value))}" if plain is _UNKNOWN else plain


def _plain(value: Any) -> Any:
    """A value that can be compared and shown; ``_UNKNOWN`` for all others."""
    if isinstance(value, np.generic) or (
        isinstance(value, Tensor) and value.dim() == 0 and not value.is_meta
    ):
        value = value.item()  # modules use it like a number
    if isinstance(value, float) and value != value:
        return "nan"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return _plain_items(list(value))
    if isinstance(value, set | frozenset):
        return _plain_items(sorted(value, key=repr))
    if isinstance(value, dict):
        items = _plain_items(list(value.values()))
        return items if items is _UNKNOWN else dict(zip(map(str, value), items, strict=True))
    if isinstance(value, functools.partial):
        return _plain([value.func, value.args, value.keywords])
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType | type):
        return _name(value)
    return _UNKNOWN


def _plain_items(values: list[Any]) -> Any:
    found = [_plain(value) for value in values]
    return _UNKNOWN if any(value is _UNKNOWN for value in found) else found


def _name(thing: Any) -> str:
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{module}.{name}" if module else str(name)
