"""Item 6: the gradient of the relaxed objective under stochastic descent."""

from __future__ import annotations

import numpy as np
import pandas as pd

from theory.box import box_minimiser
from theory.cases import Case
from theory.checks.convergence import INTERVALS, interior_problem
from theory.checks.settings import Settings
from theory.evidence import Check
from theory.intervals import interval
from theory.outputs import quadratic_of_outputs
from theory.problems import draw_problem
from theory.quadratic import column_quadratic
from theory.relaxation import Relaxed
from theory.stochastic import expected_squared_gradient, stationarity_bound, stochastic_descent


def check_bound(settings: Settings) -> Check:
    """(1/K) Σ_{k<K} E‖∇F(μ_k)‖² ≤ (F(μ_0) − L*_box)/(ηK) + ½ηΛv, η = c/√K: O(1/√K).

    The descent lemma for the relaxed objective, with Λ and v from
    :func:`theory.stochastic.stationarity_bound`. L*_box ≤ F because F averages losses over the box.
    No convexity is used, and clipping is included. The bound is loose: Λ and v are worst cases over
    the box, and a plateau satisfies it from the first step. ``sgd-gradient`` has the exact mean
    where nothing is clipped.
    """
    cases, rows = [], []
    budgets = np.unique(np.geomspace(settings.steps / 20, settings.steps, 5).astype(int))
    for index in range(min(settings.problems, 3)):
        problem = draw_problem("well-conditioned", index, settings.seed)
        relaxed = Relaxed(column_quadratic(problem), 0.3)
        seen = quadratic_of_outputs(problem)
        low = seen.value(box_minimiser(problem))
        start = np.ones(problem.cols)
        for budget in budgets:
            rate = 1.0 / (relaxed.lipschitz_bound() * np.sqrt(budget / budgets[0]))
            # Dense at first, where the gradient falls; the mean over steps is an integral.
            looked = np.unique(np.geomspace(1, budget, 80).astype(int)) - 1
            seed = int(settings.random("stationarity", index, budget).integers(2**31))
            runs = stochastic_descent(seen, start, 0.3, rate, looked, settings.runs, seed)
            slopes = Relaxed(seen, 0.3).gradient(runs.centres)
            squared = np.sum(slopes**2, axis=2).mean(axis=1)
            mean = float(np.trapezoid(squared, looked) / looked[-1])
            bound = stationarity_bound(relaxed, start, low, rate, int(budget))
            cases.append(Case(f"{problem.name}, K = {budget}", "at most", bound, mean))
            rows.append(
                {"problem": problem.name, "steps": int(budget), "measured": mean, "bound": bound}
            )
    return Check(
        "sgd-stationary",
        6,
        "bound",
        "the mean squared gradient of the relaxed objective over K steps is at most "
        "(F₀ − L*)/(ηK) + ½ηΛv, O(1/√K) for η ~ 1/√K",
        "column gates, task loss alone; σ > 0, clipped gates, no convexity",
        tuple(cases),
        claim="convergence",
        frames={"stationarity": pd.DataFrame(rows)},
    )


def check_gradient(settings: Settings) -> Check:
    """(1/K) Σ_{k<K} E‖∇F(μ_k)‖² exactly, while nothing is clipped: ∇F = ∇q there, mode by mode.

    See :func:`theory.stochastic.expected_squared_gradient`. With η = c/√K the start's share falls
    as 1/(ηK) and the noise's share grows with η. So 1/√K is the exact rate, not only a bound.
    Measured: means over runs from 0.75, within five standard errors.
    """
    cases = []
    for index in range(2):
        problem = interior_problem(settings, index)
        quadratic, seen = column_quadratic(problem), quadratic_of_outputs(problem)
        start = np.full(problem.cols, 0.75)
        for budget in (settings.steps // 10, settings.steps // 3):
            for share in (0.4, 4.0):
                rate = share / (seen.smoothness * np.sqrt(budget))
                steps = np.arange(0, budget, max(1, budget // 300))
                seed = int(settings.random("gradient", index, budget, share).integers(2**31))
                runs = stochastic_descent(seen, start, 0.04, rate, steps, settings.runs, seed)
                squared = np.sum(seen.gradient(runs.centres) ** 2, axis=2).mean(axis=0)
                exact = expected_squared_gradient(quadratic, start, 0.04, rate, steps).mean()
                name = f"interior {index}, K = {budget}, η = {share}/Λ√K"
                low, high = interval(squared, name, statistic=np.mean)
                tolerance = INTERVALS * (high - low) / 2 / float(exact)
                cases.append(Case(name, "equal", float(exact), float(squared.mean()), tolerance))
    return Check(
        "sgd-gradient",
        6,
        "law",
        "while nothing is clipped the mean squared gradient is Σ λ_i²[(1 − ηλ_i)^2k e_i² + "
        "(1 − (1 − ηλ_i)^2k) σ²ηλ_i/(2 − ηλ_i)]: with η ~ 1/√K it falls as 1/√K and no faster",
        "as sgd-ball",
        tuple(cases),
        claim="convergence",
    )
