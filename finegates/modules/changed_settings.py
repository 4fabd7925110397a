"""Carries settings and hooks that a module alone has to a module that replaces it.

A module that follows from a configuration has the configuration's settings. One that was changed by
hand, such as an attention with another scale, has others.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def keep_settings(
    old: nn.Module, new: nn.Module, expected: nn.Module, without: tuple[str, ...] = ()
) -> None:
    """Gives a module the attributes and hooks that were changed in a narrower form of it, in place.

    A number that the narrower form has multiplied is divided again.

    Args:
        old: the narrower form, possibly changed.
        new: what the configuration gives, in dense sizes.
        expected: the narrower form of ``new``.
        without: paths of submodules that are left alone, each with a dot behind it.

    Raises:
        ValueError: the forward of a module was replaced.
    """
    for path, module in new.named_modules():
        if f"{path}.".startswith(without):
            continue
        try:
            mine, theirs = old.get_submodule(path), expected.get_submodule(path)
        except AttributeError:
            continue
        if mine is module:
            continue
        for name, value in _changed(mine, theirs):
            if name == "forward":
                raise ValueError(
                    f"the forward of {type(mine).__name__} was replaced, which may not fit its "
                    "dense sizes; delete it from the module, or gate the dense model"
                )
            setattr(module, name, _as_before(value, vars(theirs).get(name), vars(module).get(name)))
        move_hooks(mine, module)


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Gives a module the hooks of another one, in place, except for those of this library.

    Args:
        old: whose hooks are taken over.
        new: which keeps the hooks that this library gave it.
    """
    for name, given in vars(old).items():
        if not (name.startswith(("_forward_", "_backward_")) and name.endswith("hooks")):
            continue
        own = vars(new)[name]
        users = {key: hook for key, hook in given.items() if not _is_of_library(hook)}
        for key in [key for key, hook in own.items() if not _is_of_library(hook)]:
            del own[key]
        own.update(users)
        # Options of hooks are in dictionaries of the same keys.
        for option, chosen in vars(old).items():
            if option.startswith(f"{name}_") and isinstance(chosen, dict):
                vars(new)[option].update({key: chosen[key] for key in users if key in chosen})
    if vars(old).get("_is_full_backward_hook") is not None:
        new._is_full_backward_hook = old._is_full_backward_hook


def user_hooks(module: nn.Module) -> set[int]:
    """Keys of a module's hooks that are not of this library; each is given to one hook."""
    return {
        key
        for name, hooks in vars(module).items()
        if name.startswith(("_forward_", "_backward_")) and name.endswith("hooks")
        for key, hook in hooks.items()
        if not _is_of_library(hook)
    }


def _is_of_library(hook: Any) -> bool:
    hook = getattr(hook, "func", hook)  # of functools.partial
    return str(getattr(hook, "__module__", "")).startswith("finegates.")


def _changed(module: nn.Module, expected: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that a module has and another does not have, or has with another value."""
    others = vars(expected)
    for name, value in vars(module).items():
        # A layer that was fused left an attribute of its name.
        own = name in ("training", "config") or name in expected._modules
        own = own or name.startswith(("_", "finegates_"))
        if not own and (name not in others or not _is_same(value, others[name])):
            yield name, value


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())
    if type(one) is not type(other):
        return False
    if isinstance(one, types.FunctionType | types.MethodType):
        return one.__code__ is other.__code__  # made for each module
    by_identity = not any("__eq__" in vars(base) for base in type(one).__mro__[:-1])
    return by_identity or bool(one == other)  # each module may have an object of its own


def _as_before(value: Any, narrow: Any, dense: Any) -> Any:
    """A value in the dense form of a module, given what the configuration gives in both forms."""
    numbers = all(isinstance(each, int | float) for each in (value, narrow, dense))
    return value * dense / narrow if numbers and narrow not in (0, dense) else value
