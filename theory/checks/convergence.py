"""Item 6: stochastic gradient descent with fresh gate noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from theory.cases import Case
from theory.checks.settings import Settings
from theory.checks.smoothing import noisy_gate
from theory.evidence import Check
from theory.intervals import interval
from theory.outputs import quadratic_of_outputs
from theory.problems import Array, Problem, draw_problem
from theory.quadratic import Quadratic, column_quadratic
from theory.relaxation import Relaxed
from theory.stochastic import (
    decaying_constant,
    excess,
    expected_excess,
    fitted_slopes,
    noise_ball,
    stochastic_descent,
)

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Steps η in units of 1/λ_max."""
NOISES = (0.005, 0.01, 0.02, 0.04)
INTERVALS = 2.5
"""Allowed distance of a mean in half widths of a 95 % interval, five standard errors: one false
alarm in a million.
"""
LEFT = 0.01
"""Share of the noise ball that may be missing after the burn-in."""


def mean_case(name: str, predicted: float, values: Array, rest: float) -> Case:
    """Compares a mean over runs with a prediction.

    Args:
        name: of the case.
        predicted: positive.
        values: (runs,).
        rest: relative tolerance in addition to :data:`INTERVALS`, for steps that are not small.
    """
    low, high = interval(values, name, statistic=np.mean)
    slack = INTERVALS * (high - low) / 2 / predicted + rest
    return Case(name, "equal", predicted, float(values.mean()), slack)


def interior_problem(settings: Settings, index: int) -> Problem:
    """A problem whose best column gates lie in [0.4, 0.6]: with σ ≤ 0.04 nothing is clipped."""
    drawn = draw_problem("well-conditioned", index, settings.seed)
    random = settings.random("interior", index)
    gates = random.uniform(0.42, 0.58, drawn.cols)
    noise = 0.002 * random.standard_normal(drawn.targets.shape)
    return replace(
        drawn,
        targets=drawn.inputs @ (drawn.weight * gates).T + noise,
        name=f"interior {index}",
    )


def burn_in(quadratic: Quadratic, rate: float) -> int:
    """Steps until a run from the minimiser has all of its noise ball but ``LEFT``.

    A mode's variance tends to its limit as 1 − (1 − ηλ)^{2k}. Modes contribute to the ball in
    proportion to λ².
    """
    values, _ = quadratic.spectrum()
    steps = 1
    while np.sum(values**2 * (1 - rate * values) ** (2 * steps)) > LEFT * np.sum(values**2):
        steps *= 2
    return steps


def stationary_runs(
    quadratic: Quadratic, sigma: float, rate: float, settings: Settings, *names: object
) -> Array:
    """Centres of runs in the stationary state, shape (steps, runs, d), started at the minimiser."""
    burn = burn_in(quadratic, rate)
    steps = np.arange(burn, burn + min(settings.steps, 3000), 5)
    seed = int(settings.random("stationary", *names).integers(2**31))
    return stochastic_descent(
        quadratic, quadratic.minimiser(), sigma, rate, steps, settings.runs, seed
    ).centres


def check_ball(settings: Settings) -> Check:
    """E L(μ_∞) − L* = ½σ² Σ_i ηλ_i²/(2 − ηλ_i): a ball whose radius grows as ησ².

    This is :func:`theory.stochastic.noise_ball`, for the evaluated loss. The training loss is that
    of a gate with fresh noise, ½σ² tr H higher. Measured: means over the stationary state of runs,
    and log-log slopes of the radius in η (small steps) and in σ. Slopes are fitted for every run,
    with bootstrap intervals of their mean.
    """
    problem = interior_problem(settings, 0)
    quadratic, seen = column_quadratic(problem), quadratic_of_outputs(problem)
    smoothness = seen.smoothness
    cases, rows = [], []
    by_rate, by_noise = [], []
    for share in SHARES:
        rate = share / smoothness
        centres = stationary_runs(seen, 0.02, rate, settings, "rate", share)
        found = excess(seen, centres).mean(axis=0)
        predicted = noise_ball(quadratic, 0.02, rate)
        by_rate.append(found)
        cases.append(_mean_case(f"η = {share}/Λ", predicted, found, "ball", share))
        rows.append(_ball_row("step", share, predicted, found))
    for sigma in NOISES:
        rate = 0.2 / smoothness
        centres = stationary_runs(seen, sigma, rate, settings, "noise", sigma)
        found = excess(seen, centres).mean(axis=0)
        predicted = noise_ball(quadratic, sigma, rate)
        by_noise.append(found)
        cases.append(_mean_case(f"σ = {sigma}", predicted, found, "ball noise", sigma))
        rows.append(_ball_row("noise", sigma, predicted, found))
        random = settings.random("as trained", sigma)
        noisy = centres + sigma * random.standard_normal(centres.shape)
        higher = excess(seen, noisy).mean(axis=0)
        trained = predicted + sigma**2 * float(np.trace(quadratic.hessian)) / 2
        case = _mean_case(f"σ = {sigma}, training loss", trained, higher, "trained", sigma)
        cases.append(replace(case, constant="training loss"))
    exact = [noise_ball(quadratic, 0.02, share / smoothness) for share in SHARES]
    curved = float(fitted_slopes(np.array(SHARES), np.array(exact)))
    for name, x, values, slope in (
        ("slope in η", SHARES, by_rate, curved),
        ("slope in σ", NOISES, by_noise, 2.0),
    ):
        slopes = fitted_slopes(np.array(x), np.stack(values, axis=1))
        low, high = interval(slopes, name, statistic=np.mean)
        tolerance = (INTERVALS * (high - low) / 2) / slope + 0.02
        named = f"{name}, 95 % interval {low:.3f} to {high:.3f}"
        cases.append(Case(named, "equal", slope, float(slopes.mean()), tolerance, name))
    return Check(
        "sgd-ball",
        6,
        "law",
        "with a constant step the evaluated loss settles at ½σ² Σ ηλ_i²/(2 − ηλ_i) above L*, the "
        "training loss ½σ² tr H higher: the ball grows as η σ² (slopes on log-log scale)",
        "column gates that stay inside (0, 1); fresh noise; η < 2/λ_max",
        tuple(cases),
        claim="convergence",
        frames={"noise_ball": pd.DataFrame(rows)},
    )


def _mean_case(name: str, predicted: float, found: Array, *names: object) -> Case:
    low, high = interval(found, *names, statistic=np.mean)
    half = (high - low) / 2
    tolerance = INTERVALS * half / predicted + LEFT
    return Case(name, "equal", predicted, float(found.mean()), tolerance)


def _ball_row(axis: str, x: float, predicted: float, found: Array) -> dict[str, object]:
    low, high = interval(found, "ball row", axis, x, statistic=np.mean)
    return {
        "axis": axis,
        "x": x,
        "predicted": predicted,
        "measured": float(found.mean()),
        "low": low,
        "high": high,
    }


def check_linear(settings: Settings) -> Check:
    """E L(μ_k) − L* = ½ Σ λ_i[(1 − ηλ_i)^{2k}e_i² + (1 − (1 − ηλ_i)^{2k})·ball_i].

    Hence it is at most (1 − ημ)^{2k}(L_0 − L*) + ball: linear convergence to the noise ball. Modes
    are independent scalar recursions with additive noise. Means over runs are compared with the
    exact value at several k, within four half widths of their bootstrap interval.
    """
    cases, rows = [], []
    problem = interior_problem(settings, 0)
    quadratic, seen = column_quadratic(problem), quadratic_of_outputs(problem)
    start = np.full(problem.cols, 0.75)
    steps = np.unique(np.geomspace(1, 3000, 40).astype(int))
    for sigma in (0.01, 0.04):
        for share in (0.1, 0.4):
            rate = share / seen.smoothness
            seed = int(settings.random("linear", sigma, share).integers(2**31))
            runs = stochastic_descent(
                seen,
                start,
                sigma,
                rate,
                steps,
                settings.runs,
                seed,
            )
            found = excess(seen, runs.centres)
            exact = expected_excess(quadratic, start, sigma, rate, steps)
            for place, k in enumerate(steps):
                rows.append(
                    {
                        "sigma": sigma,
                        "share": share,
                        "step": int(k),
                        "measured": float(found[place].mean()),
                        "predicted": float(exact[place]),
                        "ball": noise_ball(quadratic, sigma, rate),
                    }
                )
                if place % 8 == 7:
                    name = f"σ = {sigma}, η = {share}/Λ, k = {k}"
                    cases.append(_mean_case(name, float(exact[place]), found[place], name))
    return Check(
        "sgd-linear",
        6,
        "law",
        "the expected loss approaches its noise ball linearly, mode by mode at (1 − ηλ_i)²",
        "as sgd-ball",
        tuple(cases),
        claim="convergence",
        frames={"sgd_linear": pd.DataFrame(rows)},
    )


COPIES = 256
"""Runs of each problem that measure a constant within a few per cent."""


def check_decaying(settings: Settings) -> Check:
    """k (E L(μ_k) − L*) → ½σ² Σ scale² λ_i³/(2 scale λ_i − 1) for η_k = scale/(k + k₀).

    With scale = 2/μ the rate is 1/k, with the constant :func:`theory.stochastic.decaying_constant`.
    Measured on four problems, in units of each problem's constant: the constant over the second
    half of the steps, and the slope −1 over the last decade.
    """
    sigma, last = 0.04, settings.steps
    steps = np.unique(np.geomspace(last / 10, last, 12).astype(int))
    gaps, rows = [], []
    for index in range(4):
        problem = interior_problem(settings, index)
        quadratic, seen = column_quadratic(problem), quadratic_of_outputs(problem)
        scale = 2.0 / seen.pl_constant
        shift = 2 * scale * seen.smoothness
        constant = decaying_constant(quadratic, sigma, scale)
        seed = int(settings.random("decaying", index).integers(2**31))
        found = excess(
            seen,
            stochastic_descent(
                seen,
                seen.minimiser(),
                sigma,
                lambda k, scale=scale, shift=shift: scale / (k + shift),  # type: ignore[misc]
                steps,
                max(settings.runs, COPIES),
                seed,
            ).centres,
        )  # (steps, runs)
        gaps.append(found * (steps + shift)[:, None] / constant)
        if index == 0:
            rows = [
                {
                    "step": int(k),
                    "measured": float(found[place].mean()),
                    "predicted": constant / (k + shift),
                }
                for place, k in enumerate(steps)
            ]
    scaled = np.concatenate(gaps, axis=1)  # in units of the predicted constant
    late = scaled[steps > last / 2].mean(axis=0)
    low, high = interval(late, "decaying", statistic=np.mean)
    random = settings.random("decaying slopes")
    drawn = random.integers(scaled.shape[1], size=(400, scaled.shape[1]))
    slopes = fitted_slopes(steps, np.stack([scaled[:, d].mean(axis=1) for d in drawn])) - 1
    ends = np.quantile(-slopes, [0.025, 0.975])
    middle = float(fitted_slopes(steps, scaled.mean(axis=1))) - 1
    named = f"slope, 95 % interval {ends[0]:.2f} to {ends[1]:.2f}"
    # Both are attained up to O(λ scale/(k + k₀)), a few per cent here.
    cases = (
        Case(
            "constant, in units of the predicted one",
            "equal",
            1.0,
            float(late.mean()),
            INTERVALS * (high - low) / 2 + 0.05,
        ),
        Case(named, "equal", 1.0, -middle, INTERVALS * float(np.ptp(ends)) / 2 + 0.05, "exponent"),
    )
    return Check(
        "sgd-decaying",
        6,
        "law",
        "with steps 2/(μ(k + k₀)) the expected gap is ½σ² Σ scale²λ_i³/(2 scale λ_i − 1) / k",
        "as sgd-ball; scale > 1/2μ",
        cases,
        claim="convergence",
        frames={"sgd_decaying": pd.DataFrame(rows)},
    )


def module_gradients(
    problem: Problem, centres: Array, sigma: float, samples: int, seed: int
) -> Array:
    """Pathwise gradients of single samples from the library's gates, shape (samples, d)."""
    d = problem.cols
    gate = noisy_gate(samples * d, sigma, seed=seed)
    gate.latent.data = torch.as_tensor(np.tile(centres, samples))
    gates = gate.sample().view(samples, d)
    seen = quadratic_of_outputs(problem)
    hessian, linear = torch.as_tensor(seen.hessian), torch.as_tensor(seen.linear)
    losses = ((gates @ hessian) * gates).sum(1) / 2 - gates @ linear
    (slopes,) = torch.autograd.grad(losses.sum(), gate.latent)
    return np.asarray(slopes.view(samples, d).numpy(), dtype=np.float64)


def check_unbiased(settings: Settings) -> Check:
    """E[1[0 < μ + ε < 1] ∇L(clip(μ + ε))] = ∇F(μ), F(μ) = E L(clip(μ + ε)).

    clip is Lipschitz, so differentiation and expectation commute. Samples of the library's gates
    are tested against the closed-form gradient, as in Hotelling's test: the sum of squared z-scores
    over its degrees of freedom must not exceed the 0.9999 quantile of χ². A gradient that is wrong
    by 5 % fails.
    """
    from scipy.stats import chi2

    cases = []
    for index, sigma in enumerate((0.05, 0.2, 0.5)):
        problem = draw_problem("well-conditioned", index, settings.seed)
        random = settings.random("unbiased", index)
        centres = random.uniform(-0.1, 1.1, problem.cols)
        seed = int(random.integers(2**31))
        samples = max(1000, settings.samples // 4)
        found = module_gradients(problem, centres, sigma, samples, seed)
        exact = Relaxed(column_quadratic(problem), sigma).gradient(centres)
        covariance = np.cov(found.T) / samples
        kept = np.diag(covariance) > 0
        off = (found.mean(0) - exact)[kept]
        statistic = float(off @ np.linalg.solve(covariance[np.ix_(kept, kept)], off))
        limit = float(chi2.ppf(0.9999, kept.sum()))
        cases.append(Case(f"σ = {sigma}, χ²", "at most", limit, statistic))
        scale = float(np.linalg.norm(exact))
        along = float(found.mean(0) @ exact) / scale
        error = float(np.sqrt(exact @ covariance @ exact)) / scale
        cases.append(Case(f"σ = {sigma}, along ∇F", "equal", scale, along, 4 * error / scale))
    return Check(
        "sgd-unbiased",
        6,
        "law",
        "the pathwise gradient is an unbiased estimate of the gradient of the relaxed objective "
        "(χ² test at 10⁻⁴, and length along ∇F)",
        "fresh noise at every step, σ > 0; clipped or not",
        tuple(cases),
        claim="convergence",
    )
