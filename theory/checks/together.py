"""Item 13: row and column gates together under the price, noise and an optimiser."""

from __future__ import annotations

import math
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
from theory.cases import Case
from theory.checks.objective import SPARSITY
from theory.checks.settings import Settings
from theory.checks.smoothing import noisy_gate
from theory.evidence import Check
from theory.priced import Priced, in_box, relaxed_joint_gradient
from theory.problems import Array, Problem
from theory.rank_one import two_by_two
from theory.relaxation import density

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
    the slowest direction, the contraction of 20 proximal steps, and the proximal step at the end
    of every run. Runs that end at a vertex, or with μ ≤ 0, have no rate. They are counted.
    """
    cases, without = [], 0
    for problem in settings.drawn("well-conditioned", "under-parameterised"):
        size = problem.rows + problem.cols
        rate = 0.5 / float(np.linalg.norm(joint_hessian(problem, np.ones(size)), 2))
        for strength in (0.05, 1.0):
            priced = Priced(problem, strength * problem.null_loss, 1 - SPARSITY)
            end = _end(priced, rate)
            moved = float(np.linalg.norm(priced.step(end, rate) - end)) / rate
            name = f"{problem.name}, λ = {strength}‖Y‖²/2n"
            arrived = 1 + moved / priced.price
            cases.append(Case(f"{name}, end", "equal", 1.0, arrived, 1e-7, "stationary"))
            curvature, slowest = priced.curvature(end) if priced.face(end).shape[1] else (0.0, end)
            if curvature <= 0:
                without += 1
                continue
            start = end + 1e-6 * slowest
            path = priced.descended(start, rate, 20)
            gone = float(slowest @ (path - end)) / 1e-6
            share = 1 - float(np.sign(gone) * abs(gone) ** (1 / 20))
            cases.append(Case(name, "equal", rate * curvature, share, 1e-3))
    return Check(
        "joint-price-rate",
        13,
        "law",
        "row and column gates in the box with the price: proximal descent from ω = 1 ends Clarke "
        "stationary, and near the end it contracts by 1 − ημ a step, μ the smallest eigenvalue of "
        "the Hessian on the face of active bounds and kink (1 + ‖proximal step‖/ηλ at every "
        "end; the contraction)",
        "strict complementarity, μ > 0; step η; runs without a rate, at a vertex or with μ ≤ 0: "
        f"{without}",
        tuple(cases),
        claim="convergence",
    )


def _end(priced: Priced, rate: float) -> Array:
    """The end of descent from 1: proximal steps until the face is found, then Newton's on it."""
    gates = np.ones(priced.problem.rows + priced.problem.cols)
    for _ in range(400):
        gates = in_box(priced.descended(gates, rate, 200))
        found = priced.polished(gates)
        if np.linalg.norm(priced.step(found, rate) - found) <= 1e-9 * rate * priced.price:
            return found
    return gates


def taught(settings: Settings) -> Problem:
    """3 outputs, 4 inputs, targets from gates between 0 and 1."""
    random = settings.random("together")
    inputs = random.standard_normal((32, 4))
    weight = random.uniform(0.7, 1.3, (3, 4)) * np.sign(random.standard_normal((3, 4)))
    rows, cols = np.array([1.0, 0.5, 0.3]), np.array([1.0, 0.6, 0.4, 0.25])
    targets = inputs @ (rows[:, None] * weight * cols).T
    return Problem(inputs, weight, targets, "together")


NOISE, STD = 0.1, 0.5
"""σ and σ_p of the released preset: the price acts further out than the task."""
CLOSED = 0.2
"""s, the target: gates of about 0.4 have P = 0.8."""
PRICES = {"off the kink": 0.8, "kink": 3.0}
"""λ with which mean P ends above 1 − s on both sides, and on it."""
HALF_OPEN = (0.15, 0.85)
"""P(open) of the gates whose multipliers are compared."""


@lru_cache(maxsize=8)
def trained(optimiser: str, price: float, steps: int, seed: int) -> tuple[Problem, Array]:
    """Mean centres of library gates on both sides of a layer, over the last tenth of the steps.

    They share minibatches of 8 rows, the target penalty on the mean P of either side with price/2,
    and start at 1. There are 32 copies, shape (32, m + d).
    """
    problem = taught(Settings(seed=seed))
    sizes, copies = (problem.rows, problem.cols), 32
    gates: list[StochasticGate] = []
    for place, size in enumerate(sizes):
        stream = derive_seed("together", seed, place)
        gates.append(noisy_gate(copies * size, NOISE, seed=stream, probability_std=STD))
        gates[-1].latent.data.fill_(1.0)
    latents: list[Any] = [gate.latent for gate in gates]
    update = (
        torch.optim.SGD(latents, lr=0.05)
        if optimiser == "SGD"
        else torch.optim.AdamW(latents, lr=0.01, weight_decay=0.0)
    )
    first = update.param_groups[0]["lr"]
    inputs, targets = torch.as_tensor(problem.inputs), torch.as_tensor(problem.targets)
    weight = torch.as_tensor(problem.weight)
    draw = torch.Generator().manual_seed(derive_seed("together", seed, "rows"))
    kept = []
    for step in range(steps):
        for group in update.param_groups:
            group["lr"] = first * min(1.0, 2 * (1 - step / steps)) ** 2
        chosen = torch.randint(problem.samples, (8,), generator=draw)
        rows, cols = (g.sample().view(copies, n) for g, n in zip(gates, sizes, strict=True))
        outputs = (inputs[chosen] * cols[:, None]) @ weight.T * rows[:, None]  # (copies, 8, m)
        loss = ((outputs - targets[chosen]) ** 2).sum() / 16
        for gate, size in zip(gates, sizes, strict=True):
            opened = gate.open_probability().view(copies, size).mean(1)
            loss = loss + price / 2 * PENALTIES["target"](opened, CLOSED).sum()
        update.zero_grad()
        loss.backward()
        update.step()
        if step >= 0.9 * steps:
            found = [g.latent.detach().view(copies, -1) for g in gates]
            kept.append(torch.cat(found, dim=1).numpy())
    return problem, np.asarray(np.mean(kept, axis=0), dtype=np.float64)


def multipliers(problem: Problem, centres: Array) -> Array:
    """ν_j = −∂_jF/∂_j(mean P of the side of j), F the relaxed loss, for every gate, (m + d,)."""
    sizes = np.repeat([problem.rows, problem.cols], [problem.rows, problem.cols])
    slopes = density(centres / STD) / STD / sizes
    pulls = -relaxed_joint_gradient(problem, centres, NOISE)
    return np.asarray(pulls / slopes, dtype=np.float64)


def half_open(opened: Array) -> list[int]:
    """Indices of the half-open gates of a side."""
    return [i for i, p in enumerate(opened) if HALF_OPEN[0] < p < HALF_OPEN[1]]


def check_clarke(settings: Settings) -> Check:
    """Rows and columns, noise, minibatches, penalty: SGD and AdamW end nearly stationary.

    The trained objective is E L(clip(m + σZ)) + λ Σ over sides of |mean P − (1 − s)|/2: smooth plus
    a convex function of a smooth one, hence weakly convex. For SGD with steps ~ 1/√k the gradient
    of its Moreau envelope at a randomly drawn iterate tends to 0 (Davis and Drusvyatskiy 2019).
    With square-summable steps that are not summable, limit points of bounded iterates are Clarke
    stationary (Davis, Drusvyatskiy, Kakade and Lee 2020), because the objective is definable. With
    σ_p = 5σ the price acts further out than the task, so that gates do not drift to +∞.
    Stationary: −∂_jF = ν ∂_j(mean P) with ν = λ/2 where mean P > 1 − s, and one ν in [−λ/2, λ/2]
    for all gates of a side where mean P = 1 − s. AdamW's mean step E g/√E g² vanishes with E g, for
    frequent gradients. Measured: ν of half-open library gates, from the closed-form slopes at
    their trained centres; on the kink against the mean of the others of its side.
    """
    cases = []
    for optimiser in ("SGD", "AdamW"):
        for place, price in PRICES.items():
            problem, found = trained(optimiser, price, 2 * settings.gate_steps, settings.seed)
            forces = np.mean([multipliers(problem, centres) for centres in found], axis=0)
            opened = ndtr(found / STD).mean(axis=0)
            for side, part in (
                ("rows", slice(None, problem.rows)),
                ("columns", slice(problem.rows, None)),
            ):
                chosen, pulls = half_open(opened[part]), forces[part]
                if len(chosen) < 2:  # nothing to compare
                    name = f"{optimiser}, {place}, half-open {side}"
                    cases.append(Case(name, "at least", 2, len(chosen)))
                    continue
                for index in chosen:
                    others = float(np.mean([pulls[i] for i in chosen if i != index]))
                    predicted = others if place == "kink" else price / 2
                    measured = float(pulls[index])
                    if predicted <= 0:  # too few steps to balance anything: the law fails there
                        predicted, measured = price / 2, math.nan
                    name = f"{optimiser}, {place}, {side} {index}, P = {opened[part][index]:.2f}"
                    cases.append(Case(name, "equal", predicted, measured, 0.12, f"ν, {place}"))
                mean = float(opened[part].mean())
                name = f"{optimiser}, {place}, mean P of {side}"
                if place == "kink":
                    cases.append(Case(name, "equal", 1 - CLOSED, mean, 0.01, "mean P"))
                    steepest = float(pulls[chosen].max())
                    cases.append(Case(f"{name}, ν", "at most", price / 2, steepest, 0, "ν, kink"))
                else:
                    cases.append(Case(name, "at least", 1 - CLOSED, mean, 0, "mean P"))
    return Check(
        "joint-clarke",
        13,
        "law",
        "row and column gates under noise, minibatches and the target penalty end where one "
        "multiplier ν for each side balances the relaxed loss on all its half-open gates: ν = λ/2 "
        "where mean P ends above 1 − s, and some ν below where it ends at 1 − s; with SGD and with "
        "AdamW without weight decay",
        "from m = 1; steps that decrease to 0; σ = 0.1, σ_p = 0.5; s = 0.2; gates with P between "
        "0.15 and 0.85, whose gradients are frequent",
        tuple(cases),
        claim="convergence",
    )
