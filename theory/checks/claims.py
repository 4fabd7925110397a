"""Two claims of the paper, PL and convergence, over all settings of items 1 to 6."""

from __future__ import annotations

from collections.abc import Callable

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
    pathwise_gradient,
    prox_decrease,
)
from theory.cases import Case
from theory.checks.joint import nearly_right
from theory.checks.settings import Settings
from theory.checks.smoothing import relaxed_minimum
from theory.critical import least_loss, smallest_ratio
from theory.evidence import Check
from theory.outputs import Side, quadratic_of_outputs
from theory.problems import FAMILIES, Array, Problem, draw_problem
from theory.quadratic import Quadratic, column_quadratic, row_quadratic
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


def check_pl_globally(settings: Settings) -> Check:
    """Claim "The gated objective satisfies the PL condition", globally: theorems decide.

    - columns alone, rows alone: yes (``columns-pl``);
    - rows and columns: not globally (``joint-path``), but near ω = 1 if W is nearly right
      (``joint-local``);
    - through clipping: no (``clip-plateau``);
    - proximally in the box: yes (``box-prox-pl``).

    One case for each theorem. Measured, in units of the largest curvature: for a constant, the
    least ratio over it on problems of every family; for a failure, the largest ratio at its
    witness.
    """
    held: dict[str, list[float]] = {}
    failed: dict[str, list[float]] = {}
    for family in FAMILIES:
        problem = draw_problem(family, 0, settings.seed)
        random = settings.random("pl claim", family)
        for side, quadratic in sides_of(problem).items():
            seen = quadratic_of_outputs(problem, side)
            held.setdefault(side, []).append(_above_constant(quadratic, seen, random))
        held.setdefault("columns in the box, proximal", []).append(_in_box(problem, random))
        failed.setdefault("rows + columns", []).append(_at_saddle(problem))
        failed.setdefault("columns through clipping", []).append(_clipped(problem))
    held["rows + columns, near ω = 1"] = [_near_one(settings)]
    cases = [
        Case(name, "at least", 1.0, min(found), 1e-9, proof="holds") for name, found in held.items()
    ]
    cases += [
        Case(name, "at least", VANISHING, max(found), proof="fails")
        for name, found in failed.items()
    ]
    return Check(
        "pl-global-claim",
        3,
        "claim",
        "the gated objective satisfies PL globally: for gates of one side, in the box (proximally) "
        "and near a minimiser; not for both sides, and not through clipping",
        "one witness in every family for each theorem",
        tuple(cases),
        claim="pl",
    )


def check_pl(settings: Settings) -> Check:
    """Claim "The gated objective satisfies PL", along training: is the ratio at least 10⁻⁴ Λ?

    The ratio is the smallest along descent until a thousandth of the gap is left, over the largest
    curvature. Row and column gates descend without clipping from ω = 1. L* is the least loss of
    further descents, too, so that the ratio tends to 0 at an end above it. Column gates descend on
    the relaxed objective from the released start, with σ = 0.1 and 0.5. A setting is one of these
    trainings and a family. Its draws are the problems of the family.
    """
    cases = []
    count = min(settings.problems, 8)
    for family in FAMILIES:
        problems = [draw_problem(family, index, settings.seed) for index in range(count)]
        levels = {"gates": "rows and columns from ω = 1", "family": family}
        random = settings.random("pl claim", "least", family)
        found = np.array([_joint_path_ratio(problem, random) for problem in problems])
        cases.append(Case.of_draws(levels, "at least", USEFUL, found))
        for sigma in NOISES:
            levels = {"gates": f"columns from the released start, σ = {sigma}", "family": family}
            found = np.array([_relaxed_path_ratio(problem, sigma) for problem in problems])
            cases.append(Case.of_draws(levels, "at least", USEFUL, found))
    return Check(
        "pl-claim",
        3,
        "claim",
        "along training the PL ratio of the gated objective is at least 10⁻⁴ Λ (median over "
        "problems)",
        "row and column gates from ω = 1; column gates with noise from the released start",
        tuple(cases),
        claim="pl",
    )


def sides_of(problem: Problem) -> dict[Side, Quadratic]:
    """The loss in the gates of either side, in closed form."""
    return {"columns": column_quadratic(problem), "rows": row_quadratic(problem)}


def _above_constant(quadratic: Quadratic, seen: Quadratic, random: np.random.Generator) -> float:
    points = seen.minimiser() + random.standard_normal((32, len(seen.linear)))
    found = min(pl_ratio(seen.gradient(p), seen.gap(p)) for p in points)
    return found / quadratic.pl_constant


def _near_one(settings: Settings) -> float:
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
    return found / region.constant(reach)


def _at_saddle(problem: Problem) -> float:
    left, _, right = np.linalg.svd(saddle_coupling(problem))
    point = 1e-5 * np.concatenate([left[:, 0], right[0]])
    minimiser = fit_gates(problem)
    gap = joint_loss(problem, point) - joint_loss(problem, minimiser)
    ratio = pl_ratio(joint_gradient(problem, point), gap)
    return ratio / float(np.linalg.norm(joint_hessian(problem, minimiser), 2))


def _clipped(problem: Problem) -> float:
    quadratic = column_quadratic(problem)
    centres = np.full(problem.cols, 1.2)
    gap = quadratic.value(clip(centres)) - quadratic.value(box_minimiser(problem))
    return pl_ratio(pathwise_gradient(quadratic, centres), gap) / quadratic.smoothness


def _in_box(problem: Problem, random: np.random.Generator) -> float:
    seen = quadratic_of_outputs(problem)
    low = seen.value(box_minimiser(problem))
    found = min(
        prox_decrease(seen, point) / (seen.value(point) - low)
        for point in random.uniform(size=(32, problem.cols))
    )
    return found / box_constant(column_quadratic(problem))


LEFT, MOST = 1e-3, 2000
"""Descent stops when this share of the gap is left, or after this number of steps."""
STARTS = 12
"""Random starts of the descents that look for L*."""


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


def _joint_path_ratio(problem: Problem, random: np.random.Generator) -> float:
    start = np.ones(problem.rows + problem.cols)
    low = least_loss(problem, random, STARTS)
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

    Without noise theorems decide, in checks of their own: projected descent in the box converges
    linearly (``box-descent``), and saturated gates never move (``clip-plateau``). Measured:
    stochastic descent from the middle of the box and from the released start. The gap is the
    training loss minus the best loss in the box, or minus the optimum of the relaxed objective. A
    setting is a goal, σ, a start and a family. Its draws are the gaps after training over the gaps
    before, on the problems of the family.
    """
    cases: list[Case] = []
    for family in FAMILIES:
        problems = [
            draw_problem(family, index, settings.seed)
            for index in range(min(settings.problems, TRAINED))
        ]
        for sigma in (0.02, *NOISES):
            lows = [
                relaxed_minimum(Relaxed(column_quadratic(p), sigma), box_minimiser(p))[1]
                for p in problems
            ]
            for name, place in (("the middle", 0.5), ("the released start", RELEASED_START)):
                found = np.array(
                    [
                        _trained_gaps(settings, p, sigma, place, low)
                        for p, low in zip(problems, lows, strict=True)
                    ]
                )
                for goal, ratios in zip(GOALS, found.T, strict=True):
                    levels = {"goal": goal, "σ": f"{sigma}", "start": name, "family": family}
                    cases.append(Case.of_draws(levels, "at most", 0.01, np.maximum(ratios, 1e-30)))
    return Check(
        "convergence-claim",
        6,
        "claim",
        "training with noise drives the expected training loss to within 1 % of the initial gap "
        "above a goal: the best loss in the box, or its own optimum (median over problems)",
        "column gates; σ = 0.02, 0.1 and 0.5; from the middle of the box and from the released "
        f"start; {CLAIM_STEPS} steps of 0.2/Λ",
        tuple(cases),
        claim="convergence",
    )


GOALS = ("best in the box", "relaxed optimum")
TRAINED = 6
"""Problems of a family: the fewest whose range contains the median with at least 95 %."""
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
