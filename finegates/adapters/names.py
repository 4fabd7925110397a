"""Names of classes in specs."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def names_of(kind: Any) -> tuple[str, ...]:
    """The names in specs that a module of a class can have."""
    return tuple(class_name(known) for known in kind.__mro__)


def class_name(known: type) -> str:
    """The name of a class in specs."""
    package = known.__module__.rpartition(".")[0]
    if package.startswith("transformers.models."):
        return f"{package.removeprefix('transformers.models.')}.{known.__name__}"
    return f"{known.__module__}.{known.__qualname__}"
