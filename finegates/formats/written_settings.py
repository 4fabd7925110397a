"""Attributes that calls of a model set by themselves, found in the source of its classes.

Some modules leave a value of their last call in an attribute that is None before: a length that was
seen, the pooling stride of the last layer. Such a value is computed again by every call, and is not
a setting. One that is not None before may say that weights were changed (as in RWKV), and counts.

1. Calls reach the method ``forward`` of every class, and each method of these classes whose name a
   reached method calls.
2. A reached method writes X if it contains ``self.X = ...`` or another assignment to it.
3. X is not of the calls if a reached method asks for ``self.X is None``, since its value then is a
   default that a user can replace.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from typing import Any, NamedTuple

from torch import nn

_LIBRARIES = ("torch.", "transformers.modeling_utils")


class _Method(NamedTuple):
    """Names in the source of a method: called, of attributes written, of those asked for None."""

    name: str
    calls: frozenset[str]
    writes: frozenset[str]
    asks: frozenset[str]


def written_by_calls(model: nn.Module) -> dict[type, frozenset[str]]:
    """Attributes by the class of a module that calls of the model write.

    Args:
        model: any; classes without source write nothing.
    """
    kinds: set[Any] = {type(module) for module in model.modules()}
    methods = {kind: _methods(kind) for kind in kinds}
    reached, new = set[str](), {"forward"}
    while new:
        reached |= new
        called = [m.calls for found in methods.values() for m in found if m.name in reached]
        new = set[str]().union(*called) - reached
    return {
        kind: frozenset()
        .union(*(m.writes for m in found if m.name in reached))
        .difference(*(m.asks for m in found if m.name in reached))
        for kind, found in methods.items()
    }


@functools.cache
def _methods(kind: Any) -> tuple[_Method, ...]:
    """The methods of a class and its bases, without those of torch and of all models."""
    found = []
    for base in kind.__mro__:
        if base is object or f"{base.__module__}.".startswith(_LIBRARIES):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):
            continue  # made without a file
        found += [
            _method(each)
            for each in getattr(tree, "body", ())
            if isinstance(each, ast.FunctionDef) and each.name != "__init__"
        ]
    return tuple(found)


def _method(tree: ast.FunctionDef) -> _Method:
    nodes = list(ast.walk(tree))
    calls = {
        node.func.attr
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    writes = {
        name
        for node in nodes
        if (name := _own(node)) and isinstance(node.ctx, ast.Store)  # type: ignore[attr-defined]
    }
    asks = {
        name
        for node in nodes
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Is)
        and (name := _own(node.left))
    }
    return _Method(tree.name, frozenset(calls), frozenset(writes), frozenset(asks))


def _own(node: ast.AST) -> str | None:
    """The name of an attribute of ``self``; None for other expressions."""
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return node.attr if is_own and node.value.id == "self" else None  # type: ignore[attr-defined]
