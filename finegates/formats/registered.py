"""Descriptions that a process registered, as text in a folder, for other processes."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from finegates.adapters.printed import registration
from finegates.adapters.registered import registered, registered_in

KEY = "descriptions"
"""The entry of a structure that holds the code; it is shown, and never run."""

_Error = TypeVar("_Error", bound=Exception)


def descriptions_of(model: nn.Module) -> dict[str, str]:
    """The entry for a model whose modules have registered descriptions; empty without."""
    specs = registered_in(model)
    return {KEY: registration(specs)} if specs else {}


def unregistered(structure: Mapping[str, Any]) -> str:
    """What to do about descriptions of a folder that this process lacks, for messages.

    Args:
        structure: of a model that cannot be rebuilt.

    Returns:
        one line without code (see :func:`with_code`); empty if the process has all descriptions
        that the structure stores.
    """
    missing = _missing(structure)
    if not missing:
        return ""
    return (
        f"the descriptions of {', '.join(missing)}, which the model was made with, are not known "
        "to this process; register them before loading (finegates.adapters.register), or on the "
        "command line with --specs FILE.py; their code is the text of the entry "
        f"{KEY!r} in finegates.json, which is never run by itself"
    )


def with_code(error: _Error, structure: Mapping[str, Any]) -> _Error:
    """Adds the code of descriptions that the process lacks to an error, as a note to read.

    Args:
        error: about to be raised.
        structure: of the model that cannot be rebuilt.

    Returns:
        the same error.
    """
    if _missing(structure):
        error.add_note(f"from finegates.adapters import *\n{structure[KEY]}")
    return error


def _missing(structure: Mapping[str, Any]) -> list[str]:
    """Classes whose stored descriptions are not those of this process."""
    stored = structure.get(KEY)
    known = set() if stored is None else _specs(registration(registered()))
    found = set() if stored is None else _specs(stored)
    classes = {
        name.value
        for text in found - known
        for name in ast.walk(_keyword(text, "classes"))
        if isinstance(name, ast.Constant)
    }
    return sorted(map(str, classes))


def _specs(code: Any) -> set[str]:
    """The specs in a call of ``register``, each as normalised text; empty for other texts."""
    try:
        (line,) = ast.parse(code).body
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return set()
    call = getattr(line, "value", None)
    return {ast.unparse(spec) for spec in call.args} if isinstance(call, ast.Call) else set()


def _keyword(code: str, name: str) -> ast.AST:
    """The value of a keyword in a call; without it, the whole call."""
    call = ast.parse(code, mode="eval").body
    given = {keyword.arg: keyword.value for keyword in getattr(call, "keywords", ())}
    return given.get(name, call)
