"""What every section of a configuration or a record is: a strict, frozen model."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from finegates.suite.config.names import check_hub


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, raw: Any) -> Any:
        """Pydantic would take true for 1."""
        for name, value in raw.items() if isinstance(raw, dict) else ():
            field = cls.model_fields.get(str(name))
            kind = "" if field is None else str(field.annotation)
            if not re.search(r"\b(int|float)\b", kind) or "bool" in kind:
                continue
            entries = value if isinstance(value, list) else [value]
            entries = list(value.values()) if isinstance(value, dict) else entries
            if any(isinstance(entry, bool) for entry in entries):
                raise ValueError(f"{name} is no switch: give a number, not true or false")
        return raw


Fraction = Annotated[float, Field(ge=0, le=1)]

Count = Annotated[int, Field(ge=0)]


def exactly_one(section: BaseModel, names: tuple[str, ...]) -> None:
    """Raises ValueError unless exactly one of the named entries is given."""
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}; got {given or 'none'}")


def pinned(hub: str | None, revision: str | None) -> None:
    """Raises ValueError unless a hub entry, and nothing else, has a full commit hash."""
    if hub is not None:
        check_hub(hub)
    if hub is not None and not (revision and re.fullmatch("[0-9a-f]{40}", revision)):
        raise ValueError(f"hub entry {hub!r} needs a revision pinned as a 40-digit commit hash")
    if hub is None and revision is not None:
        raise ValueError("revision belongs to a hub entry only")


def source_kind(source: Section) -> str:
    """Which of a section's sources is given, such as ``path``: what a record calls it."""
    for kind in ("generated", "pretraining", "dense", "pypi", "path", "package", "hub"):
        if getattr(source, kind, None) is not None:
            return kind
    raise AssertionError("validated configurations have a source")
