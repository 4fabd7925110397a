"""Measures of the experiments on Llama."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finegates.suite.claims.evidence import Evidence
from finegates.suite.claims.measured import Measured, Unit, rows_of
from finegates.suite.stats import paired_differences

if TYPE_CHECKING:
    import pandas as pd

LLAMA_TASK = "llama/tables/task.csv"
LLAMA_PRETRAINING = "llama/tables/pretraining.csv"


def llama_removed(evidence: Evidence, method: str, of: str) -> Measured:
    """Percentage of a task-tuned Llama's weights that compaction removes.

    The denominator is its gated weights, its layers (``encoder``) or all parameters.
    """
    rows = _llama_rows(evidence, LLAMA_TASK, method)
    values: dict[Unit, float] = {
        (row["task"],): 100 * row[f"removed_of_{of}"] for row in rows.to_dict("records")
    }
    return Measured(values, f"% of {of} parameters", (LLAMA_TASK,))


def llama_score_difference(evidence: Evidence, method: str, against: str) -> Measured:
    """Score of a Llama by a method minus another, paired by task, in points."""

    def scores(label: str) -> dict[Unit, float]:
        rows = _llama_rows(evidence, LLAMA_TASK, label)
        return {(task,): float(s) for task, s in zip(rows["task"], rows["score"], strict=True)}

    values = paired_differences(scores(method), scores(against))
    return Measured(values, "points", (LLAMA_TASK,))


def pretraining_removed(evidence: Evidence, method: str, of: str) -> Measured:
    """Percentage of weights removed after gated pretraining, by size.

    The denominator is the ``gated`` weights or ``all`` parameters.
    """
    rows = _llama_rows(evidence, LLAMA_PRETRAINING, method)
    values: dict[Unit, float] = {
        (row["name"],): 100 * row[f"removed_of_{of}"] for row in rows.to_dict("records")
    }
    return Measured(values, f"% of {of} parameters", (LLAMA_PRETRAINING,))


def pretraining_extra(evidence: Evidence, method: str) -> Measured:
    """Gate parameters in percent of the dense model's parameters, by size."""
    rows = _llama_rows(evidence, LLAMA_PRETRAINING, method)
    shares = 100 * rows["extra_parameters_fraction"]
    values: dict[Unit, float] = {(n,): s for n, s in zip(rows["name"], shares, strict=True)}
    return Measured(values, "% of all parameters", (LLAMA_PRETRAINING,), counted=True)


def pretraining_faster(evidence: Evidence, method: str) -> Measured:
    """Speed-up in tokens of gated over dense pretraining, by size.

    It is the dense run's number of tokens divided by the number at which the gated run reaches the
    dense run's final held-out loss; 0 if it never does.
    """
    rows = _llama_rows(evidence, LLAMA_PRETRAINING, method)
    times = (rows["tokens"] / rows["tokens_to_dense_loss"]).fillna(0.0)
    values: dict[Unit, float] = {(n,): float(t) for n, t in zip(rows["name"], times, strict=True)}
    return Measured(values, "times fewer tokens", (LLAMA_PRETRAINING,))


def _llama_rows(evidence: Evidence, table: str, method: str) -> pd.DataFrame:
    """A method's rows in a table of the Llama experiments."""
    return rows_of(evidence.table(table), method, table)
