"""Detects modules that use ``layer.weight`` without calling the layer.

A gate around such a layer would be bypassed: it would train without effect, and the compact layer's
weight would have a size that the reader does not expect. Reads are found in the source of the
module's forward, of the methods that it calls, and of the functions that it gives layers to. Reads
that the source hides are found by a forward pass (:mod:`finegates.gates.bypass`).
"""

from __future__ import annotations

import ast
import fnmatch
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_NUMBERS = ("weight", "bias")
# These use `layer.weight` in code that is not Python, the second in evaluation only.
_KNOWN = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
# Attributes of a tensor that do not read its values.
HARMLESS = (
    "dtype", "device", "shape", "size", "dim", "ndim", "numel", "is_cuda", "element_size",
    "is_meta", "layout", "requires_grad", "stride", "is_contiguous", "is_floating_point",
)  # fmt: skip
_QUANTISED = "is_quantized"
HARMLESS_CALLS = ("isinstance", "hasattr", "type", "to", "type_as", "id")


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
        if _names(read, inside):
            return outer, not _names(called, inside)
    return None


def _names(paths: Iterable[str], inside: str) -> bool:
    """Whether the path of a layer matches one of the paths, whose parts may be patterns."""
    parts = inside.split(".")
    for path in paths:
        patterns = path.split(".")
        if len(patterns) == len(parts) and all(map(fnmatch.fnmatchcase, parts, patterns)):
            return True
    return False


_Bound = frozenset[tuple[str, frozenset[str]]]
"""What the parameters of a function are: paths from the module, which itself has the path ""."""


@cache
def _uses(module: type[nn.Module]) -> tuple[frozenset[str], frozenset[str]]:
    """Paths that the forward of a module class reads, and those that it calls.

    Paths are relative to the module. A layer chosen by an index or a computed name has a pattern
    with ``*`` as that part of its path.
    """
    kinds = module.__mro__[: module.__mro__.index(nn.Module)]
    read, called = set[str](), set[str]()
    wanted: list[tuple[Any, _Bound]] = []
    seen = set[tuple[int, _Bound]]()
    for kind in kinds:
        first = _parameters(method_source(vars(kind).get("forward")))[:1]
        wanted += [(vars(kind)["forward"], frozenset({(first[0], frozenset({""}))})) for _ in first]
    while wanted:
        function, bound = wanted.pop()
        source = method_source(function)
        if source is None or (id(function), bound) in seen:
            continue
        seen.add((id(function), bound))
        reader = _Reader(source, bound)
        read.update(reader.reads())
        for call in reader.calls():
            paths = reader.paths(call.func)
            called.update(paths)
            # A method of self has the same syntax as a layer.
            for method in (vars(kind).get(path) for path in paths for kind in kinds):
                bare = getattr(method, "__func__", method)
                wanted.append((bare, reader.given(call, bare, isinstance(method, staticmethod))))
            plain = _named_function(call.func, function)
            given = reader.given(call, plain, True)
            if given:
                wanted.append((plain, given))
    return frozenset(read), frozenset(called)


def _named_function(name: ast.expr, function: Any) -> Any:
    """The Python function outside torch that a name in the code of another means, or None."""
    found: Any = None
    names = getattr(inspect.unwrap(function), "__globals__", {})
    if isinstance(name, ast.Name):
        found = names.get(name.id)
    elif isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name):
        owner = names.get(name.value.id)
        if inspect.ismodule(owner) or inspect.isclass(owner):
            found = getattr(owner, name.attr, None)
    known = inspect.isfunction(found) and not found.__module__.startswith("torch.")
    return found if known else None


@cache
def method_source(method: object) -> ast.FunctionDef | None:
    """The syntax tree of a method without its decorators, or None without source."""
    if not callable(method):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method))))
    except (OSError, TypeError, SyntaxError):  # generated code
        return None
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef)), None)


def _parameters(function: ast.FunctionDef | None) -> list[str]:
    if function is None:
        return []
    return [each.arg for each in (*function.args.posonlyargs, *function.args.args)]


class _Reader:
    """Collects the layers of a module that one of its functions reads or calls.

    Args:
        function: the syntax tree.
        bound: its parameters that are the module or layers of it.
    """

    def __init__(self, function: ast.FunctionDef, bound: _Bound) -> None:
        self._function = function
        self._paths: dict[str, set[str]] = {name: set(paths) for name, paths in bound}
        self._given = set(self._paths)
        self._listed: dict[str, set[str]] = {}
        self._words: dict[str, set[str]] = {}
        self._parents = {
            child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)
        }
        # Branches for quantised layers only, which get no gates.
        self._aside = {
            node
            for branch in ast.walk(function)
            if isinstance(branch, ast.If)
            and not isinstance(branch.test, ast.UnaryOp)
            and _QUANTISED in ast.unparse(branch.test)
            for statement in branch.body
            for node in ast.walk(statement)
        }
        for node in ast.walk(function):  # aliases of layers, in source order
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bind(target, node.value)
            elif isinstance(node, ast.NamedExpr):
                self._bind(node.target, node.value)
            elif isinstance(node, ast.For | ast.comprehension):
                self._bind_each(node.target, node.iter)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name) and target.id not in self._given:
            self._paths.setdefault(target.id, set()).update(self.paths(value))
            if isinstance(value, ast.Tuple | ast.List):
                inside = [path for each in value.elts for path in self.paths(each)]
                self._listed.setdefault(target.id, set()).update(inside)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                self._words.setdefault(target.id, set()).add(value.value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=False):
                self._bind(one, other)

    def _bind_each(self, target: ast.expr, values: ast.expr) -> None:
        """Binds the target of a loop over values."""
        if isinstance(values, ast.Tuple | ast.List):
            for value in values.elts:
                self._bind(target, value)
        elif isinstance(values, ast.Call) and isinstance(target, ast.Tuple):
            name = ast.unparse(values.func).rpartition(".")[2]
            if name == "zip":
                for one, other in zip(target.elts, values.args, strict=False):
                    self._bind_each(one, other)
            elif name == "enumerate" and values.args:
                self._bind_each(target.elts[-1], values.args[0])
            elif name in ("items", "named_children") and isinstance(values.func, ast.Attribute):
                self._bind_each(target.elts[-1], values.func.value)
        elif isinstance(target, ast.Name):
            listed = self._listed.get(values.id) if isinstance(values, ast.Name) else None
            paths = listed or {f"{path}.*".lstrip(".") for path in self.paths(values)}
            self._paths.setdefault(target.id, set()).update(paths)

    def reads(self) -> Iterator[str]:
        """Paths of layers whose values are read."""
        for node in ast.walk(self._function):
            if (
                isinstance(node, ast.Attribute)
                and node not in self._aside
                and node.attr in _NUMBERS
                and isinstance(node.ctx, ast.Load)
                and not self._is_harmless(node)
            ):
                yield from self.paths(node.value) - {""}
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "getattr"
                and node not in self._aside
                and self._named(node.args[1]) & {*_NUMBERS}
                and not self._is_harmless(node)
            ):
                yield from self.paths(node.args[0]) - {""}

    def calls(self) -> Iterator[ast.Call]:
        """Calls, without those for quantised layers."""
        for node in ast.walk(self._function):
            if isinstance(node, ast.Call) and node not in self._aside:
                yield node

    def given(self, call: ast.Call, function: Any, plain: bool) -> _Bound:
        """Binds the parameters of a function to the arguments of a call, ``self`` excluded."""
        names = _parameters(method_source(function))
        bound: dict[str, set[str]] = {} if plain or not names else {names[0]: {""}}
        for name, value in zip(names[not plain :], call.args, strict=False):
            bound[name] = self.paths(value)
        bound.update((each.arg, self.paths(each.value)) for each in call.keywords if each.arg)
        return frozenset((name, frozenset(paths)) for name, paths in bound.items() if paths)

    def paths(self, node: ast.expr) -> set[str]:
        """The paths from the module that an expression may name."""
        if isinstance(node, ast.Name):
            return self._paths.get(node.id, set())
        if isinstance(node, ast.IfExp):
            return self.paths(node.body) | self.paths(node.orelse)
        if isinstance(node, ast.NamedExpr):
            return self.paths(node.value)
        if isinstance(node, ast.Attribute):
            return self._inside(node.value, {node.attr})
        if isinstance(node, ast.Subscript):
            if isinstance(node.value, ast.Name) and self._listed.get(node.value.id):
                return self._listed[node.value.id]
            fixed = isinstance(node.slice, ast.Constant)
            return self._inside(node.value, {str(node.slice.value) if fixed else "*"}) - {"*"}  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "getattr" and len(node.args) > 1:
                return self._inside(node.args[0], self._named(node.args[1]))
            if isinstance(node.func, ast.Attribute) and name in ("values", "children"):
                return self.paths(node.func.value)
        return set()

    def _inside(self, outer: ast.expr, names: set[str]) -> set[str]:
        return {f"{path}.{name}".lstrip(".") for path in self.paths(outer) for name in names}

    def _named(self, node: ast.expr) -> set[str]:
        """The names, or patterns of names, that an expression may be."""
        if isinstance(node, ast.Constant):
            return {str(node.value)}
        if isinstance(node, ast.Name):
            return self._words.get(node.id, {"*"})
        if isinstance(node, ast.JoinedStr):
            return {"".join(str(getattr(part, "value", "*")) if isinstance(part, ast.Constant)
                            else "*" for part in node.values)}  # fmt: skip
        return {"*"}

    def _is_harmless(self, node: ast.expr) -> bool:
        parent = self._parents.get(node)
        if isinstance(parent, ast.Attribute):
            return parent.attr in HARMLESS
        if isinstance(parent, ast.Call) and node in parent.args:
            name = ast.unparse(parent.func).rpartition(".")[2]
            return name in HARMLESS_CALLS
        if isinstance(parent, ast.Compare):
            return all(isinstance(operator, ast.Is | ast.IsNot) for operator in parent.ops)
        return False
