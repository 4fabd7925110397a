"""An A/A control of time measurements: one contender is timed twice.

The control is interleaved with the other contenders. If its median differs from that of the same
model by more than :data:`LIMIT`, the machine was too noisy. Tables and verdicts then do not use the
ratios of this measurement.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

CONTROL = "control"
"""Name of the A/A control: one of the models, timed a second time."""

LIMIT = 0.05
"""Largest relative difference of the control's median from that of the same model."""

Run = Callable[[], object]


def with_control(contenders: Mapping[str, Run], of: str) -> dict[str, Run]:
    """Adds one of the contenders a second time, at the end of each round.

    Contenders that are close in a round see the same state of the machine, so the control is kept
    apart from the contender that it repeats.

    Args:
        contenders: contenders by name.
        of: name of the contender to repeat.

    Raises:
        ValueError: a contender is already named :data:`CONTROL`.
    """
    if CONTROL in contenders:
        raise ValueError(f"no contender but the control may be called {CONTROL!r}")
    return {**contenders, CONTROL: contenders[of]}


def is_noisy(ratio: float) -> bool:
    """Whether a control's ratio to its model is off by more than the limit."""
    return abs(ratio - 1.0) > LIMIT


def load_average() -> float | None:
    """Load average of the last minute, None if it is unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def load_note(machine: Mapping[str, Any]) -> str:
    """A sentence on the machine's load during a measurement, empty if unknown.

    Args:
        machine: see ``finegates.suite.runs.machine.hardware``, with ``load``: load averages before,
            between and after measurements.
    """
    loads = [load for load in machine.get("load", ()) if load is not None]
    if not loads:
        return ""
    return (
        f"The machine's load average was between {min(loads):.1f} and {max(loads):.1f}, the "
        "measurement's own process included. "
    )
