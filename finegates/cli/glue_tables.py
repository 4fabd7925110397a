"""GLUE tasks as folders of Parquet tables: columns, labels and metrics."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from finegates.cli.examples import Columns
from finegates.cli.failures import CommandError

_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE.

    Attributes:
        text: the columns of the text, one or two.
        names: of the classes, in the order of their codes; None for regression.
        measures: its metrics, names of :mod:`finegates.cli.scores`.
        validation: the split that is reported.
    """

    text: tuple[str, ...]
    names: tuple[str, ...] | None
    measures: tuple[str, ...]
    validation: str = "validation"

    @property
    def columns(self) -> Columns:
        """The columns of its tables."""
        return Columns(self.text[0], self.text[1] if len(self.text) > 1 else None, "label")


TASKS = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": GlueTask(
        ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")
    ),
    "stsb": GlueTask(("sentence1", "sentence2"), None, ("pearson", "spearman")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        "validation_matched",
    ),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT, ("accuracy",)),
    "rte": GlueTask(("sentence1", "sentence2"), _ENTAILMENT, ("accuracy",)),
}


def task_named(name: str) -> GlueTask:
    """Looks up a task of GLUE.

    Raises:
        CommandError: there is no such task; the message suggests the nearest.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise CommandError(
            f"--task {name}: {hint}known are {', '.join(TASKS)}; for your own data use --train"
        )
    return TASKS[name]


def task_files(name: str, folder: str | Path) -> tuple[list[Path], list[Path]]:
    """The Parquet files of a task's training and reported split.

    Args:
        name: of the task.
        folder: contains them, or a folder named after the task that does. A split is one file
            (``train.parquet``) or several (``train-00000-of-00002.parquet``).

    Raises:
        CommandError: the folder or a split is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CommandError(f"--data {folder}: no such folder; check the path")
    place = folder / name if (folder / name).is_dir() else folder
    found = []
    for split in ("train", task_named(name).validation):
        files = [place / f"{split}.parquet"]
        if not files[0].is_file():
            files = sorted(place.glob(f"{split}-*-of-*.parquet"))
        if not files:
            raise CommandError(
                f"--data {folder}: no {split}.parquet of task {name} in {place}; give a folder "
                f"with {name}/train.parquet and {name}/{task_named(name).validation}.parquet"
            )
        found.append(files)
    return found[0], found[1]
