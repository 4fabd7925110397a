"""Searches for small PL ratios and for critical points of row and column gates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from theory.bilinear import (
    balanced,
    fit_gates,
    joint_gradient,
    joint_hessian,
    joint_loss,
    saddle_coupling,
    split,
)
from theory.conditioning import Batch, solve_gates
from theory.problems import Array, Problem


def smallest_ratio(
    problem: Problem,
    centre: Array,
    optimum: Array,
    radius: float,
    random: np.random.Generator,
    starts: int,
    known: Sequence[Array] = (),
) -> tuple[float, Array]:
    """The smallest PL ratio found in the ball B(centre, radius), an upper estimate of the infimum.

    L-BFGS minimises log ‖∇L‖²/2(L − L*) from every start, with the exact gradient
    2∇²L ∇L/‖∇L‖² − ∇L/(L − L*). The map u ↦ centre + radius sin(‖u‖) u/‖u‖ sends all of space to
    the ball, so its surface is reached as well. Starts: random directions, the direction to (0, 0),
    and points near the optimum along the flattest transverse directions of its Hessian.

    Args:
        problem: the problem.
        centre: of the ball, shape (m + d,).
        optimum: θ*, a minimiser, shape (m + d,).
        radius: of the ball.
        random: the source of directions.
        starts: number of random directions.
        known: additional starts in the ball, for example those found in a smaller one.

    Returns:
        the ratio, and the point.
    """
    from scipy.optimize import minimize

    low, size = joint_loss(problem, optimum), len(centre)
    null = problem.null_loss
    # A gap below this is rounding error.
    floor = 1e-11 * null

    weight, second, cross = problem.weight, problem.second_moment, problem.cross_moment

    def at(u: Array) -> tuple[float, Array]:
        n = max(float(np.linalg.norm(u)), 1e-300)
        scale, slope = np.sin(n) / n, (n * np.cos(n) - np.sin(n)) / n**3
        r, c = split(problem, centre + radius * scale * u)
        by_rows, by_cols = weight * c, r[:, None] * weight  # W Diag(c), Diag(r) W
        model = r[:, None] * by_rows  # M, (m, d)
        outputs = model @ second
        error = outputs - cross
        # Loss gap and gradient in (r, c).
        gap = float(np.vdot(model, outputs / 2 - cross)) + null - low
        gradient = np.concatenate([(error * by_rows).sum(1), (error * by_cols).sum(0)])
        squared = float(gradient @ gradient)
        if gap <= floor or squared <= 0:
            return 50.0, np.zeros(size)
        # ∇²L times the gradient, by the differential of the gradient.
        dr, dc = split(problem, gradient)
        turned = (dr[:, None] * by_rows + by_cols * dc) @ second
        curved = np.concatenate(
            [
                (turned * by_rows + error * weight * dc).sum(1),
                (turned * by_cols + error * weight * dr[:, None]).sum(0),
            ]
        )
        # Gradient of the log ratio in θ, then in u by the chain rule.
        outer = 2 * curved / squared - gradient / gap
        return np.log(squared / (2 * gap)), radius * (scale * outer + slope * (u @ outer) * u)

    offsets = [*random.standard_normal((starts, size)), -centre]
    offsets = [radius * 0.7 * offset / float(np.linalg.norm(offset)) for offset in offsets]
    _, vectors = np.linalg.eigh(joint_hessian(problem, optimum))
    # Skip the first, the orbit's, along which nothing changes.
    offsets += [
        optimum + sign * 0.1 * radius * v - centre for v in vectors.T[1:2] for sign in (1, -1)
    ]
    offsets += [point - centre for point in known]
    best, place = np.inf, centre
    for offset in offsets:
        length = float(np.linalg.norm(offset))
        if length > radius * (1 + 1e-12):
            continue
        u = np.arcsin(min(length / radius, 1.0)) * offset / max(length, 1e-300)
        found = minimize(at, u, jac=True, method="L-BFGS-B", options={"maxiter": 60})
        if found.fun < best:
            n = max(float(np.linalg.norm(found.x)), 1e-300)
            best, place = float(found.fun), centre + radius * np.sin(n) / n * found.x
    return float(np.exp(best)), place


def critical_orbits(problem: Problem, random: np.random.Generator, starts: int) -> list[Array]:
    """Critical points of L with non-zero gates on both sides, one for each orbit and value.

    Gauss–Newton on ∇L = 0 from random starts; its limits include saddles of every index. Sorted by
    loss.

    Args:
        problem: the problem.
        random: the source of starts.
        starts: number of starts.
    """
    from scipy.optimize import least_squares

    found: dict[float, Array] = {}
    for start in random.standard_normal((starts, problem.rows + problem.cols)):
        point = least_squares(
            partial(joint_gradient, problem),
            start,
            jac=partial(joint_hessian, problem),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
            max_nfev=300,
        ).x
        r, c = split(problem, point)
        flat = float(np.linalg.norm(joint_gradient(problem, point)))
        if flat < 1e-9 and min(np.linalg.norm(r), np.linalg.norm(c)) > 1e-3:
            level = joint_loss(problem, point)
            if all(abs(level - other) > 1e-7 * problem.null_loss for other in found):
                found[level] = balanced(problem, point)
    return [found[level] for level in sorted(found)]


def least_loss(problem: Problem, random: np.random.Generator, starts: int) -> float:
    """The least loss that descents find, from ω = 1 and from random starts.

    One descent from ω = 1 misses it on some problems (``start-claim``).

    Args:
        problem: the problem.
        random: the source of starts.
        starts: number of random starts.
    """
    size = problem.rows + problem.cols
    points = np.concatenate([np.ones((1, size)), random.standard_normal((starts, size))])
    found = solve_gates(Batch.of([problem] * len(points)), points)[1]
    return min(float(found.min()), joint_loss(problem, fit_gates(problem)))


def nearest_in_plane(problem: Problem) -> Array:
    """The point of {(0, c): Sc = 0} nearest to ω = 1, by least squares; of {(r, 0)} if d < m."""
    coupling = saddle_coupling(problem)
    turned = problem.rows > problem.cols
    coupling = coupling.T if turned else coupling
    few, many = coupling.shape
    nearest = np.ones(many)
    for _ in range(3):  # repeated, against rounding errors
        nearest = nearest - np.linalg.lstsq(coupling, coupling @ nearest, rcond=None)[0]
    zero = np.zeros(few)
    return np.concatenate([nearest, zero] if turned else [zero, nearest])
