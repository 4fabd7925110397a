"""The baseline that sees words but not their order: regression on word counts.

A task of the generated language counts as a test of an encoder only if this baseline does badly.
It is given a fair chance: its regularisation is chosen by cross-validation on the training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
import numpy.typing
import pyarrow

from finegates.suggest import nearest
from finegates.tasks.language.tasks import TASKS

if TYPE_CHECKING:
    import pandas

TEXT_COLUMNS = {name: task.columns for name, task in TASKS.items()}
"""GLUE's text columns, in the order in which a model reads them."""

STRENGTHS = tuple(float(strength) for strength in numpy.logspace(-3, 2, 6))
"""Inverse regularisation strengths (C; 1/α for ridge) among which cross-validation chooses."""

FOLDS = 4


def bag_of_words_score(
    train: pyarrow.Table | pandas.DataFrame,
    validation: pyarrow.Table | pandas.DataFrame,
    task: str,
) -> numpy.typing.NDArray[Any]:
    """Predict validation labels from word counts, each word marked with the side it stands on.

    Logistic regression for classes, ridge regression for stsb; strength by 4-fold
    cross-validation on the training rows (accuracy, squared error). Words are what white space
    separates, in lower case; words seen only in validation are ignored. Validation labels are
    not read.

    Arguments:
        train: GLUE's text columns of the task and `label`; n rows.
        validation: the same text columns; m rows.
        task: cola, sst2, mrpc, qqp, stsb, mnli, qnli or rte.

    Returns:
        Predictions, shape (m,): int64 classes, or float64 scores for stsb.

    Raises:
        ValueError: unknown task, or a column is missing.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline

    if task not in TEXT_COLUMNS:
        raise ValueError(f"unknown task {task!r}{nearest(task, TEXT_COLUMNS)}")
    count = CountVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False)
    labels = numpy.asarray(_column(train, "label"))
    train_texts, validation_texts = marked_texts(train, task), marked_texts(validation, task)
    if task == "stsb":
        ridge = make_pipeline(count, RidgeCV(alphas=[1 / c for c in STRENGTHS], cv=FOLDS))
        return numpy.asarray(ridge.fit(train_texts, labels.astype(float)).predict(validation_texts))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    logistic = make_pipeline(count, LogisticRegression(max_iter=2000))
    search = GridSearchCV(logistic, {"logisticregression__C": list(STRENGTHS)}, cv=folds)
    return numpy.asarray(search.fit(train_texts, labels).predict(validation_texts))


def marked_texts(table: pyarrow.Table | pandas.DataFrame, task: str) -> list[str]:
    """Join the text columns of each row, every word prefixed with its side: "1:the 1:dog 2:the"."""
    columns = [_column(table, name) for name in TEXT_COLUMNS[task]]
    return [
        " ".join(
            f"{side}:{word}"
            for side, text in enumerate(row, start=1)
            for word in str(text).lower().split()
        )
        for row in zip(*columns, strict=True)
    ]


def _column(table: pyarrow.Table | pandas.DataFrame, name: str) -> Sequence[Any]:
    known = table.column_names if isinstance(table, pyarrow.Table) else list(table.columns)
    if name not in known:
        raise ValueError(f"column {name!r} is missing; the table has {', '.join(known)}")
    column: Sequence[Any] = (
        table[name].to_pylist() if isinstance(table, pyarrow.Table) else table[name].tolist()
    )
    return column
