"""Item 3: spurious minima of row and column gates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from finegates.seeds import derive_seed
from theory.bilinear import joint_gradient, joint_hessian, joint_loss
from theory.checks.settings import Settings
from theory.evidence import Case, Check
from theory.problems import FAMILIES, TEACHERS, Problem, Teacher, draw_problem
from theory.rank_one import descended, two_by_two

EXAMPLES = ((2.0, 0.9), (3.0, 0.7), (1.2, 0.8))
"""(k, t) with k²t > 1."""
SMALLEST = "2 x 2"
"""Name of the random problems of :func:`dense_two_by_two`."""
STARTS = 9
"""Random starts for each problem, in addition to ω = 1."""
APART = 1e-4
"""Losses that differ by more than this fraction of ‖Y‖²/2n belong to different minima."""


def check_minima(settings: Settings) -> Check:
    """The proposition of :mod:`theory.rank_one`: two strict minima, t²/2 and ½.

    Measured: the final loss of descents that start near each, without bounds and in [0, 1]⁴, and
    the second smallest Hessian eigenvalue there, which is min(2, k² − t) and min(2t, k²t − 1).
    """
    cases = []
    for k, t in EXAMPLES:
        problem = two_by_two(k, t)
        for label, start, level, curvature in (
            ("A", (0.9, 0.1, 0.9, 0.1), t**2 / 2, min(2.0, k**2 - t)),
            ("B", (0.05, 0.9, 0.05, 0.9), 0.5, min(2 * t, k**2 * t - 1)),
        ):
            name = f"{problem.name}, {label}"
            for boxed in (False, True):
                end = descended(problem, np.array(start), boxed=boxed)
                place = f"{name}, in the box" if boxed else name
                cases.append(Case(place, "equal", level, joint_loss(problem, end), 1e-6))
            # Rescaled to r = c, the free end is the point of the proposition.
            end = descended(problem, np.array(start))
            size = np.sqrt(np.linalg.norm(end[2:]) / np.linalg.norm(end[:2]))
            end = np.concatenate([size * end[:2], end[2:] / size])
            values = np.linalg.eigvalsh(joint_hessian(problem, end))
            cases.append(
                Case(f"{name}, curvature", "equal", curvature, float(values[1]), 1e-6,
                     constant="curvature")
            )  # fmt: skip
    grid = np.linspace(0, 1.2, 41)
    problem = two_by_two(*EXAMPLES[0])
    rows = [
        {"x": x, "y": y, "loss": joint_loss(problem, np.array([x, y, x, y]))}
        for x in grid
        for y in grid
    ]
    return Check(
        "spurious-minima",
        3,
        "law",
        "W = [[1, k], [k, 1]], white data, target diag(1, t), k²t > 1: two strict minima, t²/2 and "
        "½, in the box, too",
        "0 < t < 1; strict up to rescaling",
        tuple(cases),
        claim="conditioning",
        frames={"two_minima": pd.DataFrame(rows)},
    )


def dense_two_by_two(index: int, seed: int) -> Problem:
    """A random problem with two outputs, two inputs, white data and W*, W* − W standard normal."""
    random = np.random.default_rng(derive_seed("theory", SMALLEST, index, seed))
    weight, change = random.standard_normal((2, 2, 2))
    inputs = np.sqrt(2) * np.eye(2)  # G = I
    return Problem(inputs, weight, inputs @ (weight + change).T, f"{SMALLEST} {index}")


@lru_cache(maxsize=1024)
def _ends(
    family: str, index: int, seed: int, teacher: Teacher | None = None
) -> tuple[str, tuple[float, ...], bool]:
    """Losses of the local minima that descents reach, over ‖Y‖²/2n.

    Returns a problem's name, the losses, and whether the first is that of the descent from ω = 1.
    An end counts if the gradient vanishes and the Hessian has no negative eigenvalue. Other
    descents have not finished.
    """
    if family == SMALLEST:
        problem = dense_two_by_two(index, seed)
    else:
        problem = draw_problem(family, index, seed, teacher=teacher)
    random = np.random.default_rng(derive_seed("theory", "minima", problem.name, seed))
    size = problem.rows + problem.cols
    starts = [np.ones(size), *random.standard_normal((STARTS // 2, size))]
    starts += [*random.uniform(0, 1, (STARTS - STARTS // 2, size))]
    losses, arrived = [], False
    for place, start in enumerate(starts):
        end = descended(problem, start)
        flat = np.linalg.norm(joint_gradient(problem, end)) < 1e-6 * problem.null_loss
        values = np.linalg.eigvalsh(joint_hessian(problem, end))
        if flat and values[0] > -1e-6 * values[-1]:
            losses.append(joint_loss(problem, end) / problem.null_loss)
            arrived = arrived or place == 0
    return problem.name, tuple(losses), arrived


def check_spurious(settings: Settings) -> Check:
    """Claim "A simpler landscape than LoRA's": no local minimum above the best one.

    LoRA has none on any of these problems (reduced-rank regression). Cases, by family: one plus the
    share of problems where one of 10 descents ends in a local minimum above the best by more than
    10⁻⁴ of ‖Y‖²/2n. The proposition decides the 2 x 2 example.
    """
    cases, rows = [], []
    for family in FAMILIES:
        spurious, count = 0, min(settings.problems, 15)
        for index in range(count):
            name, losses, arrived = _ends(family, index, settings.seed)
            gaps = [loss - min(losses) for loss in losses]
            spurious += max(gaps) > APART
            rows += [
                {"family": family, "problem": name,
                 "start": "ω = 1" if arrived and i == 0 else "random", "gap": max(gap, 0.0)}
                for i, gap in enumerate(gaps)
            ]  # fmt: skip
        cases.append(Case(family, "at most", 1.0, 1 + spurious / count))
    example = two_by_two(*EXAMPLES[0])
    low, high = (joint_loss(example, descended(example, np.array(start)))
                 for start in ((0.9, 0.1, 0.9, 0.1), (0.05, 0.9, 0.05, 0.9)))  # fmt: skip
    cases.append(Case(example.name, "at most", low, high, 1e-6, proof="fails"))
    return Check(
        "spurious-claim",
        3,
        "claim",
        "row and column gates have no local minimum above the best one, as low-rank adapters have "
        "none (one plus the share of problems that have)",
        "10 descents a problem, up to 15 problems a family; without bounds",
        tuple(cases),
        claim="conditioning",
        frames={"minima": pd.DataFrame(rows)},
    )


def check_start(settings: Settings) -> Check:
    """Does descent from ω = 1 reach the best minimum found? One plus the gap over ‖Y‖²/2n.

    By problem, with the three teachers. It fails for some: the gradient vanishes there, the Hessian
    has no negative eigenvalue, and another start ends lower. The best found is not certified to be
    the global one, so the count of failures is a lower estimate.
    """
    cases = []
    for teacher in TEACHERS:
        for family in (*FAMILIES, *([SMALLEST] if teacher == "dense" else [])):
            count = min(settings.problems, 15) * (4 if family == SMALLEST else 1)
            for index in range(count):
                name, losses, arrived = _ends(family, index, settings.seed, teacher)
                gap = losses[0] - min(losses)
                cases.append(
                    Case(
                        f"{name}, {teacher}", "at most", 1.0, 1 + gap, APART, teacher,
                        undecided=not arrived,
                    )
                )  # fmt: skip
    return Check(
        "start-claim",
        3,
        "claim",
        "descent from ω = 1 ends in the best minimum that 10 descents find",
        "up to 15 problems of every family with each of three teachers, and up to 60 random "
        "2 x 2 problems with dense targets; without bounds",
        tuple(cases),
    )
