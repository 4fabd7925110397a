"""Detects code that may change the output of a layer in place."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


def is_changed_in_place(model: nn.Module, path: str) -> bool:
    """Whether the transformer layer around a layer may change its output in place.

    It may if the code of its forwards has an operation such as ``x += y`` or ``x.clamp_()``, on
    any tensor. Without a transformer layer around it, all forwards around the layer count.

    Args:
        model: any.
        path: of the layer.
    """
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if _changes(type(module).forward):
            return True
        if isinstance(module, GradientCheckpointingLayer):
            return False
    return False


@functools.cache
def _changes(forward: Callable[..., Any]) -> bool:
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return isinstance(code, CodeType) and _has_in_place(code)


def _has_in_place(code: CodeType) -> bool:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "BINARY_OP" and instruction.argrepr.endswith("="):
            return True
        if instruction.opname in ("LOAD_METHOD", "LOAD_ATTR") and _is_in_place(instruction.argval):
            return True
    return any(_has_in_place(each) for each in code.co_consts if isinstance(each, CodeType))


def _is_in_place(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.endswith("_")
        and not name.endswith("__")
        and hasattr(Tensor, name)
    )
