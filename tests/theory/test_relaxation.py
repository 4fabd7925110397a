"""The Gaussian relaxation, stochastic descent, and one gate under a penalty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.problem_strategies import problems, vectors
from theory.checks.smoothing import by_quadrature, noisy_gate
from theory.penalties import OneGate, gate_state, half_open_range, penalty_minimiser, train_gates
from theory.problems import draw_problem
from theory.quadratic import column_quadratic
from theory.relaxation import (
    PEAK,
    Relaxed,
    mean_clip,
    mean_clip_curvature,
    mean_clip_slope,
    square_clip,
    square_clip_slope,
)
from theory.stochastic import decaying_constant, excess, noise_ball, stochastic_descent

CENTRES = st.floats(-3, 4)
SIGMAS = st.floats(0.02, 3)


@given(CENTRES, SIGMAS)
def test_moments_of_a_clipped_gaussian_are_those_of_quadrature(centre, sigma):
    for power, closed in ((1, mean_clip), (2, square_clip)):
        found = float(closed(np.array(centre), sigma))
        assert found == pytest.approx(by_quadrature(power, centre, sigma), abs=1e-9)


@given(CENTRES, SIGMAS)
def test_moments_lie_where_they_must_and_mirror_each_other(centre, sigma):
    mean, square = (float(f(np.array(centre), sigma)) for f in (mean_clip, square_clip))
    assert -1e-12 <= square <= mean + 1e-12 <= 1 + 2e-12
    assert mean**2 <= square + 1e-12  # variance
    mirrored = float(mean_clip(np.array(1 - centre), sigma))
    assert mean + mirrored == pytest.approx(1, abs=1e-12)


@given(CENTRES, SIGMAS)
def test_slopes_and_curvature_are_bounded_as_claimed(centre, sigma):
    point = np.array(centre)
    assert 0 <= mean_clip_slope(point, sigma) <= 1
    assert abs(mean_clip_curvature(point, sigma)) <= PEAK / sigma * (1 + 1e-12)
    width = 1e-4 * sigma
    rise = square_clip(point + width, sigma) - square_clip(point - width, sigma)
    assert rise / (2 * width) == pytest.approx(float(square_clip_slope(point, sigma)), abs=1e-5)


@given(CENTRES)
def test_without_noise_the_relaxation_is_the_clip(centre):
    assert mean_clip(np.array(centre), 0.0) == np.clip(centre, 0, 1)
    assert square_clip(np.array(centre), 0.0) == np.clip(centre, 0, 1) ** 2


@given(st.data(), st.sampled_from([0.1, 0.5, 1.0]))
def test_gradient_and_hessian_of_the_relaxed_loss_are_its_differences(data, sigma):
    problem = data.draw(problems(largest=4))
    relaxed = Relaxed(column_quadratic(problem), sigma)
    centre, direction = (data.draw(vectors(problem.cols)) for _ in range(2))
    width = 1e-5
    ahead, behind = centre + width * direction, centre - width * direction
    scale = 1 + relaxed.quadratic.constant + np.abs(relaxed.quadratic.hessian).sum()
    slope = (relaxed.value(ahead) - relaxed.value(behind)) / (2 * width)
    assert relaxed.gradient(centre) @ direction == pytest.approx(slope, abs=1e-5 * scale / sigma**2)
    bend = (relaxed.gradient(ahead) - relaxed.gradient(behind)) / (2 * width)
    np.testing.assert_allclose(
        relaxed.hessian(centre) @ direction, bend, atol=1e-5 * scale / sigma**2
    )


@given(st.data(), st.sampled_from([0.03, 0.3, 2.0]))
def test_no_hessian_exceeds_the_lipschitz_bound(data, sigma):
    problem = data.draw(problems())
    relaxed = Relaxed(column_quadratic(problem), sigma)
    centre = data.draw(vectors(problem.cols))
    found = np.linalg.norm(relaxed.hessian(centre), 2)
    assert found <= relaxed.lipschitz_bound() * (1 + 1e-9) + 1e-12


def test_the_growth_constant_is_attained_at_the_predicted_corner():
    relaxed = Relaxed(column_quadratic(draw_problem("well-conditioned", 0)), 1e-6)
    found = np.linalg.norm(relaxed.hessian(relaxed.steepest_corner()), 2)
    assert 1e-6 * found == pytest.approx(relaxed.lipschitz_growth(), rel=1e-3)


def test_a_relaxation_without_noise_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="use the clipped loss itself"):
        mean_clip_slope(np.array(0.5), 0.0)


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_samples_of_the_librarys_gates_have_the_closed_forms_mean(sigma):
    gate = noisy_gate(40_000, sigma, seed=3)
    gate.latent.data.fill_(0.2)
    sample = gate.sample().detach().numpy()
    error = sample.std() / 200
    assert sample.mean() == pytest.approx(float(mean_clip(np.array(0.2), sigma)), abs=5 * error)
    # The closed form for another noise is rejected.
    assert abs(sample.mean() - float(mean_clip(np.array(0.2), 0.25))) > 5 * error


def test_stochastic_descent_is_repeatable_and_its_ball_is_the_closed_forms():
    quadratic = column_quadratic(draw_problem("well-conditioned", 0))
    optimum = np.full(10, 0.5)
    quadratic = type(quadratic)(
        quadratic.hessian, quadratic.hessian @ optimum, quadratic.constant, quadratic.roundings
    )
    rate = 0.3 / quadratic.smoothness
    steps = np.arange(400, 800, 4)
    runs = [stochastic_descent(quadratic, optimum, 0.02, rate, steps, 64, 5) for _ in range(2)]
    assert np.array_equal(runs[0].centres, runs[1].centres)
    found = float(excess(quadratic, runs[0].centres).mean())
    assert found == pytest.approx(noise_ball(quadratic, 0.02, rate), rel=0.1)
    assert found != pytest.approx(noise_ball(quadratic, 0.03, rate), rel=0.5)


def test_steps_that_cannot_converge_are_refused():
    quadratic = column_quadratic(draw_problem("well-conditioned", 0))
    with pytest.raises(ValueError, match="must lie between 0 and 2/λ_max"):
        noise_ball(quadratic, 0.1, 3 / quadratic.smoothness)
    with pytest.raises(ValueError, match="must exceed 1/\\(2 mu\\)"):
        decaying_constant(quadratic, 0.1, 0.1 / quadratic.pl_constant)


@given(st.floats(0.01, 0.99), st.floats(0.05, 2))
def test_a_minimiser_is_half_open_exactly_in_the_predicted_range(sparsity, sigma):
    low, high = half_open_range(sigma)
    # At the edges themselves rounding decides.
    if min(abs(sparsity - low), abs(sparsity - high)) > 1e-9:
        half_open = gate_state(penalty_minimiser(sparsity, sigma)) == "half open"
        assert half_open == (low < sparsity < high)


def test_the_released_codes_target_is_met_with_no_gate_closed():
    assert penalty_minimiser(0.4, 0.5) == pytest.approx(0.1267, abs=1e-4)
    assert penalty_minimiser(0.2, 0.5) == pytest.approx(0.4208, abs=1e-4)


def test_gate_slopes_are_those_of_the_objective():
    gate = OneGate("stg", 0.4, 0.7, wanted=0.6)
    centres = np.linspace(-0.5, 1.5, 9)
    width = 1e-6

    def height(centre: np.ndarray) -> np.ndarray:
        from scipy.special import ndtr

        task = (square_clip(centre, 0.4) - 1.2 * mean_clip(centre, 0.4)) / 2
        return task + 0.7 * ndtr(centre / 0.4)

    expected = (height(centres + width) - height(centres - width)) / (2 * width)
    np.testing.assert_allclose(gate.slope(centres), expected, atol=1e-7)


def test_gates_trained_together_share_penalty_and_noise():
    pair = [OneGate("stg", 0.4, 1.0), OneGate("target", 0.4, 1.0)]
    with pytest.raises(ValueError, match="one penalty, sigma and sparsity"):
        train_gates(pair, 2, 5, np.full(2, 0.01), 0)


def test_the_flow_ends_at_the_kink_or_where_the_slope_is_zero():
    held = OneGate("target", 0.5, 3.0)
    assert held.endpoint(horizon=1e6) == pytest.approx(penalty_minimiser(0.4, 0.5), abs=1e-12)
    balanced = OneGate("stg", 0.3, 0.1, wanted=0.6)
    stop = balanced.endpoint(horizon=1e6)
    assert 0 < stop < 1
    assert float(balanced.slope(np.array(stop))) == pytest.approx(0, abs=1e-6)
    assert balanced.endpoint(horizon=1e-9) == pytest.approx(1, abs=1e-2)
