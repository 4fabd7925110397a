"""Compares the code of a module with the classes that a narrow form replaces.

Many architectures have their own class with an identical attention. Others look similar, but cap
scores, omit positions, or add sinks. So the executed code is compared.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from types import CodeType, FunctionType
from typing import Any

from torch import nn

# The narrow attentions call the function of the module's own file.
_TAKEN_OVER = "eager_attention_forward"


def unlikeness(module: nn.Module, classes: Sequence[str]) -> str | None:
    """The reason why a module's code differs from all given classes, or None.

    Args:
        module: of any class; its parameters and sizes do not matter.
        classes: such as ``"llama.LlamaAttention"``, of ``transformers.models``.

    Returns:
        a sentence that names the module's class and the attributes that only its forward uses.
    """
    name = type(module).__name__
    if "forward" in vars(module):
        return f"the forward of this {name} has been replaced"
    known = [_class_of(path) for path in classes]
    if any(type(module) is one or _alike(type(module), one) for one in known):
        return None
    names = " or ".join(one.__name__ for one in known)
    own = set(_code(type(module).forward).co_names)
    extra = sorted(own.difference(*(_code(one.forward).co_names for one in known)))
    uses = f"; it uses {', '.join(extra)}" if extra else ""
    return f"the forward of {name} is not that of {names}{uses}"


def is_alike(one: type[nn.Module], other: type[nn.Module]) -> bool:
    """Whether the forward passes of two classes, with the methods that they call, are equal."""
    return one is other or _alike(one, other)


def check_like(module: nn.Module, classes: Sequence[str]) -> None:
    """Raises ValueError with the reason that :func:`unlikeness` finds, if any."""
    reason = unlikeness(module, classes)
    if reason is not None:
        raise ValueError(f"{reason}, so its heads cannot be made narrower; keep their sizes")


def _class_of(path: str) -> Any:
    package, _, name = path.partition(".")
    return getattr(
        importlib.import_module(f"transformers.models.{package}.modeling_{package}"), name
    )


def _alike(one: Any, other: Any) -> bool:
    seen: set[FunctionType] = set()
    return _same(inspect.unwrap(one.forward), inspect.unwrap(other.forward), one, other, seen)


def _same(
    one: FunctionType, other: FunctionType, of_one: Any, of_other: Any, seen: set[FunctionType]
) -> bool:
    """Whether two functions, and those they call in their files and classes, are equal."""
    if one in seen:
        return True
    seen.add(one)
    if one is not other and not _same_code(one.__code__, other.__code__):
        return False
    # Also of one and the same function: a subclass may have other methods that it calls.
    return all(
        _same(inspect.unwrap(a), inspect.unwrap(b), of_one, of_other, seen)
        for name in one.__code__.co_names
        if name != _TAKEN_OVER
        for a, b in (
            (one.__globals__.get(name), other.__globals__.get(name)),
            (getattr(of_one, name, None), getattr(of_other, name, None)),
        )
        if isinstance(a, FunctionType) and isinstance(b, FunctionType) and a is not b
    )


def _code(function: Any) -> CodeType:
    code: CodeType = inspect.unwrap(function).__code__
    return code


def _same_code(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects have the same instructions, regardless of location."""
    if one.co_code != other.co_code or len(one.co_consts) != len(other.co_consts):
        return False
    if (one.co_names, one.co_varnames) != (other.co_names, other.co_varnames):
        return False
    return all(
        _same_code(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else _equal(a, b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def _equal(one: Any, other: Any) -> bool:
    # Docstrings are constants, too, and may name another architecture.
    return type(one) is type(other) and (one == other or isinstance(one, str))
