"""Forward times of the deployed models of a study's methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from finegates.adapters import unwrap
from finegates.clock import interleaved
from finegates.compaction import compact
from finegates.gates.gated_linear import gated_layers
from finegates.seeds import derive_seed
from finegates.suite.baselines.two_of_four import fold_masks
from finegates.suite.config.methods import Method
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import load_classifier
from finegates.suite.runs.preparation import prepare
from finegates.suite.runs.record import Record
from finegates.suite.runs.trained_weights import read_trained
from finegates.suite.timing.backends import random_inputs
from finegates.suite.timing.control import CONTROL, with_control

COLUMNS = ("method", "title", "task", "seed", "median_ms", "q25_ms", "q75_ms", "ratio_to_dense")

DENSE = "dense"
"""The pretrained classifier itself, as a row of its own."""


def deployed(
    tier: Tier,
    label: str,
    task: str,
    seed: int,
    kept: str | Path,
    matched: Record | None = None,
    cost: Any = None,
) -> nn.Module:
    """The deployed model of a run, in evaluation mode.

    Gates and LoRA are folded into the weights, closed rows and columns are removed, and masked
    weights are set to zero.

    Args:
        tier: configuration.
        label: label of one of its methods.
        task: task of the run.
        seed: seed of the run.
        kept: file that the run saved (``finegates.suite.runs.trained_weights.write_trained``).
        matched: the record that the method matches.
        cost: cost model for compaction; None removes all closed rows and columns.
    """
    method: Method = tier.all_methods[label]
    model = load_classifier(tier, task, derive_seed(task, seed, "init"), method.init)
    plain = method.model_copy(update={"continues": None})
    prepared = prepare(model, plain, derive_seed(task, seed, "method"), matched)
    read_trained(prepared, kept, whole=method.trains_all)
    prepared.eval()
    if gated_layers(prepared):
        return compact(prepared, cost=cost).eval()
    if method.mask is not None:
        return fold_masks(prepared).eval()
    if method.lora is not None:
        merged: nn.Module = prepared.merge_and_unload()  # type: ignore[operator]
        return unwrap(merged).eval()
    return prepared


@torch.inference_mode()
def time_deployed(
    tier: Tier, models: Mapping[str, nn.Module], task: str, seed: int
) -> pd.DataFrame:
    """Times forward passes of deployed models, interleaved in one process.

    Args:
        tier: configuration; ``studies`` sets batch, length and number of rounds.
        models: models by label, including ``DENSE``.
        task: task of the runs, for the table.
        seed: seed of the runs, for the table.

    Returns:
        one row per model and one for the control, columns ``COLUMNS``; times in milliseconds.
    """
    assert tier.studies is not None
    dense = models[DENSE]
    torch.manual_seed(derive_seed("time_studies"))
    inputs = random_inputs(dense, tier.studies.batch, tier.studies.length)
    runs = {label: _runner(model, inputs) for label, model in models.items()}
    seconds = interleaved(with_control(runs, DENSE), tier.studies.repeats)
    base = float(np.median(seconds[DENSE]))
    rows = []
    titles = {DENSE: "Dense", CONTROL: "Dense, timed again (control)"}
    for label in seconds:
        low, middle, high = np.percentile(seconds[label], [25, 50, 75])
        title = titles.get(label) or tier.all_methods[label].title
        milliseconds = [round(1e3 * float(value), 4) for value in (middle, low, high)]
        rows.append((label, title, task, seed, *milliseconds, round(float(middle) / base, 6)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _runner(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    return lambda: model(**inputs)
