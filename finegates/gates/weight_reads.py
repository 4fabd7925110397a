"""Detects modules that use ``layer.weight`` without calling the layer.

A gate around such a layer would be bypassed: it would train without effect, and the compact layer's
weight would have a size that the reader does not expect. Reads are found in the source of the
module's forward and of the methods that it calls.
"""

from __future__ import annotations

import ast
import fnmatch
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_NUMBERS = ("weight", "bias")
# These use `layer.weight` in code that is not Python, the second in evaluation only.
_KNOWN = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
# Attributes of a tensor that do not read its values.
_HARMLESS = (
    "dtype", "device", "shape", "size", "dim", "ndim", "numel", "is_cuda", "element_size",
    "is_meta", "layout", "requires_grad", "stride", "is_contiguous", "is_floating_point",
)  # fmt: skip
_QUANTISED = "is_quantized"
_HARMLESS_CALLS = ("isinstance", "hasattr", "type", "to", "type_as", "id")


def weight_reader(model: nn.Module, name: str) -> tuple[nn.Module, bool] | None:
    """Finds the parent module that reads a layer's weight or bias directly, or None.

    Args:
        model: contains the layer.
        name: the layer's path.

    Returns:
        the module, and whether it never calls the layer; if it does, only some of its branches read
        the weight.
    """
    around = model.get_submodule(name.rpartition(".")[0])
    # torch marks the output projection of its attention by this class, and copies of it do, too.
    marked = isinstance(model.get_submodule(name), NonDynamicallyQuantizableLinear)
    if marked or isinstance(around, _KNOWN):
        return around, True
    parts = name.split(".")
    for depth in range(len(parts)):
        outer = model.get_submodule(".".join(parts[:depth]))
        inside = ".".join(parts[depth:])
        read, called = _uses(type(outer))  # type: ignore[arg-type]
        if any(fnmatch.fnmatchcase(inside, path) for path in read):
            return outer, not any(fnmatch.fnmatchcase(inside, path) for path in called)
    return None


@cache
def _uses(module: type[nn.Module]) -> tuple[frozenset[str], frozenset[str]]:
    """Paths that the forward of a module class reads, and those that it calls.

    Paths are relative to the module. A layer chosen by an index has ``*`` in its path.
    """
    kinds = module.__mro__[: module.__mro__.index(nn.Module)]
    read, called = set[str](), set[str]()
    wanted, seen = ["forward"], set[str]()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for method in (method_source(vars(kind)[name]) for kind in kinds if name in vars(kind)):
            if method is not None:
                found = _Reader(method)
                read.update(found.reads())
                called.update(found.calls())
                wanted.extend(found.calls())  # a method of self has the same syntax as a layer
    return frozenset(read), frozenset(called)


def method_source(method: object) -> ast.FunctionDef | None:
    """The syntax tree of a method without its decorators, or None without source."""
    if not callable(method):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method))))
    except (OSError, TypeError, SyntaxError):  # generated code
        return None
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef)), None)


class _Reader:
    """Collects the layers of ``self`` that one method reads or calls."""

    def __init__(self, method: ast.FunctionDef) -> None:
        self._method = method
        self._paths: dict[str, str] = {"self": ""}
        self._parents = {
            child: node for node in ast.walk(method) for child in ast.iter_child_nodes(node)
        }
        # Branches for quantised layers only, which get no gates.
        self._aside = {
            node
            for branch in ast.walk(method)
            if isinstance(branch, ast.If)
            and not isinstance(branch.test, ast.UnaryOp)
            and _QUANTISED in ast.unparse(branch.test)
            for statement in branch.body
            for node in ast.walk(statement)
        }
        for node in ast.walk(method):  # aliases of layers, in source order
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bind(target, node.value, "")
            elif isinstance(node, ast.For | ast.comprehension):
                self._bind(node.target, node.iter, ".*")

    def _bind(self, target: ast.expr, value: ast.expr, inside: str) -> None:
        path = self._path(value)
        if isinstance(target, ast.Name) and path and target.id != "self":
            self._paths[target.id] = f"{path}{inside}"

    def reads(self) -> Iterator[str]:
        """Paths of layers whose values are read."""
        for node in ast.walk(self._method):
            if (
                isinstance(node, ast.Attribute)
                and node not in self._aside
                and node.attr in _NUMBERS
                and isinstance(node.ctx, ast.Load)
                and (path := self._path(node.value))
                and not self._is_harmless(node)
            ):
                yield path

    def calls(self) -> Iterator[str]:
        """Paths that are called."""
        for node in ast.walk(self._method):
            if (
                isinstance(node, ast.Call)
                and node not in self._aside
                and (path := self._path(node.func))
            ):
                yield path

    def _path(self, node: ast.expr) -> str | None:
        """The path from ``self`` that an expression names, or None."""
        if isinstance(node, ast.Name):
            return self._paths.get(node.id)
        if isinstance(node, ast.Attribute):
            outer = self._path(node.value)
            return None if outer is None else f"{outer}.{node.attr}".lstrip(".")
        if isinstance(node, ast.Subscript):
            outer = self._path(node.value)
            index = str(node.slice.value) if isinstance(node.slice, ast.Constant) else "*"
            return f"{outer}.{index}" if outer else None
        return None

    def _is_harmless(self, node: ast.expr) -> bool:
        parent = self._parents.get(node)
        if isinstance(parent, ast.Attribute):
            return parent.attr in _HARMLESS
        if isinstance(parent, ast.Call) and node in parent.args:
            name = ast.unparse(parent.func).rpartition(".")[2]
            return name in _HARMLESS_CALLS
        if isinstance(parent, ast.Compare):
            return all(isinstance(operator, ast.Is | ast.IsNot) for operator in parent.ops)
        return False
