"""The GLUE tasks: their columns, labels and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from finegates.suite.config.suggest import nearest


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    Attributes:
        name: GLUE's name.
        columns: the one or two text columns.
        labels: label names in the order of their codes; None for regression on [0, 5].
        metrics: names of its metrics; the score is their mean, times 100.
        validation: the reported split.
        train_rows: official number of training rows.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    train_rows: int
    validation: str = "validation"

    @property
    def correlates(self) -> bool:
        """Whether the score is a correlation instead of a fraction of rows."""
        return bool({"matthews", "pearson", "spearman"} & set(self.metrics))

    @property
    def num_labels(self) -> int:
        """Number of outputs of the task head: classes, or 1 for regression."""
        return 1 if self.labels is None else len(self.labels)


_ENTAILMENT = ("entailment", "not_entailment")


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), 8551),
        Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), 67349),
        Task(
            "mrpc",
            ("sentence1", "sentence2"),
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            3668,
        ),
        Task("stsb", ("sentence1", "sentence2"), None, ("pearson", "spearman"), 5749),
        Task(
            "qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            363846,
        ),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            392702,
            "validation_matched",
        ),
        Task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",), 104743),
        Task("rte", ("sentence1", "sentence2"), _ENTAILMENT, ("accuracy",), 2490),
    )
}


class DataError(ValueError):
    """A table is invalid. The message names it, the fault and the remedy."""


def task_named(name: str) -> Task:
    """A task by name. Raises DataError that names the nearest known one."""
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]
