"""Low-rank adapters on the same problems: L(B, A) = ‖Y − X (W + BA)ᵀ‖²/2n, B (m, r), A (r, d).

With R = Y − XWᵀ, C = RᵀX/n and E = BA G − C: ∇_B L = E Aᵀ, ∇_A L = Bᵀ E.
"""

from __future__ import annotations

import numpy as np

from theory.problems import Array, Problem
from theory.quadratic import rank_tolerance


def update_moment(problem: Problem) -> Array:
    """C = (Y − XWᵀ)ᵀ X/n, shape (m, d): minus the gradient in the weight at W."""
    return problem.cross_moment - problem.weight @ problem.second_moment


def lora_loss(problem: Problem, b: Array, a: Array) -> float:
    """L(B, A)."""
    residual = problem.targets - problem.inputs @ (problem.weight + b @ a).T
    return float(np.sum(residual**2)) / (2 * problem.samples)


def lora_gradient(problem: Problem, b: Array, a: Array) -> tuple[Array, Array]:
    """∇_B (m, r) and ∇_A (r, d)."""
    error = b @ a @ problem.second_moment - update_moment(problem)
    return error @ a.T, b.T @ error


def lora_hessian(problem: Problem, b: Array, a: Array, *, gauss_newton: bool = False) -> Array:
    """∇²L over (B row by row, A row by row), shape (r(m + d), r(m + d)).

    Blocks: I_m ⊗ A G Aᵀ; BᵀB ⊗ G; and between B_ak and A_lj: B_al (AG)_kj + δ_kl E_aj. The
    Gauss–Newton matrix omits the last term.
    """
    (m, r), d = b.shape, a.shape[1]
    second = problem.second_moment
    mixed = np.einsum("al,kj->aklj", b, a @ second)  # JᵀJ between B_ak and A_lj, (m, r, r, d)
    if not gauss_newton:
        error = b @ a @ second - update_moment(problem)  # E, (m, d)
        mixed = mixed + np.einsum("kl,aj->aklj", np.eye(r), error)
    mixed = mixed.reshape(m * r, r * d)
    return np.block(
        [[np.kron(np.eye(m), a @ second @ a.T), mixed], [mixed.T, np.kron(b.T @ b, second)]]
    )


def lora_minimiser(problem: Problem, rank: int) -> tuple[Array, Array, float]:
    """Global minimisers of least norm and balanced, BᵀB = AAᵀ, and L*: reduced-rank regression.

    L(B, A) = L_ols + ½‖(BA − D) G^½‖² with D = C G⁺, so that BA G^½ is the truncated singular value
    decomposition of D G^½ (Eckart and Young).
    """
    if rank < 1:
        raise ValueError(f"a low-rank adapter needs a rank of at least 1, got {rank}")
    values, vectors = np.linalg.eigh(problem.second_moment)
    kept = values > rank_tolerance(problem.cols, problem.samples) * values[-1]
    back = vectors[:, kept] / np.sqrt(values[kept])  # G^-½ on its range, (d, ρ)
    left, singular, right = np.linalg.svd(update_moment(problem) @ back, full_matrices=False)
    used = min(rank, len(singular))
    product = (left[:, :used] * singular[:used]) @ right[:used] @ back.T  # (m, d), of rank ≤ used
    u, s, v = np.linalg.svd(product, full_matrices=False)
    s = np.where(s > rank_tolerance(problem.cols, problem.samples) * s[0], s, 0.0)
    b, a = np.zeros((problem.rows, rank)), np.zeros((rank, problem.cols))
    b[:, :used], a[:used] = u[:, :used] * np.sqrt(s[:used]), np.sqrt(s[:used])[:, None] * v[:used]
    return b, a, lora_loss(problem, b, a)


def zero_eigenvalues(rows: int, rank: int, data_rank: int, cols: int, product_rank: int) -> int:
    """The exact number of zero Hessian eigenvalues at a minimiser.

    With ρ = rank X, q = rank of BA on the range of G, and factors of that rank:

        r(d − ρ)                       directions of A that the data do not see,
        + r(m + ρ) − q(m + ρ − q)      the kernel of (δB, δA) ↦ δB A + B δA,

    which for full rank q = r is r(d − ρ) + r²: the orbit (B T, T⁻¹A) of GL(r). The count is exact
    if the Hessian is positive on the rest. This holds at an exact fit, and for q = r with a gap σ_r
    > σ_{r+1} in the whitened target.
    """
    seen = rows + data_rank
    return rank * (cols - data_rank) + rank * seen - product_rank * (seen - product_rank)


def count_zeros(matrix: Array, roundings: int, slack: float = 0.0) -> int:
    """Counts the eigenvalues of a symmetric matrix that are zero up to rounding and ``slack``.

    At an inexact minimiser a symmetry's eigenvalue is not exactly zero. With v tangent to the
    orbit, differentiating the invariance gives ‖∇²L v‖ ≤ ‖∇L‖ · ‖generator‖, which is the required
    slack.
    """
    values = np.abs(np.linalg.eigvalsh(matrix))
    return int(np.sum(values <= rank_tolerance(len(values), roundings) * values.max() + slack))


def lora_start(problem: Problem, rank: int, seed: int) -> tuple[Array, Array]:
    """The usual start: B = 0, A Gaussian with variance 1/d. Not the saddle (0, 0): ∇_B = −CAᵀ."""
    random = np.random.default_rng(seed)
    a = random.standard_normal((rank, problem.cols)) / np.sqrt(problem.cols)
    return np.zeros((problem.rows, rank)), a
