"""Item 13: AdamW on gates beyond the plateau: where it rests, and how far it fluctuates."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import solve_continuous_lyapunov
from scipy.optimize import brentq
from torch import nn

from finegates.seeds import derive_seed
from theory.cases import Case
from theory.checks.convergence import interior_problem, mean_case
from theory.checks.settings import Settings
from theory.checks.smoothing import noisy_gate
from theory.evidence import Check
from theory.outputs import quadratic_of_outputs
from theory.problems import Array
from theory.quadratic import Quadratic, column_quadratic
from theory.stochastic import excess

COPIES = 256


def shift_of_decay(wanted: float, sigma: float, decay: float) -> float:
    """w − m at rest: (w − m)/√((w − m)² + σ²) = κm, with κ the weight decay."""
    return float(brentq(lambda u: u / np.sqrt(u**2 + sigma**2) - decay * (wanted - u), 0.0, wanted))


def check_rest(settings: Settings) -> Check:
    """AdamW rests where E g/√E g² = −κm, and not at a stationary point unless its decay κ is 0.

    The mean step is −η(E g/√E g² + κm) once the averages have settled. A gate inside (0, 1) with
    the task ½(ω − w)² has g = m − w + σZ. So it is short of w by u with u/√(u² + σ²) = κm: the more
    noise, the further, since Adam divides the pull of the task by it and not that of the decay.
    Neither F nor F with a ridge is stationary there. Measured with ``torch.optim.AdamW`` on the
    library's gates, from w.
    """
    cases = []
    wanted = 0.6
    for sigma, decay in ((0.05, 0.5), (0.1, 0.5), (0.1, 0.1)):
        gate = noisy_gate(COPIES, sigma, seed=settings.seed)
        nn.init.constant_(gate.latent, wanted)
        optimiser = torch.optim.AdamW([gate.latent], lr=5e-4, weight_decay=decay)
        kept = []
        for step in range(2400):
            optimiser.zero_grad()
            ((gate.sample() - wanted) ** 2 / 2).sum().backward()
            optimiser.step()
            if step >= 1200 and step % 20 == 0:
                kept.append(gate.latent.detach().numpy().copy())
        moved = wanted - np.mean(kept, axis=0)  # (copies,)
        predicted = shift_of_decay(wanted, sigma, decay)
        name = f"σ = {sigma}, κ = {decay}"
        cases.append(mean_case(name, predicted, moved, 0.02))
    return Check(
        "adamw-rest",
        13,
        "law",
        "AdamW with weight decay κ rests at w − u, u/√(u² + σ²) = κm, which is stationary for "
        "κ = 0 only (u)",
        "one gate inside (0, 1), task ½(ω − w)², small steps; 1,000 steps of averages settled",
        tuple(cases),
        claim="convergence",
    )


RARE = (0.5, 0.1, 0.02, 0.001)
"""Shares of the steps in which a gate has a gradient of the task."""


def rare_rests(pull: float, wanted: float, seed: int) -> Array:
    """Mean centres of library gates under AdamW, from the stationary point, (RARE, copies).

    The loss ½(ω − w)²/p is seen with this probability p, and the slope ``pull`` at every step.
    """
    shares = torch.tensor(RARE, dtype=torch.float64)[:, None]
    shape = len(RARE), COPIES // 2
    gate = noisy_gate(shape[0] * shape[1], 0.05, seed=seed)
    nn.init.constant_(gate.latent, wanted - pull)
    optimiser = torch.optim.AdamW([gate.latent], lr=2e-4, weight_decay=0.0)
    draw = torch.Generator().manual_seed(derive_seed("theory", "rare", seed))
    kept, steps = [], 8000
    for step in range(steps):
        seen = (torch.rand(shape, generator=draw, dtype=torch.float64) < shares) / shares
        task = seen * (gate.sample().view(shape) - wanted) ** 2 / 2
        optimiser.zero_grad()
        (task.sum() + pull * gate.latent.sum()).backward()
        optimiser.step()
        if step >= steps // 2 and step % 20 == 0:
            kept.append(gate.latent.detach().view(shape).numpy().copy())
    return np.asarray(np.mean(kept, axis=0), dtype=np.float64)


def check_rare(settings: Settings) -> Check:
    """Does AdamW without decay rest at the stationary point w − λ, however rare gradients are?

    It does not (Reddi, Kale and Kumar 2018). Where the task has a gradient in a share p of the
    steps, a large one enlarges its own divisor √v, which then shrinks again until the next. So the
    task pulls less than the steady price. Below p ~ 1 − β₂ the gate is near where the price alone
    draws it. The expected gradient is the same for every p. A setting is p. Its draws are (w − m)/λ
    of the copies, 1 if stationary, at most 1.02.
    """
    cases = []
    wanted, pull = 0.9, 0.3
    for share, rests in zip(RARE, rare_rests(pull, wanted, settings.seed), strict=True):
        levels = {"steps with a gradient": f"{100 * share:g} %"}
        cases.append(Case.of_draws(levels, "at most", 1.02, (wanted - rests) / pull))
    return Check(
        "adamw-rare-claim",
        13,
        "claim",
        "AdamW without weight decay rests where the expected gradient is zero, however rare the "
        "task's gradients are ((w − m)/λ, 1 if so, within 2 %)",
        "one gate inside (0, 1), task ½(ω − w)²/p in a share p of the steps, λm at every step",
        tuple(cases),
    )


def adam_ball(quadratic: Quadratic, sigma: float, rate: float) -> float:
    """½ tr(HV) with D⁻¹HV + VHD⁻¹ = ησ² D⁻¹H²D⁻¹, D = σ Diag(H²)^{1/2}: Adam's noise ball.

    The small-step limit of e ← e − ηD⁻¹H(e + σZ). Adam divides by D = √E g², which near the
    optimum is the noise's share. D is proportional to σ, so the ball is proportional to ησ, and for
    a diagonal H it is ¼ησ tr H.
    """
    hessian = quadratic.hessian
    scale = 1 / (sigma * np.sqrt(np.diag(hessian @ hessian)))
    drift = scale[:, None] * hessian
    covariance = solve_continuous_lyapunov(drift, rate * sigma**2 * drift @ drift.T)
    return float(np.trace(hessian @ covariance) / 2)


def check_adam_ball(settings: Settings) -> Check:
    """E L(m_∞) − L* under AdamW without decay: the ball of :func:`adam_ball`, ∝ ησ.

    SGD's is ∝ ησ² (``sgd-ball``). So for small noise AdamW fluctuates more at the same rate, and a
    rate that decreases to 0 is what makes it converge. Measured with ``torch.optim.AdamW`` on
    column gates inside (0, 1), as means over copies in the stationary state.
    """
    cases = []
    problem = interior_problem(settings, 0)
    quadratic, seen = column_quadratic(problem), quadratic_of_outputs(problem)
    hessian = torch.as_tensor(seen.hessian)
    best = torch.as_tensor(seen.minimiser())
    for sigma, rate in ((0.02, 4e-5), (0.04, 4e-5), (0.04, 8e-5)):
        found = adam_runs(hessian, best, sigma, rate, settings)
        gaps = excess(seen, found).mean(axis=0)
        predicted = adam_ball(quadratic, sigma, rate)
        name = f"σ = {sigma}, η = {rate}"
        cases.append(mean_case(name, predicted, gaps, 0.03))
    return Check(
        "adamw-ball",
        13,
        "law",
        "AdamW with a constant step ends in a ball of loss ½ tr(HV), D⁻¹HV + VHD⁻¹ = ησ²D⁻¹H²D⁻¹, "
        "D = σ Diag(H²)^½: it grows as ησ, where SGD's grows as ησ²",
        "column gates inside (0, 1), no decay, steps small against 1 − β₂",
        tuple(cases),
        claim="convergence",
    )


def adam_runs(
    hessian: torch.Tensor, best: torch.Tensor, sigma: float, rate: float, settings: Settings
) -> Array:
    """Centres of AdamW from the optimum, in the stationary state, (steps, copies, d)."""
    draw = torch.Generator().manual_seed(int(settings.random("adam", sigma, rate).integers(2**31)))
    centres = best.repeat(COPIES, 1).requires_grad_()
    optimiser = torch.optim.AdamW([centres], lr=rate, weight_decay=0.0)
    # The slowest mode relaxes in cond(D⁻¹H) σ/η steps.
    scale = 1 / (sigma * (hessian @ hessian).diagonal().sqrt())
    slowest = float(torch.linalg.eigvals(scale[:, None] * hessian).real.min())
    burn = int(2 / (rate * slowest)) + 1000
    kept = []
    for step in range(burn + 1500):
        noisy = centres.detach() + sigma * torch.randn(
            centres.shape, generator=draw, dtype=torch.float64
        )
        centres.grad = (noisy - best) @ hessian
        optimiser.step()
        if step >= burn and step % 50 == 0:
            kept.append(centres.detach().numpy().copy())
    return np.stack(kept)
