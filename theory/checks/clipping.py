"""Item 4: gates clipped to [0, 1]."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from finegates.gates.gated_linear import GatedLinear
from finegates.gates.stochastic import StochasticGate
from theory.box import (
    attaining,
    box_constant,
    box_minimiser,
    descend_in_box,
    path_in_box,
    prox_decrease,
    two_columns,
)
from theory.cases import Case
from theory.checks.settings import ROUNDING, Settings
from theory.evidence import Check
from theory.outputs import prox_ratio, quadratic_of_outputs
from theory.problems import FAMILIES, Array, Problem, draw_problem
from theory.quadratic import Quadratic, column_quadratic, rank_tolerance

STEPS = 400
RESOLVED = 5e-3
"""Where μ is within this share of the rounding errors of H it is not measured."""


def module_gradient(problem: Problem, centres: Array) -> tuple[float, Array]:
    """Loss and its gradient in the centres, through the library's gates in evaluation mode."""
    linear = torch.nn.Linear(problem.cols, problem.rows, bias=False, dtype=torch.float64)
    linear.weight.data = torch.as_tensor(problem.weight)
    gate = StochasticGate(problem.cols, "paper_v1").double().eval()
    gate.latent.data = torch.as_tensor(centres)
    outputs = GatedLinear(linear, None, gate)(torch.as_tensor(problem.inputs))
    residual = outputs - torch.as_tensor(problem.targets)
    objective = (residual**2).sum() / (2 * problem.samples)
    (slope,) = torch.autograd.grad(objective, gate.latent)
    return float(objective.detach()), np.asarray(slope.numpy(), dtype=np.float64)


def check_plateau(settings: Settings) -> Check:
    """Gates at 1 + δ or at −δ: ∂_μ L(clip(μ)) = 0 exactly, and L(1) − L* > 0.

    clip has slope 0 outside (0, 1), so the chain rule multiplies by an exact zero. If all gates are
    outside, this is a plateau and not a saddle: descent without noise never starts. Measured
    through the library's modules: the number of gates whose gradient is exactly 0, if all are
    saturated and if one is not, and the height of the plateau against the closed form.
    """
    cases = []
    for problem in settings.drawn():
        quadratic, best = column_quadratic(problem), box_minimiser(problem)
        if np.all(best == 1):
            continue
        for name, centres in (
            ("saturated", np.full(problem.cols, 1.2)),
            ("saturated at both ends", np.where(np.arange(problem.cols) % 2 == 0, 1.2, -0.2)),
        ):
            height, slope = module_gradient(problem, centres)
            still = int(np.sum(slope == 0))
            cases.append(Case(f"{problem.name}, {name}", "equal", problem.cols, still))
        one = np.full(problem.cols, 1.2)
        moving = int(np.argmax(np.abs(quadratic.gradient(np.ones(problem.cols)))))
        one[moving] = 0.9
        still = int(np.sum(module_gradient(problem, one)[1] == 0))
        cases.append(Case(f"{problem.name}, one inside", "equal", problem.cols - 1, still))
        height = module_gradient(problem, np.full(problem.cols, 1.2))[0]
        gap = height - module_gradient(problem, best)[0]
        predicted = quadratic.value(np.ones(problem.cols)) - quadratic.value(best)
        if gap > 1e-6 * problem.null_loss:
            cases.append(Case(f"{problem.name}, height", "equal", predicted, gap, 1e-6, "height"))
    return Check(
        "clip-plateau",
        4,
        "law",
        "saturated gates have a pathwise gradient of exactly 0 (their number), and where all are "
        "saturated L > L*: PL fails on an open set",
        "the optimum is not at the saturated corner",
        tuple(cases),
        claim="pl",
    )


def centred(quadratic: Quadratic) -> Quadratic:
    """The same Hessian with its minimiser at the centre of the box."""
    middle = np.full(len(quadratic.linear), 0.5)
    return replace(quadratic, linear=quadratic.hessian @ middle)


def is_regular(quadratic: Quadratic) -> bool:
    """Whether no eigenvalue of the Hessian is zero."""
    return bool(np.all(quadratic.spectrum()[0] > 0))


def check_box_pl(settings: Settings) -> Check:
    """½ D(ω) ≥ μ (L(ω) − L*) in the box, μ = min over bases K of λ_min(H_KK).

    :func:`theory.box.box_constant` has the proof. For H ≻ 0, μ = λ_min(H). Measured from outputs at
    random points and at vertices. It is attained for every H, singular ones included, with the
    targets of :func:`theory.box.attaining`. There rounding errors are those of H over μ.
    """
    cases = []
    for problem in settings.drawn():
        quadratic = column_quadratic(problem)
        mu = box_constant(quadratic)
        seen = quadratic_of_outputs(problem)
        low = seen.value(box_minimiser(problem))
        random = settings.random("box", problem.name)
        points = [*random.uniform(size=(24, problem.cols))]
        points += [*(random.uniform(size=(24, problem.cols)) > 0.5).astype(np.float64)]
        ratios = []
        for point in points:
            gap = seen.value(point) - low
            if gap > 1e-9 * seen.constant:
                ratios.append(prox_decrease(seen, point) / gap)
        kind = "regular" if is_regular(quadratic) else "singular"
        cases.append(Case(problem.name, "at least", mu, min(ratios), ROUNDING, kind))
        share = rank_tolerance(problem.cols, quadratic.roundings) * quadratic.smoothness / mu
        if share < RESOLVED:
            ratio = prox_ratio(problem, *attaining(quadratic))
            name, slack = f"{problem.name}, attained", ROUNDING + 10 * share
            cases.append(Case(name, "equal", mu, ratio, slack, kind, built=True))
    return Check(
        "box-prox-pl",
        4,
        "law",
        "in the box the proximal PL inequality holds with μ = min over bases K of λ_min(H_KK), "
        "which is λ_min(H) for a regular Hessian, and with no larger constant for all targets",
        "column gates in [0, 1]; any X, W, Y",
        tuple(cases),
        claim="pl",
    )


def check_box_two(settings: Settings) -> Check:
    """½(ω₁ + aω₂)² at (0, 1): ½D/(L − L*) = a², while λ⁺(H) = 1 + a².

    At (0, 1) the gradient is (a, a²). ω₁ cannot decrease and ω₂ moves by a²/Λ, so ½D = a⁴/2 and
    L − L* = a²/2. The bound of ``box-prox-pl`` is attained. In the box the unconstrained PL
    constant is too large by the factor 1 + 1/a².
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
    """‖ω_k − ω*‖ ≤ (1 − μ/Λ)^k ‖ω_0 − ω*‖ for projected descent, step 1/Λ, H ≻ 0, μ = λ_min(H).

    A projection is non-expansive, and the step's map I − H/Λ has norm 1 − μ/Λ. Attained from the
    slowest eigenvector if the minimiser is inside. Exponents as in ``columns-descent``.
    """
    cases = []
    for problem in settings.drawn():
        quadratic = column_quadratic(problem)
        if not is_regular(quadratic):
            continue
        mu, smoothness = box_constant(quadratic), quadratic.smoothness
        predicted = float(-np.log1p(-mu / smoothness))
        seen = quadratic_of_outputs(problem)
        inner = centred(seen)
        start = inner.minimiser() + 0.1 * inner.spectrum()[1][:, 0]
        for name, q, best, first, built in (
            (problem.name, seen, box_minimiser(problem), np.full(problem.cols, 0.5), False),
            (f"{problem.name}, slowest", inner, np.full(problem.cols, 0.5), start, True),
        ):
            distances = np.linalg.norm(path_in_box(q, first, STEPS) - best, axis=1)
            # Below this, the error of the minimiser dominates the distance.
            clear = distances[1:] > 1e-7 * max(distances[0], 1e-3)
            steps = np.arange(1, STEPS + 1)[clear]
            exponents = -np.log(distances[1:][clear] / distances[0]) / steps
            if len(exponents) and built:
                last = float(exponents[-1])
                cases.append(Case(name, "equal", predicted, last, 1e-4, built=True))
            elif len(exponents):
                cases.append(Case(name, "at least", predicted, float(exponents.min()), 1e-6))
    return Check(
        "box-descent",
        4,
        "law",
        "for a regular Hessian projected gradient descent contracts the distance to the optimum by "
        "at least 1 − μ/Λ a step, and by no more where gates stay inside (exponent by step)",
        "column gates in [0, 1], step 1/Λ; the optimum from lsq_linear",
        tuple(cases),
        claim="convergence",
    )


def check_box_descent_gap(settings: Settings) -> Check:
    """L(ω_k) − L* ≤ (1 − μ/Λ)^k (L(ω_0) − L*) for projected gradient descent with step 1/Λ.

    By proximal PL the minimum of the model over y is ≤ −(μ/Λ)(L − L*), and the model is an upper
    bound of L (Karimi, Nutini and Schmidt 2016, theorem 5). Exponents as in ``columns-descent``.
    The bound loses a factor of two in the exponent on quadratics.
    """
    cases, rows = [], []
    for problem in settings.drawn():
        quadratic = column_quadratic(problem)
        mu, smoothness = box_constant(quadratic), quadratic.smoothness
        seen = quadratic_of_outputs(problem)
        low = seen.value(box_minimiser(problem))
        gaps = descend_in_box(seen, np.full(problem.cols, 0.5), low, STEPS)
        steps = np.arange(1, STEPS + 1)
        # Losses are sums of size ``constant``; a gap below eps times that is rounding error.
        clear = gaps[1:] > 1e-10 * max(gaps[0], quadratic.constant)
        exponents = -np.log(gaps[1:][clear] / gaps[0]) / steps[clear]
        predicted = float(-np.log1p(-min(mu / smoothness, 1 - 1e-12)))
        if len(exponents):
            least = float(exponents.min())
            cases.append(Case(problem.name, "at least", predicted, least, ROUNDING))
    for slope in (0.5, 0.2):
        pair, start = two_columns(slope), np.array([0.0, 1.0])
        gaps = descend_in_box(pair, start, 0.0, 50)
        rate = box_constant(pair) / pair.smoothness
        least = float(np.min(-np.log(gaps[1:] / gaps[0]) / np.arange(1, 51)))
        predicted = float(-np.log1p(-rate))
        cases.append(Case(f"a = {slope}", "at least", predicted, least, ROUNDING, built=True))
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
        "box-descent-gap",
        4,
        "bound",
        "for any Hessian it contracts the gap by at least 1 − μ/Λ a step, μ the constant of "
        "box-prox-pl (exponent by step)",
        "column gates in [0, 1], step 1/Λ; L* from lsq_linear",
        tuple(cases),
        claim="convergence",
        frames={"descent_box": pd.DataFrame(rows)},
    )
