"""Detectable differences of two methods, by numbers of rows and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finegates.suite.config.tasks import task_named
from finegates.suite.runs.record import Record
from finegates.suite.stats import (
    LEVEL,
    POWER,
    detectable_by_rows,
    detectable_by_seeds,
    mean,
    sampling_error,
)
from finegates.suite.tables.captions import check_study, metric_title, table_caption, task_title
from finegates.suite.tables.render import BLANK, Column, Table, decimals, number
from finegates.suite.tables.runs import SCORE_DECIMALS

_LEAD = (
    f"Smallest true difference of two methods that a test at level {1 - LEVEL:.0%} finds with "
    f"probability {POWER:.0%}. By rows: two scores at the height of the best method's mean, on "
    "different draws of so many rows; on the same rows chance is smaller, so this is an upper "
    "bound. By seeds: a paired t test, with the median over methods of the standard deviation "
    f"of differences from the first method; {BLANK} with one seed, which shows nothing of its kind."
)


def detectable_table(
    records: Sequence[Record], methods: Sequence[str], tasks: Sequence[str]
) -> Table:
    """Detectable differences by task, in points.

    Args:
        records: records of one tier.
        methods: labels in the study's order; differences are from the first.
        tasks: tasks in the study's order.

    Raises:
        ValueError: see :func:`finegates.suite.tables.captions.check_study`.
    """
    import pandas as pd

    ordered = check_study(records, methods, tasks)
    present = [task for task in tasks if any(r.task == task for r in ordered)]
    rows = [_row(task, [r for r in ordered if r.task == task], methods) for task in present]
    columns = (
        Column("Task", "task", task_title, text=True),
        Column("Metric", "task", metric_title),
        Column("Rows", "validation_rows", decimals(0)),
        Column("Seeds", "seeds"),
        Column("Score", "score", number),
        Column("Std. error", "standard_error", number),
        Column("By rows", "by_rows", number),
        Column("By seeds", "by_seeds", number),
    )
    return Table(
        name="detectable",
        title=f"Detectable differences in points (tier {ordered[0].tier})",
        caption=table_caption(_LEAD, records, methods, tasks),
        numbers=pd.DataFrame(rows).astype({"by_seeds": float}),
        columns=columns,
        rows=rows,
    )


def _row(task: str, runs: Sequence[Record], methods: Sequence[str]) -> dict[str, Any]:
    scores = {
        method: found
        for method in methods
        if (found := {r.seed: r.last.score for r in runs if r.method == method})
    }
    best = max(mean(found.values()) for found in scores.values())
    rows = runs[0].data.validation_rows
    error = sampling_error(best, rows, correlation=task_named(task).correlates)
    first, *others = scores.values()
    limits = [
        limit
        for other in others
        if (limit := detectable_by_seeds(other[s] - first[s] for s in other if s in first))
        is not None
    ]
    middle = sorted(limits)[len(limits) // 2] if limits else None
    return {
        "task": task,
        "validation_rows": rows,
        "seeds": max(len(found) for found in scores.values()),
        "score": round(best, SCORE_DECIMALS),
        "standard_error": round(error, SCORE_DECIMALS),
        "by_rows": round(detectable_by_rows(error), SCORE_DECIMALS),
        "by_seeds": None if middle is None else round(middle, SCORE_DECIMALS),
    }
