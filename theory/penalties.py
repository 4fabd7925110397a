"""Penalties on one gate, with their minimisers in closed form.

A gate with centre m has P = Φ(m/σ_p) in the penalty and the value clip(m, 0, 1) in evaluation. It
is closed iff m ≤ 0 (P ≤ ½), fully open iff m ≥ 1 (P ≥ Φ(1/σ_p)), and *half open* between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from finegates.gates.open_fractions import PENALTIES
from finegates.gates.presets import preset_named
from finegates.gates.stochastic import StochasticGate
from theory.problems import Array
from theory.relaxation import density, mean_clip_slope, square_clip_slope

PenaltyName = Literal["target", "hinge", "stg"]


def penalty_minimiser(sparsity: float, sigma_p: float) -> float:
    """m* = σ_p Φ⁻¹(1 − s): the minimiser of |P − (1 − s)|, where P = 1 − s.

    max(P, 1 − s) is minimal on all of (−∞, m*]; descent from above stops at the edge, m*.
    """
    return float(sigma_p * ndtri(1.0 - sparsity))


def half_open_range(sigma_p: float) -> tuple[float, float]:
    """The range of sparsities s with a half-open minimiser m*: 1 − Φ(1/σ_p) < s < ½."""
    return float(ndtr(-1.0 / sigma_p)), 0.5


def gate_state(value: float) -> str:
    """State of an evaluation gate: ``closed``, ``half open`` or ``open``."""
    return "closed" if value <= 0 else "open" if value >= 1 else "half open"


@dataclass(frozen=True)
class OneGate:
    """One gate under a task loss ½h(ω − w)² and λ times a penalty, with noise σ = σ_p.

    F(m) = ½h E(clip(m + σZ) − w)² + λ pen(Φ(m/σ)). pen(P) is P for STG, |P − (1 − s)| for the
    target, max(P, 1 − s) for the hinge.

    Attributes:
        penalty: its name.
        sigma: σ, of the noise and of P.
        weight: λ.
        sparsity: s; unused for STG.
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
        signs: dict[PenaltyName, Array] = {
            "stg": np.ones_like(pull),
            "target": np.where(above, 1.0, -1.0),
            "hinge": np.where(above, 1.0, 0.0),
        }
        return np.asarray(task + signs[self.penalty] * pull)

    def endpoint(self, start: float = 1.0, horizon: float = 1e3) -> float:
        """Position of gradient flow m' = −F'(m) from ``start`` at time ``horizon``.

        Stationary points are the sign changes of F' along the way, including the kink m*. The flow
        stops at the first. The time to cross an interval is the integral of 1/|F'|. Flat tails (F'
        of the order exp(−m²/2σ²)) take longer than any training, so the horizon ends the flow.
        """
        path, speed = self._path(start)
        times = np.cumsum(np.abs(np.diff(path)) / np.maximum(speed, 1e-300))
        return float(path[min(int(np.searchsorted(times, horizon)), len(speed))])

    def fastest(self, start: float = 1.0) -> float:
        """The largest |F'| along that path; the descent step must be small against its inverse."""
        return float(self._path(start)[1].max(initial=0.0))

    def _path(self, start: float) -> tuple[Array, Array]:
        """Places up to the stationary point, or up to a distance of 6, and |F'| between them."""
        direction = -1.0 if self.slope(np.array(start)) > 0 else 1.0
        path = start + direction * np.linspace(0.0, 6.0, 6_001)
        # Slightly off the start: at a kink the slope is one-sided.
        speed = -direction * self.slope(path[:-1] + direction * 1e-9)
        blocked = np.flatnonzero(speed <= 0)
        if not len(blocked) or not blocked[0]:
            reach = len(speed) if not len(blocked) else 1
            return path[: reach + 1], np.maximum(speed[:reach], 0.0)
        last = int(blocked[0])
        # Sign changes on the way: at the kink, or where the line through two slopes crosses zero.
        stop = path[last] - direction * 1e-3 * speed[last] / (speed[last] - speed[last - 1])
        kink = penalty_minimiser(self.sparsity, self.sigma)
        if self.penalty != "stg" and min(path[last - 1 : last + 1]) <= kink <= max(
            path[last - 1 : last + 1]
        ):
            stop = kink
        return np.append(path[:last], stop), speed[:last]

    def keeping_weight(self) -> float:
        """λ_c: an STG gate that starts at 1 with w = 1 does not close for λ < λ_c.

        λ_c = max over 0 ≤ m ≤ 1 of −(task slope)/(φ(m/σ)/σ). Above it the pull outweighs the task
        at every m down to 0. Below it the flow stops on the way, at a half-open gate.
        """
        centres = np.linspace(0.0, 1.0, 20_001)
        task = replace(self, weight=0.0).slope(centres)
        return float(np.max(-task / (density(centres / self.sigma) / self.sigma)))


def train_gates(
    gates: Sequence[OneGate], copies: int, steps: int, rates: Array, seed: int
) -> Array:
    """Trains real ``finegates`` gates on the same objectives with fresh noise.

    Args:
        gates: objectives with one penalty and one σ; the penalty is from
            ``finegates.gates.penalty``.
        copies: independent gates for each.
        steps: of stochastic gradient descent.
        rates: learning rate of each objective. It decreases linearly to zero over the last third of
            the steps to shrink the noise ball, so 5/6 · rate · steps is the time of the flow.
        seed: of the noise.

    Returns:
        centres at the end, shape (objectives, copies).
    """
    kind, sigma, sparsity = gates[0].penalty, gates[0].sigma, gates[0].sparsity
    if any((g.penalty, g.sigma, g.sparsity) != (kind, sigma, sparsity) for g in gates):
        raise ValueError("gates that are trained together need one penalty, sigma and sparsity")
    preset = replace(
        preset_named("paper_v1"),
        noise_std=sigma,
        probability_std=sigma,
        init_mean=1.0,
        init_std=0.0,
    )
    module = StochasticGate(copies * len(gates), preset).double()

    def spread(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64).repeat_interleave(copies)

    curvature = spread(g.curvature for g in gates)
    wanted = spread(g.wanted for g in gates)
    weight = spread(g.weight for g in gates)
    rate = spread(float(r) for r in rates)
    torch.manual_seed(seed)
    for step in range(steps):
        sample, opened = module.sample(), module.open_probability()
        penalty = opened if kind == "stg" else PENALTIES[kind](opened, sparsity)
        loss = (curvature / 2 * (sample - wanted) ** 2 + weight * penalty).sum()
        (slope,) = torch.autograd.grad(loss, module.latent)
        with torch.no_grad():
            module.latent.sub_(rate * min(1.0, 3 * (1 - step / steps)) * slope)
    centres = module.centre().detach().numpy().reshape(len(gates), copies)
    return np.asarray(centres, dtype=np.float64)


def train_released(
    weights: Sequence[float], wanted: float, copies: int, steps: int, rate: float, seed: int
) -> Array:
    """Trains gates of the released code and returns their evaluation values.

    The objective is ½(ω − w)² + λ|P − (1 − s)| with s = 0.4. Preset ``reference``: m = tanh a + ½
    from a = 1, noise 0.1, P with σ_p = 0.5. As in the released code the optimiser is Adam. Its
    learning rate decreases to zero over the last third.

    Args:
        weights: λ of each objective, per gate.
        wanted: w.
        copies: independent gates for each.
        steps: of Adam.
        rate: learning rate of Adam.
        seed: of the noise.

    Returns:
        shape (objectives, copies).
    """
    module = StochasticGate(copies * len(weights), "reference").double()
    module.latent.data.fill_(1.0)
    torch.manual_seed(seed)
    weight = torch.tensor(list(weights), dtype=torch.float64).repeat_interleave(copies)
    optimiser = torch.optim.Adam([module.latent], lr=rate)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, 3 * (1 - step / steps))
        optimiser.zero_grad()
        penalty = PENALTIES["target"](module.open_probability(), 0.4)
        ((module.sample() - wanted) ** 2 / 2 + weight * penalty).sum().backward()
        optimiser.step()
    gates = module.eval().sample().detach().numpy()
    return np.asarray(gates, dtype=np.float64).reshape(len(weights), copies)
