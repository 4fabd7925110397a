"""Row and column gates together: a bilinear model with a non-convex quartic loss.

With the prediction B(r, c) = X (Diag(r) W Diag(c))ᵀ/√n and y = Y/√n, L = ½‖B(r, c) − y‖². Matrices
over (r, c) use the stacked gates θ = (r, c), shape (m + d,).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from theory.problems import Array, Problem
from theory.quadratic import column_quadratic, gradients, loss, rank_tolerance, row_quadratic


def split(problem: Problem, gates: Array) -> tuple[Array, Array]:
    """Splits θ into (r, c)."""
    return gates[: problem.rows], gates[problem.rows :]


def joint_loss(problem: Problem, gates: Array) -> float:
    """L(θ)."""
    return loss(problem, *split(problem, gates))


def joint_gradient(problem: Problem, gates: Array) -> Array:
    """∇L(θ), shape (m + d,)."""
    return np.concatenate(gradients(problem, *split(problem, gates)))


def jacobian(problem: Problem, gates: Array) -> Array:
    """Derivative of the prediction B(r, c), shape (n m, m + d), rows in the order (sample, row)."""
    r, c = split(problem, gates)
    # Derivatives in r, (n, m, m), and in c, (n, m, d).
    by_rows = (problem.inputs @ (problem.weight * c).T)[:, :, None] * np.eye(problem.rows)
    by_cols = problem.inputs[:, None, :] * (r[:, None] * problem.weight)[None, :, :]
    joined = np.concatenate([by_rows, by_cols], axis=2)  # (n, m, m + d)
    return joined.reshape(-1, problem.rows + problem.cols) / np.sqrt(problem.samples)


def residual(problem: Problem, gates: Array) -> Array:
    """B(r, c) − y, shape (n m,)."""
    r, c = split(problem, gates)
    predicted = problem.inputs @ (r[:, None] * problem.weight * c).T
    return ((predicted - problem.targets) / np.sqrt(problem.samples)).reshape(-1)


def joint_hessian(problem: Problem, gates: Array) -> Array:
    """∇²L(θ), shape (m + d, m + d).

    Blocks: Diag(h_a(c)) over rows, G ∘ (Wᵀ Diag(r)² W) over columns, and between them
    r_a W_aj (G (w_a ∘ c))_j + E_aj W_aj with E = M G − C, M = Diag(r) W Diag(c).
    """
    r, c = split(problem, gates)
    weight, second = problem.weight, problem.second_moment
    effective = r[:, None] * weight * c  # M, (m, d)
    error = effective @ second - problem.cross_moment  # E, (m, d)
    mixed = r[:, None] * weight * ((weight * c) @ second) + error * weight
    return np.block(
        [
            [row_quadratic(problem, c).hessian, mixed],
            [mixed.T, column_quadratic(problem, r).hessian],
        ]
    )


def saddle_coupling(problem: Problem) -> Array:
    """S = C ∘ W, shape (m, d): L(r, c) = ‖Y‖²/2n − rᵀ S c + a term of order four, ≥ 0.

    So (0, 0) is critical with Hessian [[0, −S], [−Sᵀ, 0]], eigenvalues ±σ_i(S).
    """
    return problem.cross_moment * problem.weight


def biased_coupling(problem: Problem) -> Array:
    """[S, Diag(Ȳ)], shape (m, d + m): what S is for y = r ∘ (W(c ∘ x) + b) with trained b.

    L(r, c, b) = ‖Y‖²/2n − rᵀ(Sc + Ȳ ∘ b) + a term of order four, ≥ 0, with Ȳ the mean of the
    targets: b is a column gate of each output on a constant input. So (0, 0, 0) is critical with
    eigenvalues ±σ_i([S, Diag(Ȳ)]), and gradient flow conserves ‖r‖² − ‖c‖² − ‖b‖².
    """
    means = np.diag(problem.targets.mean(axis=0))
    return np.concatenate([saddle_coupling(problem), means], axis=1)


def weight_components(weight: Array) -> int:
    """Connected components of the bipartite graph of W's non-zero entries, single nodes excluded.

    The rows and columns of one component can be rescaled against each other without changing the
    model. So each component has a symmetry of its own.
    """
    from scipy.sparse.csgraph import connected_components

    m, d = weight.shape
    graph = np.zeros((m + d, m + d))
    graph[:m, m:] = weight != 0
    _, labels = connected_components(graph, directed=False)
    _, sizes = np.unique(labels, return_counts=True)
    return int(np.sum(sizes > 1))


def fit_gates(problem: Problem, start: Array | None = None, sweeps: int = 60) -> Array:
    """A local minimiser of L near ``start`` (θ = 1 if None), shape (m + d,), with ‖r‖ = ‖c‖.

    Exact alternating least squares, then Levenberg–Marquardt, then a few Newton steps.
    """
    from scipy.optimize import least_squares

    gates = np.ones(problem.rows + problem.cols) if start is None else start
    r, c = split(problem, gates)
    for _ in range(sweeps):
        # Take the nearest minimiser: gates that do not affect the loss keep their values.
        quadratic = row_quadratic(problem, c)
        r = r + quadratic.minimiser() - _on_range(quadratic.spectrum(), r)
        quadratic = column_quadratic(problem, r)
        c = c + quadratic.minimiser() - _on_range(quadratic.spectrum(), c)
    gates = balanced(problem, np.concatenate([r, c]))
    found = least_squares(
        partial(residual, problem),
        gates,
        jac=partial(jacobian, problem),
        x_scale=1.0,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=200,
    ).x
    return balanced(problem, polished(problem, np.asarray(found, dtype=np.float64)))


def polished(problem: Problem, gates: Array) -> Array:
    """Takes a few Newton steps, as long as they reduce the gradient."""
    slope = joint_gradient(problem, gates)
    for _ in range(6):
        step = np.linalg.lstsq(joint_hessian(problem, gates), slope, rcond=1e-10)[0]
        trial = gates - step
        after = joint_gradient(problem, trial)
        if not np.linalg.norm(after) < np.linalg.norm(slope):
            break
        gates, slope = trial, after
    return gates


def _on_range(spectrum: tuple[Array, Array], vector: Array) -> Array:
    values, vectors = spectrum
    kept = vectors[:, values > 0]
    return kept @ (kept.T @ vector)


def balanced(problem: Problem, gates: Array) -> Array:
    """The point of the orbit (t r, c/t) with ‖r‖ = ‖c‖; unchanged if r or c is zero."""
    r, c = split(problem, gates)
    norms = np.linalg.norm(r), np.linalg.norm(c)
    if not all(norms):
        return gates
    t = np.sqrt(norms[1] / norms[0])
    return np.concatenate([t * r, c / t])


def pl_ratio(gradient: Array, gap: float) -> float:
    """‖∇L‖²/2(L − L*); NaN at a minimiser."""
    return float(gradient @ gradient / (2 * gap)) if gap > 0 else float("nan")


@dataclass(frozen=True)
class LocalRegion:
    """A ball around a minimiser θ* in which L is PL, with certified constants.

    Attributes:
        centre: θ*, shape (m + d,).
        transverse: λ, the smallest eigenvalue of ∇²L(θ*) on the complement of the orbit.
        coupling: β with ‖B(r, c)‖ ≤ β‖r‖‖c‖.
        slope: σ, the norm of the Jacobian at θ*.
    """

    centre: Array
    transverse: float
    coupling: float
    slope: float
    rows: int

    def curvature_loss(self, radius: float) -> float:
        """Bound on the change of the Hessian within ``radius``: 3σβρ + 1.5β²ρ².

        J is linear in θ with ‖J(Δ)‖ ≤ β‖Δ‖, so JᵀJ changes by at most 2σβρ + β²ρ². The residual
        changes by at most σρ + βρ²/2, and it enters the Hessian through a bilinear form of norm β.
        """
        return 3 * self.slope * self.coupling * radius + 1.5 * (self.coupling * radius) ** 2

    def constant(self, radius: float) -> float:
        """A PL constant on the ball B(θ*, ``radius``), at least 0.

        Every θ of the ball can be moved along its orbit, by t, onto the affine slice through θ*
        orthogonal to the orbit. There L is strongly convex with λ − curvature_loss, on a ball that
        holds the moved point; strong convexity implies PL, L is the same at both points, and the
        gradient at θ is at least min(t, 1/t) times the one at the moved point.
        """
        r, c = self.centre[: self.rows], self.centre[self.rows :]
        p, q = float(r @ r), float(c @ c)
        stretch = 1.0
        for sign in (1.0, -1.0):
            p_moved = p - sign * radius * np.sqrt(p)
            q_moved = q + sign * radius * np.sqrt(q)
            if p_moved <= 0 or q_moved <= 0:
                return 0.0
            # t⟨r, r*⟩ − ⟨c, c*⟩/t = p − q puts (t r, c/t) on the slice.
            t = ((p - q) + np.sqrt((p - q) ** 2 + 4 * p_moved * q_moved)) / (2 * p_moved)
            stretch = max(stretch, t, 1 / t)
        moved = stretch * radius + np.sqrt((stretch - 1) ** 2 * max(p, q) * 2)
        return max(0.0, (self.transverse - self.curvature_loss(moved)) / stretch**2)

    def radius(self) -> float:
        """The largest radius with a positive certified constant."""
        low, high = 0.0, 1.0
        while self.constant(high) > 0:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.constant(middle) > 0 else (low, middle)
        return low


def local_region(problem: Problem, minimiser: Array) -> LocalRegion:
    """Certifies a PL region around a minimiser.

    Raises:
        ValueError: the minimiser has more flat directions than the one scale symmetry (zero rows or
            columns, a disconnected W, singular data), so no such ball exists.
    """
    r, c = split(problem, minimiser)
    orbit = np.concatenate([r, -c])
    orbit = orbit / np.linalg.norm(orbit)
    projector = np.eye(len(orbit)) - np.outer(orbit, orbit)
    hessian = projector @ joint_hessian(problem, minimiser) @ projector
    values = np.linalg.eigvalsh(hessian + np.outer(orbit, orbit) * np.trace(hessian))
    if values[0] <= rank_tolerance(len(values), problem.samples * problem.rows) * values[-1]:
        raise ValueError(
            f"{problem.name}: the minimiser is flat in more directions than the scale symmetry; "
            "drop zero rows and columns of W, or use data of full rank"
        )
    coupling = max(
        float(np.linalg.eigvalsh(problem.second_moment * np.outer(w, w))[-1])
        for w in problem.weight
    )
    slope = float(np.linalg.norm(jacobian(problem, minimiser), 2))
    return LocalRegion(minimiser, float(values[0]), np.sqrt(coupling), slope, problem.rows)
