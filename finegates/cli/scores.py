"""Metrics of predictions: accuracy, F1, Matthews and other correlations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CLASSES = ("accuracy", "f1")
REGRESSION = ("pearson", "spearman")


def measure(
    names: Sequence[str], logits: np.ndarray, labels: Sequence[int] | Sequence[float]
) -> dict[str, float]:
    """Measures by name.

    Args:
        names: ``accuracy``; ``f1``, of class 1 for two classes, else the mean over classes;
            ``matthews``, the correlation of two classes; ``pearson`` and ``spearman`` correlations.
        logits: (rows, outputs), floating point; one output for regression.
        labels: class codes, or numbers, (rows,).

    Returns:
        values in [-1, 1]. A correlation with a constant, which is undefined, is 0.
    """
    truth = np.asarray(labels, dtype=np.float64)
    scores = np.asarray(logits, dtype=np.float64)
    outputs = scores.shape[-1]
    found = scores.reshape(-1) if outputs == 1 else scores.argmax(-1).astype(np.float64)
    values = {
        "accuracy": lambda: float((found == truth).mean()),
        "f1": lambda: _f1(found, truth, outputs),
        "matthews": lambda: _pearson(found, truth),  # equal for two classes
        "pearson": lambda: _pearson(found, truth),
        "spearman": lambda: _pearson(_ranks(found), _ranks(truth)),
    }
    return {name: values[name]() for name in names}


def _f1(found: np.ndarray, truth: np.ndarray, outputs: int) -> float:
    def of(code: int) -> float:
        both = float(((found == code) & (truth == code)).sum())
        either = float((found == code).sum() + (truth == code).sum())
        return 2 * both / either if either else 0.0

    return of(1) if outputs == 2 else float(np.mean([of(code) for code in range(outputs)]))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; ties get their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: np.ndarray = (last - (counts - 1) / 2)[inverse]
    return ranks
