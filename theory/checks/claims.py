"""Two claims of the paper, as stated, over all settings of items 1 to 6."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from theory.bilinear import (
    fit_gates,
    joint_gradient,
    joint_hessian,
    joint_loss,
    local_region,
    pl_ratio,
    saddle_coupling,
)
from theory.box import (
    box_constant,
    box_minimiser,
    clip,
    descend_in_box,
    pathwise_gradient,
    prox_decrease,
)
from theory.checks.clipping import is_regular
from theory.checks.joint import nearly_right
from theory.checks.settings import Settings
from theory.checks.smoothing import relaxed_minimum
from theory.critical import smallest_ratio
from theory.evidence import Case, Check
from theory.problems import FAMILIES, Array, Problem, draw_problem
from theory.quadratic import column_quadratic, row_quadratic
from theory.relaxation import Relaxed
from theory.stochastic import stochastic_descent

USEFUL = 1e-4
"""A PL constant below this fraction of the largest curvature has no effect within a training: one
e-fold takes 10⁴ steps.
"""
VANISHING = 1e-6
"""If a theorem says that the constant is 0, the ratio at its witness is below this fraction."""
RELEASED_START = float(np.tanh(1.0) + 0.5)
"""Initial centre of a gate in the released code; its noise has σ = 0.1."""
NOISES = (0.1, 0.5)


def check_pl(settings: Settings) -> Check:
    """Claim "The gated objective satisfies the PL condition": where is ‖∇L‖² ≥ 2μ(L − L*)?

    Theorems decide the global question, without votes:

    - columns alone, rows alone: yes (``columns-pl``);
    - rows and columns: not globally (``joint-path``), but near ω = 1 if W is nearly right
      (``joint-local``);
    - through clipping: no (``clip-plateau``);
    - proximally in the box: yes (``box-prox-pl``).

    Votes ask whether PL holds along training. Each takes the smallest ratio over the largest
    curvature, along descent until a thousandth of the gap is left. Row and column gates descend
    without clipping from ω = 1. Column gates descend on the relaxed objective from the released
    start, with σ = 0.1 and 0.5. The median over the problems of a family must be at least 10⁻⁴.
    """
    cases = []
    count = min(settings.problems, 8)
    for family in FAMILIES:
        problems = [draw_problem(family, index, settings.seed) for index in range(count)]
        cases += _proved(problems[0], family, settings.random("pl claim", family))
        found = [_joint_path_ratio(problem) for problem in problems]
        cases.append(Case(f"descent, {family}", "at least", USEFUL, float(np.median(found))))
        for sigma in NOISES:
            found = [_relaxed_path_ratio(problem, sigma) for problem in problems]
            name = f"relaxed, σ = {sigma}, released start, {family}"
            cases.append(Case(name, "at least", USEFUL, float(np.median(found))))
    cases.append(_near_one(settings))
    return Check(
        "pl-claim",
        3,
        "claim",
        "the gated objective satisfies PL: proved or disproved globally; along training the ratio "
        "is at least 10⁻⁴ Λ (median over problems)",
        "row and column gates from ω = 1; column gates with noise from the released start; every "
        "family",
        tuple(cases),
        claim="pl",
    )


def _proved(problem: Problem, family: str, random: np.random.Generator) -> list[Case]:
    """One witness for each theorem."""
    cases = []
    for side, quadratic in (
        ("columns", column_quadratic(problem)),
        ("rows", row_quadratic(problem)),
    ):
        points = quadratic.minimiser() + random.standard_normal((32, len(quadratic.linear)))
        found = min(pl_ratio(quadratic.gradient(p), quadratic.gap(p)) for p in points)
        constant, scale = quadratic.pl_constant * (1 - 1e-9), quadratic.smoothness
        case = Case(f"{side}, {family}", "at least", constant / scale, found / scale)
        cases.append(replace(case, proof="holds"))
    cases.append(_box_case(problem, family, random))
    cases.append(_global_case(problem, family))
    return [*cases, _clipped_case(problem, family)]


def _near_one(settings: Settings) -> Case:
    problem, minimiser = nearly_right(settings, 0)
    region = local_region(problem, minimiser)
    reach = 0.9 * region.radius()
    found, _ = smallest_ratio(
        problem,
        np.ones(len(minimiser)),
        minimiser,
        reach - float(np.linalg.norm(minimiser - 1)),
        settings.random("pl claim", "local"),
        2,
    )
    name = "rows + columns, near ω = 1"
    return Case(name, "at least", region.constant(reach), found, proof="holds")


def _global_case(problem: Problem, family: str) -> Case:
    left, _, right = np.linalg.svd(saddle_coupling(problem))
    point = 1e-5 * np.concatenate([left[:, 0], right[0]])
    minimiser = fit_gates(problem)
    gap = joint_loss(problem, point) - joint_loss(problem, minimiser)
    ratio = pl_ratio(joint_gradient(problem, point), gap)
    largest = float(np.linalg.norm(joint_hessian(problem, minimiser), 2))
    name = f"rows + columns globally, {family}"
    return Case(name, "at least", VANISHING, ratio / largest, proof="fails")


def _clipped_case(problem: Problem, family: str) -> Case:
    quadratic = column_quadratic(problem)
    centres = np.full(problem.cols, 1.2)
    gap = quadratic.value(clip(centres)) - quadratic.value(box_minimiser(problem))
    ratio = pl_ratio(pathwise_gradient(quadratic, centres), gap)
    name = f"columns through clipping, {family}"
    return Case(name, "at least", VANISHING, ratio / quadratic.smoothness, proof="fails")


def _box_case(problem: Problem, family: str, random: np.random.Generator) -> Case:
    quadratic = column_quadratic(problem)
    low = quadratic.value(box_minimiser(problem))
    found = min(
        prox_decrease(quadratic, point) / (quadratic.value(point) - low)
        for point in random.uniform(size=(32, problem.cols))
    )
    constant, scale = box_constant(quadratic) * (1 - 1e-9), quadratic.smoothness
    name = f"columns in the box, proximal, {family}"
    return Case(name, "at least", constant / scale, found / scale, proof="holds")


LEFT, MOST = 1e-3, 2000
"""Descent stops when this share of the gap is left, or after this number of steps."""


def smallest_path_ratio(
    value: Callable[[Array], float],
    gradient: Callable[[Array], Array],
    start: Array,
    low: float,
    step: float,
) -> float:
    """Smallest ‖∇‖²/2(value − low) along descent with a step that is halved or doubled."""
    point, height, smallest = start, value(start), np.inf
    goal = low + LEFT * (height - low)
    for _ in range(MOST):
        if height <= goal:
            break
        slope = gradient(point)
        squared = float(slope @ slope)
        smallest = min(smallest, squared / (2 * (height - low)))
        if squared < 1e-24 * max(height, 1.0):
            break
        while (after := value(point - step * slope)) > height - step * squared / 2:
            step /= 2
        point, height, step = point - step * slope, after, 2 * step
    return float(smallest)


def _joint_path_ratio(problem: Problem) -> float:
    start = np.ones(problem.rows + problem.cols)
    low = joint_loss(problem, fit_gates(problem))
    largest = float(np.linalg.norm(joint_hessian(problem, start), 2))
    ratio = smallest_path_ratio(
        lambda gates: joint_loss(problem, gates),
        lambda gates: joint_gradient(problem, gates),
        start,
        low,
        1 / largest,
    )
    return ratio / largest


def _relaxed_path_ratio(problem: Problem, sigma: float) -> float:
    quadratic = column_quadratic(problem)
    relaxed = Relaxed(quadratic, sigma)
    low = relaxed_minimum(relaxed, box_minimiser(problem))[1]
    start = np.full(problem.cols, RELEASED_START)
    ratio = smallest_path_ratio(
        relaxed.value, relaxed.gradient, start, low, 1 / quadratic.smoothness
    )
    return ratio / quadratic.smoothness


def check_convergence(settings: Settings) -> Check:
    """Claim "Training with stochastic gates converges": does the gap fall to 1 % of its start?

    Theorems: gradient descent on column gates and projected descent in the box converge linearly
    (``columns-descent``, ``box-descent``). Saturated gates without noise never move
    (``clip-plateau``). Votes: stochastic descent from the middle of the box and from the released
    start. The gap is the training loss minus the best loss in the box, or minus the optimum of the
    relaxed objective. Each vote is the median over problems of the gap after training over the gap
    before.
    """
    cases: list[Case] = []
    count = min(settings.problems, 4)
    for family in FAMILIES:
        problem = draw_problem(family, 0, settings.seed)
        quadratic, best = column_quadratic(problem), box_minimiser(problem)
        boxed = descend_in_box(quadratic, np.full(problem.cols, 0.5), quadratic.value(best), 500)
        if is_regular(quadratic):
            bound = np.exp(-500 * box_constant(quadratic) / quadratic.smoothness)
            if bound < 1e-2:
                case = _fallen(f"in the box, {family}", boxed[0], boxed[-1])
                cases.append(replace(case, proof="holds"))
        still = np.full(problem.cols, 1.2)
        moved = still - pathwise_gradient(quadratic, still) / quadratic.smoothness
        heights = [quadratic.value(clip(c)) - quadratic.value(best) for c in (still, moved)]
        case = _fallen(f"saturated, no noise, {family}", *heights)
        cases.append(replace(case, proof="fails"))
        problems = [draw_problem(family, index, settings.seed) for index in range(count)]
        for sigma in (0.02, *NOISES):
            lows = [
                relaxed_minimum(Relaxed(column_quadratic(p), sigma), box_minimiser(p))[1]
                for p in problems
            ]
            for name, start in (("the middle", 0.5), ("the released start", RELEASED_START)):
                found = [
                    _trained_gaps(settings, p, sigma, start, low)
                    for p, low in zip(problems, lows, strict=True)
                ]
                hard, own = np.median(np.array(found), axis=0)
                setting = f"σ = {sigma}, from {name}, {family}"
                cases.append(Case(setting, "at most", 0.01, max(float(hard), 1e-30)))
                setting = f"{setting}, over the relaxed optimum"
                cases.append(Case(setting, "at most", 0.01, max(float(own), 1e-30)))
    return Check(
        "convergence-claim",
        6,
        "claim",
        "training with noise drives the expected training loss to within 1 % of the initial gap "
        "above the best loss in the box, and above its own optimum (median over problems)",
        "column gates; σ = 0.02, 0.1 and 0.5; from the middle of the box and from the released "
        f"start; {CLAIM_STEPS} steps of 0.2/Λ",
        tuple(cases),
        claim="convergence",
    )


CLAIM_STEPS = 2000


def _trained_gaps(
    settings: Settings, problem: Problem, sigma: float, start: float, relaxed_low: float
) -> tuple[float, float]:
    """Remaining gaps to the hard optimum and to the relaxed one, after training."""
    quadratic, best = column_quadratic(problem), box_minimiser(problem)
    relaxed = Relaxed(quadratic, sigma)
    seed = int(settings.random("claim", problem.name, sigma, start).integers(2**31))
    runs = stochastic_descent(
        quadratic,
        np.full(problem.cols, start),
        sigma,
        0.2 / quadratic.smoothness,
        np.array([0, CLAIM_STEPS]),
        min(settings.runs, 16),
        seed,
    )
    first, last = (float(np.mean([relaxed.value(c) for c in cs])) for cs in runs.centres)
    lows = (quadratic.value(best), relaxed_low)
    hard, own = ((last - low) / (first - low) for low in lows)
    return hard, own


def _fallen(name: str, first: float, last: float) -> Case:
    return Case(name, "at most", 0.01, max(float(last / first), 1e-30))
