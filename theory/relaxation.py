"""The Gaussian relaxation in closed form: moments of a clipped Gaussian, and the loss.

For ω = clip(μ + σZ, 0, 1), Z standard normal, with α = −μ/σ, β = (1 − μ)/σ and P = Φ(β) − Φ(α):

    m(μ)  = E ω  = μP + σ(φ(α) − φ(β)) + 1 − Φ(β),          m' = P,   m'' = (φ(α) − φ(β))/σ,
    q(μ)  = E ω² = (μ² + σ²)P + σμφ(α) − σ(1 + μ)φ(β) + 1 − Φ(β),
    q' = 2(μP + σ(φ(α) − φ(β))),                             q'' = 2(P − φ(β)/σ).

Gates are independent, and L is quadratic in them with Hessian H and linear part b. Hence

    F(μ) = E L(ω) = L(m(μ)) + ½ Σ_j H_jj (q_j − m_j²).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from theory.problems import Array
from theory.quadratic import Quadratic

PEAK = 1.0 / np.sqrt(2.0 * np.pi)
"""φ(0): m'' is at most φ(0)/σ."""


def density(x: Array) -> Array:
    """φ, the standard normal density."""
    return PEAK * np.exp(-(np.asarray(x, dtype=np.float64) ** 2) / 2)


def mean_clip(centre: Array, sigma: float) -> Array:
    """m(μ) = E clip(μ + σZ, 0, 1); clip(μ, 0, 1) at σ = 0."""
    centre = np.asarray(centre, dtype=np.float64)
    if sigma == 0:
        return np.clip(centre, 0.0, 1.0)
    low, high = -centre / _positive(sigma), (1 - centre) / sigma
    inside = ndtr(high) - ndtr(low)
    return np.asarray(
        centre * inside + sigma * (density(low) - density(high)) + ndtr(-high), dtype=np.float64
    )


def mean_clip_slope(centre: Array, sigma: float) -> Array:
    """m'(μ) = Φ((1 − μ)/σ) − Φ(−μ/σ), the probability that the gate is not clipped."""
    centre = np.asarray(centre, dtype=np.float64)
    _positive(sigma)
    # Of two equivalent forms, this one has no cancellation in the tails.
    flipped = np.where(centre > 0.5, 1 - centre, centre)
    return np.asarray(ndtr((1 - flipped) / sigma) - ndtr(-flipped / sigma))


def mean_clip_curvature(centre: Array, sigma: float) -> Array:
    """m''(μ) = (φ(μ/σ) − φ((1 − μ)/σ))/σ."""
    centre = np.asarray(centre, dtype=np.float64)
    return (density(centre / _positive(sigma)) - density((1 - centre) / sigma)) / sigma


def square_clip(centre: Array, sigma: float) -> Array:
    """q(μ) = E clip(μ + σZ, 0, 1)²."""
    centre = np.asarray(centre, dtype=np.float64)
    if sigma == 0:
        return np.clip(centre, 0.0, 1.0) ** 2
    low, high = -centre / _positive(sigma), (1 - centre) / sigma
    inside = ndtr(high) - ndtr(low)
    return np.asarray(
        (centre**2 + sigma**2) * inside
        + sigma * centre * density(low)
        - sigma * (1 + centre) * density(high)
        + ndtr(-high),
        dtype=np.float64,
    )


def square_clip_slope(centre: Array, sigma: float) -> Array:
    """q'(μ) = 2(μP + σ(φ(α) − φ(β)))."""
    centre = np.asarray(centre, dtype=np.float64)
    low, high = -centre / _positive(sigma), (1 - centre) / sigma
    return 2 * (centre * mean_clip_slope(centre, sigma) + sigma * (density(low) - density(high)))


def square_clip_curvature(centre: Array, sigma: float) -> Array:
    """q''(μ) = 2(P − φ(β)/σ)."""
    centre = np.asarray(centre, dtype=np.float64)
    edge = density((1 - centre) / _positive(sigma)) / sigma
    return 2 * (mean_clip_slope(centre, sigma) - edge)


@dataclass(frozen=True)
class Relaxed:
    """F(μ) = E q(clip(μ + σZ)) of a quadratic q, for independent gates.

    Attributes:
        quadratic: q.
        sigma: σ > 0.
    """

    quadratic: Quadratic
    sigma: float

    def value(self, centre: Array) -> float:
        """F(μ)."""
        mean = mean_clip(centre, self.sigma)
        spread = square_clip(centre, self.sigma) - mean**2  # Var ω, (d,)
        return self.quadratic.value(mean) + float(np.diag(self.quadratic.hessian) @ spread) / 2

    def gradient(self, centre: Array) -> Array:
        """F_j = m'_j (H m − b)_j + ½ H_jj (q'_j − 2 m_j m'_j), shape (..., d)."""
        mean, slope = mean_clip(centre, self.sigma), mean_clip_slope(centre, self.sigma)
        spread = square_clip_slope(centre, self.sigma) - 2 * mean * slope
        return slope * self.quadratic.gradient(mean) + np.diag(self.quadratic.hessian) * spread / 2

    def hessian(self, centre: Array) -> Array:
        """F_jk = H_jk m'_j m'_k and F_jj = ½ H_jj q''_j + (Σ_{k≠j} H_jk m_k − b_j) m''_j."""
        h = self.quadratic.hessian
        diagonal = np.diag(h)
        mean, slope = mean_clip(centre, self.sigma), mean_clip_slope(centre, self.sigma)
        matrix = h * np.outer(slope, slope)
        others = self.quadratic.gradient(mean) - diagonal * mean  # Σ_{k≠j} H_jk m_k − b_j, (d,)
        np.fill_diagonal(
            matrix,
            diagonal * square_clip_curvature(centre, self.sigma) / 2
            + others * mean_clip_curvature(centre, self.sigma),
        )
        return matrix

    def lipschitz_bound(self) -> float:
        """Upper bound on ‖∇²F‖ over all μ: ‖off-diagonal H‖ + max_j H_jj max(1, κ) + β_j κ.

        κ = φ(0)/σ, and β_j is the largest |Σ_{k≠j} H_jk ω_k − b_j| in the box.
        """
        h = self.quadratic.hessian
        diagonal = np.diag(h)
        kappa = PEAK / self.sigma
        off = h - np.diag(diagonal)
        reach = _largest_affine(off, self.quadratic.linear)  # β, (d,)
        edge = diagonal * max(1.0, kappa) + reach * kappa
        return float(np.linalg.norm(off, 2) + edge.max())

    def lipschitz_growth(self) -> float:
        """lim σ · sup ‖∇²F‖ as σ → 0: the largest |∂_j L(ω)| over the box and over j, times φ(0).

        Only the entries F_jj with μ_j within some σ of 0 or 1 grow. At μ_j = 0, σF_jj tends to φ(0)
        ∂_jL at ω_j = 0. At μ_j = 1 it tends to −φ(0) ∂_jL at ω_j = 1 (m'' and ½q'' are −φ(0)/σ
        there). ∂_jL is affine, so its extremes over the box have ω_j in {0, 1}.
        """
        reach = _largest_affine(self.quadratic.hessian, self.quadratic.linear)
        return float(PEAK * reach.max())

    def steepest_corner(self) -> Array:
        """The μ that attains the limit of :meth:`lipschitz_growth`.

        For k ≠ j, ω_k is at the bound that makes |∂_jL| largest, well inside saturation. μ_j is at
        the edge itself.
        """
        h, b = self.quadratic.hessian, self.quadratic.linear
        up, down = np.maximum(h, 0).sum(1) - b, b - np.minimum(h, 0).sum(1)
        j = int(np.argmax(np.maximum(up, down)))
        positive = bool(up[j] >= down[j])
        chosen = h[j] > 0 if positive else h[j] < 0
        corner = np.where(chosen, 1.0 + 40 * self.sigma, -40 * self.sigma)
        corner[j] = 1.0 if chosen[j] else 0.0
        return np.asarray(corner, dtype=np.float64)

    def gradient_bound(self) -> Array:
        """γ_j: the largest |∂_jL| over the box, shape (d,); bounds every pathwise gradient."""
        return _largest_affine(self.quadratic.hessian, self.quadratic.linear)


def _largest_affine(matrix: Array, offset: Array) -> Array:
    """max over ω in [0, 1]^d of |(matrix ω − offset)_j|, shape (d,)."""
    top = np.maximum(matrix, 0).sum(1) - offset
    bottom = np.minimum(matrix, 0).sum(1) - offset
    return np.maximum(np.abs(top), np.abs(bottom))


def _positive(sigma: float) -> float:
    if not sigma > 0:
        raise ValueError(
            f"the relaxation needs a noise sigma > 0, got {sigma}; at 0 use the clipped loss itself"
        )
    return sigma


MOST_VERTICES = 2**14


def inside_charge(quadratic: Quadratic, centre: Array, sigma: float) -> float:
    """½σ² Σ H_jj over the gates with centre inside (0, 1): the loss that noise adds there.

    This is E L(clip(μ + σZ)) − L(clip μ), up to the tails, if no centre is within some σ of 0 or 1.
    With H_jj = G_jj ‖w_j‖² it is a charge on the number of gates that are neither open nor closed,
    each weighted by the energy of its input.
    """
    inside = (centre > 0) & (centre < 1)
    return float(sigma**2 * np.diag(quadratic.hessian)[inside].sum() / 2)


def vertex_minima(quadratic: Quadratic) -> Array:
    """Minima of the relaxed objective for σ → ∞, as gates, shape (minima, d).

    In this limit clip(μ + σZ) is 0 or 1, and its probability m takes any value between. F is
    multilinear in m, q(m) + ½ Σ H_jj m_j (1 − m_j). So its minima are the vertices of the box that
    no single flip improves.

    Raises:
        ValueError: more than ``MOST_VERTICES`` vertices.
    """
    size = len(quadratic.linear)
    if 2**size > MOST_VERTICES:
        raise ValueError(f"2^{size} vertices are too many to enumerate; take fewer gates")
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * size, indexing="ij"), axis=-1).reshape(-1, size)
    flips = 1 - 2 * corners  # +1 opens a gate, −1 closes it
    change = flips * quadratic.gradient(corners) + np.diag(quadratic.hessian) / 2
    return np.asarray(corners[(change > 0).all(axis=1)])
