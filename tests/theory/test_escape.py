"""The time near the saddle and on the plateau, as a function of noise and price."""

from __future__ import annotations

import numpy as np
import pytest

from theory.bilinear import joint_gradient, saddle_coupling
from theory.checks.escape import noisy_gradient
from theory.escape import NoisySaddle, plateau_time, price_time, stabilising_noise
from theory.problems import draw_problem


def test_the_mean_gradient_under_noise_is_that_of_gaussian_samples():
    problem = draw_problem("well-conditioned", 0)
    random = np.random.default_rng(0)
    gates = random.standard_normal(problem.rows + problem.cols)
    noise = 0.3 * random.standard_normal((40_000, len(gates)))
    noise = np.concatenate([noise, -noise])
    sampled = np.mean([joint_gradient(problem, gates + z) for z in noise[::8]], axis=0)
    error = 5 * np.std([joint_gradient(problem, gates + z) for z in noise[:400]], axis=0) / 100
    assert np.all(np.abs(noisy_gradient(problem, 0.3, gates) - sampled) < error)
    still = noisy_gradient(problem, 0.0, gates)
    np.testing.assert_allclose(still, joint_gradient(problem, gates), rtol=1e-10, atol=1e-12)


def test_times_to_leave_have_their_limits():
    problem = draw_problem("well-conditioned", 0)
    saddle = NoisySaddle.of(problem, 0.0)
    assert saddle.rate == pytest.approx(np.linalg.norm(saddle_coupling(problem), 2))
    assert saddle.time(1e-3, 1e-2, 0.0) == pytest.approx(np.log(10) / saddle.rate)
    # At the balance nothing leaves; on either side it takes longer and longer.
    slope = 1e-3 / saddle.balance(1.0)
    times = [saddle.time(1e-3, 1e-2, slope * (1 + gap)) for gap in (-1e-2, -1e-4, 1e-4, 1e-2)]
    assert times[1] > times[0] > 0
    assert times[2] > times[3] > 0
    noise = stabilising_noise(problem)
    below, above = (NoisySaddle.of(problem, factor * noise).rate for factor in (0.999, 1.001))
    assert below > 0 > above
    assert (saddle.side(1e-3, 0.0), saddle.side(1e-3, 2 * slope)) == (1, -1)


@pytest.mark.parametrize("share", [1.0, 1.3])
def test_from_the_stabilising_noise_on_no_gate_vector_moves_away_from_the_closed_point(share):
    """⟨θ, ∇F⟩ ≥ 0 everywhere, for the mean gradient over samples of the noise."""
    problem = draw_problem("well-conditioned", 0)
    sigma, random = share * stabilising_noise(problem), np.random.default_rng(0)
    worst = NoisySaddle.of(problem, sigma).direction
    for size in (1e-3, 0.1, 1.0, 10.0):
        for gates in (worst, *random.standard_normal((8, len(worst)))):
            assert gates @ noisy_gradient(problem, sigma, size * gates) > -1e-12 * size
    below = NoisySaddle.of(problem, 0.9 * sigma / share).direction
    assert below @ noisy_gradient(problem, 0.9 * sigma / share, 1e-3 * below) < -1e-6


def test_above_the_stabilising_noise_a_price_moves_the_closed_point_to_negative_gates():
    problem = draw_problem("well-conditioned", 0)
    saddle = NoisySaddle.of(problem, 1.02 * stabilising_noise(problem))
    slope = -2e-2 / saddle.balance(1.0)  # a* = −0.02
    assert saddle.balance(slope) == pytest.approx(-2e-2)
    assert saddle.side(1e-3, slope) == -1
    # By hand: a = a* + (ε − a*)e^{−|s|t} at a = −0.01.
    time = saddle.time(1e-3, 1e-2, slope)
    assert -2e-2 + 2.1e-2 * np.exp(saddle.rate * time) == pytest.approx(-1e-2)
    assert saddle.time(1e-3, 2.1e-2, slope) == np.inf
    assert saddle.time(1e-3, 1e-2, 0.0) == np.inf


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.5])
def test_the_price_alone_bounds_the_time_on_the_plateau_and_a_large_one_attains_it(sigma):
    centres = np.linspace(1, 1.26, 20_001)
    slopes = 0.7 * np.exp(-2 * centres**2) / np.sqrt(2 * np.pi) / 0.5
    assert price_time(1.26, 0.7, 0.5) == pytest.approx(np.trapezoid(1 / slopes, centres))
    ratios = [
        plateau_time(1.26, sigma, price, 0.5) / price_time(1.26, price, 0.5)
        for price in (0.1, 10.0, 1e4)
    ]
    assert ratios[0] < ratios[1] < ratios[2] < 1
    assert ratios[2] == pytest.approx(1, rel=1e-3)


def test_without_a_price_the_plateau_takes_exponentially_long_in_the_inverse_variance():
    def ratio(sigma: float) -> float:
        exponential = np.exp((0.26 / sigma) ** 2 / 2)
        return plateau_time(1.26, sigma, 0.0, 0.5) / (sigma * np.sqrt(2 * np.pi) * exponential)

    apart = [abs(ratio(sigma) - 1) for sigma in (0.1, 0.07, 0.05)]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 0.06
