"""The table of a study: scores, kept MACs, differences from the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finegates.suite.config.studies import Study
from finegates.suite.runs.record import Record
from finegates.suite.stats import mean, summarise_differences
from finegates.suite.tables.captions import table_caption, task_title
from finegates.suite.tables.method_rows import AVERAGE, MethodRows
from finegates.suite.tables.render import BLANK, Column, Table, decimals, number, percent
from finegates.suite.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS

if TYPE_CHECKING:
    import pandas as pd

GATES = {"closed": "Closed", "half_open": "Half open", "reopened": "Reopened"}
"""Printed names of fractions of the gates."""

_RULES = (
    "Scores after the last epoch, means over seeds, and the average over tasks of each seed, in "
    "the order of the seeds. Difference: from the score of the first row, paired by task and seed, "
    "with a 95 % t interval over these pairs. Gates: percentages that are closed, that are half "
    "open (strictly between 0.05 and 0.95), and that were closed and opened again. "
    f"{BLANK} marks what does not apply or is missing."
)


def study_table(
    name: str,
    study: Study,
    records: Sequence[Record],
    tasks: Sequence[str],
    seeds: Sequence[int],
    times: Mapping[str, float] | None = None,
) -> Table:
    """Compares the methods of a study.

    Args:
        name: name of the study.
        study: the study.
        records: records of its methods on these tasks and seeds.
        tasks: tasks in the order of the columns.
        seeds: seeds in the order in which their averages are shown.
        times: forward time of each method's deployed model relative to the dense one, by label;
            None omits the column.

    Raises:
        ValueError: see :func:`finegates.suite.tables.captions.check_study`.
    """
    import pandas as pd

    rows = study_rows(name, study, records, tasks, seeds, times)
    tier = records[0].tier
    timed = times is not None
    columns = (
        Column("Method", "title", text=True),
        *(Column(task_title(task), task, number) for task in tasks),
        Column("Average", AVERAGE, number),
        Column("By seed", lambda row: " ".join(number(row[f"seed_{s}"]) for s in seeds), text=True),
        Column("Difference", _difference),
        Column("Target (%)", "target_sparsity", percent),
        Column("Realised (%)", "realised_sparsity", percent),
        Column("MACs kept (%)", "macs_kept_fraction", percent),
        *(Column(name, f"gates_{kind}", percent) for kind, name in GATES.items()),
        Column("Trainable", "trainable_parameters", decimals(0)),
        *([Column("Time (%)", "time_ratio", percent)] if timed else []),
    )
    lead = f"{study.question} {_RULES}"
    if timed:
        lead += " Time: a forward pass of what is deployed, relative to the dense model."
    return Table(
        name=f"study-{name}",
        title=f"{study.title} (tier {tier})",
        caption=table_caption(lead, records, study.methods, tasks),
        numbers=pd.DataFrame(rows),
        columns=columns,
        rows=rows,
    )


def study_rows(
    name: str,
    study: Study,
    records: Sequence[Record],
    tasks: Sequence[str],
    seeds: Sequence[int],
    times: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """The numbers of :func:`study_table`, one row per method.

    A row also has the settings on the figure's axes (``x``, ``line``) and the average of each seed
    (``seed_<n>``).
    """
    table = MethodRows(records, study.methods, tasks, seeds)
    first = _scores(table, study.methods[0], tasks)
    rows = []
    for method in study.methods:
        row = table.row(method, lambda r: r.last.score, SCORE_DECIMALS, f"study-{name}")
        runs = [run for task in tasks for run in table.runs(method, task)]
        found = None
        if method != study.methods[0]:
            found = summarise_differences(_scores(table, method, tasks), first)
        interval = found.interval if found else None
        config = runs[0].config.model_dump() if runs else {}
        row |= {
            "x": setting(config, study.vary),
            "line": setting(config, study.lines),
            "difference": _rounded(found and found.mean, SCORE_DECIMALS),
            "difference_low": _rounded(interval and interval.low, SCORE_DECIMALS),
            "difference_high": _rounded(interval and interval.high, SCORE_DECIMALS),
            "difference_pairs": found.count if found else 0,
            **{f"gates_{kind}": _gate_mean(runs, kind) for kind in GATES},
            "time_ratio": _rounded((times or {}).get(method), FRACTION_DECIMALS),
        }
        averages = {run[0].seed: mean(r.last.score for r in run) for run in table.complete(method)}
        row |= {f"seed_{seed}": _rounded(averages.get(seed), SCORE_DECIMALS) for seed in seeds}
        rows.append(row)
    return rows


def setting(config: Mapping[str, Any], name: str | None) -> float | str | None:
    """A setting of a run's configuration by dotted name, None if missing."""
    value: Any = config if name is not None else None
    for part in (name or "").split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if value is None or isinstance(value, int | float) else str(value)


def read_times(frame: pd.DataFrame) -> dict[str, float]:
    """Median times relative to dense, see ``suite.timing.deployed``."""
    ratios = zip(frame["method"], frame["ratio_to_dense"], strict=True)
    return {str(method): float(ratio) for method, ratio in ratios}


def _scores(table: MethodRows, method: str, tasks: Sequence[str]) -> dict[tuple[str, int], float]:
    return {(t, run.seed): run.last.score for t in tasks for run in table.runs(method, t)}


def _gate_mean(runs: Sequence[Record], kind: str) -> float | None:
    shares = [getattr(run.last.gates, kind) for run in runs if run.last.gates is not None]
    known = [share for share in shares if share is not None]
    return _rounded(mean(known), FRACTION_DECIMALS) if known else None


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return BLANK
    mean_ = f"{row['difference']:+.1f}"
    if row["difference_low"] is None:
        return mean_
    return f"{mean_} [{row['difference_low']:+.1f}, {row['difference_high']:+.1f}]"


def _rounded(value: Any, decimals: int) -> float | None:
    return None if value is None else round(float(value), decimals) + 0.0
