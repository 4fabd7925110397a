"""Row gates alone, and column gates alone: the loss is a convex quadratic.

With one side fixed, L = ‖Y − X (Diag(r) W Diag(c))ᵀ‖²/2n is quadratic in the other side, with

    Hessian in c:  (XᵀX/n) ∘ (Wᵀ Diag(r)² W),      Hessian in r:  Diag((W Diag(c) G Diag(c) Wᵀ)_aa).

A convex quadratic with a minimiser satisfies ‖∇L‖² ≥ 2μ (L − L*). The largest such μ is the
smallest non-zero eigenvalue of the Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from theory.problems import Array, Problem

EPS = float(np.finfo(np.float64).eps)


def rank_tolerance(size: int, roundings: int) -> float:
    """Fraction of the largest eigenvalue of a Gram matrix below which one is rounding error.

    A Gram entry sums products of length ``roundings``. By Cauchy and Schwarz its error is at most
    ``roundings`` · eps · √(H_jj H_kk). So the error of the matrix is at most roundings · eps · tr H
    in Frobenius norm, and tr H ≤ size · λ_max. The eigenvalue routine adds size · eps · λ_max (its
    backward error, up to a small constant). Together, with a factor of two for that constant:

        2 · eps · size · (roundings + 1).
    """
    return 2 * EPS * size * (roundings + 1)


@dataclass(frozen=True)
class Quadratic:
    """q(ω) = ½ ωᵀ H ω − bᵀ ω + a, with H positive semidefinite and b in its range.

    Attributes:
        hessian: H, shape (p, p).
        linear: b, shape (p,).
        constant: a.
        roundings: number of terms summed in an entry of H; sets the tolerance of zero eigenvalues.
    """

    hessian: Array
    linear: Array
    constant: float
    roundings: int

    def value(self, gates: Array) -> float:
        """q(ω)."""
        return float(gates @ self.hessian @ gates / 2 - self.linear @ gates + self.constant)

    def gradient(self, gates: Array) -> Array:
        """H ω − b, shape (..., p) as the gates."""
        return gates @ self.hessian - self.linear

    def spectrum(self) -> tuple[Array, Array]:
        """Ascending eigenvalues (zero where below the rank tolerance) and eigenvectors."""
        values, vectors = np.linalg.eigh(self.hessian)
        floor = rank_tolerance(len(values), self.roundings) * max(values[-1], 0.0)
        return np.where(values > floor, values, 0.0), vectors

    @property
    def pl_constant(self) -> float:
        """The smallest non-zero eigenvalue; infinite for H = 0, where q is constant."""
        values, _ = self.spectrum()
        return float(values[values > 0].min(initial=np.inf))

    @property
    def smoothness(self) -> float:
        """The largest eigenvalue."""
        return float(self.spectrum()[0][-1])

    def minimiser(self) -> Array:
        """The minimiser of least norm, H⁺ b."""
        values, vectors = self.spectrum()
        inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
        return vectors @ (inverse * (vectors.T @ self.linear))

    def minimum(self) -> float:
        """q*."""
        return self.value(self.minimiser())

    def gap(self, gates: Array) -> float:
        """q(ω) − q* = ½ (ω − ω*)ᵀ H (ω − ω*), without cancellation."""
        error = gates - self.minimiser()
        return float(error @ self.hessian @ error) / 2


def column_quadratic(problem: Problem, rows: Array | None = None) -> Quadratic:
    """The loss as a function of column gates c, row gates fixed (at 1 if None).

    H = G ∘ (Wᵀ Diag(r)² W), b_j = Σ_a r_a W_aj C_aj.
    """
    weight = problem.weight if rows is None else rows[:, None] * problem.weight
    return Quadratic(
        problem.second_moment * (weight.T @ weight),
        np.sum(weight * problem.cross_moment, axis=0),
        problem.null_loss,
        problem.samples + problem.rows,
    )


def row_quadratic(problem: Problem, cols: Array | None = None) -> Quadratic:
    """The loss as a function of row gates r, column gates fixed (at 1 if None).

    H = Diag(h), h_a = w_aᵀ Diag(c) G Diag(c) w_a; b_a = Σ_j W_aj c_j C_aj.
    """
    weight = problem.weight if cols is None else problem.weight * cols
    outputs = problem.inputs @ weight.T
    return Quadratic(
        np.diag(np.sum(outputs**2, axis=0) / problem.samples),
        np.sum(weight * problem.cross_moment, axis=1),
        problem.null_loss,
        problem.samples + problem.cols,
    )


def loss(problem: Problem, rows: Array, cols: Array) -> float:
    """L(r, c) from its residuals."""
    residual = problem.targets - problem.inputs @ (rows[:, None] * problem.weight * cols).T
    return float(np.sum(residual**2)) / (2 * problem.samples)


def gradients(problem: Problem, rows: Array, cols: Array) -> tuple[Array, Array]:
    """∇_r L (m,) and ∇_c L (d,), from the residuals: with E = MG − C, rows (E ∘ W Diag(c)) 1."""
    effective = rows[:, None] * problem.weight * cols
    residual = problem.inputs @ effective.T - problem.targets
    error = residual.T @ problem.inputs / problem.samples
    return (
        np.sum(error * problem.weight * cols, axis=1),
        np.sum(error * problem.weight * rows[:, None], axis=0),
    )


def schur_lower_bound(a: Array, b: Array) -> float:
    """max(λ_min(A) min_j B_jj, λ_min(B) min_j A_jj) ≤ λ_min(A ∘ B), for A, B ⪰ 0 (Schur 1911).

    A − λ_min(A) I ⪰ 0, so by Schur's product theorem A ∘ B ⪰ λ_min(A) (I ∘ B).
    """
    return float(
        max(
            np.linalg.eigvalsh(a)[0] * np.diag(b).min(), np.linalg.eigvalsh(b)[0] * np.diag(a).min()
        )
    )


def schur_range_bound(a: Array, b: Array, roundings: int) -> float:
    """λ⁺(A) · λ⁺(P_A ∘ B) ≤ λ⁺(A ∘ B), for singular A, B ⪰ 0; λ⁺ the smallest non-zero eigenvalue.

    λ⁺(A) P_A ⪯ A ⪯ λ_max(A) P_A with P_A the projector on A's range. Hence A ∘ B and P_A ∘ B have
    the same kernel. On its complement the first is at least λ⁺(A) times the second. For regular A
    this is Schur's bound. Infinite if A ∘ B = 0.
    """
    values, vectors = np.linalg.eigh(a)
    floor = rank_tolerance(len(values), roundings) * values[-1]
    kept = values > floor
    projector = vectors[:, kept] @ vectors[:, kept].T
    inner = np.linalg.eigvalsh(projector * b)
    inner = inner[inner > rank_tolerance(len(values), roundings) * max(inner[-1], 0.0)]
    return float(values[kept].min(initial=np.inf) * inner.min(initial=np.inf))


def descend(quadratic: Quadratic, start: Array, steps: int) -> Array:
    """Gaps q(ω_k) − q*, k = 0..steps, of gradient descent with step 1/λ_max; shape (steps + 1,).

    The gap contracts by 1 − μ/λ_max a step. For a step 1/L, smoothness gives a decrease of at least
    ‖∇q‖²/2L, and by PL this is at least μ/L of the gap (Polyak 1963).
    """
    step = 1.0 / quadratic.smoothness
    optimum = quadratic.minimiser()
    errors = np.empty((steps + 1, len(start)))
    gates = start
    for k in range(steps + 1):
        errors[k] = gates - optimum
        gates = gates - step * quadratic.gradient(gates)
    return np.asarray(np.einsum("ki,ij,kj->k", errors, quadratic.hessian, errors) / 2)
