"""Item 13: row and column gates together under the price, noise and an optimiser."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import ndtr

from finegates.gates.open_fractions import PENALTIES
from finegates.gates.stochastic import StochasticGate
from finegates.seeds import derive_seed
from theory.bilinear import joint_hessian
from theory.checks.objective import SPARSITY
from theory.checks.settings import Settings
from theory.checks.smoothing import noisy_gate
from theory.evidence import Case, Check
from theory.priced import Priced, constrained, in_box
from theory.problems import Array, Problem
from theory.rank_one import two_by_two

EXAMPLES = ((2.0, 0.7), (3.0, 0.5))
"""(k, t) with k²t > 1."""
PRICE = 0.5
RATIO = 0.95
"""ρ, the row gate at the minimum B of :func:`check_minima`."""


def target_of(t: float) -> float:
    """The mean of r = (0, ρ), c = (0, t/ρ)."""
    return (RATIO + t / RATIO) / 4


def lower_height(t: float, price: float) -> float:
    """F at the minimum A: min over x of ½(x² − 1)² + λ(x/2 − target), plus t²/2."""
    x = brentq(lambda x: 2 * x * (x**2 - 1) + price / 2, 0.7, 1.0)
    return float((x**2 - 1) ** 2 / 2 + price * (x / 2 - target_of(t)) + t**2 / 2)


def check_minima(settings: Settings) -> Check:
    """Loss plus price in the box has two strict minima, for the example of ``spurious-minima``.

    W = [[1, k], [k, 1]], G = I, Y = X diag(1, t), price λ|mean − (ρ + t/ρ)/4|. B: r = (0, ρ),
    c = (0, t/ρ) has the target mean, so the price is 0 there, and it rises along the orbit
    (τr, c/τ), whose mean changes: B is a strict minimum with F = ½. A: near r = c = (1, 0) the
    price moves r₁ = c₁ = x below 1 and keeps r₂ = c₂ = 0. Its height is smaller for a small λ. Both
    are Clarke stationary in the box, with proximal decrease 0. So F − F* > 0 = D at B: no proximal
    PL constant exists for row and column gates together, with the price or without it. Measured:
    heights and proximal steps at the ends of proximal descent from starts near either.
    """
    cases = []
    for k, t in EXAMPLES:
        problem = two_by_two(k, t)
        priced = Priced(problem, PRICE, target_of(t))
        for name, height, start in (
            ("A", lower_height(t, PRICE), (0.9, 0.05, 0.9, 0.05)),
            ("B", 0.5, (0.05, 0.9, 0.05, 0.7)),
        ):
            end = priced.descended(np.array(start), 0.05, 2000)
            place = f"{problem.name}, {name}"
            cases.append(Case(place, "equal", height, priced.value(end), 1e-6, name))
            moved = float(np.linalg.norm(priced.step(end, 0.05) - end)) / 0.05
            cases.append(Case(f"{place}, decrease", "equal", 1.0, 1 + moved, 1e-4, "decrease"))
    return Check(
        "joint-price-minima",
        13,
        "law",
        "row and column gates in the box with a price λ|mean − target|: two strict minima, ½ "
        "and lower, for the example of spurious-minima; the proximal decrease is 0 at both, so "
        "that no proximal PL constant exists (heights; 1 + ‖proximal step‖/η)",
        "λ = 0.5, k²t > 1, target that one minimum meets; white data",
        tuple(cases),
        claim="pl",
    )


def check_rate(settings: Settings) -> Check:
    """Proximal descent on loss plus price from ω = 1: local linear rate 1 − ημ on the face.

    It ends at a Clarke stationary point: 0 ∈ ∇L + λ∂|mean − t| + the normal cone of the box, which
    is a fixed point of the proximal step. Near it the gates at a bound stay there if their
    multipliers are not zero (strict complementarity), and so does the mean on the kink. The rest is
    smooth and has the Hessian of the face (:class:`theory.priced.Priced`). So the proximal PL
    inequality holds locally, with λ_min of that matrix. Measured: from the end moved a little along
    the slowest direction, the contraction of 20 proximal steps, and the proximal step at the end.
    """
    cases = []
    for problem in settings.drawn("well-conditioned", "under-parameterised"):
        size = problem.rows + problem.cols
        rate = 0.5 / float(np.linalg.norm(joint_hessian(problem, np.ones(size)), 2))
        for strength in (0.05, 1.0):
            priced = Priced(problem, strength * problem.null_loss, 1 - SPARSITY)
            end = _end(priced, rate)
            moved = float(np.linalg.norm(priced.step(end, rate) - end)) / rate
            if moved > 1e-8 * priced.price or not priced.face(end).shape[1]:
                continue  # complementarity is not strict, or all gates are at bounds
            curvature, slowest = priced.curvature(end)
            if curvature <= 0:
                continue
            start = end + 1e-6 * slowest
            path = priced.descended(start, rate, 20)
            gone = float(slowest @ (path - end)) / 1e-6
            share = 1 - float(np.sign(gone) * abs(gone) ** (1 / 20))
            name = f"{problem.name}, λ = {strength}‖Y‖²/2n"
            cases.append(Case(name, "equal", rate * curvature, share, 1e-3))
    return Check(
        "joint-price-rate",
        13,
        "law",
        "row and column gates in the box with the price: proximal descent from ω = 1 ends Clarke "
        "stationary, and near the end it contracts by 1 − ημ a step, μ the smallest eigenvalue of "
        "the Hessian on the face of active bounds and kink",
        "strict complementarity, μ > 0; step η",
        tuple(cases),
        claim="convergence",
    )


def _end(priced: Priced, rate: float) -> Array:
    """The end of descent from 1: proximal steps until the face is found, then Newton's on it."""
    gates = np.ones(priced.problem.rows + priced.problem.cols)
    for _ in range(12):
        gates = in_box(priced.descended(gates, rate, 60))
        found = priced.polished(gates)
        if np.linalg.norm(priced.step(found, rate) - found) <= 1e-9 * rate * priced.price:
            return found
    return gates


def taught(settings: Settings) -> Problem:
    """3 outputs, 4 inputs, targets from gates between 0 and 1."""
    random = settings.random("together")
    inputs = random.standard_normal((32, 4))
    weight = random.uniform(0.7, 1.3, (3, 4)) * np.sign(random.standard_normal((3, 4)))
    rows, cols = np.array([1.0, 0.8, 0.3]), np.array([1.0, 0.9, 0.5, 0.2])
    targets = inputs @ (rows[:, None] * weight * cols).T
    return Problem(inputs, weight, targets, "together")


@lru_cache(maxsize=8)
def trained(optimiser: str, sigma: float, steps: int, seed: int) -> tuple[Problem, Array]:
    """Mean centres of library gates on both sides of a layer, over the last tenth of the steps.

    They share minibatches of 8 rows, the target penalty on the mean P of either side, and start at
    1. There are 32 copies.
    """
    problem = taught(Settings(seed=seed))
    sizes, copies, price = (problem.rows, problem.cols), 32, 12.0
    gates: list[StochasticGate] = []
    for place, size in enumerate(sizes):
        gates.append(noisy_gate(copies * size, sigma, seed=derive_seed("together", seed, place)))
        gates[-1].latent.data.fill_(1.0)
    latents: list[Any] = [gate.latent for gate in gates]
    update = (
        torch.optim.SGD(latents, lr=0.02)
        if optimiser == "SGD"
        else torch.optim.AdamW(latents, lr=0.03, weight_decay=0.0)
    )
    first = update.param_groups[0]["lr"]
    inputs, targets = torch.as_tensor(problem.inputs), torch.as_tensor(problem.targets)
    weight = torch.as_tensor(problem.weight)
    draw = torch.Generator().manual_seed(derive_seed("together", seed, "rows"))
    mean, taken = np.zeros(sum(sizes)), 0
    for step in range(steps):
        for group in update.param_groups:
            group["lr"] = first * min(1.0, 2 * (1 - step / steps)) ** 2
        chosen = torch.randint(problem.samples, (8,), generator=draw)
        rows, cols = (g.sample().view(copies, n) for g, n in zip(gates, sizes, strict=True))
        outputs = (inputs[chosen] * cols[:, None]) @ weight.T * rows[:, None]  # (copies, 8, m)
        loss = ((outputs - targets[chosen]) ** 2).sum() / 16
        for gate, size in zip(gates, sizes, strict=True):
            opened = gate.open_probability().view(copies, size).mean(1)
            loss = loss + price / 2 * PENALTIES["target"](opened, SPARSITY).sum()
        update.zero_grad()
        loss.backward()
        update.step()
        if step >= 0.9 * steps:
            found = [g.latent.detach().view(copies, -1).mean(0) for g in gates]
            mean, taken = mean + torch.cat(found).numpy(), taken + 1
    return problem, np.asarray(mean / taken, dtype=np.float64)


def clarke_point(problem: Problem, sigma: float) -> Array:
    """Centres where one multiplier for each side balances the relaxed loss on all its gates."""

    def missed(centres: Array) -> Array:
        opened = ndtr(centres / sigma)
        sides = opened[: problem.rows], opened[problem.rows :]
        return np.array([side.mean() - (1 - SPARSITY) for side in sides])

    start = np.full(problem.rows + problem.cols, 0.5)
    return constrained(problem, start, sigma, missed, 6 * sigma)


def check_clarke(settings: Settings) -> Check:
    """Rows and columns, noise, minibatches, penalty: SGD and AdamW end at one Clarke point.

    The trained objective is E L(clip(m + σZ)) + λ Σ over sides of |mean P − (1 − s)|/2: smooth plus
    a convex function of a smooth one, hence weakly convex. For SGD with steps ~ 1/√k the gradient
    of its Moreau envelope tends to 0 (Davis and Drusvyatskiy 2019), so limits are Clarke
    stationary. On both kinks this is stationarity of the relaxed loss under mean P = 1 − s on
    either side.
    AdamW without weight decay has the same stationary points: in the mean its step is
    E g/√E g², zero only with E g. Measured as P of each gate: trained library gates against
    sequential quadratic programming on the closed form.
    """
    cases = []
    sigma = 0.5
    for optimiser in ("SGD", "AdamW"):
        problem, found = trained(optimiser, sigma, 2 * settings.gate_steps, settings.seed)
        predicted, opened = (ndtr(c / sigma) for c in (clarke_point(problem, sigma), found))
        sides = ["row"] * problem.rows + ["column"] * problem.cols
        for place, (value, measured) in enumerate(zip(predicted, opened, strict=True)):
            name = f"{optimiser}, {sides[place]}, P = {value:.2f}"
            slack = 0.04 / float(value)
            if value > 0.2:
                cases.append(Case(name, "equal", float(value), float(measured), slack, optimiser))
        for side, part in (("rows", opened[: problem.rows]), ("columns", opened[problem.rows :])):
            name = f"{optimiser}, mean P of {side}"
            mean = float(part.mean())
            cases.append(Case(name, "equal", 1 - SPARSITY, mean, 0.03, f"mean P, {optimiser}"))
    return Check(
        "joint-clarke",
        13,
        "law",
        "row and column gates under noise, minibatches and the target penalty end where one "
        "multiplier for each side balances the relaxed loss on all its gates, with SGD and with "
        "AdamW without weight decay",
        "from m = 1; λ large enough to reach both kinks, steps that decrease to 0; σ = σ_p = 0.5",
        tuple(cases),
        claim="convergence",
    )
