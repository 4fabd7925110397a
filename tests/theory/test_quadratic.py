"""Row gates alone, column gates alone: identities and bounds on arbitrary shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from support.problem_strategies import matrices, problems, vectors
from theory.problems import FAMILIES, Problem, draw_problem
from theory.quadratic import (
    column_quadratic,
    descend,
    gradients,
    loss,
    row_quadratic,
    schur_lower_bound,
    schur_range_bound,
)

# Entries are integers up to 3 and gates k/4: sums of at most 125 such products, exact to 12 digits.
EXACT = 1e-9


@given(st.data())
def test_the_quadratic_in_column_gates_is_the_loss_whatever_the_row_gates(data):
    problem = data.draw(problems())
    rows, cols = data.draw(vectors(problem.rows)), data.draw(vectors(problem.cols))
    quadratic = column_quadratic(problem, rows)
    assert quadratic.value(cols) == pytest.approx(loss(problem, rows, cols), rel=EXACT, abs=EXACT)
    expected = gradients(problem, rows, cols)[1]
    np.testing.assert_allclose(quadratic.gradient(cols), expected, rtol=EXACT, atol=EXACT)


@given(st.data())
def test_the_quadratic_in_row_gates_is_the_loss_whatever_the_column_gates(data):
    problem = data.draw(problems())
    rows, cols = data.draw(vectors(problem.rows)), data.draw(vectors(problem.cols))
    quadratic = row_quadratic(problem, cols)
    assert quadratic.value(rows) == pytest.approx(loss(problem, rows, cols), rel=EXACT, abs=EXACT)
    expected = gradients(problem, rows, cols)[0]
    np.testing.assert_allclose(quadratic.gradient(rows), expected, rtol=EXACT, atol=EXACT)
    off_diagonal = quadratic.hessian - np.diag(np.diag(quadratic.hessian))
    assert not off_diagonal.any()


@given(st.data())
def test_the_minimiser_is_stationary_and_nothing_drawn_is_lower(data):
    problem = data.draw(problems())
    quadratic = column_quadratic(problem)
    optimum = quadratic.minimiser()
    scale = 1 + np.abs(quadratic.linear).max()
    np.testing.assert_allclose(quadratic.gradient(optimum), 0, atol=1e-8 * scale)
    cols = data.draw(vectors(problem.cols))
    assert quadratic.value(cols) >= quadratic.minimum() - 1e-9 * (1 + quadratic.constant)


@given(st.data())
def test_the_pl_constant_bounds_every_ratio_on_singular_problems_too(data):
    problem = data.draw(problems())
    quadratic = column_quadratic(problem)
    cols = data.draw(vectors(problem.cols))
    gap = quadratic.gap(cols)
    assume(gap > 1e-9)
    gradient = quadratic.gradient(cols)
    assert gradient @ gradient >= 2 * quadratic.pl_constant * gap * (1 - 1e-6)


def test_a_repeated_column_makes_a_zero_eigenvalue_that_is_not_the_pl_constant():
    problem = draw_problem("rank-deficient", 0)
    values, _ = column_quadratic(problem).spectrum()
    assert np.sum(values == 0) == 2  # the repeated column, and the zero column
    assert column_quadratic(problem).pl_constant == values[values > 0].min() > 1e-6


def test_a_loss_that_no_gate_moves_has_an_infinite_pl_constant():
    problem = Problem(np.zeros((3, 2)), np.ones((1, 2)), np.ones((3, 1)))
    assert column_quadratic(problem).pl_constant == np.inf
    assert column_quadratic(problem).minimum() == pytest.approx(0.5)


@given(st.data())
def test_the_schur_bound_holds_for_any_two_gram_matrices(data):
    size = data.draw(st.integers(1, 5))
    a, b = (data.draw(matrices(data.draw(st.integers(1, 6)), size)) for _ in range(2))
    a, b = a.T @ a, b.T @ b
    smallest = float(np.linalg.eigvalsh(a * b)[0])
    assert schur_lower_bound(a, b) <= smallest + 1e-9 * (1 + np.abs(a * b).max())


@given(st.data())
def test_the_bound_on_ranges_holds_for_singular_gram_matrices(data):
    size = data.draw(st.integers(1, 5))
    a, b = (data.draw(matrices(data.draw(st.integers(1, 6)), size)) for _ in range(2))
    a, b = a.T @ a, b.T @ b
    values = np.linalg.eigvalsh(a * b)
    nonzero = values[values > 1e-9 * max(values[-1], 1e-300)]
    assume(len(nonzero) and a.any())
    assert schur_range_bound(a, b, 12) <= nonzero.min() * (1 + 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_descent_meets_its_bound_and_a_larger_constant_would_not(family):
    quadratic = column_quadratic(draw_problem(family, 1))
    gaps = descend(quadratic, np.ones(len(quadratic.linear)), 1000)
    rate = quadratic.pl_constant / quadratic.smoothness
    steps = np.arange(1001)
    assert np.all(gaps <= gaps[0] * (1 - rate) ** steps * (1 + 1e-9) + 1e-25)
    # Asymptotically a quadratic contracts by exactly (1 − μ/Λ)² a step.
    wrong = max(0.0, 1 - 20 * rate)
    assert not np.all(gaps <= gaps[0] * wrong**steps)


def test_problems_derive_from_family_and_number_alone():
    first, again = (draw_problem("ill-conditioned", 3, seed=1) for _ in range(2))
    assert np.array_equal(first.inputs, again.inputs)
    assert np.array_equal(first.targets, again.targets)
    other = draw_problem("ill-conditioned", 3, seed=2)
    assert not np.array_equal(first.weight, other.weight)


def test_families_have_the_condition_and_rank_that_they_name():
    assert np.linalg.cond(draw_problem("well-conditioned", 0).second_moment) == pytest.approx(4)
    assert np.linalg.cond(draw_problem("ill-conditioned", 0).second_moment) == pytest.approx(1e3)
    assert np.linalg.matrix_rank(draw_problem("rank-deficient", 0).inputs) == 5
    over = draw_problem("over-parameterised", 0)
    assert over.samples * over.rows < over.cols


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: draw_problem("well", 0), "unknown family 'well'"),
        (lambda: draw_problem("well-conditioned", 0, teacher="x"), "unknown teacher 'x'"),
        (
            lambda: Problem(np.ones((3, 2)), np.ones((4, 3)), np.ones((3, 4))),
            "inputs 3 x 2 and weight 4 x 3",
        ),
        (lambda: Problem(np.ones((0, 2)), np.ones((4, 2)), np.ones((0, 4))), "at least one entry"),
        (
            lambda: Problem(np.full((1, 1), np.nan), np.ones((1, 1)), np.ones((1, 1))),
            "inputs must be finite",
        ),
    ],
)
def test_a_problem_that_cannot_be_says_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()
