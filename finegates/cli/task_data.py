"""Loads the data that the command line names: files, or a task of GLUE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finegates.cli import scores
from finegates.cli.examples import (
    Columns,
    Examples,
    Labels,
    choose_columns,
    hold_out,
    make_examples,
    read_labels,
)
from finegates.cli.glue_tables import task_files, task_named
from finegates.cli.tables import Table, read_table
from finegates.files import file_digest


@dataclass(frozen=True)
class TaskData:
    """The rows of a task.

    Attributes:
        train: training rows.
        held_out: evaluation rows.
        held_out_is: description of the evaluation rows.
        labels: of both.
        columns: of the tables.
        measures: metrics of predictions.
        digest: SHA-256 of each file, by its role.
    """

    train: Examples
    held_out: Examples
    held_out_is: str
    labels: Labels
    columns: Columns
    measures: tuple[str, ...]
    digest: dict[str, Any]


def read_task_data(arguments: argparse.Namespace) -> TaskData:
    """Reads the data of ``--train`` and ``--eval``, or of ``--task`` and ``--data``.

    Raises:
        CommandError: a file or column is missing or wrong; the message names it and the remedy.
    """
    if arguments.task is not None:
        return _of_glue(arguments.task, arguments.data)
    table, place = read_table(arguments.train), str(arguments.train)
    columns = choose_columns(table, place, arguments.text, arguments.text_pair, arguments.label)
    labels = read_labels(table[columns.label], f"{place}, column {columns.label!r}")
    examples = make_examples(table, columns, labels, place)
    digest = {"train": file_digest(arguments.train)}
    if arguments.eval is None:
        train, held_out = hold_out(examples, labels, arguments.seed)
        what = "held out of the same file to evaluate on"
    else:
        train, what = examples, f"to evaluate on ({arguments.eval.name})"
        held_out = make_examples(read_table(arguments.eval), columns, labels, str(arguments.eval))
        digest["eval"] = file_digest(arguments.eval)
    measures = scores.REGRESSION if labels.names is None else scores.CLASSES
    return TaskData(train, held_out, what, labels, columns, measures, digest)


def _of_glue(name: str, folder: Path) -> TaskData:
    task = task_named(name)
    files = task_files(name, folder)
    labels = Labels(task.names, tuple(range(len(task.names or ()))))
    train, held_out = (
        make_examples(_joined(paths), task.columns, labels, str(paths[0])) for paths in files
    )
    digest = {
        part: [file_digest(path) for path in paths]
        for part, paths in zip(("train", "eval"), files, strict=True)
    }
    what = f"to evaluate on (split {task.validation!r})"
    return TaskData(train, held_out, what, labels, task.columns, task.measures, digest)


def _joined(paths: Sequence[Path]) -> Table:
    """The rows of several files with the same columns."""
    tables = [read_table(path) for path in paths]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: [value for table in tables for value in table[name]] for name in names}
