"""Base classes of sections of a configuration or a record."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from finegates.suite.config.names import check_hub


class Section(BaseModel):
    """A strict, frozen model: unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, raw: Any) -> Any:
        """Rejects booleans as numbers, because pydantic converts true to 1."""
        for name, value in raw.items() if isinstance(raw, dict) else ():
            field = cls.model_fields.get(str(name))
            kind = "" if field is None else str(field.annotation)
            if not re.search(r"\b(int|float)\b", kind) or "bool" in kind:
                continue
            entries = value if isinstance(value, list) else [value]
            entries = list(value.values()) if isinstance(value, dict) else entries
            if any(isinstance(entry, bool) for entry in entries):
                raise ValueError(f"{name} is not a switch: give a number, not true or false")
        return raw


Fraction = Annotated[float, Field(ge=0, le=1)]

Count = Annotated[int, Field(ge=0)]


def exactly_one(section: BaseModel, names: tuple[str, ...]) -> None:
    """Raises ValueError unless exactly one of the named entries is given."""
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}; got {given or 'none'}")


class Source(Section):
    """The source of a model, data set or tokenizer: exactly one kind is given.

    Attributes:
        path: a folder, relative to the repository.
        hub: a hub id.
        revision: commit hash of the hub repository, 40 digits.
    """

    SOURCES: ClassVar[tuple[str, ...]] = ("path", "hub")
    """The keys of which exactly one is given."""

    path: str | None = None
    hub: str | None = None
    revision: str | None = None

    @property
    def kind(self) -> str:
        """The key of the given source, such as ``path``, as records name it."""
        return next(name for name in self.SOURCES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        exactly_one(self, self.SOURCES)
        if self.hub is not None:
            check_hub(self.hub)
            if not (self.revision and re.fullmatch("[0-9a-f]{40}", self.revision)):
                raise ValueError(
                    f"hub entry {self.hub!r} needs a revision pinned as a 40-digit commit hash"
                )
        elif self.revision is not None:
            raise ValueError("revision belongs to a hub entry only")
        return self
