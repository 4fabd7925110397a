"""Time to leave the saddle and the plateau, as functions of the noise σ and the price λ.

*Saddle.* Row and column gates without clipping have the expected loss

    F(r, c) = E L(r + σZ, c + σZ') = L(r, c) + ½σ² (Σ_a d_a r_a² + cᵀ H c) + const,

with d_a = Σ_j W_aj² G_jj and H = G ∘ WᵀW, because L is quadratic in either side and rows do not
mix. So at (0, 0) its Hessian is M = [[σ² Diag(d), −S], [−Sᵀ, σ² H]], S = C ∘ W. Its least
eigenvalue is negative exactly for σ < σ_c, σ_c² = σ₁(Diag(d)^{-½} S H^{-½}) (take a Schur
complement). From σ_c on, (0, 0) is the global minimiser of F, and gradient flow never moves away
from it: F(θ) = F(0) + ½θᵀMθ + Q(θ) with Q ≥ 0 homogeneous of degree 4, hence d‖θ‖²/dt =
−2⟨θ, ∇F⟩ = −2(θᵀMθ + 4Q) ≤ 0. Let −s be the least eigenvalue and u its eigenvector with Σ u ≥ 0.

A price λ Σ_i Φ(θ_i/σ_p) has the slope κ = λφ(0)/σ_p at 0, and its second derivative there is 0. So
a = ⟨u, θ⟩ follows a' = s(a − a*), a* = κ Σ u / s, up to terms of third order. From a = ε it reaches
R at

    T = log((R − a*)/(ε − a*)) / s    if ε > a*,

and −R at T = log((R + a*)/(a* − ε)) / s if ε < a*. There the sum of the gates is negative. The
unclipped layer computes the same function for −θ, at a lower price, and clipped gates that are
negative are shut. For σ > σ_c, s and a* are negative. The closed point moves to a*, and ⟨u, θ⟩
falls to −R in the second T if a* < −R, and never otherwise.

*Plateau.* A gate at m ≥ 1 with the task ½ω² moves by m' = −½ q'(m) − λφ(m/σ_p)/σ_p in the mean,
with q(m) = E clip(m + σZ, 0, 1)². So it takes T = ∫ dm/|m'| from m₀ to 1. Without a price this
grows as the inverse of the probability that the gate is not clipped: ½q' ~ Φ(−z) for σ → 0, with
z = (m − 1)/σ, hence T ~ σ√(2π) exp(½((m₀ − 1)/σ)²). With a price it is at most that of the price
alone,

    T ≤ (σ_p/λ) ∫ dm/φ(m/σ_p) = πσ_p² (erfi(m₀/√2σ_p) − erfi(1/√2σ_p))/λ,

for any σ, with equality as λ → ∞.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad
from scipy.special import erfi

from theory.bilinear import saddle_coupling
from theory.problems import Array, Problem
from theory.quadratic import column_quadratic
from theory.relaxation import density, square_clip_slope


def row_energies(problem: Problem) -> Array:
    """d_a = Σ_j W_aj² G_jj, shape (m,)."""
    return np.asarray(problem.weight**2 @ np.diag(problem.second_moment), dtype=np.float64)


@dataclass(frozen=True)
class NoisySaddle:
    """The linearised gradient flow of F at (0, 0).

    Attributes:
        rate: s, negative if the closed point is a minimum. The formulas need s ≠ 0.
        direction: u, shape (m + d,).
    """

    rate: float
    direction: Array

    @classmethod
    def of(cls, problem: Problem, sigma: float) -> NoisySaddle:
        """The flow of a problem under noise σ ≥ 0."""
        coupling = saddle_coupling(problem)
        hessian = np.block(
            [
                [sigma**2 * np.diag(row_energies(problem)), -coupling],
                [-coupling.T, sigma**2 * column_quadratic(problem).hessian],
            ]
        )
        values, vectors = np.linalg.eigh(hessian)
        direction = vectors[:, 0] if vectors[:, 0].sum() >= 0 else -vectors[:, 0]
        return cls(-float(values[0]), direction)

    def balance(self, slope: float) -> float:
        """a*, where the pull of the saddle balances a price of slope κ; negative for s < 0."""
        return slope * float(self.direction.sum()) / self.rate

    def time(self, start: float, end: float, slope: float) -> float:
        """T until ⟨u, θ⟩ is ``end`` or −``end``; infinite if it does not get there.

        Args:
            start: ε > 0.
            end: R > ε.
            slope: κ of the price.
        """
        balance, side = self.balance(slope), end * self.side(start, slope)
        if self.rate < 0 and balance >= side:  # a* is stable, and it is inside
            return float("inf")
        return float(np.log((side - balance) / (start - balance)) / self.rate)

    def side(self, start: float, slope: float) -> int:
        """The side on which ⟨u, θ⟩ leaves: 1, or −1 from ε below a* and for s < 0."""
        return 1 if self.rate > 0 and start > self.balance(slope) else -1


def stabilising_noise(problem: Problem) -> float:
    """The σ from which on the closed point is a minimum, for regular H and no zero row of W."""
    values, vectors = np.linalg.eigh(column_quadratic(problem).hessian)
    half = vectors / np.sqrt(values) @ vectors.T  # H^{-½}, (d, d)
    scaled = saddle_coupling(problem) / np.sqrt(row_energies(problem))[:, None] @ half
    return float(np.sqrt(np.linalg.norm(scaled, 2)))


def price_slope(centre: Array | float, price: float, probability_std: float) -> Array:
    """λφ(m/σ_p)/σ_p, the slope of a price λ on P(open)."""
    return price * density(np.asarray(centre) / probability_std) / probability_std


def plateau_time(start: float, sigma: float, price: float, probability_std: float) -> float:
    """Time of the mean dynamics from a centre above 1 down to 1.

    Args:
        start: m₀ > 1.
        sigma: σ of the noise, positive.
        price: λ of one gate.
        probability_std: σ_p.
    """

    def slowness(centre: float) -> float:
        pull = square_clip_slope(np.array(centre), sigma) / 2
        return float(1 / (pull + price_slope(centre, price, probability_std)))

    return float(quad(slowness, 1.0, start, epsabs=0, epsrel=1e-8, limit=200)[0])


def price_time(start: float, price: float, probability_std: float) -> float:
    """Time of the price alone from a centre above 1 down to 1.

    Args:
        start: m₀ > 1.
        price: λ > 0 of one gate.
        probability_std: σ_p.
    """
    ends = erfi(np.array([1.0, start]) / (np.sqrt(2) * probability_std))
    return float(np.pi * probability_std**2 * (ends[1] - ends[0]) / price)
