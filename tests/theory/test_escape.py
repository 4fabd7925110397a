"""The time near the saddle and on the plateau, as a function of noise and price."""

from __future__ import annotations

import numpy as np
import pytest

from theory.bilinear import joint_gradient, saddle_coupling
from theory.checks.escape import noisy_gradient
from theory.escape import NoisySaddle, plateau_time, stabilising_noise
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
    # A price bounds the time on the plateau for any noise; it falls as 1/λ.
    bound = 0.26 * 0.5 / (np.exp(-2 * 1.26**2) / np.sqrt(2 * np.pi))
    for sigma in (0.03, 0.1):
        assert plateau_time(1.26, sigma, 1.0, 0.5) < bound
        assert plateau_time(1.26, sigma, 1e3, 0.5) == pytest.approx(
            plateau_time(1.26, sigma, 1e4, 0.5) * 10, rel=0.01
        )
    assert plateau_time(1.26, 0.05, 0.0, 0.5) > 1000 * plateau_time(1.26, 0.1, 0.0, 0.5)
