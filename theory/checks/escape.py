"""Item 12, beyond the paper: leaving the saddle and the plateau under noise σ and a price λ."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import nn

from finegates.gates.open_fractions import PENALTIES
from finegates.gates.stochastic import StochasticGate
from theory.cases import Case
from theory.checks.claims import RELEASED_START
from theory.checks.settings import Settings
from theory.checks.smoothing import noisy_gate
from theory.escape import (
    NoisySaddle,
    plateau_time,
    price_slope,
    price_time,
    stabilising_noise,
)
from theory.evidence import Check
from theory.problems import Array, Problem

START, END = 1e-3, 2e-2
"""⟨u, θ⟩ at the start and at the end of a flow near the saddle."""
HORIZON = 1e4
"""Times above it are not told apart."""
PROBABILITY_STD = 0.5
"""σ_p of the released code."""
NOISES = (0.0, 0.3, 0.5, 0.7, 0.8)
"""σ as a share of the noise that makes the closed point a minimum."""
BEYOND = (1.01,)
"""Noises above it, near enough that a* is beyond −R for the prices that are used."""
BALANCES = (0.0, 0.5, 0.8, 2.0)
"""a* over ε without noise: the price that gives it."""
PRICES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""λ on the plateau."""
STRONG, STRONG_SLACK = 3.0, 0.03
"""From this λ on the price's part of the time is tested on its own, within five standard errors.
With gradients of standard deviation up to 0.35 on a way of 0.26, one of the mean over copies is
0.35/(0.26 √(copies · steps)) T², and T < 1.2.
"""
COPIES = 64
STEPS = {0.1: 4000, 0.15: 1500, 0.25: 1000, 0.5: 1000}
"""σ on the plateau, and the steps of gradient descent in which a gate should leave it: for small σ
most steps have no gradient, and one gradient must move the gate little.
"""


def noisy_gradient(problem: Problem, sigma: float, gates: Array) -> Array:
    """Mean gradient of L over noisy gates, from samples.

    The samples ±σ√m e_a of a side have mean 0 and covariance σ² I exactly. L is quadratic in either
    side, so the mean over all pairs of samples is the expectation.

    Args:
        problem: the problem.
        sigma: σ.
        gates: θ, shape (m + d,).
    """
    m, d = problem.rows, problem.cols
    by_side = []
    for size, part in ((m, gates[:m]), (d, gates[m:])):
        moved = sigma * np.sqrt(size) * np.eye(size)
        by_side.append(part + np.concatenate([moved, -moved]))  # (2 size, size)
    rows = np.repeat(by_side[0], 2 * d, axis=0)  # (4 m d, m)
    cols = np.tile(by_side[1], (2 * m, 1))  # (4 m d, d)
    scaled = problem.weight * cols[:, None, :]  # W Diag(c), (4 m d, m, d)
    outputs = scaled @ problem.second_moment
    error = (rows[:, :, None] * outputs - problem.cross_moment) * problem.weight
    slopes = (
        np.einsum("kmd,kd->km", error, cols),
        np.einsum("kmd,km->kd", error, rows),
    )
    return np.concatenate([slope.mean(axis=0) for slope in slopes])


def library_slopes(gate: StochasticGate, centres: Array) -> Array:
    """Derivatives of the library's P(open) in the centres, by automatic differentiation.

    Args:
        gate: its latent is the centre.
        centres: (n,).
    """
    with torch.no_grad():
        gate.latent.copy_(torch.as_tensor(centres))
    (slopes,) = torch.autograd.grad(gate.open_probability().sum(), gate.latent)
    return np.asarray(slopes.numpy())


def saddle_time(
    problem: Problem, sigma: float, price: float, saddle: NoisySaddle, *, halved: bool = False
) -> float:
    """Time of gradient flow of the sampled mean loss with a price, from εu to |⟨u, θ⟩| = R.

    ``HORIZON`` if it does not get there before.

    Args:
        problem: the problem.
        sigma: σ.
        price: λ on the library's P(open) of every gate.
        saddle: its direction is u.
        halved: until ⟨u, θ⟩ = ε/2, too.
    """
    size = problem.rows + problem.cols
    gate = noisy_gate(size, PROBABILITY_STD, seed=0)

    def flow(_: float, gates: Array) -> Array:
        slopes = library_slopes(gate, gates)
        return -noisy_gradient(problem, sigma, gates) - price * slopes

    def outside(_: float, gates: Array) -> float:
        place = float(saddle.direction @ gates)
        left = abs(place) - END
        return max(left, START / 2 - place) if halved else left

    outside.terminal = True  # type: ignore[attr-defined]
    start = START * saddle.direction
    found = solve_ivp(flow, (0, HORIZON), start, events=outside, rtol=1e-7, atol=1e-12)
    assert found.t_events is not None
    times = found.t_events[0]
    return float(times[0]) if len(times) else HORIZON


def least_curvature(problem: Problem, sigma: float) -> float:
    """The least Hessian eigenvalue of the sampled mean loss at (0, 0), by central differences."""
    size, step = problem.rows + problem.cols, 1e-3
    columns = [
        (noisy_gradient(problem, sigma, step * unit) - noisy_gradient(problem, sigma, -step * unit))
        / (2 * step)
        for unit in np.eye(size)
    ]
    return float(np.linalg.eigvalsh(np.array(columns))[0])


def check_saddle_time(settings: Settings) -> Check:
    """T(σ, λ) near (0, 0), and the noise from which the closed point is a minimum.

    See :mod:`theory.escape`. Measured: gradient flow of the loss averaged over samples of the
    noise, with a price on the library's P(open) of every gate, from 10⁻³u until |⟨u, θ⟩| = 0.02;
    and the σ at which the least curvature of that loss at 0 changes sign. Above that σ and without
    a price: the time in which ⟨u, θ⟩ halves. The price is named by a*/ε without noise.
    """
    cases, rows = [], []
    problems = settings.drawn("well-conditioned", "under-parameterised")
    large = settings.problems > 2
    chosen = [p for p in problems if p.name.endswith((" 0", " 1") if large else " 0")]
    for place, problem in enumerate(chosen):
        grid = large and not place
        most = stabilising_noise(problem)
        edge = brentq(lambda s, p=problem: least_curvature(p, s), most / 2, 2 * most, xtol=1e-6)
        cases.append(Case(problem.name, "equal", most, float(edge), 1e-4, "threshold"))
        still = NoisySaddle.of(problem, 0.0)
        unit = still.balance(float(price_slope(0.0, 1.0, PROBABILITY_STD)))
        for share in (*(NOISES if grid else NOISES[::2]), *BEYOND):
            saddle = NoisySaddle.of(problem, share * most)
            for balance in BALANCES if grid else BALANCES[::3]:
                price = balance * START / unit
                slope = float(price_slope(0.0, price, PROBABILITY_STD))
                predicted = min(saddle.time(START, END, slope), HORIZON)
                name = f"{problem.name}, σ = {share:g} σ_c, a* = {balance:g} ε"
                # Infinite as predicted: ⟨u, θ⟩ decays, and how fast is what can be measured.
                decays = share > 1 and not balance
                if decays:
                    name, predicted = f"{name}, halved", float(np.log(2) / abs(saddle.rate))
                found = saddle_time(problem, share * most, price, saddle, halved=decays)
                constant = "beyond" if share > 1 else "time"
                cases.append(Case(name, "equal", predicted, found, 0.03, constant))
                if not decays:
                    rows.append(
                        {"problem": problem.name, "noise": share, "sigma": share * most,
                         "balance": balance, "price": price, "time": found,
                         "predicted": predicted, "side": saddle.side(START, slope)}
                    )  # fmt: skip
    return Check(
        "escape-saddle",
        12,
        "law",
        "under noise σ < σ_c and a price λ on every gate the flow leaves (0, 0) in T(σ, λ) = "
        "log((±R − a*)/(ε − a*))/s, −s(σ) the least eigenvalue of [[σ²Diag(d), −S], [−Sᵀ, σ²H]], "
        "a* = λφ(0)Σu/σ_p s, σ_c² = σ₁(Diag(d)^{-½} S H^{-½}); above σ_c ⟨u, θ⟩ decays as "
        "e^{−|s|t} without a price, and with one it falls towards a* < 0, to −R in the same T",
        "no clipping; from εu, u the eigenvector of −s; R ≪ 1; H regular; above σ_c: a* < −R",
        tuple(cases),
        claim="bilinear",
        frames={"escape_saddle": pd.DataFrame(rows)},
    )


def left_plateau(sigma: float, prices: Array, rates: Array, most: int, seed: int) -> Array:
    """Mean times at which library gates with target penalty and fresh noise reach m = 1.

    Args:
        sigma: of the noise.
        prices: λ of one gate, shape (k,).
        rates: learning rates of SGD, shape (k,).
        most: number of steps.
        seed: of the noise.

    Returns:
        steps times rate, shape (k,); infinite if a copy does not arrive.
    """
    gate = noisy_gate(len(prices) * COPIES, sigma, seed=seed, probability_std=PROBABILITY_STD)
    nn.init.constant_(gate.latent, RELEASED_START)
    weight, rate = (torch.as_tensor(each).repeat_interleave(COPIES) for each in (prices, rates))
    left = torch.full_like(gate.latent, float("inf")).detach()
    for step in range(1, most + 1):
        penalty = PENALTIES["target"](gate.open_probability(), 0.4)
        loss = (gate.sample() ** 2 / 2 + weight * penalty).sum()
        (slope,) = torch.autograd.grad(loss, gate.latent)
        with torch.no_grad():
            gate.latent.sub_(rate * slope)
        arrived = (gate.latent.detach() <= 1.0) & torch.isinf(left)
        left[arrived] = float(step)
        if not torch.isinf(left).any():
            break
    return (left * rate).view(len(prices), COPIES).mean(dim=1).numpy()


def check_plateau_time(settings: Settings) -> Check:
    """T(σ, λ) = ∫ dm/(½q'(m) + λφ(m/σ_p)/σ_p) from the released start to m = 1.

    See :mod:`theory.escape`. Measured with SGD on the library's gates and its target penalty, which
    at these centres is P minus a constant, as a mean over copies. The learning rate is small, so
    that one gradient moves a gate little. Where the price is strong, its part of T is tested on its
    own, and the largest price attains the bound that holds for any noise.
    """
    cases, rows = [], []
    small = settings.problems <= 2
    prices = np.array(PRICES[::3] if small else PRICES)
    for sigma, steps in STEPS.items():
        if small and steps > 1000:
            continue
        times = np.array([plateau_time(RELEASED_START, sigma, p, PROBABILITY_STD) for p in prices])
        seed = int(settings.random("plateau", sigma).integers(2**31))
        found = left_plateau(sigma, prices, times / steps, 4 * steps, seed)
        for price, predicted, time in zip(
            prices.tolist(), times.tolist(), found.tolist(), strict=True
        ):
            name, strong = f"σ = {sigma}, λ = {price:g}", price >= STRONG
            constant, slack = ("price", STRONG_SLACK) if strong else ("time", 0.1)
            cases.append(Case(name, "equal", predicted, time, slack, constant))
            most = price_time(RELEASED_START, price, PROBABILITY_STD) if price else float("inf")
            rows.append(
                {"sigma": sigma, "price": price, "time": time, "predicted": predicted,
                 "bound": most}
            )  # fmt: skip
            if strong:
                cases.append(Case(f"{name}, bound", "at most", most, time, STRONG_SLACK, "bound"))
    return Check(
        "escape-plateau",
        12,
        "law",
        "from m₀ above 1 a gate under noise σ and a price λ reaches m = 1 in T(σ, λ) = "
        "∫ dm/(½q'(m) + λφ(m/σ_p)/σ_p), and for any noise in at most "
        "πσ_p²(erfi(m₀/√2σ_p) − erfi(1/√2σ_p))/λ, attained as λ → ∞",
        "one gate, task ½ω², SGD with small steps; the released start and σ_p",
        tuple(cases),
        claim="convergence",
        frames={"escape_plateau": pd.DataFrame(rows)},
    )
