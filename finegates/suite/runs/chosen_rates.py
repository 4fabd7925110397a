"""Chooses each contender's learning rates on a task from a rate search.

A trial is scored on rows held out of the training rows, see
:class:`finegates.suite.config.rate_search.RateSearch`. The factor with the highest mean score over
seeds after the last epoch is chosen, and the smallest one if scores are equal. Scores that tables
report are never used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finegates.files import parse_json, write_text
from finegates.suite.runs.record import Record
from finegates.suite.stats import mean

# Settings of a method that may differ between the trials of one contender.
_FREE = {"title", "rate_factor", "learning_rate", "gate_learning_rate"}


@dataclass(frozen=True)
class RateTrial:
    """One factor of a contender's rates on one task.

    Attributes:
        contender: label of its method.
        task: name of the GLUE task.
        factor: multiplies the method's learning rates.
        rate: AdamW's resulting learning rate.
        score: mean over seeds of the score on held-out rows after the last epoch, times 100.
        seeds: seeds of the runs.
        rows: number of held-out rows.
        chosen: whether this factor was chosen for the contender on this task.
    """

    contender: str
    task: str
    factor: float
    rate: float
    score: float
    seeds: tuple[int, ...]
    rows: int
    chosen: bool


def choose_rates(records: Iterable[Record]) -> list[RateTrial]:
    """Chooses a factor for each contender and task by the rule of this module.

    Args:
        records: records of a rate search, grouped by contender.

    Returns:
        all trials, by contender and task in the order of the records, then by factor.

    Raises:
        ValueError: a record is not a trial or was not scored on held-out training rows, or the
            trials of a contender differ in more than their rates.
    """
    grids: dict[tuple[str, str], dict[float, list[Record]]] = {}
    for record in records:
        if record.data.validation_split != "held out":
            raise ValueError(
                f"{record.method} on {record.task} was scored on "
                f"{record.data.validation_split!r}, which tables report; rates are chosen on "
                "rows held out of the training rows"
            )
        contender, factor = record.config.rates_of, record.config.rate_factor
        if contender is None or factor is None:
            raise ValueError(
                f"{record.method} on {record.task} is not a trial of a rate search; give the "
                "records of search/runs alone"
            )
        grids.setdefault((contender, record.task), {}).setdefault(factor, []).append(record)
    return [
        trial
        for (contender, task), grid in grids.items()
        for trial in _trials(contender, task, grid)
    ]


def write_choices(trials: Iterable[RateTrial], path: str | Path) -> None:
    """Writes the chosen factors and all trials of one task as JSON."""
    listed = list(trials)
    chosen = {trial.contender: trial.factor for trial in listed if trial.chosen}
    content = {"factors": chosen, "trials": [asdict(trial) for trial in listed]}
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_choices(path: str | Path) -> dict[str, float]:
    """Reads the chosen factors by contender from :func:`write_choices`.

    Raises:
        ValueError: the file does not have that layout.
    """
    found = parse_json(Path(path).read_text(encoding="utf-8"))
    factors = found.get("factors") if isinstance(found, dict) else None
    if not isinstance(factors, dict) or not all(isinstance(f, float) for f in factors.values()):
        raise ValueError(f'{path} must map contenders to numbers under "factors"; make it again')
    return factors


def _trials(contender: str, task: str, grid: Mapping[float, list[Record]]) -> list[RateTrial]:
    runs = [run for found in grid.values() for run in found]
    if len({_settings(run) for run in runs}) > 1:
        raise ValueError(
            f"{contender} on {task}: its trials differ in more than their rates; a rate is chosen "
            "among equals"
        )
    seeds = {factor: tuple(sorted(run.seed for run in found)) for factor, found in grid.items()}
    if len(set(seeds.values())) > 1:
        raise ValueError(
            f"{contender} on {task}: its rates were tried with different seeds ("
            + ", ".join(f"{factor:g}: {list(tried)}" for factor, tried in sorted(seeds.items()))
            + "); a rate is chosen among equals"
        )
    scores = {factor: mean(run.last.score for run in found) for factor, found in grid.items()}
    best = min(scores, key=lambda factor: (-scores[factor], factor))
    return [
        RateTrial(
            contender,
            task,
            factor,
            float(grid[factor][0].config.model_dump()["learning_rate"]),
            scores[factor],
            seeds[factor],
            grid[factor][0].data.validation_rows,
            factor == best,
        )
        for factor in sorted(grid)
    ]


def _settings(record: Record) -> str:
    """The settings that all trials of one contender on one task must share."""
    config: dict[str, Any] = {
        key: value
        for key, value in record.config.model_dump(mode="json").items()
        if key not in _FREE
    }
    data = record.data.model_dump(mode="json")
    return json.dumps([config, data, record.model.sha256], sort_keys=True)


__all__ = ["RateTrial", "choose_rates", "read_choices", "write_choices"]
