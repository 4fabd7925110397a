"""The paper's table of properties, measured: LoRA, 2:4 mask, gates.

The paper ticks boxes. Here every box is replaced by the number behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from finegates.suite.runs.record import Record
from finegates.suite.stats import mean
from finegates.suite.tables.captions import table_caption
from finegates.suite.tables.render import BLANK, Column, Table, number, percent
from finegates.suite.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS

_LEAD = (
    "The paper's table of properties as measurements. Trained: trained parameters as a percentage "
    "of the model's, without the task head. Added: parameters of the deployed model relative to "
    "the dense one, as a percentage; negative if it has fewer. MACs and time: of the deployed "
    "model, relative to the dense one. Zeros: weights of the gated layers that are zero after "
    "training, and how many of them are in whole rows and columns, which any hardware can skip. "
    "While training: zeros in rows and columns after the first epoch and after the last. Removing "
    "afterwards: change of the score when zeros are removed, without further training or search. "
    f"{BLANK} marks what does not apply."
)


def properties_table(
    methods: Sequence[str],
    records: Sequence[Record],
    tasks: Sequence[str],
    times: Mapping[str, float],
) -> Table:
    """One row for each method.

    Args:
        methods: labels in the order of the rows.
        records: records of these methods.
        tasks: tasks of the records.
        times: forward time of the deployed model relative to the dense one, by label.

    Raises:
        ValueError: see :func:`finegates.suite.tables.captions.check_study`; a method without
            records.
    """
    import pandas as pd

    rows = [_row(method, [r for r in records if r.method == method], times) for method in methods]
    columns = (
        Column("Method", "title", text=True),
        Column("Score", "score", number),
        Column("Trained (%)", "trained", partial(percent, decimals=2)),
        Column("Added (%)", "added", lambda added: f"{100 * added:+.1f}"),
        Column("MACs (%)", "macs", percent),
        Column("Time (%)", "time", percent),
        Column("Zeros (%)", "zeros", percent),
        Column("In rows, columns (%)", "structured", partial(percent, decimals=0)),
        Column("While training (%)", _while_training),
        Column("Removing afterwards", "change", lambda c: BLANK if c is None else f"{c:+.2f}"),
    )
    return Table(
        name="properties",
        title=f"Properties, measured (tier {records[0].tier})",
        caption=table_caption(_LEAD, records, methods, tasks),
        numbers=pd.DataFrame(rows),
        columns=columns,
        rows=rows,
    )


def _while_training(row: Mapping[str, Any]) -> str:
    if row["first_epoch"] is None:
        return BLANK
    return f"{percent(row['first_epoch'])} to {percent(row['last_epoch'])}"


def _row(method: str, runs: Sequence[Record], times: Mapping[str, float]) -> dict[str, Any]:
    if not runs:
        raise ValueError(f"no records of {method!r}")
    zeros = mean(map(_zeros, runs))
    in_rows = mean(run.realised_sparsity for run in runs)
    gated = [run for run in runs if run.last.gates is not None]
    removed = [run.compact.score - run.last.score for run in runs if run.compact is not None]
    row = {
        "method": method,
        "title": runs[0].config.title,
        "runs": len(runs),
        "score": mean(run.last.score for run in runs),
        "trained": mean(map(_trained, runs)),
        "added": mean(map(_added, runs)),
        "macs": mean(run.budget.macs.kept_fraction for run in runs),
        "time": times.get(method),
        "zeros": zeros,
        "structured": in_rows / zeros if zeros else None,
        "first_epoch": _sparsity(gated, 0),
        "last_epoch": _sparsity(gated, -1),
        "change": mean(removed) if removed else None,
    }
    decimals = {"score": SCORE_DECIMALS, "change": SCORE_DECIMALS}
    return {
        key: round(value, decimals.get(key, FRACTION_DECIMALS)) + 0.0
        if isinstance(value, float)
        else value
        for key, value in row.items()
    }


def _zeros(run: Record) -> float:
    """Fraction of zeros among the weights of the gated or masked layers."""
    masked = run.budget.masked_fraction
    return run.realised_sparsity if masked is None else masked


def _trained(run: Record) -> float:
    parameters = run.budget.parameters
    return (parameters.trainable - parameters.head) / parameters.all


def _added(run: Record) -> float:
    """Relative change in parameters from the dense to the deployed model."""
    whole = run.budget.parameters.all
    return (run.compact.parameters - whole) / whole if run.compact is not None else 0.0


def _sparsity(runs: Sequence[Record], epoch: int) -> float | None:
    found = [run.epochs[epoch].gates for run in runs]
    known = [gates.realised_sparsity for gates in found if gates is not None]
    return mean(known) if known else None
