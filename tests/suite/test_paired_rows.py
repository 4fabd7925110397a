"""Standard errors from rows: by the jackknife, and as the spread over samples of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finegates.suite.config.tasks import TASKS
from finegates.suite.paired_rows import paired_error, pseudo_values
from finegates.suite.runs.metrics import GlueMetric, score


def rows_of(task: str, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and predictions of two models that make some errors on the same rows."""
    rng = np.random.default_rng(seed)
    if TASKS[task].labels is None:
        labels = np.round(rng.uniform(0, 5, rows), 1)  # with ties
        shared = rng.normal(size=rows)
        first, second = (labels + shared + 0.5 * rng.normal(size=rows) for _ in range(2))
        return labels, np.round(first, 1), second
    classes = len(TASKS[task].labels)
    labels = rng.integers(0, classes, rows)
    hard = rng.random(rows) < 0.3
    draws = [
        np.where(rng.random(rows) < np.where(hard, 0.4, 0.95), labels, (labels + 1) % classes)
        for _ in range(2)
    ]
    return labels, *draws


def glue(task: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    return score(task, GlueMetric(task).compute(predictions=predictions, references=labels))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_pseudo_values_are_those_of_leaving_each_row_out(task):
    labels, predictions, _ = rows_of(task, 14)
    whole, count = glue(task, labels, predictions), len(labels)
    kept = [np.arange(count) != place for place in range(count)]
    expected = [count * whole - (count - 1) * glue(task, labels[k], predictions[k]) for k in kept]
    # STS-B's metric uses float32.
    bound = 1e-2 if TASKS[task].labels is None else 1e-9
    assert pseudo_values(task, labels, predictions) == pytest.approx(expected, abs=bound)


@pytest.mark.parametrize("task", ["sst2", "mrpc", "cola", "stsb"])
def test_the_paired_error_is_the_spread_over_draws_of_rows(task):
    """It is smaller than that of two independent samples, because the models share errors."""
    found = np.array(
        [
            pseudo_values(task, labels, first).mean() - pseudo_values(task, labels, second).mean()
            for labels, first, second in (rows_of(task, 200, seed) for seed in range(400))
        ]
    )
    estimated = np.mean([paired_error(task, *rows_of(task, 200, seed)) for seed in range(20)])
    assert estimated == pytest.approx(found.std(), rel=0.15)
    labels, first, second = rows_of(task, 200)
    alone = [pseudo_values(task, labels, p).std(ddof=1) / math.sqrt(200) for p in (first, second)]
    assert paired_error(task, labels, first, second) < 0.95 * math.hypot(*alone)


def test_of_accuracies_it_is_mcnemars():
    """The error is sqrt(b + c - (b - c)² / n) / n.

    b and c count the rows that only one model predicts correctly. The division under the root uses
    n - 1 instead of n.
    """
    labels, first, second = rows_of("sst2", 300)
    b = int(((first == labels) & (second != labels)).sum())
    c = int(((first != labels) & (second == labels)).sum())
    expected = 100 * math.sqrt((b + c - (b - c) ** 2 / 300) / (300 * 299))
    assert paired_error("sst2", labels, first, second) == pytest.approx(expected)


def test_equal_predictions_differ_by_nothing():
    labels, first, _ = rows_of("mrpc", 50)
    assert paired_error("mrpc", labels, first, first) == 0.0


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least three"):
        pseudo_values("sst2", np.array([0, 1]), np.array([0, 1]))
