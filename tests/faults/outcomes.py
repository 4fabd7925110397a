"""Outcomes of faults, and their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from comparison import differences, fragments
from scratch import Scratch

from finegates.suite.jobs.seals import damaged

Expected = Literal["recovers", "refuses"]


@dataclass(frozen=True)
class Outcome:
    """One fault and its outcome.

    Attributes:
        fault: a description of the fault.
        where: the file that it hit, or the step that was running.
        expected: ``recovers`` (the same command again gives the undisturbed results) or ``refuses``
            (an error names the thing and the remedy, and nothing is written).
        found: the same words, or others.
        message: the message that the user reads.
    """

    fault: str
    where: str
    expected: Expected
    found: str
    message: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether the outcome is the expected one."""
        return self.found == self.expected


def recovery(scratch: Scratch, whole: Scratch, status: int) -> tuple[str, str]:
    """Whether a finished run left the undisturbed results, and the message if not."""
    if status:
        return "fails", scratch.errors()
    wrong = differences(scratch.results, whole.results)
    wrong += [f"{name}: left behind" for name in fragments(scratch.results)]
    wrong += damaged(scratch.results)[1]
    return ("differs", "; ".join(wrong[:3])) if wrong else ("recovers", "")


def refusal(scratch: Scratch, status: int, *named: str) -> tuple[str, str]:
    """Whether a run refused clearly: it failed, named the required words, showed no traceback."""
    told = scratch.errors()
    message = re.sub(r"\b\d+ \((\S+)\)", r"12345 (\1)", told)  # process ids
    if not status:
        return "goes on", message
    missing = [name for name in named if name not in told]
    if missing or "Traceback" in told:
        return f"fails, without naming {', '.join(missing)}", message
    return "refuses", message
