"""Item 3: spurious minima of row and column gates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pandas as pd

from finegates.seeds import derive_seed
from theory.bilinear import joint_gradient, joint_hessian, joint_loss
from theory.cases import Case
from theory.checks.settings import Settings
from theory.evidence import Check
from theory.intervals import share_interval
from theory.priced import Priced, in_box
from theory.problems import FAMILIES, TEACHERS, Array, Problem, Teacher, draw_problem
from theory.rank_one import descended, two_by_two

EXAMPLES = ((2.0, 0.9), (3.0, 0.7), (1.2, 0.8))
"""(k, t) with k²t > 1."""
SMALLEST = "2 x 2"
"""Name of the random problems of :func:`dense_two_by_two`."""
MISSING_WEIGHT = [[2.0, 4.0], [-4.0, -1.0]]
MISSING_TARGET = [[0.0, -2.0], [2.0, 4.0]]
"""W and the target weight of :func:`missing_example`."""
BOXED_WEIGHT = [[1.0, 1.0], [-1.0, -4.0]]
BOXED_TARGET = [[3.0, -3.0], [1.0, -3.0]]
"""W and the target weight of :func:`missing_in_box`."""
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
    family: str, index: int, seed: int, teacher: Teacher
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


def shares_frame(settings: Settings) -> pd.DataFrame:
    """How often problems have minima above the best one, and descent from ω = 1 misses the best.

    One row for each family and teacher, with exact 95 % intervals. LoRA has no such minimum on any
    of these problems (reduced-rank regression). A gap counts above 10⁻⁴ of ‖Y‖²/2n. The best of ten
    ends need not be the least, so both shares are lower estimates.
    """
    rows = []
    for family, teacher, ends in _families(settings):
        gaps = [max(losses) - min(losses) for _, losses, _ in ends]
        first = [losses[0] - min(losses) for _, losses, arrived in ends if arrived]
        row: dict[str, object] = {"family": family, "teacher": teacher}
        for name, found in (("spurious", gaps), ("missed", first)):
            count = sum(gap > APART for gap in found)
            low, high = share_interval(count, len(found))
            row |= {
                f"{name}_problems": len(found),
                name: count / len(found),
                f"{name}_low": low,
                f"{name}_high": high,
            }
        rows.append(row)
    return pd.DataFrame(rows)


Ends = tuple[str, tuple[float, ...], bool]


def _families(settings: Settings) -> Iterator[tuple[str, str, list[Ends]]]:
    """Ends of descents, by family and teacher."""
    for teacher in TEACHERS:
        for family in (*FAMILIES, *([SMALLEST] if teacher == "dense" else [])):
            count = min(settings.problems, 15) * (4 if family == SMALLEST else 1)
            yield (
                family,
                teacher,
                [_ends(family, index, settings.seed, teacher) for index in range(count)],
            )


def minima_frame(settings: Settings) -> pd.DataFrame:
    """Heights of the local minima above the best one, by problem and start, for the figure."""
    return pd.DataFrame(
        [
            {
                "family": family,
                "teacher": teacher,
                "problem": name,
                "start": "ω = 1" if arrived and place == 0 else "random",
                "gap": loss - min(losses),
            }
            for family, teacher, ends in _families(settings)
            for name, losses, arrived in ends
            for place, loss in enumerate(losses)
        ]
    )


def check_spurious(settings: Settings) -> Check:
    """Claim "A simpler landscape than LoRA's": no local minimum above the best one.

    The proposition decides: its example has two strict minima at different heights. How often
    random problems have such minima depends on family and teacher, and is counted without a
    verdict (:func:`shares_frame`).
    """
    example = two_by_two(*EXAMPLES[0])
    low, high = (joint_loss(example, descended(example, np.array(start)))
                 for start in ((0.9, 0.1, 0.9, 0.1), (0.05, 0.9, 0.05, 0.9)))  # fmt: skip
    return Check(
        "spurious-claim",
        3,
        "claim",
        "row and column gates have no local minimum above the best one, as low-rank adapters have "
        "none",
        "white data; the example of spurious-minima",
        (Case(example.name, "at most", low, high, 1e-6, proof="fails"),),
        claim="conditioning",
        frames={"minima": minima_frame(settings), "minima_share": shares_frame(settings)},
    )


def integer_problem(weight: list[list[float]], target: list[list[float]], name: str) -> Problem:
    """White data (G = I) of two inputs, with the target weight as teacher."""
    inputs = np.sqrt(2) * np.eye(2)
    return Problem(inputs, np.array(weight), inputs @ np.array(target).T, name)


def missing_example() -> Problem:
    """A problem of integers on which descent from ω = 1 ends in a strict minimum above another."""
    return integer_problem(MISSING_WEIGHT, MISSING_TARGET, "2 x 2, from ω = 1")


def missing_in_box() -> Problem:
    """One on which projected descent from ω = 1 does so, too, with gates in [0, 1]."""
    return integer_problem(BOXED_WEIGHT, BOXED_TARGET, "2 x 2, in the box")


def projected(problem: Problem, start: Array) -> Array:
    """The end of projected descent in [0, 1]^(m + d)."""
    return in_box(Priced(problem, 0.0, 0.5).descended(start, 0.01, 4000))


def check_start(settings: Settings) -> Check:
    """Does descent from ω = 1 end in the best minimum?

    A counterexample decides, without bounds and in [0, 1]⁴. Without bounds the end from ω = 1 has a
    zero gradient and one zero Hessian eigenvalue, that of the orbit; all others are positive. In
    the box two gates end at 1, where the loss still falls outwards, and the Hessian of the others
    is positive definite. Another start ends lower in either. How often this happens is counted
    without a verdict (:func:`shares_frame`).
    """
    cases = []
    for problem, descend, starts in (
        (missing_example(), descended, ((1.0, -1, 1, 1), (1.0, 1, 1, -1))),
        (missing_in_box(), projected, ((0.0, 1, 0, 1),)),
    ):
        end = joint_loss(problem, descend(problem, np.ones(4)))
        best = min(joint_loss(problem, descend(problem, np.array(start))) for start in starts)
        cases.append(Case(problem.name, "at most", best, end, 1e-6, proof="fails"))
    return Check(
        "start-claim",
        3,
        "claim",
        "descent from ω = 1 ends in the best minimum",
        "white data; a problem of two rows and two columns without bounds, and one in the box",
        tuple(cases),
        claim="conditioning",
    )
