"""The values of a configuration by their place, and copies in which one of them is another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel


def leaves(
    section: BaseModel, at: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """The place of every value of a configuration, with the class of its section and its key."""
    for key in type(section).model_fields:
        value = getattr(section, key)
        entries: Any = {key: value}
        if isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            entries = {(key, name): entry for name, entry in value.items()}
        elif isinstance(value, list) and isinstance(value[0] if value else None, BaseModel):
            entries = {(key, place): entry for place, entry in enumerate(value)}
        for step, entry in entries.items():
            place = (*at, *(step if isinstance(step, tuple) else (step,)))
            if isinstance(entry, BaseModel):
                yield from leaves(entry, place)
            elif entry is not None or not is_section(type(section), key):
                yield place, type(section).__name__, key


def is_section(owner: type[BaseModel], key: str) -> bool:
    return bool(sections(owner.model_fields[key].annotation))


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for part in getattr(annotation, "__args__", ()) for s in sections(part)]


def changed(owner: Any, place: tuple[Any, ...]) -> Any:
    """A copy of a configuration with a different value at one place."""
    key, *rest = place
    if isinstance(owner, BaseModel):
        value = getattr(owner, key)
        return owner.model_copy(update={key: changed(value, tuple(rest)) if rest else other(value)})
    copy = dict(owner) if isinstance(owner, dict) else list(owner)
    copy[key] = changed(owner[key], tuple(rest))
    return copy


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, dict):
        return {**value, "cola": 9}
    if isinstance(value, list | tuple):
        return value[::-1] if len(value) > 1 else type(value)((*value, *value) or ("changed",))
    return "changed"
