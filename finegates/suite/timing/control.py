"""An A/A control of measured times: one contender timed twice, which must not differ from itself.

The control takes its turns with the others. Where its median is off by more than :data:`LIMIT`, the
machine was too restless for ratios of that measurement, and neither tables nor verdicts rest on
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

CONTROL = "control"
"""The name of the contender that is another one, timed again."""

LIMIT = 0.05
"""How far the control's median may be off, relative to the same model's."""

Run = Callable[[], object]


def with_control(contenders: Mapping[str, Run], of: str) -> dict[str, Run]:
    """The contenders with one of them a second time, at the end of each round.

    At the end, because neighbours in a round share what the machine does in the meantime.

    Args:
        contenders: by name.
        of: whose control it is.

    Raises:
        ValueError: a contender is called :data:`CONTROL` already.
    """
    if CONTROL in contenders:
        raise ValueError(f"no contender but the control may be called {CONTROL!r}")
    return {**contenders, CONTROL: contenders[of]}


def is_noisy(ratio: float) -> bool:
    """Whether a control's median, relative to the same model's, is off by more than the limit."""
    return abs(ratio - 1.0) > LIMIT


def load_average() -> float | None:
    """Processes that have run or waited for a CPU in the last minute; None where unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def load_note(machine: Mapping[str, Any]) -> str:
    """A sentence on the load of a measurement's machine; empty for one that did not record it.

    Args:
        machine: as of ``finegates.suite.runs.machine.hardware``, with ``load``: averages before,
            after and between measurements.
    """
    loads = [load for load in machine.get("load", ()) if load is not None]
    if not loads:
        return ""
    return (
        f"The machine's load average was between {min(loads):.1f} and {max(loads):.1f}, the "
        "measurement's own process included. "
    )
