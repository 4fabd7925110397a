"""Row and column gates as a weighted rank-one approximation, with spurious minima.

For white inputs (G = I) the loss of row and column gates is

    L(r, c) = ½ Σ_aj W_aj² (r_a c_j − C_aj / W_aj)² + a constant:

the best approximation of the quotients C/W by a matrix of rank one, *weighted* by W². Without
weights, as in the low-rank adapters' reduced-rank regression, every local minimum is global (Baldi
and Hornik 1989). With weights this is false.

**Proposition.** W = [[1, k], [k, 1]], G = I, targets Y = X diag(1, t), 0 < t < 1. Then

    A: r = c = (1, 0), L = t²/2,        B: r = c = (0, √t), L = ½,

are critical, with Hessian eigenvalues {0, 2, k² − t, k² + t} at A and {0, 2t, k²t − 1, k²t + 1} at
B; the zero belongs to the orbit. For k²t > 1 both are strict local minima up to rescaling, also in
[0, 1]⁴, and B is not global.

*Proof.* L = ½[(r₁c₁ − 1)² + (r₂c₂ − t)² + k²(r₁c₂)² + k²(r₂c₁)²]. At A the pair (r₁, c₁) has the
Hessian [[1, 1], [1, 1]], (r₂, c₂) has [[k², −t], [−t, k²]], and the pairs do not mix, because
r₂ = c₂ = 0. The same argument applies to B. ∎
"""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.optimize import minimize

from theory.bilinear import balanced, joint_hessian, polished, split
from theory.problems import Array, Problem


def two_by_two(k: float, t: float) -> Problem:
    """The problem of the proposition.

    Args:
        k: off-diagonal of W.
        t: in (0, 1).
    """
    inputs = np.sqrt(2) * np.eye(2)  # G = I
    weight = np.array([[1.0, k], [k, 1.0]])
    return Problem(inputs, weight, inputs @ np.diag([1.0, t]), f"2 x 2, k = {k:g}, t = {t:g}")


def descended(problem: Problem, start: Array, *, boxed: bool = False) -> Array:
    """The end of descent from a start (L-BFGS, then Newton in a trust region).

    Args:
        problem: the problem.
        start: (m + d,).
        boxed: keep gates in [0, 1], without the Newton steps.
    """
    weight, second, cross = problem.weight, problem.second_moment, problem.cross_moment

    def loss(gates: Array) -> tuple[float, Array]:
        r, c = split(problem, gates)
        by_rows, by_cols = weight * c, r[:, None] * weight
        model = r[:, None] * by_rows
        outputs = model @ second
        error = outputs - cross
        gradient = np.concatenate([(error * by_rows).sum(1), (error * by_cols).sum(0)])
        return float(np.vdot(model, outputs / 2 - cross)), gradient

    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0)] * len(start) if boxed else None,
        options={"maxiter": 1000 if boxed else 150, "ftol": 1e-14, "gtol": 1e-9},
    ).x
    if not boxed:  # Newton needs fewer steps in narrow valleys
        found = minimize(
            loss,
            balanced(problem, np.asarray(found, dtype=np.float64)),
            jac=True,
            hess=partial(joint_hessian, problem),
            method="trust-exact",
            options={"initial_trust_radius": 0.1, "max_trust_radius": 1.0, "maxiter": 60},
        ).x
    end = np.asarray(found, dtype=np.float64)
    return end if boxed else polished(problem, end)
