"""Item 8: gates against low-rank adapters: conditioning, iterations, and what each can reach."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from tqdm import tqdm

from theory.checks.settings import Settings
from theory.conditioning import (
    METHODS,
    RANKS,
    Batch,
    condition_numbers,
    gauss_newton,
    hessian,
    is_lora,
    solution,
    start,
    steepest_descent,
)
from theory.evidence import Case, Check
from theory.intervals import interval
from theory.lora import lora_minimiser
from theory.problems import FAMILIES, TEACHERS, Array, Problem, draw_problem

ACCURACY = 1e-4
SEEN = (0, 10, 100)
MOMENTS = (*(f"step {k}" for k in SEEN), "solution")
ENDS = (MOMENTS[0], MOMENTS[-1])
GATES = "rows + columns"


@cache
def study(settings: Settings) -> dict[tuple[str, str], dict[str, Array]]:
    """Measurements by family and method; each array has one entry for each problem.

    Keys: ``gauss_newton MOMENT`` and, at the start and the solution, ``hessian MOMENT`` (condition
    numbers) and ``negative MOMENT`` (−λ_min/λ_max of the Hessian); ``iterations``, ``unexplained``
    (see :func:`unexplained`). Between start and solution the Hessian has small eigenvalues along
    the symmetries, proportional to the gradient, which are nobody's conditioning.
    """
    found = {}
    with tqdm(total=len(FAMILIES) * len(METHODS), desc="gates against LoRA", disable=None) as bar:
        for family in FAMILIES:
            problems = [draw_problem(family, i, settings.seed) for i in range(settings.trials)]
            batch = Batch.of(problems)
            for method in METHODS:
                found[family, method] = _measure(settings, problems, batch, method)
                bar.update()
    return found


def _measure(
    settings: Settings, problems: list[Problem], batch: Batch, method: str
) -> dict[str, Array]:
    first = start(problems, method, settings.seed)
    best, low = solution(problems, method)
    path = steepest_descent(batch, method, first, low, ACCURACY, settings.limit, SEEN)
    result = {"iterations": path.iterations, "unexplained": unexplained(problems, low)}
    for moment, point in zip(MOMENTS, (*path.points, best), strict=True):
        result[f"gauss_newton {moment}"], _ = condition_numbers(
            gauss_newton(batch, method, point), batch.terms
        )
        if moment in ENDS:
            result[f"hessian {moment}"], result[f"negative {moment}"] = condition_numbers(
                hessian(batch, method, point), batch.terms
            )
    return result


def unexplained(problems: list[Problem], low: Array) -> Array:
    """(L* − L_ols)/(L(start) − L_ols): the share of what a free weight gains that is out of "
    "reach.
    """
    shares = []
    for problem, height in zip(problems, low, strict=True):
        free = lora_minimiser(problem, min(problem.rows, problem.cols))[2]
        residual = problem.targets - problem.inputs @ problem.weight.T
        begin = float(np.sum(residual**2)) / (2 * problem.samples)
        shares.append(max(height - free, 0.0) / (begin - free))
    return np.array(shares)


def _compared(first: Array, second: Array) -> Array:
    """second/first, or 1 if both are infinite."""
    both = np.isinf(first) & np.isinf(second)
    return np.where(both, 1.0, second / np.where(both, 1.0, first))


def conditioning_frame(settings: Settings) -> pd.DataFrame:
    """Median condition numbers with intervals, by family, method, moment and matrix."""
    rows: list[dict[str, object]] = []
    for (family, method), found in study(settings).items():
        for key, values in found.items():
            matrix, _, moment = key.partition(" ")
            if matrix not in ("gauss_newton", "hessian"):
                continue
            low, high = interval(values, family, method, key)
            rows.append(
                {
                    "family": family,
                    "method": method,
                    "matrix": matrix,
                    "moment": moment,
                    "median": float(np.median(values)),
                    "low": low,
                    "high": high,
                    "problems": len(values),
                }
            )
            if matrix == "hessian":
                rows[-1]["negative"] = float(np.median(found[f"negative {moment}"]))
    return pd.DataFrame(rows)


def speed_frame(settings: Settings) -> pd.DataFrame:
    """Median iterations with intervals and the share that met the limit, by family and method."""
    rows = []
    for (family, method), found in study(settings).items():
        values = found["iterations"]
        capped = np.minimum(values, settings.limit)
        low, high = interval(capped, family, method, "iterations")
        rows.append(
            {
                "family": family,
                "method": method,
                "median": float(np.median(capped)),
                "low": low,
                "high": high,
                "not_reached": float(np.isinf(values).mean()),
                "limit": settings.limit,
                "problems": len(values),
            }
        )
    return pd.DataFrame(rows)


@cache
def reach_study(settings: Settings) -> dict[tuple[str, str], Array]:
    """Unexplained shares by teacher and method, on well-conditioned problems."""
    found: dict[tuple[str, str], Array] = {}
    for teacher in TEACHERS:
        problems = [
            draw_problem("well-conditioned", i, settings.seed, teacher=teacher)
            for i in range(settings.trials)
        ]
        for method in METHODS:
            found[teacher, method] = unexplained(problems, solution(problems, method)[1])
    return found


def reach_frame(settings: Settings) -> pd.DataFrame:
    """Median unexplained shares with intervals, by teacher and method, with parameter counts."""
    rows = []
    family = FAMILIES["well-conditioned"]
    for (teacher, method), values in reach_study(settings).items():
        low, high = interval(values, teacher, method, "reach")
        size = family.rows + family.cols
        rank = int(method.split()[1]) if is_lora(method) else 1
        rows.append(
            {
                "teacher": teacher,
                "method": method,
                "parameters": family.cols if method == "columns" else rank * size,
                "median": float(np.median(values)),
                "low": low,
                "high": high,
                "problems": len(values),
            }
        )
    return pd.DataFrame(rows)


def check_conditioning(settings: Settings) -> Check:
    """κ_LoRA / κ_gates > 1, κ of the Hessian on its non-zero spectrum (|λ|max/|λ|min⁺), at the
    start and at the solution, for row and column gates against every rank.

    No theorem: both ways happen. At LoRA's start B = 0 the Gauss–Newton matrix is I ⊗ AGAᵀ, which
    for r = 1 has κ = 1, better than any gates; at the solution LoRA multiplies cond(G) by the
    spread of the fitted singular values. Cases: the lower end of the 95 % interval of the median
    ratio over the problems of a family is at least 1.
    """
    cases = []
    found = study(settings)
    for family in FAMILIES:
        for rank in RANKS:
            for moment in ENDS:
                key = f"hessian {moment}"
                ratios = _compared(found[family, GATES][key], found[family, f"LoRA {rank}"][key])
                low, _ = interval(ratios, family, rank, moment, "ratio")
                cases.append(Case(f"{family}, LoRA {rank}, {moment}", "at least", 1.0, low))
    return Check(
        "conditioning-claim",
        8,
        "claim",
        "the Hessian of row and column gates is better conditioned than LoRA's, at the start and "
        "at the solution (median ratio of condition numbers)",
        f"{settings.trials} problems a family; ranks 1, 4, 8",
        tuple(cases),
        claim="conditioning",
        frames={"conditioning": conditioning_frame(settings)},
    )


def check_speed(settings: Settings) -> Check:
    """Iterations of steepest descent to a relative gap of 10⁻⁴: LoRA's over the gates', > 1.

    The step is the best of a grid at every iteration, so that neither has a rate to tune; each is
    measured against its own optimum. Cases as in ``conditioning-claim``.
    """
    cases = []
    found = study(settings)
    for family in FAMILIES:
        for rank in RANKS:
            ratios = _compared(
                found[family, GATES]["iterations"], found[family, f"LoRA {rank}"]["iterations"]
            )
            low, _ = interval(np.minimum(ratios, 1e6), family, rank, "speed")
            cases.append(Case(f"{family}, LoRA {rank}", "at least", 1.0, low))
    return Check(
        "speed-claim",
        8,
        "claim",
        "row and column gates need no more iterations than LoRA to a relative gap of 10⁻⁴ (median "
        "ratio)",
        f"{settings.trials} problems a family; steepest descent; each to its own optimum",
        tuple(cases),
        claim="conditioning",
        frames={"speed": speed_frame(settings)},
    )


def check_columns(settings: Settings) -> Check:
    """κ of column gates alone is constant along training: the loss is quadratic.

    And bounded: κ(G ∘ WᵀW) ≤ cond(G) · max_j ‖w_j‖²/min_j ‖w_j‖², by Schur's bound and the same
    argument for λ_max. Cases: κ at the solution against that bound.
    """
    cases = []
    found = study(settings)
    for family in ("well-conditioned", "ill-conditioned", "under-parameterised"):
        worst, where = 0.0, 0
        bounds = []
        for index in range(settings.trials):
            problem = draw_problem(family, index, settings.seed)
            energy = np.sum(problem.weight**2, axis=0)
            bound = float(np.linalg.cond(problem.second_moment) * energy.max() / energy.min())
            bounds.append(bound)
            share = found[family, "columns"]["hessian solution"][index] / bound
            if share > worst:
                worst, where = share, index
        kappa = float(found[family, "columns"]["hessian solution"][where])
        cases.append(Case(f"{family} {where}", "at most", bounds[where], kappa, 1e-6))
    return Check(
        "columns-condition",
        8,
        "law",
        "column gates alone have a constant condition number, at most cond(G) max‖w_j‖²/min‖w_j‖² "
        "(the tightest problem of each family)",
        "G regular, no zero column of W",
        tuple(cases),
        claim="conditioning",
    )


def check_reach(settings: Settings) -> Check:
    """Unexplained share of the gates ≤ that of LoRA: (L* − L_ols)/(L(start) − L_ols).

    m + d gates scale entries of W and cannot leave {Diag(r) W Diag(c)}; LoRA r reaches every
    change of rank r. Teachers: gates, a change of rank 1, a dense change. Cases: medians; half a
    percent is a tie.
    """
    cases = []
    found = reach_study(settings)
    for teacher in TEACHERS:
        for rank in RANKS:
            gates = float(np.median(found[teacher, GATES]))
            lora = float(np.median(found[teacher, f"LoRA {rank}"]))
            cases.append(Case(f"{teacher}, LoRA {rank}", "at most", lora + 0.005, gates))
    return Check(
        "reach-claim",
        8,
        "claim",
        "gates reach as low a loss as LoRA (median unexplained share)",
        f"{settings.trials} well-conditioned problems for each of three teachers",
        tuple(cases),
        frames={"reach": reach_frame(settings)},
    )
