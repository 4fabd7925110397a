"""Item 13: the trained objective: the penalty, and the price of open gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import ndtr

from finegates.gates.gated_linear import GatedLinear
from finegates.gates.open_fractions import PENALTIES, SparsityPenalty
from finegates.gates.presets import PRESETS
from finegates.gates.stochastic import StochasticGate
from theory.box import box_constant, path_with_price, price_decrease
from theory.cases import Case
from theory.checks.clipping import centred, is_regular
from theory.checks.settings import Settings
from theory.checks.smoothing import noisy_gate
from theory.evidence import Check
from theory.outputs import quadratic_of_outputs
from theory.problems import Array
from theory.quadratic import Quadratic, column_quadratic
from theory.relaxation import density, mean_clip_slope, square_clip_slope

SPARSITY = 0.4


def penalty_slope(layer: torch.nn.Module, gate: StochasticGate, kind: str) -> Array:
    """The library's gradient of the penalty with respect to the latents of one gate vector."""
    penalty = SparsityPenalty(layer, SPARSITY, kind)
    (slope,) = torch.autograd.grad(penalty(), gate.latent)
    return np.asarray(slope.numpy(), dtype=np.float64)


def predicted_jump(name: str, latents: Array) -> float:
    """Twice the norm of ∇(mean P/2) of a side: the jump of |mean P − (1 − s)| over two sides."""
    preset = PRESETS[name]
    if preset.tanh:
        centres, chain = np.tanh(latents) + preset.shift, 1 / np.cosh(latents) ** 2
    else:
        centres, chain = latents + preset.shift, np.ones_like(latents)
    std = preset.probability_std
    slopes = density(centres / std) / std * chain / len(latents)
    return float(np.linalg.norm(slopes))


def check_kink(settings: Settings) -> Check:
    """‖∇pen(a + δu) − ∇pen(a − δu)‖ → ‖∇ mean P‖ as δ → 0 where mean P = 1 − s; half for the hinge.

    The gradient jumps, so it has no Lipschitz constant. |x| has slopes ±1 at 0, and max(x, 0) has 0
    and 1. The penalty is the mean over rows and columns, so one side's share is ½. The jump does
    not shrink with δ, and the quotients grow as 1/δ. Measured through the library's penalty, on
    rows of unequal gates at the target.
    """
    cases = []
    for name in ("reference", "paper_v1"):
        linear = torch.nn.Linear(8, 24, dtype=torch.float64)
        rows, cols = (StochasticGate(size, name).double() for size in (24, 8))
        layer = torch.nn.Sequential(GatedLinear(linear, rows, cols))
        random = settings.random("kink", name)
        rows.latent.data = torch.as_tensor(random.uniform(-0.4, 0.4, 24))
        low, high = -3.0, 3.0
        base = rows.latent.data.clone()
        for _ in range(80):  # the shift that moves the mean P to the target
            middle = (low + high) / 2
            rows.latent.data = base + middle
            above = float(rows.open_probability().detach().mean()) > 1 - SPARSITY
            low, high = (low, middle) if above else (middle, high)
        at = base + (low + high) / 2
        jump = predicted_jump(name, at.numpy())
        for kind, share in (("target", 1.0), ("hinge", 0.5)):
            for delta in (1e-6, 1e-9):
                ends = []
                for sign in (1.0, -1.0):
                    rows.latent.data = at + sign * delta
                    ends.append(penalty_slope(layer, rows, kind))
                found = float(np.linalg.norm(ends[0] - ends[1]))
                where = f"{name}, {kind}, δ = {delta}"
                cases.append(Case(where, "equal", share * jump, found, 1e-4, kind))
    return Check(
        "penalty-kink",
        13,
        "law",
        "where mean P meets 1 − s the gradient of the target penalty jumps by ‖∇ mean P‖, and of "
        "the hinge by half of it, at any distance: it is not Lipschitz where training is to end",
        "rows of one layer of two sides; presets reference and paper_v1",
        tuple(cases),
        claim="convergence",
    )


def priced_optimum(quadratic: Quadratic, price: float, target: float) -> Array:
    """Gates of least q + λ|mean ω − t| in the box, by sequential quadratic programming.

    A variable u ≥ ±x replaces |x|.
    """
    size = len(quadratic.linear)

    def objective(point: Array) -> float:
        return quadratic.value(point[:-1]) + price * float(point[-1])

    def slope(point: Array) -> Array:
        return np.append(quadratic.gradient(point[:-1]), price)

    sides: Any = [
        {"type": "ineq", "fun": lambda p, s=sign: p[-1] - s * (np.mean(p[:-1]) - target)}
        for sign in (1.0, -1.0)
    ]
    found = minimize(
        objective,
        np.full(size + 1, 0.5),
        jac=slope,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * size + [(0.0, None)],
        constraints=sides,
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    return np.asarray(np.clip(found.x[:-1], 0.0, 1.0), dtype=np.float64)


def check_price(settings: Settings) -> Check:
    """Proximal PL for L + λ|mean ω − (1 − s)| in the box: ½D ≥ λ_min(H) (F − F*).

    Proximal descent contracts the distance to the optimum by 1 − μ/Λ a step, the kink included.
    Price and box are convex and enter through their proximal map, which is non-expansive. L is
    strongly convex (Karimi, Nutini and Schmidt 2016). No gradient of the price is needed, so its
    kink is harmless. Measured at random points, with a weak and a strong price. The rate is
    attained along the slowest eigenvector from an optimum inside the box, where the price is
    linear. The optimum comes from sequential quadratic programming.
    """
    cases = []
    for problem in settings.drawn("well-conditioned", "ill-conditioned", "under-parameterised"):
        quadratic = column_quadratic(problem)
        if not is_regular(quadratic):
            continue
        mu, seen = box_constant(quadratic), quadratic_of_outputs(problem)
        random = settings.random("price", problem.name)
        for strength in (0.1, 3.0):
            price = strength * float(np.linalg.norm(seen.linear))
            best = priced_optimum(seen, price, 1 - SPARSITY)

            def height(gates: Array, q: Quadratic = seen, price: float = price) -> float:
                return q.value(gates) + price * abs(float(gates.mean()) - (1 - SPARSITY))

            ratios = []
            for point in random.uniform(size=(24, problem.cols)):
                gap = height(point) - height(best)
                decrease = price_decrease(seen, point, price, 1 - SPARSITY)
                ratios.append(decrease / gap)
            name = f"{problem.name}, λ = {strength}‖b‖"
            cases.append(Case(name, "at least", mu, min(ratios), 1e-6))
        inner, slowest = centred(seen), seen.spectrum()[1][:, 0]
        best = inner.minimiser()
        # Remove the price's slope from the linear part, so that the optimum stays inside.
        shifted = Quadratic(
            inner.hessian, inner.linear + 1.0 / problem.cols, inner.constant, inner.roundings
        )
        path = path_with_price(shifted, best + 0.05 * slowest, 1.0, 0.0, 20)
        distances = np.linalg.norm(path - best, axis=1)
        rate = 1 - float(distances[-1] / distances[0]) ** (1 / 20)
        share = box_constant(quadratic) / quadratic.smoothness
        name = f"{problem.name}, slowest"
        cases.append(Case(name, "equal", share, rate, 1e-6, "contraction", built=True))
        ratio = price_decrease(shifted, path[0], 1.0, 0.0)
        ratio /= shifted.value(path[0]) - shifted.value(best) + float(path[0].mean() - best.mean())
        cases.append(Case(name, "equal", mu, ratio, 1e-6, built=True))
    return Check(
        "price-prox-pl",
        13,
        "law",
        "in the box the loss with the price λ|mean ω − (1 − s)| satisfies proximal PL with "
        "λ_min(H), and proximal descent contracts by 1 − μ/Λ a step",
        "column gates as variables in [0, 1], a regular Hessian",
        tuple(cases),
        claim="convergence",
    )


def task_pulls(wanted: Array, centres: Array, sigma: float) -> Array:
    """−∂/∂m ½E(clip(m + σZ) − w)², for each gate."""
    return np.asarray(
        wanted * mean_clip_slope(centres, sigma) - square_clip_slope(centres, sigma) / 2
    )


def trained_together(wanted: Array, price: float, copies: int, steps: int, seed: int) -> Array:
    """Centres of library gates that share a target penalty, means over the last tenth of steps.

    Returns:
        Shape (copies, gates).
    """
    size = len(wanted)
    gate = noisy_gate(copies * size, NOISE, seed=seed, probability_std=STD)
    gate.latent.data.fill_(1.0)
    goals = torch.as_tensor(np.tile(wanted, (copies, 1)))
    kept = []
    for step in range(steps):
        sample = gate.sample().view(copies, size)
        opened = gate.open_probability().view(copies, size).mean(1)
        penalty = PENALTIES["target"](opened, UNLIKE_SPARSITY)
        loss = ((sample - goals) ** 2).sum() / 2 + price * size * penalty.sum()
        (slope,) = torch.autograd.grad(loss, gate.latent)
        with torch.no_grad():
            gate.latent.sub_(0.05 * min(1.0, 3 * (1 - step / steps)) ** 2 * slope)
        if step >= 0.9 * steps:
            kept.append(gate.latent.detach().view(copies, size).numpy().copy())
    return np.asarray(np.mean(kept, axis=0), dtype=np.float64)


NOISE, STD = 0.1, 0.5
"""σ and σ_p of the released preset: the price acts further out than the task."""
UNLIKE_SPARSITY = 0.2
UNLIKE = ((0.9, 0.6, 0.5, 0.4), (0.8, 0.7, 0.5, 0.4, 0.3))
"""Values that the task wants."""


def check_unlike(settings: Settings) -> Check:
    """Unequal gates under one target penalty: Clarke stationary, not all at m*.

    |mean P − (1 − s)| fixes only the mean of P. On the kink, 0 is in the Clarke subdifferential iff
    one multiplier ν in [−λ, λ] balances the task on every gate: −∂task = ν φ(m/σ_p)/σ_p. Above it
    ν = λ. So "every gate rests half open at σ_p Φ⁻¹(1 − s)" holds for equal gates only. With
    σ_p = 5σ the price acts further out than the task, so that no gate drifts to +∞. Measured: ν at
    the trained centres of library gates, on the kink against the mean of the others.
    """
    cases = []
    for wanted in UNLIKE:
        goals = np.array(wanted)
        for place, price in (("off the kink", 0.1), ("kink", 1.0)):
            seed = int(settings.random("unlike", len(goals), place).integers(2**31))
            found = trained_together(goals, price, 64, 2 * settings.gate_steps, seed)
            opened = ndtr(found / STD).mean(axis=0)
            balance = task_pulls(goals, found, NOISE) / (density(found / STD) / STD)
            forces = balance.mean(axis=0)
            for index, force in enumerate(forces):
                predicted = np.delete(forces, index).mean() if place == "kink" else price
                name = f"{len(goals)} gates, {place}, w = {wanted[index]}"
                cases.append(
                    Case(name, "equal", float(predicted), float(force), 0.1, f"ν, {place}")
                )
            mean, name = float(opened.mean()), f"{len(goals)} gates, {place}, mean P"
            if place == "kink":
                cases.append(Case(name, "equal", 1 - UNLIKE_SPARSITY, mean, 0.01, "mean P"))
                cases.append(
                    Case(f"{name}, ν", "at most", price, float(forces.max()), 0, "ν, kink")
                )
            else:
                cases.append(Case(name, "at least", 1 - UNLIKE_SPARSITY, mean, 0, "mean P"))
    return Check(
        "penalty-unlike",
        13,
        "law",
        "unlike gates under one target penalty end where one multiplier ν balances the task on all "
        "of them: ν = λ where mean P ends above 1 − s, and some ν below where it ends at 1 − s",
        "task ½Σ(ω − w)², from m = 1; σ = 0.1, σ_p = 0.5, s = 0.2; gates that end inside (0, 1)",
        tuple(cases),
        claim="binary",
    )
