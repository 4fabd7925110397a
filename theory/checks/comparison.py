"""Item 8: gates against low-rank adapters: conditioning, iterations, and reach.

Both methods start from the weight W on the same problems. Ranks are below full rank, LoRA's A has
its usual scale, and iterations are counted to the same loss. Targets come from gates, from a change
of rank 1, or from a dense change.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
from tqdm import tqdm

from theory.cases import Case
from theory.checks.settings import Settings
from theory.conditioning import (
    GATES,
    Batch,
    condition_numbers,
    gauss_newton,
    hessian,
    is_lora,
    methods_of,
    rank_of,
    ranks_of,
    solution,
    start,
    start_loss,
    steepest_descent,
)
from theory.evidence import Check
from theory.intervals import interval
from theory.lora import lora_minimiser
from theory.outputs import autograd_hessian, sign_problem, white_problem
from theory.problems import FAMILIES, TEACHERS, Array, Problem, draw_problem

SHARE = 0.01
"""Iterations are counted until this share of the smaller of the two gains is left."""
SEEN = (0, 10, 100)
MOMENTS = (*(f"step {k}" for k in SEEN), "solution")
SCALES = (0.1, 1.0, 10.0)
SCALED = ("well-conditioned", "ill-conditioned")
EQUAL = 1e-6
"""Unexplained shares that differ by less are those of equal losses."""


@cache
def study(settings: Settings) -> dict[tuple[str, str, str], dict[str, Array]]:
    """Measurements by family, teacher and method; each array has one entry for each problem.

    Keys:

    - ``gauss_newton MOMENT``: condition numbers on the non-zero spectrum.
    - ``hessian solution``: the same for the Hessian, which is positive semidefinite only there.
    - ``low``: the method's least loss.
    - ``iterations R``: for gates, iterations to the loss that both they and LoRA of rank R reach;
      for LoRA of rank R, iterations to the same loss.
    """
    found: dict[tuple[str, str, str], dict[str, Array]] = {}
    total = len(FAMILIES) * len(TEACHERS)
    with tqdm(total=total, desc="gates against LoRA", disable=None) as bar:
        for family in FAMILIES:
            for teacher in TEACHERS:
                problems = drawn(settings, family, teacher)
                for method, result in _measure(settings, family, problems).items():
                    found[family, teacher, method] = result
                bar.update()
    return found


def drawn(settings: Settings, family: str, teacher: str) -> list[Problem]:
    """Problems of a family with targets from a teacher."""
    kind = next(kind for kind in TEACHERS if kind == teacher)
    return [
        draw_problem(family, index, settings.seed, teacher=kind) for index in range(settings.trials)
    ]


def _measure(
    settings: Settings, family: str, problems: list[Problem]
) -> dict[str, dict[str, Array]]:
    batch = Batch.of(problems)
    solved = {method: solution(problems, method) for method in methods_of(family)}
    goals = {
        rank: same_loss(start_loss(batch), solved[GATES][1], solved[f"LoRA {rank}"][1])
        for rank in ranks_of(family)
    }
    results = {}
    for method, (best, low) in solved.items():
        ranks = [rank_of(method)] if is_lora(method) else list(goals)
        if method == "columns":
            ranks, wanted = [], same_loss(start_loss(batch), low, low)[:, None]
        else:
            wanted = np.stack([goals[rank] for rank in ranks], axis=1)
        first = start(problems, method, settings.seed)
        path = steepest_descent(batch, method, first, wanted, settings.limit, SEEN)
        result = {"low": low}
        for rank, iterations in zip(ranks, path.iterations.T, strict=False):
            result[f"iterations {rank}"] = iterations
        for moment, point in zip(MOMENTS, (*path.points, best), strict=True):
            matrix = gauss_newton(batch, method, point)
            result[f"gauss_newton {moment}"] = condition_numbers(matrix, batch.terms)[0]
        matrix = hessian(batch, method, best)
        result["hessian solution"] = condition_numbers(matrix, batch.terms)[0]
        results[method] = result
    return results


def same_loss(begin: Array, first: Array, second: Array) -> Array:
    """The loss at which both methods have made all but ``SHARE`` of the smaller gain."""
    reachable = np.maximum(first, second)
    return reachable + SHARE * np.maximum(begin - reachable, 0.0)


def unexplained(problems: list[Problem], low: Array) -> Array:
    """(L* − L_ols)/(L(start) − L_ols): the share of a free weight's gain that is out of reach."""
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


def faster(gates: Array, lora: Array) -> Array:
    """Iterations of LoRA over those of gates; each counts as at least one."""
    return _compared(np.maximum(gates, 1.0), np.maximum(lora, 1.0))


def _judged(levels: dict[str, str], ratios: Array) -> Case:
    """Whether a median ratio is at least 1."""
    return Case.of_draws(levels, "at least", 1.0, np.clip(ratios, 1e-6, 1e6))


def _row(values: Array, *names: object) -> dict[str, float]:
    low, high = interval(values, *names)
    return {
        "median": float(np.median(values)),
        "low": low,
        "high": high,
        "problems": len(values),
    }


def conditioning_frame(settings: Settings) -> pd.DataFrame:
    """Median condition numbers with intervals, by family, teacher, method, moment and matrix."""
    rows: list[dict[str, object]] = []
    for (family, teacher, method), found in study(settings).items():
        for key, values in found.items():
            matrix, _, moment = key.partition(" ")
            if matrix in ("gauss_newton", "hessian"):
                rows.append(
                    {
                        "family": family,
                        "teacher": teacher,
                        "method": method,
                        "matrix": matrix,
                        "moment": moment,
                        **_row(values, family, teacher, method, key),
                    }
                )
    return pd.DataFrame(rows)


def speed_frame(settings: Settings) -> pd.DataFrame:
    """Median iterations to the same loss for gates and LoRA, by family, teacher and rank."""
    rows: list[dict[str, object]] = []
    for (family, teacher, method), found in study(settings).items():
        if not is_lora(method):
            continue
        rank = rank_of(method)
        gates = study(settings)[family, teacher, GATES]
        pair = gates[f"iterations {rank}"], found[f"iterations {rank}"]
        for who, values in (
            ("gates", pair[0]),
            ("LoRA", pair[1]),
            ("LoRA over gates", faster(*pair)),
        ):
            most = 1e6 if "over" in who else settings.limit
            rows.append(
                {
                    "family": family,
                    "teacher": teacher,
                    "rank": rank,
                    "method": who,
                    **_row(np.minimum(values, most), family, teacher, rank, who, "iterations"),
                    "not_reached": float(np.isinf(values).mean()),
                    "limit": settings.limit,
                }
            )
    return pd.DataFrame(rows)


def scale_frame(settings: Settings) -> pd.DataFrame:
    """LoRA's start by the scale of A: condition numbers, and iterations to the same loss.

    The problems have a teacher of rank 1. The Gauss–Newton matrix at B = 0 is I ⊗ AGAᵀ, so its
    condition number does not depend on A's scale. That of the indefinite Hessian does.
    """
    rows: list[dict[str, object]] = []
    for family in SCALED:
        problems = drawn(settings, family, "low-rank")
        batch = Batch.of(problems)
        low = study(settings)[family, "low-rank", GATES]["low"]
        for rank in ranks_of(family):
            method = f"LoRA {rank}"
            goal = same_loss(
                start_loss(batch), low, study(settings)[family, "low-rank", method]["low"]
            )
            for scale in SCALES:
                first = start(problems, method, settings.seed, scale)
                path = steepest_descent(batch, method, first, goal[:, None], settings.limit)
                for quantity, values in (
                    (
                        "gauss_newton",
                        condition_numbers(gauss_newton(batch, method, first), batch.terms)[0],
                    ),
                    ("hessian", condition_numbers(hessian(batch, method, first), batch.terms)[0]),
                    ("iterations", np.minimum(path.iterations[:, 0], settings.limit)),
                ):
                    rows.append(
                        {
                            "family": family,
                            "rank": rank,
                            "scale": scale,
                            "quantity": quantity,
                            **_row(values, family, rank, scale, quantity),
                        }
                    )
    return pd.DataFrame(rows)


def reach_frame(settings: Settings) -> pd.DataFrame:
    """Median unexplained shares with intervals, by family, teacher and method."""
    rows: list[dict[str, object]] = []
    for family, shape in FAMILIES.items():
        for teacher in TEACHERS:
            for method in methods_of(family):
                values = reached(settings, family, teacher, method)
                size = shape.rows + shape.cols
                rank = rank_of(method) if is_lora(method) else 1
                rows.append(
                    {
                        "family": family,
                        "teacher": teacher,
                        "method": method,
                        "parameters": shape.cols if method == "columns" else rank * size,
                        **_row(values, family, teacher, method, "reach"),
                    }
                )
    return pd.DataFrame(rows)


@cache
def reached(settings: Settings, family: str, teacher: str, method: str) -> Array:
    """Unexplained shares on the problems of a family."""
    problems = drawn(settings, family, teacher)
    return unexplained(problems, study(settings)[family, teacher, method]["low"])


def check_conditioning(settings: Settings) -> Check:
    """κ_LoRA / κ_gates > 1 at the start and at the solution, for every rank below full rank.

    κ is the condition number of the Gauss–Newton matrix on its non-zero spectrum, for row and
    column gates. This matrix is positive semidefinite everywhere. The Hessian is so only at
    solutions, and at LoRA's start its eigenvalues depend on A's scale. Only one theorem applies: at
    LoRA's start the matrix is I ⊗ AGAᵀ, which has κ = 1 for r = 1, so nothing is better conditioned
    there. A setting is a family, a rank and a place. Its draws are the ratios on the problems of
    the family.
    """
    cases, alone = [], []
    found = study(settings)
    for family in FAMILIES:
        for rank in ranks_of(family):
            for teacher, moment in (
                (TEACHERS[0], MOMENTS[0]),  # the start does not depend on the teacher
                *((teacher, MOMENTS[-1]) for teacher in TEACHERS),
            ):
                key = f"gauss_newton {moment}"
                gates = found[family, teacher, GATES][key]
                lora = found[family, teacher, f"LoRA {rank}"][key]
                at = "start" if moment == MOMENTS[0] else f"solution, {teacher} teacher"
                ratios = _compared(gates, lora)
                if rank == 1 and moment == MOMENTS[0]:
                    alone.append(float(np.median(ratios)))
                else:
                    levels = {"family": family, "rank": f"LoRA {rank}", "place": at}
                    cases.append(_judged(levels, ratios))
    theorem = Case("LoRA 1, start, every family", "at least", 1.0, max(alone), proof="fails")
    return Check(
        "conditioning-claim",
        8,
        "claim",
        "row and column gates are better conditioned than LoRA (Gauss–Newton), at the start and at "
        "the solution (median ratio of condition numbers)",
        f"{settings.trials} problems for each family and teacher; ranks below full rank",
        (*cases, theorem),
        claim="conditioning",
        frames={
            "conditioning": conditioning_frame(settings),
            "scale": scale_frame(settings),
        },
    )


def check_speed(settings: Settings) -> Check:
    """Iterations of steepest descent to the same loss: LoRA's over the gates', > 1.

    The loss is the one at which 99 % of the smaller gain is made. The step is the best of a grid at
    every iteration, so neither method has a learning rate to tune. A setting is a family, a
    teacher and a rank. Its draws are the ratios on the problems of the family.
    """
    cases = []
    found = study(settings)
    for family in FAMILIES:
        for teacher in TEACHERS:
            for rank in ranks_of(family):
                key = f"iterations {rank}"
                gates = found[family, teacher, GATES][key]
                lora = found[family, teacher, f"LoRA {rank}"][key]
                levels = {"family": family, "rank": f"LoRA {rank}", "teacher": teacher}
                cases.append(_judged(levels, faster(gates, lora)))
    return Check(
        "speed-claim",
        8,
        "claim",
        "row and column gates need fewer iterations than LoRA to the same loss (median ratio)",
        f"{settings.trials} problems for each family and teacher; ranks below full rank; steepest "
        "descent to 99 % of the smaller gain",
        tuple(cases),
        claim="conditioning",
        frames={"speed": speed_frame(settings)},
    )


def check_columns(settings: Settings) -> Check:
    """Column gates: κ(H) ≤ cond(G) · max_j ‖w_j‖² / min_j ‖w_j‖² for regular G, at every point.

    λ_min(G) (I ∘ B) ⪯ G ∘ B ⪯ λ_max(G) (I ∘ B) by Schur's product theorem. Attained for white data
    and for one output with weights ±1, where one of the two factors is 1. Measured through the
    library's layers.
    """
    cases = []
    for problem in settings.drawn("well-conditioned", "ill-conditioned", "under-parameterised"):
        signs = sign_problem(problem, settings.random("signs", problem.name))
        for built, place in ((False, problem), (True, white_problem(problem)), (True, signs)):
            energy = np.sum(place.weight**2, axis=0)
            bound = float(np.linalg.cond(place.second_moment) * energy.max() / energy.min())
            values = np.linalg.eigvalsh(autograd_hessian(place, "columns"))
            kappa, relation = float(values[-1] / values[0]), "equal" if built else "at most"
            case = Case(place.name, "at most", bound, kappa, 1e-6, built=built)
            cases.append(replace(case, relation="equal") if relation == "equal" else case)
    return Check(
        "columns-condition",
        8,
        "law",
        "column gates alone have a constant condition number, at most cond(G) max‖w_j‖²/min‖w_j‖², "
        "with equality for white data and for one output with weights ±1",
        "G regular, no zero column of W",
        tuple(cases),
        claim="conditioning",
    )


def check_reach(settings: Settings) -> Check:
    """Unexplained share of the gates ≤ that of LoRA: (L* − L_ols)/(L(start) − L_ols).

    m + d gates scale the entries of W and cannot leave {Diag(r) W Diag(c)}. LoRA of rank r reaches
    every change of rank r. With few samples a free weight is far from determined, and either may
    fit exactly. A setting is a family, a teacher and a rank. Its draws are one plus the
    differences, gates minus LoRA, on the problems. Differences below ``EQUAL`` are zero, so that
    rounding does not decide between two exact fits.
    """
    cases = []
    for family in FAMILIES:
        for teacher in TEACHERS:
            gates = reached(settings, family, teacher, GATES)
            for rank in ranks_of(family):
                more = gates - reached(settings, family, teacher, f"LoRA {rank}")
                levels = {"family": family, "teacher": teacher, "rank": f"LoRA {rank}"}
                draws = 1 + np.where(np.abs(more) < EQUAL, 0.0, more)
                cases.append(Case.of_draws(levels, "at most", 1.0, draws))
    return Check(
        "reach-claim",
        8,
        "claim",
        "gates reach as low a loss as LoRA (1 + median difference of unexplained shares)",
        f"{settings.trials} problems for each family and teacher; ranks below full rank",
        tuple(cases),
        frames={"reach": reach_frame(settings)},
    )
