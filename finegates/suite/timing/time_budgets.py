"""Wanted, predicted and measured times of models that were pruned to a time.

Each model is calibrated, pruned to each wanted fraction of its time, and compacted. Dense, compact
and a control, which is the dense model again, are then timed in turn.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from finegates.clock import interleaved, quartiles
from finegates.compaction import calibrate, compact, use_products
from finegates.compaction.predicted_time import predicted_time
from finegates.gates.prices import UnreachableTimeError
from finegates.pruning.to_budget import prune
from finegates.seeds import derive_seed
from finegates.suite.config.benchmarks import TimeBudgetBenchmark
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import load_classifier
from finegates.suite.timing.backends import random_inputs
from finegates.suite.timing.control import CONTROL
from finegates.suite.timing.inference import random_model

DENSE = "dense"
COLUMNS = (
    "model", "contender", "wanted", "predicted", "measured", "off", "median_ms", "q25_ms", "q75_ms",
)  # fmt: skip


def time_budgets(tier: Tier, threads: int) -> pd.DataFrame:
    """Times the tier's classifier and the benchmark's shapes, dense and pruned to a time.

    Returns:
        one row per model and contender, the control last for each model, columns ``COLUMNS``.
        ``wanted``, ``predicted`` and ``measured`` are fractions of the dense model's time, and
        ``off`` is ``measured / wanted - 1``. For a time that gates cannot reach, ``predicted`` is
        the least one, and the measured columns are blank.

    Raises:
        ValueError: the tier does not have a ``time_budget_benchmark``.
    """
    settings = tier.time_budget_benchmark
    if settings is None:
        raise ValueError(f"tier {tier.tier!r} has no time_budget_benchmark")
    torch.set_num_threads(threads)
    seed = derive_seed("time_budgets")
    models: dict[str, nn.Module] = {tier.model.name: load_classifier(tier, tier.tasks[0], seed)}
    models |= {f"{s.name}, random weights": random_model(s) for s in settings.shapes}
    frames = [measure_budgets(name, model.eval(), settings) for name, model in models.items()]
    return pd.concat(frames, ignore_index=True)


def measure_budgets(name: str, model: nn.Module, settings: TimeBudgetBenchmark) -> pd.DataFrame:
    """Prunes copies of one model and times them; see :func:`time_budgets`.

    Args:
        name: of the model.
        model: dense, in evaluation mode.
        settings: of the benchmark.
    """
    length = settings.length
    cost = calibrate(model, batch=settings.batch_size, length=length)
    dense = predicted_time(model, cost, length)
    contenders: dict[str, nn.Module] = {DENSE: use_products(copy.deepcopy(model), cost)}
    facts: dict[str, dict[str, Any]] = {DENSE: {"wanted": 1.0, "predicted": 1.0}}
    for dimensions in settings.dimensions:
        for wanted in settings.wanted:
            label = f"{wanted:.0%} of the time, {dimensions}"
            try:
                gated = prune(
                    copy.deepcopy(model), target_time=wanted, cost=cost, criterion="magnitude",
                    dimensions=dimensions, parts=True, sequence_length=length, progress=False,
                )  # fmt: skip
            except UnreachableTimeError as error:
                facts[label] = {"wanted": wanted, "predicted": error.least}
                continue
            contenders[label] = use_products(compact(gated, cost=cost), cost)
            predicted = predicted_time(gated, cost, length) / dense
            facts[label] = {"wanted": wanted, "predicted": predicted}
    inputs = random_inputs(model, settings.batch_size, length)
    contenders[CONTROL], facts[CONTROL] = contenders[DENSE], facts[DENSE]
    with torch.inference_mode():
        seconds = interleaved(
            {label: _forward(each, inputs) for label, each in contenders.items()}, settings.repeats
        )
    unit = float(np.median(seconds[DENSE]))
    rows = []
    for label in facts:
        low = middle = high = float("nan")
        if label in seconds:
            low, middle, high = quartiles(1e3 * seconds[label])
        measured = middle / (1e3 * unit)
        rows.append(
            {
                "model": name,
                "contender": label,
                **facts[label],
                "measured": measured,
                "off": measured / facts[label]["wanted"] - 1.0,
                "median_ms": middle,
                "q25_ms": low,
                "q75_ms": high,
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _forward(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    return lambda: model(**inputs)
