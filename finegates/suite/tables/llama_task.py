"""The table of a Llama as a classifier: scores and removed parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finegates.suite.runs.record import Record
from finegates.suite.stats import mean
from finegates.suite.tables.captions import table_caption, task_title
from finegates.suite.tables.llama_rows import TARGET_AND_REALISED, group_starts, typed_frame
from finegates.suite.tables.render import Column, Table, decimals, number, percent
from finegates.suite.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS, target_sparsity


def llama_task_table(
    records: Sequence[Record], methods: Sequence[str], tasks: Sequence[str]
) -> Table:
    """Scores and removed parameters of a Llama as a classifier.

    Args:
        records: records of one tier.
        methods: labels in the order of the rows.
        tasks: tasks in the order of the groups of rows.

    Raises:
        ValueError: see ``finegates.suite.tables.captions.check_study``.
    """
    rows = [
        _task_row(task, method, found)
        for task in tasks
        for method in methods
        if (found := [r for r in records if (r.task, r.method) == (task, method)])
    ]
    lead = (
        "Scores after the last epoch, and the weights of gated layers that compaction removes: in "
        "numbers, and as a fraction of the gated weights, of the parameters of the layer stack, "
        "and of all parameters, embeddings and head included."
    )
    return Table(
        name="llama-task",
        title=f"Llama on a task (tier {records[0].tier})" if records else "Llama on a task",
        caption=table_caption(lead, records, methods, tasks),
        numbers=typed_frame(
            rows, ("removed_weights", "gated_weights", "encoder", "all", "trainable")
        ),
        columns=(
            Column("Task, method", lambda r: f"{task_title(r['task'])}, {r['title']}", text=True),
            Column("Score", "score", number),
            *TARGET_AND_REALISED,
            Column("Removed", "removed_weights", decimals(0)),
            Column("of gated (%)", "removed_of_gated", percent),
            Column("of layers (%)", "removed_of_encoder", percent),
            Column("of all (%)", "removed_of_all", percent),
            Column("Trainable", "trainable", decimals(0)),
            Column("Seeds", "seeds"),
        ),
        rows=rows,
        rule_before=group_starts([row["task"] for row in rows]),
    )


def _task_row(task: str, method: str, found: list[Record]) -> dict[str, Any]:
    def average(value: Callable[[Record], float], decimals: int) -> float:
        return round(mean(map(value, found)), decimals) + 0.0

    def part(name: str) -> Callable[[Record], float]:
        return lambda r: r.budget.removed_weights / getattr(r.budget.parameters, name)

    first = found[0].budget.parameters
    # Without gates the denominator is undefined, and nothing was removed.
    gated = first.gated or None
    return {
        "tier": found[0].tier,
        "task": task,
        "method": method,
        "title": found[0].config.title,
        "seeds": len(found),
        "score": average(lambda r: r.last.score, SCORE_DECIMALS),
        "target": target_sparsity(found[0]),
        "realised_sparsity": average(lambda r: r.realised_sparsity, FRACTION_DECIMALS),
        "removed_weights": average(lambda r: r.budget.removed_weights, 0),
        "removed_of_gated": average(part("gated"), FRACTION_DECIMALS) if gated else None,
        "removed_of_encoder": average(part("encoder"), FRACTION_DECIMALS),
        "removed_of_all": average(part("all"), FRACTION_DECIMALS),
        "gated_weights": gated,
        "encoder": first.encoder,
        "all": first.all,
        "trainable": average(lambda r: r.budget.parameters.trainable, 0),
        "compact_max_abs_logit_difference": None
        if found[0].compact is None
        else max(r.compact.max_abs_logit_difference for r in found if r.compact is not None),
    }
