"""Which learning rate each contender gets on each task, chosen from records of a rate search.

A search is a tier (``tuning``) on rows held out of the training rows, in which methods that differ
in their learning rate alone are the grid of one contender. The rule: on each task the rate of the
highest mean score over seeds, after the last epoch; of equal scores the lowest rate. The tables
that are reported never enter. ``learning_rate_by_task`` of a method carries what is chosen.

    python -m finegates.suite.runs.chosen_rates RECORD... > choices.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finegates.suite.runs.record import Record, read_records
from finegates.suite.stats import mean

# Of a method's settings, what may differ within the grid of one contender.
_FREE = {"title", "learning_rate", "learning_rate_by_task"}


@dataclass(frozen=True)
class RateTrial:
    """One rate of a contender's grid on one task.

    Attributes:
        contender: label of the grid's first method.
        task: of GLUE.
        rate: AdamW's learning rate.
        score: mean over seeds of the score on held-out rows after the last epoch, times 100.
        seeds: of the runs.
        chosen: whether it is the contender's rate on this task.
    """

    contender: str
    task: str
    rate: float
    score: float
    seeds: tuple[int, ...]
    chosen: bool


def choose_rates(records: Iterable[Record]) -> list[RateTrial]:
    """Chooses by the rule of this module.

    Args:
        records: of a rate search, contenders in their order.

    Returns:
        every trial, by contender and task in the order of the records, then by rate.

    Raises:
        ValueError: a record is not of held-out training rows, or the rates of a contender have runs
            with different seeds.
    """
    grids: dict[tuple[str, str], dict[float, list[Record]]] = {}
    labels: dict[str, str] = {}
    for record in records:
        if record.data.validation_split != "held out":
            raise ValueError(
                f"{record.method} on {record.task} was scored on "
                f"{record.data.validation_split!r}, which tables report; rates are chosen on "
                "rows held out of the training rows (data.held_out)"
            )
        contender = labels.setdefault(_settings(record), record.method)
        grid = grids.setdefault((contender, record.task), {})
        grid.setdefault(float(record.config.model_dump()["learning_rate"]), []).append(record)
    return [
        trial
        for (contender, task), grid in grids.items()
        for trial in _trials(contender, task, grid)
    ]


def rates_by_task(trials: Iterable[RateTrial]) -> dict[str, dict[str, float]]:
    """The chosen rates by contender and task, as ``learning_rate_by_task`` takes them."""
    found: dict[str, dict[str, float]] = {}
    for trial in trials:
        if trial.chosen:
            found.setdefault(trial.contender, {})[trial.task] = trial.rate
    return found


def _trials(contender: str, task: str, grid: dict[float, list[Record]]) -> list[RateTrial]:
    seeds = {rate: tuple(sorted(run.seed for run in runs)) for rate, runs in grid.items()}
    if len(set(seeds.values())) > 1:
        raise ValueError(
            f"{contender} on {task}: its rates were tried with different seeds ("
            + ", ".join(f"{rate:g}: {list(tried)}" for rate, tried in sorted(seeds.items()))
            + "); a rate is chosen among equals"
        )
    scores = {rate: mean(run.last.score for run in runs) for rate, runs in grid.items()}
    best = min(scores, key=lambda rate: (-scores[rate], rate))
    return [
        RateTrial(contender, task, rate, scores[rate], seeds[rate], rate == best)
        for rate in sorted(grid)
    ]


def _settings(record: Record) -> str:
    """What methods of one contender have in common."""
    config: dict[str, Any] = {
        key: value
        for key, value in record.config.model_dump(mode="json").items()
        if key not in _FREE
    }
    # Epochs differ between tasks.
    config["training"] = {
        key: value for key, value in config.get("training", {}).items() if key != "epochs"
    }
    return json.dumps(config, sort_keys=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the trials and the chosen rates of records as JSON."""
    parser = argparse.ArgumentParser(description="Choose learning rates from a rate search.")
    parser.add_argument("records", nargs="+")
    trials = choose_rates(read_records(parser.parse_args(arguments).records))
    chosen = {"chosen": rates_by_task(trials), "trials": [asdict(trial) for trial in trials]}
    print(json.dumps(chosen, indent=2))


__all__ = ["RateTrial", "choose_rates", "rates_by_task"]

if __name__ == "__main__":
    main()
