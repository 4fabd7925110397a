"""The table of a rate search: the trials and the chosen rates by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from finegates.suite.runs.chosen_rates import RateTrial
from finegates.suite.tables.captions import task_title
from finegates.suite.tables.render import BLANK, Column, Table


def rates_table(
    trials: Sequence[RateTrial], titles: Mapping[str, str], tier: str, shared: Mapping[str, str]
) -> Table:
    """Scores by factor, one row per contender and task, choices marked.

    Args:
        trials: results of :func:`finegates.suite.runs.chosen_rates.choose_rates` for all tasks.
        titles: titles of the tier's methods by label.
        tier: name of the tier.
        shared: by label of a method, the contender whose rates it takes.

    Raises:
        ValueError: there are no trials.
    """
    import pandas as pd

    if not trials:
        raise ValueError("no trials: a table of rates needs at least one")
    factors = sorted({trial.factor for trial in trials})
    found: dict[tuple[str, str], dict[float, RateTrial]] = {}
    for trial in trials:
        found.setdefault((trial.contender, trial.task), {})[trial.factor] = trial
    rows: list[dict[str, Any]] = [
        {"title": titles.get(contender, contender), "task": task_title(task), "grid": grid}
        for (contender, task), grid in found.items()
    ]
    columns = (
        Column("Contender", "title", text=True),
        Column("Task", "task", text=True),
        *(
            Column(f"Rates × {factor:.3g}", "grid", partial(_cell, factor=factor))
            for factor in factors
        ),
        Column("Rate", "grid", _rate),
    )
    rows_held = " / ".join(str(n) for n in dict.fromkeys(trial.rows for trial in trials))
    seeds = sorted({seed for trial in trials for seed in trial.seeds})
    others = "; ".join(
        f"{titles.get(label, label)}: {titles.get(contender, contender)}"
        for label, contender in shared.items()
    )
    caption = (
        f"Scores on {rows_held} rows held out of the training rows, which nothing that a trial "
        f"starts from was trained on; seed {', '.join(map(str, seeds))}. The factor is of all "
        "learning rates of a method but that of the new head, which is the same for all. The best "
        "score, in bold, decides; of equal ones the smallest factor. The reported splits played "
        "no part. The last column is the learning rate that comes of it."
        f"{f' The rates of another contender: {others}.' if others else ''}"
    )
    return Table(
        name="rates",
        title=f"Learning rates that were tried (tier {tier})",
        caption=caption,
        numbers=pd.DataFrame(
            [
                {
                    "contender": trial.contender,
                    "task": trial.task,
                    "factor": trial.factor,
                    "rate": float(f"{trial.rate:.6g}"),
                    "score": round(trial.score, 4),
                    "chosen": trial.chosen,
                }
                for trial in trials
            ]
        ),
        columns=columns,
        rows=rows,
        rule_before=tuple(
            place
            for place in range(1, len(rows))
            if rows[place]["title"] != rows[place - 1]["title"]
        ),
    )


def _cell(grid: Mapping[float, RateTrial], factor: float) -> str:
    trial = grid.get(factor)
    if trial is None:
        return BLANK
    return f"**{trial.score:.1f}**" if trial.chosen else f"{trial.score:.1f}"


def _rate(grid: Mapping[float, RateTrial]) -> str:
    return next(f"{trial.rate:.2g}" for trial in grid.values() if trial.chosen)
