"""GLUE's metrics as offline ``evaluate`` objects, and the score of a task."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from finegates.suite.config.tasks import task_named


class GlueMetric(evaluate.Metric):
    """The metrics of one GLUE task, computed with scikit-learn and scipy.

    ``compute(predictions=..., references=...)`` takes integer codes (floats for STS-B) and returns
    ``accuracy``, ``f1`` (of class 1), ``matthews``, or ``pearson`` and ``spearman``, each as GLUE
    defines it, in [-1, 1]. The correlation with a constant is undefined and counts as 0, as on
    GLUE's leaderboard.
    """

    def __init__(self, task: str, **kwargs: Any) -> None:
        self._spec = task_named(task)
        super().__init__(config_name=task, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("float32" if self._spec.labels is None else "int64")
        return evaluate.MetricInfo(
            description=f"GLUE metrics of {self._spec.name}",
            citation="Wang et al., GLUE, ICLR 2019",
            inputs_description="predictions and references, one number a row",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {name: _METRICS[name](references, predictions) for name in self._spec.metrics}


def score(task: str, metrics: dict[str, float]) -> float:
    """GLUE's score of a task: the mean of its metrics, times 100."""
    return 100.0 * float(np.mean([metrics[name] for name in task_named(task).metrics]))


def predictions_from_logits(task: str, logits: np.ndarray) -> np.ndarray:
    """Class codes or similarities (rows,) from logits (rows, outputs)."""
    if task_named(task).labels is None:
        return np.asarray(logits, dtype=np.float32).reshape(-1)
    return np.asarray(logits).argmax(axis=-1)


def _correlation(kind: Any) -> Any:
    def correlate(references: np.ndarray, predictions: np.ndarray) -> float:
        if np.ptp(predictions) == 0 or np.ptp(references) == 0:
            return 0.0
        return float(kind(predictions, references).statistic)

    return correlate


_METRICS = {
    "accuracy": lambda y, p: float(accuracy_score(y, p)),
    "f1": lambda y, p: float(f1_score(y, p, zero_division=0)),
    "matthews": lambda y, p: float(matthews_corrcoef(y, p)),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}
