"""Settings of gates that every method with gates has: those of the library's ``GateConfig``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finegates.gates.config import GateConfig
from finegates.suite.config.section import Section

PresetName = Literal["reference", "paper_v1", "structured"]
"""The keys of ``finegates.gates.presets.PRESETS``."""


class GateFields(Section):
    """Settings of gates, each named, defaulted and described as in ``finegates.GateConfig``."""

    preset: PresetName
    penalty_weight: float = Field(default=GateConfig.penalty_weight, ge=0)
    noise_std: float | None = Field(default=GateConfig.noise_std, ge=0)
    schedule: tuple[float, float, float, float] = GateConfig.schedule

    def gate_config(self, target: float | None = None, **further: Any) -> GateConfig:
        """The library's configuration of these gates.

        Args:
            target: sparsity to aim at; None takes the section's own.
            further: fields that the section does not have, or that differ from it.
        """
        known = GateConfig.__dataclass_fields__
        values = {name: getattr(self, name) for name in type(self).model_fields if name in known}
        if target is not None:
            values["target"] = target
        return GateConfig(**values | further)
