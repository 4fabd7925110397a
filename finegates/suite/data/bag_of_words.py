"""The bag-of-words baseline: regression on word counts without order.

A task of the generated language tests an encoder only if this baseline fails on it. For a fair
comparison, its regularisation is chosen by cross-validation on the training rows.
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
    """Predict validation labels from word counts, by text column.

    It uses logistic regression for classes and ridge regression for stsb. The regularisation is
    chosen by 4-fold cross-validation on the training rows (accuracy, squared error). Words are
    separated by white space, in lower case. Words that occur only in validation are ignored, and
    validation labels are not read.

    Arguments:
        train: columns of `glue.read_split`: the task's texts and `label`; n rows.
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
    """Predict the same label for all validation rows, shape (m,).

    It is the most frequent training label (the smallest one for ties), or the mean score for stsb.
    """
    labels = train["label"].to_numpy()
    if task_named(task).labels is None:
        return numpy.full(validation.num_rows, labels.mean(dtype=float))
    codes, counts = numpy.unique(labels, return_counts=True)
    return numpy.full(validation.num_rows, codes[counts.argmax()])


def marked_texts(table: pyarrow.Table, task: str) -> list[str]:
    """Join text columns, with column numbers: "1:the 1:dog 2:the"."""
    columns = [table[name].to_pylist() for name in task_named(task).columns]
    return [
        " ".join(
            f"{side}:{word}"
            for side, text in enumerate(row, start=1)
            for word in text.lower().split()
        )
        for row in zip(*columns, strict=True)
    ]
