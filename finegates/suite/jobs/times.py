"""Stores durations of jobs to estimate the time of the next run.

A run stores its times in ``.snakemake/finegates/times``. For a tier that has not run here,
``workflow/times`` may ship the times of a run elsewhere.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finegates.files import write_text
from finegates.machine import cpu_name
from finegates.suite.paths import ROOT

MEASURED = Path(".snakemake/finegates/times")
SHIPPED = ROOT / "workflow" / "times"

HEADER = ["rule", "seconds", "threads"]


@dataclass
class Times:
    """Seconds and threads that a job of each rule takes.

    Attributes:
        tier: name of the tier.
        known: seconds and threads by rule, of an earlier run.
        source: the earlier run, for a message; empty without one.
        now: seconds by rule of this run, one number per finished job.
    """

    tier: str
    known: dict[str, tuple[float, int]] = field(default_factory=dict)
    source: str = ""
    now: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    threads: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, tier: str, folders: tuple[Path, ...] = (MEASURED, SHIPPED)) -> Times:
        """Reads the times of the last run here, or else the shipped ones."""
        for folder in folders:
            try:
                text = (folder / f"{tier}.csv").read_text(encoding="utf-8")
                where, _, table = text.partition("\n")
                rows = list(csv.DictReader(io.StringIO(table)))
                known = {r["rule"]: (float(r["seconds"]), int(r["threads"])) for r in rows}
            except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError):
                continue  # a missing estimate must not be an error
            if known and all(math.isfinite(s) and s >= 0 for s, _ in known.values()):
                return cls(tier, known, f" (as measured on {where.lstrip('# ')})")
        return cls(tier)

    def add(self, rule: str, seconds: float, threads: int) -> None:
        """Records a finished job."""
        self.now[rule].append(seconds)
        self.threads[rule] = threads

    def of(self, rule: str, jobs: int = 1) -> float:
        """Estimated seconds of jobs of a rule in sequence, 0 if unknown.

        It uses the rule's mean in this run, or else its mean in the earlier run scaled by the
        relative speed of this run, or else the mean of all finished jobs.
        """
        if self.now[rule]:
            return jobs * _mean(self.now[rule])
        if rule in self.known:
            return jobs * self.known[rule][0] * self._pace()
        return jobs * _mean([s for ended in self.now.values() for s in ended])

    def left(
        self, jobs: Mapping[str, int], cores: int, spent: Mapping[str, float] | None = None
    ) -> float:
        """Estimated seconds until some jobs are done, if cores are never idle.

        Args:
            jobs: number of unfinished jobs by rule.
            cores: number of cores.
            spent: seconds that running jobs have taken so far, by rule.
        """
        work = 0.0
        for rule, number in jobs.items():
            threads = self.threads.get(rule) or self.known.get(rule, (0.0, 1))[1]
            rest = max(0.0, self.of(rule, number) - (spent or {}).get(rule, 0.0))
            work += rest * min(threads, cores) / cores
        return work

    def write(self, folder: Path = MEASURED) -> None:
        """Stores the times of this run, and earlier times of other rules."""
        rows = dict(self.known)
        rows |= {r: (_mean(ended), self.threads[r]) for r, ended in self.now.items() if ended}
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(HEADER)
        for rule, (seconds, threads) in sorted(rows.items(), key=lambda row: (-row[1][0], row[0])):
            writer.writerow([rule, f"{seconds:.1f}", threads])
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{self.tier}.csv", f"# {cpu_name()}\n{out.getvalue()}")

    def _pace(self) -> float:
        """Slow-down of this run's jobs relative to the earlier run."""
        before = after = 0.0
        for rule, ended in self.now.items():
            if rule in self.known:
                before += len(ended) * self.known[rule][0]
                after += sum(ended)
        return after / before if before > 0 and after > 0 else 1.0


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def spoken(seconds: float) -> str:
    """A duration in words: ``8 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    rest = whole % 60
    return f"{whole // 60} min" + (f" {rest} s" if rest else "")
