"""SIGKILL at random moments, repeated until the workflow finishes."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from comparison import differences
from outcomes import Outcome, recovery
from scratch import Scratch, ended, kill

LONGEST = 0.25
"""The longest time before a kill, as a fraction of an undisturbed run's time."""


@dataclass
class Kills:
    """The result of a series of kills.

    Attributes:
        at: the running rules, one entry for each kill.
        outcomes: of the killed runs, each at its end.
    """

    at: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def kill_at_random(
    folder: Path, whole: Scratch, count: int, *, seed: int, duration: float
) -> Kills:
    """Kills runs from scratch ``count`` times, and lets the last of them finish.

    After each kill every file must be complete. The next run must continue from them.

    Args:
        folder: for the working copies.
        whole: an undisturbed run.
        count: number of kills.
        seed: of the moments.
        duration: of an undisturbed run on one core, in seconds.
    """
    draw = random.Random(seed)
    kills = Kills()
    while len(kills.at) < count:
        scratch = Scratch(folder / f"killed-{len(kills.at)}")
        first = len(kills.at)
        torn: list[str] = []
        status = None
        while status is None and len(kills.at) < count:
            with ended(scratch.start()) as process:
                try:
                    status = process.wait(timeout=draw.uniform(0.0, LONGEST * duration))
                except subprocess.TimeoutExpired:
                    kills.at.append(scratch.at_work())
                    kill(process)
                    torn += differences(scratch.results, whole.results, finished=False)
        if status is None:
            status = scratch.run()
        found, message = recovery(scratch, whole, status)
        if torn:
            found, message = "half-written files", "; ".join(torn[:3])
        for where in sorted(set(kills.at[first:])):
            kills.outcomes.append(Outcome("killed", where, "recovers", found, message))
    return kills
