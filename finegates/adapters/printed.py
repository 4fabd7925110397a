"""Specs as code to paste."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


def registration(specs: Iterable[Any]) -> str:
    """A call of :func:`finegates.adapters.register` with these specs."""
    return "\n".join(["register(", *(f"    {as_code(spec, 4)}," for spec in specs), ")"])


def program(specs: Sequence[Any]) -> str:
    """A program that registers these specs; runs by itself."""
    code = registration(specs)
    names = {"register", *_names(specs)}
    return f"from finegates.adapters import {', '.join(sorted(names))}\n\n{code}"


def _names(value: Any) -> Iterator[str]:
    """Names of the package that the code of a value has in it."""
    if dataclasses.is_dataclass(value):
        yield type(value).__name__
        for each in dataclasses.fields(value):
            yield from _names(getattr(value, each.name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _names(each)
    elif callable(value):
        yield str(value.__name__)


def as_code(spec: Any, indent: int) -> str:
    """A spec as a call with what differs from the defaults, in lines of at most 88 characters."""
    values = []
    for each in dataclasses.fields(spec):
        value = getattr(spec, each.name)
        default = (
            each.default_factory()
            if each.default_factory is not dataclasses.MISSING
            else each.default
        )
        if value != default:
            values.append(f"{each.name}={_shown(value, indent + 4)}")
    name = type(spec).__name__
    line = f"{name}({', '.join(values)})"
    if indent + len(line) < 88:
        return line
    inside = "".join(f"{' ' * (indent + 4)}{value},\n" for value in values)
    return f"{name}(\n{inside}{' ' * indent})"


def _shown(value: Any, indent: int) -> str:
    if dataclasses.is_dataclass(value):
        return as_code(value, indent)
    if callable(value):
        return str(value.__name__)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        inside = ", ".join(_shown(each, indent) for each in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)}: {_shown(each, indent)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    return repr(value)
