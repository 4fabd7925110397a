"""The baseline that sees words but not their order: regression on word counts.

A task of the generated language counts as a test of an encoder only if this baseline does badly.
It is given a fair chance: its regularisation is chosen by cross-validation on the training rows.
"""

from __future__ import annotations

from typing import Any

import numpy
import numpy.typing
import pyarrow

from finegates.suite.config.tasks import task_named

STRENGTHS = tuple(float(strength) for strength in numpy.logspace(-3, 2, 6))
"""Inverse regularisation strengths (C; 1/α for ridge) among which cross-validation chooses."""

FOLDS = 4


def bag_of_words_score(
    train: pyarrow.Table, validation: pyarrow.Table, task: str
) -> numpy.typing.NDArray[Any]:
    """Predict validation labels from word counts, each word marked with its side.

    Logistic regression for classes, ridge regression for stsb; strength by 4-fold
    cross-validation on the training rows (accuracy, squared error). Words are what white space
    separates, in lower case; words seen only in validation are ignored. Validation labels are
    not read.

    Arguments:
        train: the columns that `glue.read_split` gives: the task's texts and `label`; n rows.
        validation: the same text columns; m rows.
        task: cola, sst2, mrpc, qqp, stsb, mnli, qnli or rte.

    Returns:
        Predictions, shape (m,): int64 classes, or float64 scores for stsb.

    Raises:
        DataError: unknown task.
        KeyError: a column is missing.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline

    count = CountVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False)
    labels = train["label"].to_numpy()
    train_texts, validation_texts = marked_texts(train, task), marked_texts(validation, task)
    if task_named(task).labels is None:
        ridge = make_pipeline(count, RidgeCV(alphas=[1 / c for c in STRENGTHS], cv=FOLDS))
        return numpy.asarray(ridge.fit(train_texts, labels.astype(float)).predict(validation_texts))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    logistic = make_pipeline(count, LogisticRegression(max_iter=2000))
    search = GridSearchCV(logistic, {"logisticregression__C": list(STRENGTHS)}, cv=folds)
    return numpy.asarray(search.fit(train_texts, labels).predict(validation_texts))


def constant_predictions(
    train: pyarrow.Table, validation: pyarrow.Table, task: str
) -> numpy.typing.NDArray[Any]:
    """Predict one answer for every validation row, shape (m,).

    It is the most frequent training label (of equally frequent ones the least), or for stsb the
    mean score.
    """
    labels = train["label"].to_numpy()
    if task_named(task).labels is None:
        return numpy.full(validation.num_rows, labels.mean(dtype=float))
    codes, counts = numpy.unique(labels, return_counts=True)
    return numpy.full(validation.num_rows, codes[counts.argmax()])


def marked_texts(table: pyarrow.Table, task: str) -> list[str]:
    """Join the text columns of each row, every word prefixed with its side: "1:the 1:dog 2:the"."""
    columns = [table[name].to_pylist() for name in task_named(task).columns]
    return [
        " ".join(
            f"{side}:{word}"
            for side, text in enumerate(row, start=1)
            for word in text.lower().split()
        )
        for row in zip(*columns, strict=True)
    ]
