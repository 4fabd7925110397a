"""The penalties on one gate: where their minimisers are, in closed form.

A gate with centre m has P = Φ(m/σ_p) in the penalty and the value clip(m, 0, 1) in evaluation. It
is closed iff m ≤ 0 (P ≤ ½), fully open iff m ≥ 1 (P ≥ Φ(1/σ_p)), and *half open* between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from finegates.gates import StochasticGate
from finegates.penalty import PENALTIES
from finegates.presets import GatePreset, preset_named
from theory.problems import Array
from theory.relaxation import density, mean_clip_slope, square_clip_slope

PenaltyName = Literal["target", "hinge", "stg"]


def penalty_minimiser(sparsity: float, sigma_p: float) -> float:
    """m* = σ_p Φ⁻¹(1 − s): where P = 1 − s, the minimiser of |P − (1 − s)|.

    max(P, 1 − s) is minimal on all of (−∞, m*]; descent from above stops at its edge, m*.
    """
    return float(sigma_p * ndtri(1.0 - sparsity))


def half_open_range(sigma_p: float) -> tuple[float, float]:
    """The sparsities s whose minimiser m* is half open: 1 − Φ(1/σ_p) < s < ½."""
    return float(ndtr(-1.0 / sigma_p)), 0.5


def gate_state(value: float) -> str:
    """``closed``, ``half open`` or ``open``, of an evaluation gate."""
    return "closed" if value <= 0 else "open" if value >= 1 else "half open"


@dataclass(frozen=True)
class OneGate:
    """One gate under a task loss ½h(ω − w)² and λ times a penalty, with noise σ = σ_p.

    F(m) = ½h E(clip(m + σZ) − w)² + λ pen(Φ(m/σ)), pen(P) = P for STG, |P − (1 − s)|, max(P, 1 − s).

    Attributes:
        penalty: which.
        sigma: σ, of the noise and of P.
        weight: λ.
        sparsity: s; STG has none.
        curvature: h.
        wanted: w.
    """

    penalty: PenaltyName
    sigma: float
    weight: float
    sparsity: float = 0.4
    curvature: float = 1.0
    wanted: float = 1.0

    def slope(self, centre: Array) -> Array:
        """F'(m), away from the kink of the penalty."""
        centre = np.asarray(centre, dtype=np.float64)
        task = self.curvature * (
            square_clip_slope(centre, self.sigma) / 2
            - self.wanted * mean_clip_slope(centre, self.sigma)
        )
        pull = self.weight * density(centre / self.sigma) / self.sigma
        above = ndtr(centre / self.sigma) > 1 - self.sparsity
        sign = {"stg": 1.0, "target": np.where(above, 1.0, -1.0), "hinge": 1.0 * above}
        return np.asarray(task + sign[self.penalty] * pull)

    def endpoint(self, start: float = 1.0, horizon: float = 1e3) -> float:
        """Where gradient flow m' = −F'(m) from ``start`` is at time ``horizon``.

        Stationary points are the sign changes of F' on the way, the kink m* among them; flow stops
        at the first. It passes long flat tails (F' of the order exp(−m²/2σ²)) never in practice:
        time to cross an interval is the integral of 1/|F'|, and the horizon ends it.
        """
        direction = -1.0 if self.slope(np.array(start)) > 0 else 1.0
        steps = start + direction * np.linspace(0.0, 6.0, 60_001)
        steps[0] += direction * 1e-9
        speed = -self.slope(steps) * direction
        blocked = np.flatnonzero(speed <= 0)
        reach = int(blocked[0]) if len(blocked) else len(steps) - 1
        width = abs(steps[1] - steps[0])
        times = np.cumsum(width / np.maximum(speed[:reach], 1e-300)) if reach else np.zeros(0)
        within = int(np.searchsorted(times, horizon))
        return float(steps[min(within, reach)])

    def keeping_weight(self) -> float:
        """λ_c: an STG gate that starts at 1 with w = 1 does not close for λ < λ_c.

        max over 0 ≤ m ≤ 1 of −(task slope)/(φ(m/σ)/σ): above it the pull beats the task at every m
        on the way down to 0, below it flow is stopped in between, at a half-open gate.
        """
        centres = np.linspace(0.0, 1.0, 20_001)
        task = replace(self, weight=0.0).slope(centres)
        return float(np.max(-task / (density(centres / self.sigma) / self.sigma)))


def train_gates(
    gate: OneGate,
    copies: int,
    steps: int,
    rate: float,
    seed: int,
) -> Array:
    """Trains real ``finegates`` gates on the same objective with fresh noise; their centres.

    Args:
        gate: the objective; its penalty is ``finegates.penalty``'s.
        copies: independent gates.
        steps: of stochastic gradient descent with step ``rate``, which falls to zero linearly over
            the last third, so that the noise ball shrinks.
        rate: the step, times which ``steps`` is the time of the gradient flow.
        seed: of the noise.

    Returns:
        centres, shape (copies,).
    """
    base = preset_named("paper_v1")
    preset: GatePreset = replace(
        base, noise_std=gate.sigma, probability_std=gate.sigma, init_mean=1.0, init_std=0.0
    )
    module = StochasticGate(copies, preset).double()
    torch.manual_seed(seed)
    for step in range(steps):
        sample = module.sample()
        opened = module.open_probability()
        penalty = (
            opened if gate.penalty == "stg" else PENALTIES[gate.penalty](opened, gate.sparsity)
        )
        loss = gate.curvature / 2 * (sample - gate.wanted) ** 2 + gate.weight * penalty
        (slope,) = torch.autograd.grad(loss.sum(), module.latent)
        with torch.no_grad():
            module.latent -= rate * min(1.0, 3 * (1 - step / steps)) * slope
    return np.asarray(module.centre().detach().numpy(), dtype=np.float64)
