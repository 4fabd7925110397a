"""Jackknife standard errors of scores and paired differences over rows.

Two models make many of their errors on the same rows, so the difference of their scores varies less
than with independent samples of rows. The jackknife pseudo-value of row i is

    p_i = n θ - (n - 1) θ_(-i),

where θ_(-i) is the score without row i. The mean of the p_i is the score up to terms of order 1/n.
The pseudo-values of two models are subtracted row by row. The standard error of the mean of these
differences estimates that of the difference of scores (Efron and Tibshirani 1993, chapter 11). For
accuracies it is the standard error in McNemar's test.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from finegates.suite.config.tasks import task_named

Array = np.ndarray


def pseudo_values(task: str, labels: Array, predictions: Array) -> Array:
    """Jackknife pseudo-values of GLUE's score of a task.

    Args:
        task: GLUE's name.
        labels: shape (rows,), at least three rows.
        predictions: class codes, or similarities for regression, shape (rows,).

    Returns:
        shape (rows,), float64, times 100 like the score.

    Raises:
        ValueError: shapes differ, or there are fewer than three rows.
    """
    if labels.shape != predictions.shape or labels.ndim != 1 or len(labels) < 3:
        raise ValueError(
            f"pseudo-values need as many labels as predictions and at least three, got shapes "
            f"{labels.shape} and {predictions.shape}"
        )
    count = len(labels)
    found = np.zeros(count)
    metrics = task_named(task).metrics
    for metric in metrics:
        whole, without = _LEFT_OUT[metric](labels, predictions)
        found += count * whole - (count - 1) * without
    return 100.0 * found / len(metrics)


def paired_error(task: str, labels: Array, first: Array, second: Array) -> float:
    """Standard error of a difference of scores on the same rows, times 100.

    Args:
        task: GLUE's name.
        labels: shape (rows,).
        first: predictions of one model, shape (rows,).
        second: predictions of the other model, shape (rows,).
    """
    differences = pseudo_values(task, labels, first) - pseudo_values(task, labels, second)
    return float(np.std(differences, ddof=1) / math.sqrt(len(labels)))


def _accuracy(labels: Array, predictions: Array) -> tuple[float, Array]:
    right = (labels == predictions).astype(np.float64)
    return float(right.mean()), (right.sum() - right) / (len(right) - 1)


def _from_counts(
    score: Callable[[float, float, float, float], float],
) -> Callable[[Array, Array], tuple[float, Array]]:
    """A binary score of the counts (tp, fp, fn, tn), with its leave-one-out values."""

    def left_out(labels: Array, predictions: Array) -> tuple[float, Array]:
        cell = 2 * (predictions == 1) + (labels == predictions)  # fn, tn, fp, tp as 0, 1, 2, 3
        counts = np.bincount(cell, minlength=4).astype(np.float64)

        def value(fn: float, tn: float, fp: float, tp: float) -> float:
            return score(tp, fp, fn, tn)

        # Removing a row decrements one of the four counts, so there are only four values.
        without = np.array(
            [value(*(counts - (np.arange(4) == k))) if counts[k] else 0.0 for k in range(4)]
        )
        return value(*counts), without[cell]

    return left_out


def _f1(tp: float, fp: float, fn: float, tn: float) -> float:
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def _matthews(tp: float, fp: float, fn: float, tn: float) -> float:
    square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(square) if square else 0.0


def _pearson(labels: Array, predictions: Array) -> tuple[float, Array]:
    x, y = (v.astype(np.float64) - v.astype(np.float64).mean() for v in (labels, predictions))
    count = len(x)
    # Centred sums without row i: S_xy - x_i y_i n / (n - 1), for x and y centred over all rows.
    factor = count / (count - 1)
    xy, xx, yy = (x * y).sum(), (x * x).sum(), (y * y).sum()
    without = _correlation(xy - factor * x * y, xx - factor * x * x, yy - factor * y * y)
    return float(_correlation(xy, xx, yy)), without


def _spearman(labels: Array, predictions: Array) -> tuple[float, Array]:
    from scipy.stats import rankdata

    x, y = rankdata(labels), rankdata(predictions)
    whole, _ = _pearson(x, y)
    # Without row i, larger ranks decrease by 1 and tied ranks by 1/2: each (rows, rows).
    lower = [_ranks_without(values, ranks) for values, ranks in ((labels, x), (predictions, y))]
    keep = ~np.eye(len(x), dtype=bool)
    u, v = (ranks[keep].reshape(len(x), -1) for ranks in lower)  # (rows left out, other rows)
    u, v = (ranks - ranks.mean(1, keepdims=True) for ranks in (u, v))
    return whole, _correlation((u * v).sum(1), (u * u).sum(1), (v * v).sum(1))


def _ranks_without(values: Array, ranks: Array) -> Array:
    """Ranks of all rows after one is left out, (rows left out, rows)."""
    above = values[None, :] > values[:, None]
    tied = values[None, :] == values[:, None]
    lowered: Array = ranks[None, :] - above - 0.5 * tied
    return lowered


def _correlation(xy: Array, xx: Array, yy: Array) -> Array:
    """xy / sqrt(xx yy), and 0 if a side is constant, as GLUE counts it."""
    square = np.maximum(xx * yy, 0.0)
    root = np.sqrt(square)
    return np.divide(xy, root, out=np.zeros_like(root), where=root > 0)


_LEFT_OUT: dict[str, Callable[[Array, Array], tuple[float, Array]]] = {
    "accuracy": _accuracy,
    "f1": _from_counts(_f1),
    "matthews": _from_counts(_matthews),
    "pearson": _pearson,
    "spearman": _spearman,
}
