"""Labelled text from tables: choice of columns, labels and held-out rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finegates.cli.failures import CommandError
from finegates.cli.tables import Table
from finegates.seeds import derive_seed

PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
SINGLE = ("text", "sentence", "review", "content")
LABEL = ("label", "labels", "target", "class")

HELD_OUT = 0.1
"""Fraction of the rows held out for evaluation if no table is given for it."""

_Value = str | int | float | bool


@dataclass(frozen=True)
class Columns:
    """Names of the columns with the text, its second part (or None), and the label."""

    text: str
    pair: str | None
    label: str


@dataclass(frozen=True)
class Labels:
    """Labels of a task.

    Attributes:
        names: of the classes, in the order of their codes; None for regression.
        values: the value of each class in the tables, in that order.
    """

    names: tuple[str, ...] | None
    values: tuple[_Value, ...] = ()

    @property
    def outputs(self) -> int:
        """Outputs of the task's head."""
        return 1 if self.names is None else len(self.names)

    def __str__(self) -> str:
        if self.names is None:
            return "numbers (regression)"
        shown = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        return f"{len(self.names)} classes ({shown})"


@dataclass(frozen=True)
class Examples:
    """Rows of labelled text.

    Attributes:
        texts: n of them.
        pairs: their second parts, or None.
        labels: a class code, or a number, for each.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: Sequence[int]) -> Examples:
        """Some of the rows."""
        return Examples(
            [self.texts[place] for place in places],
            None if self.pairs is None else [self.pairs[place] for place in places],
            [self.labels[place] for place in places],
        )


def choose_columns(
    table: Table, place: str, text: str | None, pair: str | None, label: str | None
) -> Columns:
    """Chooses the columns of a table.

    Args:
        table: of the training rows.
        place: name of the table in messages.
        text, pair, label: the given names; None is guessed if the guess is unique.

    Raises:
        CommandError: the table has no such column, or the choice is ambiguous.
    """
    has = f"{place} has the columns {', '.join(map(repr, table))}"
    for name, option in ((text, "--text"), (pair, "--text-pair"), (label, "--label")):
        if name is not None and name not in table:
            raise CommandError(f"{option} {name}: no such column; {has}")
    if pair is not None and text is None:
        raise CommandError(f"--text-pair {pair}: name the first text as well, with --text; {has}")
    if label is None:
        found = [name for name in LABEL if name in table]
        if len(found) != 1:
            raise CommandError(f"cannot tell which column has the label: name it; {has} (--label)")
        label = found[0]
    if text is None:
        text, pair = _guess_text({name for name in table if name != label}, has)
    named = [name for name in (text, pair, label) if name is not None]
    if len(set(named)) < len(named):
        raise CommandError(f"one column is named twice: {', '.join(named)}; {has}")
    return Columns(text, pair, label)


def _guess_text(names: set[str], has: str) -> tuple[str, str | None]:
    pairs = [pair for pair in PAIRS if set(pair) <= names]
    single = [name for name in SINGLE if name in names and not any(name in p for p in pairs)]
    if len(pairs) == 1 and not single:
        return pairs[0]
    if len(single) == 1 and not pairs:
        return single[0], None
    raise CommandError(
        f"cannot tell which column has the text: name it; {has} (--text, --text-pair)"
    )


def read_labels(values: Sequence[Any], place: str) -> Labels:
    """Determines the labels of a column.

    Numbers with a decimal point mean regression. Integers, booleans and strings are classes, in
    increasing order. The strings of a CSV file are read as numbers if all of them are numbers.

    Args:
        values: of the training rows.
        place: name of the column in messages.

    Raises:
        CommandError: a value is missing or differs in type from the rest, there is only one class,
            or nearly every row has its own class.
    """
    plain = [_plain(value, row, place) for row, value in enumerate(_typed(values), 1)]
    kinds = {"number" if type(value) in (int, float) else type(value).__name__ for value in plain}
    if len(kinds) > 1:
        raise CommandError(
            f"{place}: labels are of several kinds ({', '.join(sorted(kinds))}); use one"
        )
    if any(isinstance(value, float) for value in plain):
        return Labels(None)
    distinct = sorted(set(plain))
    if len(distinct) < 2:
        raise CommandError(
            f"{place}: every label is {distinct[0]!r}, so there is nothing to learn; name another "
            "column with --label"
        )
    if len(plain) > 20 and len(distinct) > len(plain) / 2:
        raise CommandError(
            f"{place}: {len(distinct)} different labels in {len(plain)} rows are not classes; name "
            "another column with --label, or write numbers with a decimal point for regression"
        )
    return Labels(tuple(str(value) for value in distinct), tuple(distinct))


def make_examples(table: Table, columns: Columns, labels: Labels, place: str) -> Examples:
    """Makes examples from the rows of a table.

    Args:
        table: of any split.
        columns: its text and labels.
        labels: of the training rows.
        place: name of the table in messages.

    Raises:
        CommandError: a column is missing, a text is missing or not a string, or a label does not
            occur in the training rows.
    """
    for name in (columns.text, columns.pair, columns.label):
        if name is not None and name not in table:
            raise CommandError(
                f"{place}: has no column {name!r} as the training rows have; it has "
                f"{', '.join(map(repr, table))}"
            )
    texts = _texts(table[columns.text], f"{place}, column {columns.text!r}")
    pairs = None
    if columns.pair is not None:
        pairs = _texts(table[columns.pair], f"{place}, column {columns.pair!r}")
    where = f"{place}, column {columns.label!r}"
    values: Sequence[Any] = table[columns.label]
    if not any(isinstance(value, str) for value in labels.values):
        values = _typed(values)
    plain = [_plain(value, row, where) for row, value in enumerate(values, 1)]
    if labels.names is None:
        return Examples(texts, pairs, _numbers(plain, where))
    codes = {value: code for code, value in enumerate(labels.values)}
    for row, value in enumerate(plain, 1):
        if value not in codes:
            raise CommandError(
                f"{where}, row {row}: the label {value!r} is not among the training rows' "
                f"({', '.join(labels.names[:10])}); remove the row, or train on such rows too"
            )
    return Examples(texts, pairs, [codes[value] for value in plain])


def hold_out(examples: Examples, labels: Labels, seed: int) -> tuple[Examples, Examples]:
    """Splits rows into a training set and a tenth for evaluation, stratified by class.

    Args:
        examples: all rows.
        labels: of the rows.
        seed: of the choice; both parts keep the order of the rows.

    Raises:
        CommandError: there are too few rows.
    """
    generator = np.random.default_rng(derive_seed("hold out", seed))
    groups: dict[Any, list[int]] = {}
    for place, label in enumerate(examples.labels):
        groups.setdefault(None if labels.names is None else label, []).append(place)
    held: set[int] = set()
    for _, places in sorted(groups.items(), key=lambda item: item[1]):
        count = round(HELD_OUT * len(places))
        if count == 0 and len(places) > 1:
            count = 1
        held.update(generator.choice(places, count, replace=False).tolist())
    if not held or len(held) == len(examples):
        raise CommandError(
            f"{len(examples)} rows are too few to hold some out for evaluation; give more, or a "
            "file to evaluate on with --eval"
        )
    rows = range(len(examples))
    return (
        examples.take([place for place in rows if place not in held]),
        examples.take(sorted(held)),
    )


def _texts(values: Sequence[Any], place: str) -> list[str]:
    for row, value in enumerate(values, 1):
        if value is None:
            raise CommandError(
                f"{place}, row {row}: the text is missing; remove the row or fill it"
            )
        if not isinstance(value, str):
            raise CommandError(
                f"{place}, row {row}: {value!r} is not a text; name another column (--text)"
            )
    return list(values)


def _typed(values: Sequence[Any]) -> Sequence[Any]:
    """Converts strings to integers if all are integers, or to floats if all are numbers."""
    if all(isinstance(value, str) for value in values):
        for kind in (int, float):
            try:
                return [kind(value) for value in values]
            except ValueError:
                continue
    return values


def _plain(value: Any, row: int, place: str) -> _Value:
    if value is None:
        raise CommandError(f"{place}, row {row}: the label is missing; remove the row or fill it")
    if isinstance(value, float) and not math.isfinite(value):
        raise CommandError(f"{place}, row {row}: the label {value} is not finite; remove the row")
    if not isinstance(value, (str, int, float, bool)):
        raise CommandError(f"{place}, row {row}: {value!r} is not a label; use a number or a text")
    return value


def _numbers(values: Sequence[_Value], place: str) -> list[float]:
    for row, value in enumerate(values, 1):
        if isinstance(value, (str, bool)):
            raise CommandError(f"{place}, row {row}: {value!r} is not a number; the others are")
    return [float(value) for value in values]
