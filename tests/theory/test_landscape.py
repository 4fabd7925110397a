"""Row and column gates together, gates in the box, and low-rank adapters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from support.problem_strategies import problems, vectors
from theory.bilinear import (
    biased_coupling,
    fit_gates,
    joint_gradient,
    joint_hessian,
    joint_loss,
    local_region,
    saddle_coupling,
    weight_components,
)
from theory.box import attaining, box_constant, box_minimiser, prox_decrease, two_columns
from theory.checks.bias import biased_residual
from theory.checks.joint import nearly_right, with_known_least
from theory.checks.rank_one import missing_example, missing_in_box
from theory.checks.settings import Settings
from theory.checks.together import taught
from theory.conditioning import (
    Batch,
    ranks_of,
    solution,
    solve_gates,
    start,
    start_loss,
    steepest_descent,
)
from theory.critical import critical_orbits, least_loss, smallest_ratio
from theory.lora import (
    count_zeros,
    lora_gradient,
    lora_hessian,
    lora_loss,
    lora_minimiser,
    zero_eigenvalues,
)
from theory.outputs import least_of_rank, prox_ratio
from theory.priced import relaxed_joint_gradient
from theory.problems import FAMILIES, Problem, draw_problem
from theory.quadratic import Quadratic, column_quadratic
from theory.rank_one import descended


@given(st.data())
def test_gradient_and_hessian_are_those_of_the_loss(data):
    problem = data.draw(problems(largest=4))
    gates = data.draw(vectors(problem.rows + problem.cols))
    direction = data.draw(vectors(problem.rows + problem.cols))
    gradient, hessian = joint_gradient(problem, gates), joint_hessian(problem, gates)
    # The loss is a quartic along a line: five values determine it, and differences are exact.
    steps = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    values = [joint_loss(problem, gates + t * direction) for t in steps]
    quartic = np.polynomial.polynomial.polyfit(steps, values, 4)
    scale = 1 + np.abs(values).max()
    assert gradient @ direction == pytest.approx(quartic[1], abs=1e-8 * scale)
    assert direction @ hessian @ direction == pytest.approx(2 * quartic[2], abs=1e-8 * scale)


@given(st.data(), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_rescaling_rows_against_columns_changes_nothing(data, t):
    problem = data.draw(problems())
    rows, cols = data.draw(vectors(problem.rows)), data.draw(vectors(problem.cols))
    first = joint_loss(problem, np.concatenate([rows, cols]))
    moved = np.concatenate([t * rows, cols / t])
    assert joint_loss(problem, moved) == first  # t is a power of two: exact
    gradient = joint_gradient(problem, moved)
    assert gradient[: problem.rows] @ rows * t == pytest.approx(
        gradient[problem.rows :] @ cols / t, abs=1e-9 * (1 + abs(first) * 1e3)
    )


@given(problems())
def test_zero_is_a_saddle_as_strict_as_the_coupling_or_a_minimiser(problem):
    zero = np.zeros(problem.rows + problem.cols)
    assert not joint_gradient(problem, zero).any()
    coupling = np.linalg.norm(saddle_coupling(problem), 2)
    least = np.linalg.eigvalsh(joint_hessian(problem, zero))[0]
    assert least == pytest.approx(-coupling, abs=1e-9 * (1 + coupling))
    if coupling == 0:
        assert joint_loss(problem, fit_gates(problem, sweeps=5)) >= problem.null_loss * (1 - 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_with_a_known_least_loss_have_it(family):
    """Solvers from ω = 1 miss the least loss of some problems, so that no law may use theirs."""
    drawn = draw_problem(family, 3)
    problem, low = with_known_least(drawn, np.random.default_rng(0))
    ends = [
        joint_loss(problem, descended(problem, start))
        for start in np.random.default_rng(1).uniform(-0.2, 1.3, (12, problem.rows + problem.cols))
    ]
    assert min(ends) == pytest.approx(low, abs=1e-9 * problem.null_loss)


def test_the_least_loss_of_several_descents_is_below_that_of_one_on_some_problem():
    problem = draw_problem("ill-conditioned", 7)
    alone = joint_loss(problem, fit_gates(problem))
    found = least_loss(problem, np.random.default_rng(0), 12)
    assert found < alone - 0.02 * (problem.null_loss - alone)
    example = missing_example()
    alone = joint_loss(example, descended(example, np.ones(4)))
    assert least_loss(example, np.random.default_rng(0), 12) < 0.01 * alone


def test_a_weight_of_two_blocks_has_two_symmetries():
    weight = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    assert weight_components(weight) == 2
    assert weight_components(np.ones((2, 3))) == 1
    assert weight_components(np.zeros((2, 3))) == 0


def test_best_gates_that_are_not_isolated_have_more_flat_directions_than_components():
    """W = 11ᵀ, target I: r_a² = c_a², r_1² + r_2² = 1 is best, although W is connected."""
    inputs = np.sqrt(2) * np.eye(2)
    problem = Problem(inputs, np.ones((2, 2)), inputs)
    assert weight_components(problem.weight) == 1
    for share in (0.3, 0.6):
        gates = np.sqrt([share, 1 - share, share, 1 - share])
        assert joint_loss(problem, gates) == pytest.approx(0.5)  # of the best rank one
        assert count_zeros(joint_hessian(problem, gates), 4) == 2


@given(problems(largest=4))
def test_a_trained_bias_is_a_column_gate_of_each_output_on_a_constant_input(problem):
    """L(r, c, b) is the loss of gates on the inputs (x, 1, ..., 1) with the weight (W, I)."""
    m, d = problem.weight.shape
    ones = np.ones((problem.samples, m))
    wider = Problem(
        np.concatenate([problem.inputs, ones], axis=1),
        np.concatenate([problem.weight, np.eye(m)], axis=1),
        problem.targets,
    )
    np.testing.assert_allclose(
        biased_coupling(problem)[:, : d + m], saddle_coupling(wider), atol=1e-12
    )
    residual = biased_residual(problem, None)
    gates = np.linspace(-1, 1, 2 * m + d)
    found = float(residual(torch.as_tensor(gates)).square().sum() / 2)
    assert found == pytest.approx(joint_loss(wider, gates), abs=1e-9 * (1 + found))


def test_a_trained_bias_makes_a_strict_saddle_where_the_weight_makes_none():
    """S = 0 and Ȳ ≠ 0: the constants of a layer without a bias would say a global minimiser."""
    inputs = np.array([[1.0], [-1.0]])
    problem = Problem(inputs, np.ones((1, 1)), np.array([[2.0], [2.0]]))
    assert not saddle_coupling(problem).any()
    residual = biased_residual(problem, None)
    at_zero, better = (
        float(residual(torch.tensor(gates, dtype=torch.float64)).square().sum() / 2)
        for gates in ([0.0, 0.0, 0.0], [1.0, 0.0, 2.0])
    )
    assert (at_zero, better) == (pytest.approx(2.0), 0.0)
    assert np.linalg.norm(biased_coupling(problem), 2) == 2.0


def test_a_region_needs_a_minimiser_with_one_flat_direction():
    problem = draw_problem("rank-deficient", 0)
    with pytest.raises(ValueError, match="drop zero rows and columns of W"):
        local_region(problem, fit_gates(problem))


@given(st.data())
def test_proximal_pl_holds_in_the_box_with_the_constant_of_bases(data):
    problem = data.draw(problems())
    quadratic = column_quadratic(problem)
    assume(quadratic.hessian.any())
    low = quadratic.value(box_minimiser(problem))
    gates = data.draw(vectors(problem.cols)).clip(0, 1)
    gap = quadratic.value(gates) - low
    assume(gap > 1e-7 * (1 + quadratic.constant))
    assert prox_decrease(quadratic, gates) >= box_constant(quadratic) * gap * (1 - 1e-5)


@given(problems())
def test_the_constant_of_bases_is_attained_by_some_targets_for_every_hessian(problem):
    quadratic = column_quadratic(problem)
    assume(quadratic.hessian.any())
    mu = box_constant(quadratic)
    assume(mu > 1e-6 * quadratic.smoothness)
    best, point = attaining(quadratic)
    assert ((best >= 0) & (best <= 1) & (point >= 0) & (point <= 1)).all()
    taught = replace(quadratic, linear=quadratic.hessian @ best)
    gap = taught.gap(point)
    assert prox_decrease(taught, point) == pytest.approx(mu * gap, rel=1e-6)
    assert mu <= quadratic.pl_constant * (1 + 1e-9)
    problem = replace(problem, targets=problem.inputs @ (problem.weight * best).T)
    assert prox_ratio(problem, best, point) == pytest.approx(mu, rel=1e-6)


@given(st.floats(0.01, 1.0))
def test_the_constant_of_bases_is_attained_and_the_unconstrained_one_is_wrong(ratio):
    quadratic = two_columns(ratio)
    corner = np.array([0.0, 1.0])
    found = prox_decrease(quadratic, corner) / quadratic.value(corner)
    assert found == pytest.approx(ratio**2)
    assert box_constant(quadratic) == pytest.approx(ratio**2)
    assert quadratic.pl_constant == pytest.approx(1 + ratio**2)
    assert quadratic.pl_constant > found


def test_too_many_bases_are_refused_with_a_remedy():
    random = np.random.default_rng(0).standard_normal((12, 30))
    with pytest.raises(ValueError, match="take a smaller problem"):
        box_constant(Quadratic(random.T @ random, np.zeros(30), 0.0, 12))


@given(st.data(), st.integers(1, 6))
def test_reduced_rank_regression_is_stationary_and_nothing_drawn_is_lower(data, rank):
    problem = data.draw(problems(largest=4))
    assume(problem.inputs.any())
    b, a, low = lora_minimiser(problem, rank)
    scale = 1 + problem.null_loss + float(np.sum(problem.weight**2)) * 100
    for part in lora_gradient(problem, b, a):
        np.testing.assert_allclose(part, 0, atol=1e-6 * scale)
    trial_b = data.draw(vectors(problem.rows * rank)).reshape(problem.rows, rank)
    trial_a = data.draw(vectors(problem.cols * rank)).reshape(rank, problem.cols)
    assert lora_loss(problem, trial_b, trial_a) >= low - 1e-9 * scale


@given(st.data(), st.integers(1, 3))
def test_the_adapters_hessian_is_that_of_its_loss(data, rank):
    problem = data.draw(problems(largest=3))
    m, d = problem.weight.shape
    point, direction = (data.draw(vectors(rank * (m + d))) for _ in range(2))

    def value(t: float) -> float:
        moved = point + t * direction
        b, a = moved[: m * rank].reshape(m, rank), moved[m * rank :].reshape(rank, d)
        return lora_loss(problem, b, a)

    b, a = point[: m * rank].reshape(m, rank), point[m * rank :].reshape(rank, d)
    steps = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    values = [value(t) for t in steps]
    quartic = np.polynomial.polynomial.polyfit(steps, values, 4)
    scale = 1 + np.abs(values).max()
    hessian = lora_hessian(problem, b, a)
    assert direction @ hessian @ direction == pytest.approx(2 * quartic[2], abs=1e-8 * scale)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_an_exact_fit_has_the_predicted_number_of_zero_eigenvalues_beyond_its_rank(rank):
    """The teacher has rank 2; factors of rank r > 2 have the larger kernel of the formula."""
    random = np.random.default_rng(rank)
    inputs, weight = random.standard_normal((12, 5)), random.standard_normal((4, 5))
    change = random.standard_normal((4, 2)) @ random.standard_normal((2, 5))
    problem = Problem(inputs, weight, inputs @ (weight + change).T)
    b, a, _ = lora_minimiser(problem, rank)
    found = count_zeros(lora_hessian(problem, b, a), 48, 1e-9)
    assert found == zero_eigenvalues(4, rank, 5, 5, min(rank, 2))


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match="rank of at least 1, got 0"):
        lora_minimiser(draw_problem("well-conditioned", 0), 0)


def test_batched_solutions_are_those_of_single_problems():
    drawn = [draw_problem("well-conditioned", i) for i in range(3)]
    _, lows = solution(drawn, "rows + columns")
    singles = [joint_loss(p, fit_gates(p)) for p in drawn]
    assert np.all(lows <= np.array(singles) * (1 + 1e-9))
    batch = Batch.of(drawn)
    gates, heights = solve_gates(batch, np.ones((3, 18)))
    for problem, theta, height in zip(drawn, gates, heights, strict=True):
        assert joint_loss(problem, theta) == pytest.approx(height)
        assert np.linalg.norm(joint_gradient(problem, theta)) < 1e-8


@pytest.mark.parametrize("method", ["columns", "rows + columns", "LoRA 2"])
def test_steepest_descent_reaches_the_optimum_that_the_closed_form_names(method):
    drawn = [draw_problem("well-conditioned", i) for i in range(4)]
    _, low = solution(drawn, method)
    first, batch = start(drawn, method, 0), Batch.of(drawn)
    begin = start_loss(batch)
    near = low + 1e-4 * (begin - low)
    goals = np.stack([near, begin], axis=1)
    path = steepest_descent(batch, method, first, goals, 3000, (0, 5))
    assert np.isfinite(path.iterations).all()
    assert np.all(path.iterations[:, 1] == 0)
    np.testing.assert_array_equal(path.points[0][1], first[1])
    # An optimum too low by a tenth of the gap is never reached.
    wrong = low - 0.1 * np.array([p.null_loss for p in drawn])
    path = steepest_descent(batch, method, first, wrong[:, None], 50)
    assert np.isinf(path.iterations).all()


def test_every_method_starts_at_the_loss_of_the_weight():
    drawn = [draw_problem("well-conditioned", i) for i in range(3)]
    batch, expected = (
        Batch.of(drawn),
        [lora_loss(p, np.zeros((8, 1)), np.ones((1, 10))) for p in drawn],
    )
    np.testing.assert_allclose(start_loss(batch), expected)
    for method in ("rows + columns", "LoRA 2"):
        path = steepest_descent(
            batch, method, start(drawn, method, 0), start_loss(batch)[:, None] * (1 + 1e-12), 1
        )
        assert np.all(path.iterations == 0)


def test_the_usual_start_of_lora_has_the_scale_of_kaiming():
    drawn = [draw_problem("well-conditioned", i) for i in range(50)]
    _, a = start(drawn, "LoRA 4", 0)
    assert np.abs(a).max() <= 1 / np.sqrt(10)
    # Five standard errors: the variance of a uniform draw's square is 0.8 of its squared mean.
    assert np.mean(a**2) == pytest.approx(1 / 30, rel=5 * np.sqrt(0.8 / a.size))
    np.testing.assert_array_equal(start(drawn, "LoRA 4", 0, scale=4.0)[1], 4 * a)


def test_no_adapter_of_full_rank_is_compared():
    for family, shape in FAMILIES.items():
        assert max(ranks_of(family)) < min(shape.rows, shape.cols)


def test_descent_on_the_ratio_finds_less_than_the_curvature_at_the_minimiser():
    problem, minimiser = nearly_right(Settings(), 0)
    region = local_region(problem, minimiser)
    random = np.random.default_rng(0)
    ones, smallest = np.ones(18), []
    for radius in (0.1, 1.0, 2.0):
        found, point = smallest_ratio(problem, ones, minimiser, radius, random, 3)
        assert np.linalg.norm(point - 1) <= radius * (1 + 1e-9)
        gap = joint_loss(problem, point) - joint_loss(problem, minimiser)
        gradient = joint_gradient(problem, point)
        assert found == pytest.approx(gradient @ gradient / (2 * gap), rel=1e-6)
        smallest.append(found / region.transverse)
    assert smallest == sorted(smallest, reverse=True)
    assert smallest[0] < 1
    assert smallest[1] < 0.8
    assert smallest[-1] < 0.4


def test_critical_orbits_are_critical_and_more_than_the_shorter_side():
    problem = draw_problem("well-conditioned", 0)
    found = critical_orbits(problem, np.random.default_rng(1), 25)
    assert len(found) >= 8
    for point in found:
        assert np.linalg.norm(joint_gradient(problem, point)) < 1e-7
        assert np.linalg.norm(point[:8]) == pytest.approx(np.linalg.norm(point[8:]))


def test_descent_from_one_can_end_in_a_minimum_that_is_not_the_best():
    problem = draw_problem("ill-conditioned", 11, teacher="low-rank")
    size = problem.rows + problem.cols
    end = descended(problem, np.ones(size))
    assert np.linalg.norm(joint_gradient(problem, end)) < 1e-12
    curvatures = np.linalg.eigvalsh(joint_hessian(problem, end))
    assert abs(curvatures[0]) < 1e-12 < 1e-3 * curvatures[-1] < curvatures[1]  # 0: the orbit
    random = np.random.default_rng(11)
    others = [descended(problem, random.standard_normal(size)) for _ in range(3)]
    others += [descended(problem, random.uniform(0, 1, size)) for _ in range(3)]
    best = min(joint_loss(problem, other) for other in others)
    assert joint_loss(problem, end) > best + 0.02 * problem.null_loss


def test_the_relaxed_gradient_of_both_sides_is_the_mean_of_pathwise_gradients():
    problem, sigma = taught(Settings()), 0.1
    centres = torch.tensor([1.05, 0.4, 0.02, 0.95, 0.3, -0.1, 0.5], dtype=torch.float64)
    weight, inputs, targets = (
        torch.as_tensor(part) for part in (problem.weight, problem.inputs, problem.targets)
    )
    draw, batches = torch.Generator().manual_seed(0), []
    for _ in range(40):
        noise = torch.randn(2000, len(centres), generator=draw, dtype=torch.float64)
        moved = centres.clone().requires_grad_()
        gates = (moved + sigma * noise).clamp(0, 1)
        rows, columns = gates[:, : problem.rows], gates[:, problem.rows :]
        outputs = (inputs * columns[:, None]) @ weight.T * rows[:, None]
        loss = ((outputs - targets) ** 2).sum() / (2 * len(inputs) * len(gates))
        (slope,) = torch.autograd.grad(loss, moved)
        batches.append(slope.numpy())
    error = np.std(batches, axis=0, ddof=1) / np.sqrt(len(batches))
    found = relaxed_joint_gradient(problem, centres.numpy(), sigma)
    assert np.all(np.abs(np.mean(batches, axis=0) - found) < 5 * error + 1e-12)
    assert np.max(error) < 0.01 * np.max(np.abs(found))


def test_descent_from_one_ends_in_a_strict_minimum_that_is_not_the_best():
    problem = missing_example()
    end = descended(problem, np.ones(4))
    assert np.linalg.norm(joint_gradient(problem, end)) < 1e-9
    values = np.linalg.eigvalsh(joint_hessian(problem, end))
    assert abs(values[0]) < 1e-8  # the orbit
    assert values[1] > 1
    # A vertex of another orbit is lower, by the loss of the definition.
    other = descended(problem, np.array([1.0, -1.0, 1.0, 1.0]))
    assert joint_loss(problem, other) < joint_loss(problem, end) - 1


def test_projected_descent_from_one_ends_in_a_strict_minimum_of_the_box_that_is_not_the_best():
    """Loss and gradient by the definition, ½‖Diag(r) W Diag(c) − T‖² for white data."""
    weight = np.array([[1.0, 1.0], [-1.0, -4.0]])
    target = np.array([[3.0, -3.0], [1.0, -3.0]])

    def error(gates: np.ndarray) -> np.ndarray:
        return np.outer(gates[:2], gates[2:]) * weight - target

    def slope(gates: np.ndarray) -> np.ndarray:
        part = error(gates) * weight
        return np.concatenate([part @ gates[2:], gates[:2] @ part])

    end = np.ones(4)
    for _ in range(3000):
        end = np.clip(end - 0.01 * slope(end), 0, 1)
    assert joint_loss(missing_in_box(), end) == pytest.approx(np.sum(error(end) ** 2) / 2)
    free = np.array([1, 3])
    assert np.all(end[[0, 2]] == 1)
    assert np.all(slope(end)[[0, 2]] < -0.05)  # lower only outside the box
    assert np.all((end[free] > 0.5) & (end[free] < 0.99))
    assert np.abs(slope(end)[free]).max() < 1e-12
    assert np.linalg.eigvalsh(joint_hessian(missing_in_box(), end)[np.ix_(free, free)])[0] > 1
    other = np.array([0.0, np.sqrt(0.75), 0.0, np.sqrt(0.75)])  # by hand: 4 r₂c₂ = 3
    assert np.sum(error(other) ** 2) / 2 == pytest.approx((9 + 9 + 1) / 2)
    assert np.sum(error(end) ** 2) / 2 > 10.6


@given(problems(), st.integers(1, 3))
def test_the_least_loss_of_a_rank_is_the_same_from_fitted_outputs(problem, rank):
    found = lora_minimiser(problem, rank)[2]
    assert least_of_rank(problem, rank) == pytest.approx(found, abs=1e-7 * (1 + problem.null_loss))


def test_without_a_gap_low_rank_minimisers_are_not_isolated_and_have_more_zeros():
    """Target I, W = 0, r = 1: every unit vector u gives a minimiser uuᵀ."""
    inputs = np.sqrt(2) * np.eye(2)
    problem = Problem(inputs, np.zeros((2, 2)), inputs)
    b, a, low = lora_minimiser(problem, 1)
    assert low == pytest.approx(0.5)
    assert count_zeros(lora_hessian(problem, b, a), 4) == 2
    assert zero_eigenvalues(2, 1, 2, 2, 1) == 1  # with a gap
