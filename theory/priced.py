"""Row and column gates together under the target price, in the box and under noise.

F(θ) = L(θ) + λ|mean θ − t| over θ = (r, c) in [0, 1]^(m + d). L is not convex. Where a point is
stationary, a *face* contains it: the gates at a bound do not move, and where mean θ = t neither
does the mean. On the face F is smooth, and near a minimiser that is strict there, proximal descent
with step η contracts by 1 − ημ a step, with μ the smallest eigenvalue of the Hessian on the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import null_space

from theory.bilinear import joint_gradient, joint_hessian, joint_loss, split
from theory.box import clip, price_prox
from theory.problems import Array, Problem
from theory.relaxation import mean_clip, mean_clip_slope, square_clip, square_clip_slope


@dataclass(frozen=True)
class Priced:
    """Loss and price of row and column gates in the box.

    Attributes:
        problem: the least-squares problem.
        price: λ.
        target: t, the wanted mean of the gates.
    """

    problem: Problem
    price: float
    target: float

    def value(self, gates: Array) -> float:
        """F(θ)."""
        return joint_loss(self.problem, gates) + self.price * abs(float(gates.mean()) - self.target)

    def step(self, gates: Array, rate: float) -> Array:
        """One step of proximal descent."""
        moved = gates - rate * joint_gradient(self.problem, gates)
        return price_prox(moved, rate * self.price, self.target)

    def descended(self, gates: Array, rate: float, steps: int) -> Array:
        """The end of proximal descent."""
        for _ in range(steps):
            gates = self.step(gates, rate)
        return gates

    def face(self, gates: Array) -> Array:
        """Basis of the directions within the face of a point, shape (m + d, dimension)."""
        free = np.flatnonzero((gates > 0) & (gates < 1))
        basis = np.eye(len(gates))[:, free]
        if abs(float(gates.mean()) - self.target) > 1e-9:
            return basis
        return np.asarray(basis @ null_space(np.ones((1, len(free))))) if len(free) else basis

    def polished(self, gates: Array) -> Array:
        """Takes Newton steps on the face, as long as they reduce the gradient there."""
        basis = self.face(gates)
        slope = self._slope(gates)
        for _ in range(20):
            if not basis.shape[1]:
                break
            hessian = basis.T @ joint_hessian(self.problem, gates) @ basis
            trial = gates - basis @ np.linalg.solve(hessian, basis.T @ slope)
            if not ((trial >= 0) & (trial <= 1)).all():
                break
            after = self._slope(trial)
            if not np.linalg.norm(basis.T @ after) < np.linalg.norm(basis.T @ slope):
                break
            gates, slope = trial, after
        return gates

    def _slope(self, gates: Array) -> Array:
        side = np.sign(float(gates.mean()) - self.target)
        return joint_gradient(self.problem, gates) + side * self.price / len(gates)

    def curvature(self, gates: Array) -> tuple[float, Array]:
        """μ and its eigenvector: the smallest curvature on the face, and where it is."""
        basis = self.face(gates)
        values, vectors = np.linalg.eigh(basis.T @ joint_hessian(self.problem, gates) @ basis)
        return float(values[0]), np.asarray(basis @ vectors[:, 0])


def relaxed_joint_gradient(problem: Problem, centres: Array, sigma: float) -> Array:
    """∇ E L(clip(m + σZ)) for independent noise on all gates, in closed form.

    L is quadratic in either side, so means and mean squares of the gates suffice:
    E L = ‖Y‖²/2n − E[r]ᵀ(C ∘ W)E[c] + ½ Σ_a E[r_a²](E[c]ᵀH_a E[c] + Σ_j H_a,jj Var c_j), with
    H_a = G ∘ w_a w_aᵀ.
    """
    r, c = split(problem, centres)
    rows, columns = mean_clip(r, sigma), mean_clip(c, sigma)
    squares, energy = square_clip(r, sigma), square_clip(c, sigma)
    moment, coupling = problem.second_moment, problem.cross_moment * problem.weight
    diagonal = np.diag(moment) * problem.weight**2  # H_a,jj, (m, d)
    weighted = problem.weight * columns
    powers = np.einsum("aj,jk,ak->a", weighted, moment, weighted) + diagonal @ (energy - columns**2)
    by_columns = squares @ (problem.weight * (weighted @ moment) - diagonal * columns)
    slopes_r = -(coupling @ columns) * mean_clip_slope(r, sigma)
    slopes_r += powers / 2 * square_clip_slope(r, sigma)
    slopes_c = (by_columns - rows @ coupling) * mean_clip_slope(c, sigma)
    slopes_c += squares @ diagonal / 2 * square_clip_slope(c, sigma)
    return np.concatenate([slopes_r, slopes_c])


def in_box(gates: Array) -> Array:
    """Clips gates to the box, exactly at bounds within rounding."""
    snapped = np.where(gates < 1e-9, 0.0, np.where(gates > 1 - 1e-9, 1.0, gates))
    return np.asarray(clip(snapped))
