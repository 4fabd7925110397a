"""Item 3: critical points of row and column gates beyond the minimiser and (0, 0)."""

from __future__ import annotations

import numpy as np

from theory.bilinear import joint_gradient, saddle_coupling
from theory.cases import Case
from theory.checks.joint import nearly_right
from theory.checks.settings import ROUNDING, Settings
from theory.critical import critical_orbits, nearest_in_plane
from theory.evidence import Check

CRITICAL_STARTS = 30


def check_plane(settings: Settings) -> Check:
    """The plane {(0, c): Sc = 0} is critical, at distance √(m + d − ‖P1‖²) from ω = 1.

    P projects on the kernel of S = C ∘ W, because ∇_r L(0, c) = −Sc and ∇_c L(0, c) = 0. For m < d
    the plane contains more than 0. So (0, 0), at distance √(m + d), is not the nearest critical
    point, and no ball of that radius is PL. For d < m the sides are exchanged. Predicted from a
    singular value decomposition. Measured: the point nearest to 1 by least squares, and the
    gradient there from residuals.
    """
    cases = []
    for problem in settings.drawn("well-conditioned", "ill-conditioned", "under-parameterised"):
        coupling = saddle_coupling(problem)
        coupling = coupling.T if problem.rows > problem.cols else coupling
        few, many = coupling.shape
        _, _, right = np.linalg.svd(coupling)
        kernel = right[few:]
        predicted = np.sqrt(few + many - np.sum((kernel @ np.ones(many)) ** 2))
        point = nearest_in_plane(problem)
        distance = float(np.linalg.norm(point - 1))
        cases.append(Case(problem.name, "equal", float(predicted), distance, ROUNDING))
        slope = float(np.linalg.norm(joint_gradient(problem, point)))
        scale = float(np.linalg.norm(coupling))
        cases.append(Case(f"{problem.name}, gradient", "equal", 1, 1 + slope / scale, ROUNDING))
    return Check(
        "joint-region",
        3,
        "law",
        "gates (0, c) with Sc = 0, S = (YᵀX/n) ∘ W, are critical, √(m + d − ‖P1‖²) away from 1, "
        "P the projector on the kernel of S: nearer than (0, 0), and no larger ball is PL",
        "no bias; m < d, else with rows and columns exchanged; m ≠ d",
        tuple(cases),
        claim="pl",
    )


def check_orbits(settings: Settings) -> Check:
    """L has at least min(m, d) critical orbits with non-zero gates.

    After the longer side is eliminated exactly, L is a smooth even function of degree 0 of the
    other side. This is a function on the projective space of dimension min(m, d) − 1, which has at
    least min(m, d) critical points (Lusternik and Schnirelmann 1934). Its value is below ‖Y‖²/2n
    where S has no kernel on that side, so both sides are non-zero. Measured: distinct critical
    values that Newton's method finds.
    """
    cases = []
    for index in range(min(settings.problems, 2)):
        problem, _ = nearly_right(settings, index)
        random = settings.random("critical", index)
        found = critical_orbits(problem, random, CRITICAL_STARTS)
        least = min(problem.rows, problem.cols)
        cases.append(Case(problem.name, "at least", least, len(found)))
    return Check(
        "joint-critical",
        3,
        "bound",
        "the loss has at least min(m, d) critical orbits with non-zero gates, orbits of equal loss "
        "counted as often as they occur",
        "no bias, G regular, no zeros in W, S = (YᵀX/n) ∘ W of full rank; measured: different "
        "losses",
        tuple(cases),
        claim="pl",
    )
