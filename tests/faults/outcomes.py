"""What came of a fault, and the words for it."""

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
    """One fault and what came of it.

    Attributes:
        fault: what was done.
        where: to which file, or while what was running.
        expected: ``recovers``: the same command once more, and everything is as undisturbed;
            ``refuses``: an error that names thing and remedy, and nothing is written.
        found: the same words, or others.
        message: what the user reads.
    """

    fault: str
    where: str
    expected: Expected
    found: str
    message: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether it was what was hoped for."""
        return self.found == self.expected


def recovery(scratch: Scratch, whole: Scratch, status: int) -> tuple[str, str]:
    """Whether a run that has ended left what an undisturbed one leaves, and the message if not."""
    if status:
        return "fails", scratch.errors()
    wrong = differences(scratch.results, whole.results)
    wrong += [f"{name}: left behind" for name in fragments(scratch.results)]
    wrong += damaged(scratch.results)[1]
    return ("differs", "; ".join(wrong[:3])) if wrong else ("recovers", "")


def refusal(scratch: Scratch, status: int, *named: str) -> tuple[str, str]:
    """Whether a run that has ended refused clearly: failed, named what it should, no traceback."""
    told = scratch.errors()
    message = re.sub(r"\b\d+ \((\S+)\)", r"12345 (\1)", told)  # processes' numbers
    if not status:
        return "goes on", message
    missing = [name for name in named if name not in told]
    if missing or "Traceback" in told:
        return f"fails, without naming {', '.join(missing)}", message
    return "refuses", message
