"""Item 4: gates clipped to [0, 1]."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from finegates.gates.gated_linear import GatedLinear
from finegates.gates.stochastic import StochasticGate
from theory.box import (
    box_constant,
    box_minimiser,
    descend_in_box,
    pathwise_gradient,
    prox_decrease,
    two_columns,
)
from theory.checks.settings import ROUNDING, Settings
from theory.evidence import Case, Check
from theory.problems import FAMILIES, Array, Problem, draw_problem
from theory.quadratic import column_quadratic

STEPS = 400


def module_gradient(problem: Problem, centres: Array) -> tuple[float, float]:
    """Loss and norm of its gradient in the centres, through the library's gates in evaluation."""
    linear = torch.nn.Linear(problem.cols, problem.rows, bias=False, dtype=torch.float64)
    linear.weight.data = torch.as_tensor(problem.weight)
    gate = StochasticGate(problem.cols, "paper_v1").double().eval()
    gate.latent.data = torch.as_tensor(centres)
    outputs = GatedLinear(linear, None, gate)(torch.as_tensor(problem.inputs))
    residual = outputs - torch.as_tensor(problem.targets)
    objective = (residual**2).sum() / (2 * problem.samples)
    (slope,) = torch.autograd.grad(objective, gate.latent)
    return float(objective.detach()), float(slope.norm())


def check_plateau(settings: Settings) -> Check:
    """At μ_j = 1 + δ for all j: ∇_μ L(clip(μ)) = 0 and L(1) − L* > 0.

    clip has slope 0 outside (0, 1), so the gradient vanishes on the open set where every gate is
    saturated; L* from ``scipy.optimize.lsq_linear``. PL fails on a set of positive measure, not at
    a saddle: descent without noise never starts. Through the library's modules.
    """
    cases = []
    for problem in settings.drawn():
        quadratic = column_quadratic(problem)
        if np.all(box_minimiser(problem) == 1):
            continue
        centres = np.full(problem.cols, 1.2)
        height, slope = module_gradient(problem, centres)
        gap = height - quadratic.value(box_minimiser(problem))
        manual = float(np.linalg.norm(pathwise_gradient(quadratic, centres)))
        # What a PL constant as small as 10^-6 of the largest curvature would demand.
        demanded = float(np.sqrt(2e-6 * quadratic.smoothness * max(gap, 1e-12)))
        cases.append(Case(problem.name, "at most", demanded, slope + manual))
        cases.append(Case(f"{problem.name}, gap", "at least", 1e-6 * problem.null_loss, gap))
    return Check(
        "clip-plateau",
        4,
        "law",
        "where all gates are saturated the pathwise gradient is 0 while L > L*: PL fails on an "
        "open set (gradient norm against what a constant of 10⁻⁶Λ would demand)",
        "the optimum is not at the saturated corner",
        tuple(cases),
        claim="pl",
    )


def check_box_pl(settings: Settings) -> Check:
    """½ D(ω) ≥ μ (L(ω) − L*) in the box, μ = min over bases K of λ_min(H_KK).

    :func:`theory.box.box_constant` holds the proof. For H ≻ 0, μ = λ_min(H). Measured at random
    points, at vertices, and on the way of projected gradient descent.
    """
    cases = []
    for problem in settings.drawn():
        quadratic = column_quadratic(problem)
        mu = box_constant(quadratic)
        low = quadratic.value(box_minimiser(problem))
        random = settings.random("box", problem.name)
        points = [*random.uniform(size=(24, problem.cols))]
        points += [*(random.uniform(size=(24, problem.cols)) > 0.5).astype(np.float64)]
        ratios = []
        for point in points:
            gap = quadratic.value(point) - low
            if gap > 1e-9 * quadratic.constant:
                ratios.append(prox_decrease(quadratic, point) / gap)
        cases.append(Case(problem.name, "at least", mu, min(ratios), ROUNDING))
    return Check(
        "box-prox-pl",
        4,
        "law",
        "in the box the proximal PL inequality holds with μ = min over bases K of λ_min(H_KK), "
        "which is λ_min(H) for a regular Hessian",
        "column gates in [0, 1]; any X, W, Y",
        tuple(cases),
        claim="pl",
    )


def check_box_two(settings: Settings) -> Check:
    """½(ω₁ + aω₂)² at (0, 1): ½D/(L − L*) = a², while λ⁺(H) = 1 + a².

    At (0, 1) the gradient is (a, a²); ω₁ cannot decrease, ω₂ moves by a²/Λ, so ½D = a⁴/2 and
    L − L* = a²/2. The bound of ``box-prox-pl`` is attained; the unconstrained PL constant is wrong
    in the box by the factor 1 + 1/a².
    """
    cases = []
    for ratio in (0.5, 0.2, 0.05):
        quadratic = two_columns(ratio)
        point = np.array([0.0, 1.0])
        found = prox_decrease(quadratic, point) / quadratic.value(point)
        cases.append(Case(f"a = {ratio}", "equal", ratio**2, found, ROUNDING))
        bound = box_constant(quadratic)
        cases.append(Case(f"a = {ratio}, constant", "equal", ratio**2, bound, ROUNDING))
    return Check(
        "box-attained",
        4,
        "law",
        "the constant is attained: on ½(ω₁ + aω₂)² it is a², where the unconstrained PL constant "
        "is 1 + a²",
        "two column gates, one sample",
        tuple(cases),
    )


def check_box_descent(settings: Settings) -> Check:
    """L(ω_k) − L* ≤ (1 − μ/Λ)^k (L(ω_0) − L*) for projected gradient descent with step 1/Λ.

    Proximal PL gives min_y of the model ≤ −(μ/Λ)(L − L*), and the model is an upper bound of L
    (Karimi, Nutini and Schmidt 2016, theorem 5). Exponents as in ``columns-descent``.
    """
    cases, rows = [], []
    for problem in settings.drawn():
        quadratic = column_quadratic(problem)
        mu, smoothness = box_constant(quadratic), quadratic.smoothness
        low = quadratic.value(box_minimiser(problem))
        gaps = descend_in_box(quadratic, np.full(problem.cols, 0.5), low, STEPS)
        steps = np.arange(1, STEPS + 1)
        # Losses are sums of size ``constant``; below eps times that a gap is rounding error.
        clear = gaps[1:] > 1e-10 * max(gaps[0], quadratic.constant)
        exponents = -np.log(gaps[1:][clear] / gaps[0]) / steps[clear]
        predicted = float(-np.log1p(-min(mu / smoothness, 1 - 1e-12)))
        found = float(exponents.min()) if len(exponents) else np.inf
        cases.append(Case(problem.name, "at least", predicted, found, ROUNDING))
    for family in FAMILIES:
        problem = draw_problem(family, 0, settings.seed)
        quadratic = column_quadratic(problem)
        low = quadratic.value(box_minimiser(problem))
        gaps = descend_in_box(quadratic, np.full(problem.cols, 0.5), low, STEPS)
        rate = 1 - box_constant(quadratic) / quadratic.smoothness
        rows += [
            {
                "side": "box",
                "family": family,
                "step": k,
                "gap": max(gaps[k] / gaps[0], 1e-12),
                "bound": max(rate**k, 1e-12),
            }
            for k in range(0, STEPS + 1, 4)
        ]
    return Check(
        "box-descent",
        4,
        "law",
        "projected gradient descent contracts the gap by 1 − μ/Λ a step (exponent by step)",
        "column gates in [0, 1], step 1/Λ; L* from lsq_linear",
        tuple(cases),
        claim="convergence",
        frames={"descent_box": pd.DataFrame(rows)},
    )
