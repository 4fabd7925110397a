"""Two claims of the paper, verbatim, over all settings of items 1 to 6."""

from __future__ import annotations

import numpy as np

from theory.bilinear import (
    fit_gates,
    joint_gradient,
    joint_hessian,
    joint_loss,
    local_region,
    pl_ratio,
    saddle_coupling,
    smallest_ratio,
)
from theory.box import box_minimiser, clip, descend_in_box, pathwise_gradient, prox_decrease
from theory.checks.joint import nearly_right
from theory.checks.settings import Settings
from theory.checks.smoothing import relaxed_minimum
from theory.evidence import Case, Check
from theory.problems import FAMILIES, Problem, draw_problem
from theory.quadratic import column_quadratic, descend, row_quadratic
from theory.relaxation import Relaxed
from theory.stochastic import excess, stochastic_descent

USEFUL = 1e-6
"""A PL constant below this fraction of the largest curvature promises nothing within a training."""


def check_pl(settings: Settings) -> Check:
    """Claim "The gated objective satisfies the PL condition": where is ‖∇L‖² ≥ 2μ(L − L*)?

    With μ ≥ 10⁻⁶ Λ. Columns alone, rows alone: yes (``columns-pl``). Rows and columns: not globally
    (``joint-path``), but near ω = 1 where W is nearly right (``joint-local``). Through clipping: no
    (``clip-plateau``); proximally in the box: yes (``box-prox-pl``). Cases: the smallest ratio
    found, relative to Λ.
    """
    cases = []
    for family in FAMILIES:
        problem = draw_problem(family, 0, settings.seed)
        random = settings.random("pl claim", family)
        for side, quadratic in (
            ("columns", column_quadratic(problem)),
            ("rows", row_quadratic(problem)),
        ):
            points = quadratic.minimiser() + random.standard_normal((32, len(quadratic.linear)))
            ratios = [pl_ratio(quadratic.gradient(p), quadratic.gap(p)) for p in points]
            cases.append(
                Case(f"{side}, {family}", "at least", USEFUL, min(ratios) / quadratic.smoothness)
            )
        cases += [
            _global_case(problem, family),
            _clipped_case(problem, family),
            _box_case(problem, family, random),
        ]
    problem, minimiser = nearly_right(settings, 0)
    region = local_region(problem, minimiser)
    radius = region.radius() - float(np.linalg.norm(minimiser - 1))
    found = smallest_ratio(
        problem,
        np.ones(len(minimiser)),
        minimiser,
        0.9 * radius,
        settings.random("pl claim", "local"),
        24,
    )
    largest = float(np.linalg.norm(joint_hessian(problem, minimiser), 2))
    cases.append(Case("rows + columns, near ω = 1", "at least", USEFUL, found / largest))
    return Check(
        "pl-claim",
        3,
        "claim",
        "the gated objective satisfies PL with a constant of at least 10⁻⁶ Λ",
        "columns, rows, rows and columns globally and near 1, clipped, in the box; every family",
        tuple(cases),
        claim="pl",
    )


def _global_case(problem: Problem, family: str) -> Case:
    left, _, right = np.linalg.svd(saddle_coupling(problem))
    point = 1e-5 * np.concatenate([left[:, 0], right[0]])
    minimiser = fit_gates(problem)
    gap = joint_loss(problem, point) - joint_loss(problem, minimiser)
    ratio = pl_ratio(joint_gradient(problem, point), gap)
    largest = float(np.linalg.norm(joint_hessian(problem, minimiser), 2))
    return Case(f"rows + columns globally, {family}", "at least", USEFUL, ratio / largest)


def _clipped_case(problem: Problem, family: str) -> Case:
    quadratic = column_quadratic(problem)
    centres = np.full(problem.cols, 1.2)
    gap = quadratic.value(clip(centres)) - quadratic.value(box_minimiser(problem))
    ratio = pl_ratio(pathwise_gradient(quadratic, centres), gap)
    return Case(
        f"columns through clipping, {family}", "at least", USEFUL, ratio / quadratic.smoothness
    )


def _box_case(problem: Problem, family: str, random: np.random.Generator) -> Case:
    quadratic = column_quadratic(problem)
    low = quadratic.value(box_minimiser(problem))
    ratios = [
        prox_decrease(quadratic, point) / (quadratic.value(point) - low)
        for point in random.uniform(size=(32, problem.cols))
    ]
    return Case(
        f"columns in the box, proximal, {family}",
        "at least",
        USEFUL,
        min(ratios) / quadratic.smoothness,
    )


def check_convergence(settings: Settings) -> Check:
    """Claim "Training with stochastic gates converges": does the gap fall to 1 % of its start?

    Gradient descent on column gates, projected descent in the box, stochastic descent with small
    noise: yes, linearly, the last to a ball (``sgd-linear``). With noise 0.5 the ball around L* is
    large: what converges is the relaxed objective, to its own optimum. From saturated gates without
    noise: never. Cases: the gap after training over the gap at the start, at most 0.01.
    """
    cases = []
    for family in ("well-conditioned", "under-parameterised"):
        problem = draw_problem(family, 0, settings.seed)
        quadratic = column_quadratic(problem)
        boxed_best = box_minimiser(problem)
        low = quadratic.value(boxed_best)
        start = np.full(problem.cols, 0.5)
        gaps = descend(quadratic, start, 500)
        cases.append(_fallen(f"no noise, {family}", gaps[0], gaps[-1]))
        boxed = descend_in_box(quadratic, start, low, 500)
        cases.append(_fallen(f"in the box, {family}", boxed[0], boxed[-1]))
        rate = 0.2 / quadratic.smoothness
        for sigma in (0.02, 0.5):
            seed = int(settings.random("claim", family, sigma).integers(2**31))
            steps = np.array([0, 2000])
            runs = stochastic_descent(quadratic, start, sigma, rate, steps, settings.runs, seed)
            values = [
                float(np.mean([Relaxed(quadratic, sigma).value(c) for c in centres])) - low
                for centres in runs.centres
            ]
            cases.append(_fallen(f"noise {sigma}, {family}", boxed[0], values[-1]))
            own = values[-1] + low - relaxed_minimum(Relaxed(quadratic, sigma), boxed_best)[1]
            cases.append(_fallen(f"noise {sigma}, relaxed gap, {family}", boxed[0], own))
        plateau = float(excess(quadratic, np.full(problem.cols, 1.2)))
        moved = np.full(problem.cols, 1.2) - rate * pathwise_gradient(
            quadratic, np.full(problem.cols, 1.2)
        )
        cases.append(
            _fallen(f"saturated, no noise, {family}", plateau, float(excess(quadratic, moved)))
        )
    return Check(
        "convergence-claim",
        6,
        "claim",
        "training drives the expected training loss to within 1 % of the initial gap above the "
        "best loss in the box",
        "column gates; without noise, in the box, σ = 0.02 and 0.5 (also above the relaxed "
        "optimum), from saturated gates",
        tuple(cases),
        claim="convergence",
    )


def _fallen(name: str, first: float, last: float) -> Case:
    return Case(name, "at most", 0.01, max(float(last / first), 1e-30))
