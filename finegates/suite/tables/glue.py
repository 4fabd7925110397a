"""GLUE scores and realised sparsity by method and task, over seeds.

Averages over tasks use only seeds that have all tasks. A mean over some tasks would favour methods
that failed on the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finegates.suite.runs.record import Record
from finegates.suite.stats import mean
from finegates.suite.tables.captions import table_caption, task_title
from finegates.suite.tables.method_rows import AVERAGE, MethodRows
from finegates.suite.tables.render import BLANK, Column, Table, decimals, percent
from finegates.suite.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS

if TYPE_CHECKING:
    import pandas as pd

References = Mapping[str, Mapping[str, float]]
"""Scores of models without an encoder, by name and task."""

FACTS = ("tier", "method", "title", "kind")
COSTS = (
    "target_sparsity",
    "realised_sparsity",
    "trainable_parameters",
    "head_parameters",
    "macs_kept_fraction",
    "runs",
    "runs_missing",
)

_LEADS = {
    "last": "Scores after the last epoch.",
    "best": (
        "Best epoch, chosen on the reported split (peeking): an upper bound, not an estimate; "
        "compare only with numbers that were chosen the same way."
    ),
}
_TITLES = {
    "last": "Scores, last epoch",
    "best": "Scores, best epoch, chosen on the reported split (peeking)",
}
_RULES = (
    f"{BLANK} marks missing runs, with their number; an average is taken over the seeds that have "
    "every task. Realised sparsity is the fraction of gated weights in closed rows or columns; "
    "trainable parameters include the task head; MACs are those of the encoder; these columns are "
    "means over tasks."
)


def read_references(path: str | Path) -> dict[str, dict[str, float]]:
    """Reads reference rows from a file of bag-of-words scores.

    Its layout is ``{task: {"score": ..., "majority_score": ...}}``.

    Returns:
        ``{"Bag of words": {task: score}}``, and ``"Majority class"`` for tasks that have it.

    Raises:
        ValueError: the file is not JSON of this layout.
    """
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or not all(
        isinstance(facts, dict) and isinstance(facts.get("score"), int | float)
        for facts in raw.values()
    ):
        raise ValueError(f'{path} must map tasks to objects with a number "score"')
    majority = {
        t: f["majority_score"] for t, f in raw.items() if f.get("majority_score") is not None
    }
    rows = {
        "Majority class": {task: float(score) for task, score in majority.items()},
        "Bag of words": {task: float(facts["score"]) for task, facts in raw.items()},
    }
    return {name: scores for name, scores in rows.items() if scores}


def glue_table(
    records: Sequence[Record],
    methods: Sequence[str],
    tasks: Sequence[str],
    *,
    epoch: Literal["last", "best"] = "last",
    seeds: Sequence[int] | None = None,
    references: References | None = None,
) -> Table:
    """Scores of methods by tasks, their average, realised sparsity and cost.

    Args:
        records: records of one tier, in any order.
        methods: labels in the order of the rows; a method without records has blank cells.
        tasks: all tasks of the tier, in the order of the columns.
        epoch: ``"best"`` is labelled as selected on the reported split.
        seeds: seeds that each method should have; None takes all seeds of the records.
        references: scores printed above the methods.

    Raises:
        ValueError: see :func:`finegates.suite.tables.captions.check_study`; or an unknown
            ``epoch``.
    """
    if epoch not in _LEADS:
        raise ValueError(f"epoch must be 'last' or 'best', got {epoch!r}")

    def score(record: Record) -> float:
        return (record.last if epoch == "last" else record.best).score

    references = references or {}
    table = MethodRows(records, methods, tasks, seeds)
    rows = [
        *(_reference_row(table.tier, name, scores, tasks) for name, scores in references.items()),
        *(table.row(method, score, SCORE_DECIMALS, epoch) for method in methods),
    ]
    columns = (
        Column("Method", "title", text=True),
        *(_task_column(task) for task in tasks),
        Column("Average", average_cell),
        Column("Target (%)", "target_sparsity", percent),
        Column("Realised (%)", "realised_sparsity", percent),
        Column("Trainable", "trainable_parameters", decimals(0)),
        Column("MACs kept (%)", "macs_kept_fraction", percent),
        Column("Seeds", lambda row: _seeds_cell(row, tasks)),
    )
    return Table(
        name="glue" if epoch == "last" else "glue-best",
        title=f"{_TITLES[epoch]} (tier {table.tier})",
        caption=table_caption(f"{_LEADS[epoch]} {_RULES}", records, methods, tasks),
        numbers=_frame(rows, tasks),
        columns=columns,
        rows=rows,
        rule_before=(len(references),) if references else (),
    )


def sparsity_table(
    records: Sequence[Record],
    methods: Sequence[str],
    tasks: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
) -> Table:
    """Realised sparsity of methods by tasks, next to the target.

    Numbers are fractions, printed in percent. Arguments and errors are those of
    :func:`glue_table`.
    """
    table = MethodRows(records, methods, tasks, seeds)
    rows = [
        table.row(method, lambda record: record.realised_sparsity, FRACTION_DECIMALS, "sparsity")
        for method in methods
    ]
    columns = (
        Column("Method", "title", text=True),
        Column("Target (%)", "target_sparsity", percent),
        *(_task_column(task, 100.0) for task in tasks),
        Column("Average", lambda row: average_cell(row, 100.0)),
        Column("Seeds", lambda row: _seeds_cell(row, tasks)),
    )
    lead = (
        "Percentage of the gated weights in closed rows or columns after the last epoch, and the "
        "target of the penalty. "
        f"{BLANK} marks what is missing; an average is taken over the seeds that have every task."
    )
    return Table(
        name="sparsity",
        title=f"Realised sparsity (tier {table.tier})",
        caption=table_caption(lead, records, methods, tasks),
        numbers=_frame(rows, tasks),
        columns=columns,
        rows=rows,
    )


def _reference_row(
    tier: str, name: str, scores: Mapping[str, float], tasks: Sequence[str]
) -> dict[str, Any]:
    """A row without runs: scores by task, and their average if no task is missing."""
    known = [float(scores[task]) for task in tasks if task in scores]
    row: dict[str, Any] = dict(zip(FACTS, (tier, name, name, "reference"), strict=True))
    row |= dict.fromkeys(COSTS)
    for task in tasks:
        row[task] = round(float(scores[task]), SCORE_DECIMALS) + 0.0 if task in scores else None
    row[AVERAGE] = round(mean(known), SCORE_DECIMALS) + 0.0 if len(known) == len(tasks) else None
    for name in (*tasks, AVERAGE):
        row |= {f"{name}_low": None, f"{name}_high": None, f"{name}_seeds": None}
    return row


def _frame(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> pd.DataFrame:
    """Rows as a frame. Columns: means, costs, then intervals and numbers of seeds."""
    import pandas as pd

    names = [*tasks, AVERAGE]
    details = [f"{name}_{part}" for name in names for part in ("low", "high", "seeds")]
    frame = pd.DataFrame([dict(row) for row in rows])[[*FACTS, *names, *COSTS, *details]]
    whole = {"runs", "runs_missing", *(f"{name}_seeds" for name in names)}
    for column in frame.columns:
        if column in whole:
            frame[column] = frame[column].astype("Int64")
        elif column not in FACTS:
            frame[column] = frame[column].astype("Float64")
    return frame


def _task_column(task: str, scale: float = 1.0) -> Column:
    return Column(task_title(task), lambda row: _mean_and_interval(row, task, scale))


def _mean_and_interval(row: Mapping[str, Any], name: str, scale: float = 1.0) -> str:
    if row[name] is None:
        return BLANK
    text = f"{scale * row[name]:.1f}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return text if low is None else f"{text} ± {scale * (high - low) / 2:.1f}"


def average_cell(row: Mapping[str, Any], scale: float = 1.0) -> str:
    """The average over tasks with its interval, or the number of missing runs."""
    cell = _mean_and_interval(row, AVERAGE, scale)
    missing = row["runs_missing"]
    return f"{cell} ({missing} missing)" if cell == BLANK and missing else cell


def _seeds_cell(row: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """The number of seeds, as a range where it differs between tasks."""
    counts = {row[f"{task}_seeds"] for task in tasks} - {None, 0}
    if not counts:
        return BLANK
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)}–{max(counts)}"
