"""One row of numbers per method: scores by task over seeds, and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finegates.suite.runs.record import Record
from finegates.suite.stats import mean, summarise
from finegates.suite.tables.captions import check_study
from finegates.suite.tables.runs import FRACTION_DECIMALS, target_sparsity

AVERAGE = "average"


class MethodRows:
    """Records by method, task and seed, checked and sorted."""

    def __init__(
        self,
        records: Sequence[Record],
        methods: Sequence[str],
        tasks: Sequence[str],
        seeds: Sequence[int] | None,
    ) -> None:
        ordered = check_study(records, methods, tasks)
        self.tier = ordered[0].tier
        self.tasks = tasks
        self.seeds = sorted({r.seed for r in ordered} | set(seeds or ()))
        self._runs = {(r.method, r.task, r.seed): r for r in ordered}

    def runs(self, method: str, task: str) -> list[Record]:
        """The runs of a method on a task, by seed."""
        found = (self._runs.get((method, task, seed)) for seed in self.seeds)
        return [run for run in found if run is not None]

    def complete(self, method: str) -> list[list[Record]]:
        """The runs of each seed that has all tasks, in the order of tasks."""
        by_seed = (
            [self._runs.get((method, task, seed)) for task in self.tasks] for seed in self.seeds
        )
        return [[r for r in runs if r is not None] for runs in by_seed if None not in runs]

    def row(
        self, method: str, value: Callable[[Record], float], decimals: int, quantity: str
    ) -> dict[str, Any]:
        """Values of a method by task, their average, and the method's cost."""
        runs = {task: self.runs(method, task) for task in self.tasks}
        all_runs = [run for found in runs.values() for run in found]
        complete = self.complete(method)
        flat = [run for found in complete for run in found]
        values = {task: [value(run) for run in found] for task, found in runs.items()}
        values[AVERAGE] = [mean(value(run) for run in found) for found in complete]
        targets = {target_sparsity(run) for run in all_runs}
        row: dict[str, Any] = {
            "tier": self.tier,
            "method": method,
            "title": all_runs[0].config.title if all_runs else method,
            "kind": "method",
            "target_sparsity": targets.pop() if len(targets) == 1 else None,
            "realised_sparsity": _mean(flat, lambda r: r.realised_sparsity, FRACTION_DECIMALS),
            "trainable_parameters": _mean(flat, lambda r: r.budget.parameters.trainable, 1),
            "head_parameters": _mean(flat, lambda r: r.budget.parameters.head, 1),
            "macs_kept_fraction": _mean(
                flat,
                lambda r: r.budget.macs.kept_fraction,
                FRACTION_DECIMALS,
            ),
            "runs": len(all_runs),
            "runs_missing": len(self.tasks) * len(self.seeds) - len(all_runs),
        }
        for name, found in values.items():
            row |= _summary(found, decimals, name, self.tier, quantity, method)
        return row


def _summary(
    values: Sequence[float], decimals: int, name: str, *names: object
) -> dict[str, float | int | None]:
    """Mean, number of seeds and, for two or more seeds, interval as columns."""
    if not values:
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_seeds": 0}
    found = summarise(values)
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    return {
        name: round(found.mean, decimals) + 0.0,
        f"{name}_low": None if low is None else round(low, decimals) + 0.0,
        f"{name}_high": None if high is None else round(high, decimals) + 0.0,
        f"{name}_seeds": found.count,
    }


def _mean(
    records: Sequence[Record], value: Callable[[Record], float], decimals: int
) -> float | None:
    return round(mean(value(r) for r in records), decimals) + 0.0 if records else None
