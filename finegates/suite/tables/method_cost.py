"""Scores of methods next to their cost: parameters, time, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finegates.suite.runs.record import Record
from finegates.suite.stats import mean
from finegates.suite.tables.captions import table_caption
from finegates.suite.tables.glue import average_cell
from finegates.suite.tables.method_rows import AVERAGE, MethodRows
from finegates.suite.tables.render import BLANK, Column, Table, decimals, number, percent
from finegates.suite.tables.runs import SCORE_DECIMALS

FULL = "full"
"""The label of the method that times are relative to."""

_LEAD = (
    "Score after the last epoch, averaged over tasks, next to what a method costs. Time is that of "
    "the run's process on the CPU, evaluations and pruning included, relative to full fine-tuning "
    "of the same task and seed and averaged; with it comes the time of the run that it starts "
    "from, such as its teacher's. Models that are pruned before training are trained at full size "
    "here, under masks: made compact first they would take less. Memory is the most that the "
    "process held. Trainable parameters include the task head. "
    f"{BLANK} marks what was not recorded."
)


def method_cost_table(
    records: Sequence[Record],
    methods: Sequence[str],
    tasks: Sequence[str],
    starts: Mapping[str, str | None],
    *,
    seeds: Sequence[int] | None = None,
) -> Table:
    """Average score, MACs, trained parameters, time and memory by method.

    Args:
        records: records of one tier.
        methods: labels in the order of the rows.
        tasks: tasks of the tier.
        starts: by label, the method from whose run on the same task and seed a run starts.
        seeds: seeds that each method should have; None takes all seeds of the records.

    Raises:
        ValueError: see :func:`finegates.suite.tables.captions.check_study`.
    """
    import pandas as pd

    table = MethodRows(records, methods, tasks, seeds)
    spent = {(r.method, r.task, r.seed): r.timing.get("cpu_s") for r in records}
    rows: list[dict[str, Any]] = []
    for method in methods:
        row = table.row(method, lambda record: record.last.score, SCORE_DECIMALS, "last")
        runs = [run for task in tasks for run in table.runs(method, task)]
        peaks = [r.timing["peak_memory_mib"] for r in runs if "peak_memory_mib" in r.timing]
        rows.append(
            {
                "tier": table.tier,
                "method": method,
                "title": row["title"],
                **{f"{AVERAGE}{part}": row[f"{AVERAGE}{part}"] for part in ("", "_low", "_high")},
                "runs_missing": row["runs_missing"],
                "macs_kept_fraction": row["macs_kept_fraction"],
                "trainable_parameters": row["trainable_parameters"],
                "time_ratio": _ratio(runs, spent, starts),
                "peak_memory_mib": round(max(peaks), 1) if peaks else None,
            }
        )
    columns = (
        Column("Method", "title", text=True),
        Column("Average", average_cell),
        Column("MACs kept (%)", "macs_kept_fraction", percent),
        Column("Trainable", "trainable_parameters", decimals(0)),
        Column("Training time, × full", "time_ratio", lambda value: number(value, 2)),
        Column("Peak memory (MiB)", "peak_memory_mib", decimals(0)),
    )
    return Table(
        name="method-cost",
        title=f"What methods cost (tier {table.tier})",
        caption=table_caption(_LEAD, records, methods, tasks),
        numbers=pd.DataFrame(rows),
        columns=columns,
        rows=rows,
    )


def _ratio(
    runs: Sequence[Record],
    spent: Mapping[tuple[str, str, int], float | None],
    starts: Mapping[str, str | None],
) -> float | None:
    """Mean CPU time relative to full fine-tuning, or None if a time is missing.

    Ratios are per run and include the time of the run that it starts from.
    """
    ratios = []
    for run in runs:
        whole = 0.0
        label: str | None = run.method
        while label is not None:
            seconds = spent.get((label, run.task, run.seed))
            if seconds is None:
                return None
            whole += seconds
            label = starts.get(label)
        full = spent.get((FULL, run.task, run.seed))
        if full is None:
            return None
        ratios.append(whole / full)
    return round(mean(ratios), 4) if ratios else None
