"""Hypothesis strategies for least-squares problems of any shape, including singular ones."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from theory.problems import Array, Problem


def matrices(rows: int, cols: int) -> st.SearchStrategy[Array]:
    """Matrices of small integers, often with zero rows, repeated columns or a rank deficiency."""
    return arrays(np.int64, (rows, cols), elements=st.integers(-3, 3)).map(
        lambda values: values.astype(np.float64)
    )


@st.composite
def problems(draw: st.DrawFn, largest: int = 5) -> Problem:
    """Problems with any n, m, d up to ``largest``; repeated or zero columns, zero rows in some."""
    n, m, d = (draw(st.integers(1, largest)) for _ in range(3))
    inputs, weight = draw(matrices(n, d)), draw(matrices(m, d))
    targets = draw(matrices(n, m))
    if d > 1 and draw(st.booleans()):
        inputs[:, 1], weight[:, 1] = inputs[:, 0], weight[:, 0]
    if draw(st.booleans()):
        weight[draw(st.integers(0, m - 1))] = 0.0
    if draw(st.booleans()):
        weight[:, draw(st.integers(0, d - 1))] = 0.0
    return Problem(inputs, weight, targets)


def vectors(size: int) -> st.SearchStrategy[Array]:
    """Vectors of gates k/4 in [-2, 2]."""
    return arrays(np.int64, size, elements=st.integers(-8, 8)).map(lambda k: k / 4.0)
