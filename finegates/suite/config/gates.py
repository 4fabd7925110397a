"""Gate settings of a method: the fields of the library's ``GateConfig``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from finegates.gates.config import Dimensions, GateConfig
from finegates.gates.prices import Cost
from finegates.suite.config.section import Section

PresetName = Literal["reference", "paper_v1", "structured"]
"""The keys of ``finegates.gates.presets.PRESETS``."""


_LATER = ("dimensions", "uniform", "multiple_of", "width", "parts", "target_time", "cost")
"""Settings that are left out of dumps at their default: runs from before have the same parameters
as later ones that do not set them."""


class GateFields(Section):
    """Gate settings that mirror the fields of ``finegates.GateConfig``.

    Attributes:
        cost: the numbers of a cost model, as ``finegates.CostModel.save`` writes them; measured
            once, so that every machine closes the same gates.
    """

    preset: PresetName
    penalty_weight: float = Field(default=GateConfig.penalty_weight, ge=0)
    noise_std: float | None = Field(default=GateConfig.noise_std, ge=0)
    schedule: tuple[float, float, float, float] = GateConfig.schedule
    dimensions: Dimensions = GateConfig.dimensions
    uniform: bool = GateConfig.uniform
    multiple_of: int | None = Field(default=GateConfig.multiple_of, gt=0)
    width: bool = GateConfig.width
    parts: bool = GateConfig.parts
    target_time: float | None = Field(default=GateConfig.target_time, gt=0, le=1)
    cost: dict[str, float | int | str | None] | None = None

    @model_validator(mode="after")
    def _shared(self) -> GateFields:
        given = [name for name in _LATER if self._differs(name)]
        if given and self.preset != "structured":
            raise ValueError(f"{given[0]} goes with preset 'structured', not {self.preset!r}")
        if self.multiple_of is not None and not self.uniform:
            raise ValueError("multiple_of goes with uniform: true")
        if self.width and self.uniform:
            raise ValueError("width does not go with uniform: true")
        if self.target_time is not None and self.cost is None:
            raise ValueError("target_time goes with cost, the numbers of a cost model")
        if self.cost is not None:
            _cost_model(self.cost)  # raises ValueError
            if self.uniform:
                raise ValueError("cost does not go with uniform: true")
        return self

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        kept = (name for name in values if name not in _LATER or self._differs(name))
        return {name: values[name] for name in kept}

    def _differs(self, name: str) -> bool:
        """Whether a setting differs from the library's default."""
        return bool(getattr(self, name) != getattr(GateConfig, name))

    def gate_config(self, target: float | None = None, **further: Any) -> GateConfig:
        """The library's configuration of these gates.

        Args:
            target: target sparsity; None takes the section's own.
            further: fields that the section does not have, or overrides.
        """
        known = GateConfig.__dataclass_fields__
        values = {name: getattr(self, name) for name in type(self).model_fields if name in known}
        if target is not None:
            values["target"] = target
        if self.cost is not None:
            values["cost"] = _cost_model(self.cost)
        return GateConfig(**values | further)


def _cost_model(values: dict[str, Any]) -> Cost:
    from finegates.compaction import CostModel  # needs torch, which tables do without

    return CostModel.of(values)
