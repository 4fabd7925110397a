"""Item 12, beyond the paper: the time near the saddle, and the changes that gates can reach."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.integrate import solve_ivp

from theory.bilinear import jacobian, joint_gradient, joint_loss, residual, saddle_coupling
from theory.cases import Case
from theory.checks.settings import Settings
from theory.evidence import Check
from theory.lora import lora_gradient, lora_minimiser, update_moment
from theory.problems import Array, Problem

SIZES = (1e-2, 1e-3, 1e-4)
"""Distances from (0, 0) at which gradient flow starts."""


def escape_time(problem: Problem, start: Array, radius: float, *, lora: bool) -> float:
    """Time after which gradient flow from ``start`` leaves the ball around 0.

    Args:
        problem: the problem.
        start: θ = (r, c), or (B, A) of rank 1 in the same layout, shape (m + d,).
        radius: of the ball.
        lora: follow the flow of the low-rank factors instead of the gates.
    """

    def flow(_: float, point: Array) -> Array:
        if not lora:
            return -joint_gradient(problem, point)
        b, a = point[: problem.rows, None], point[None, problem.rows :]
        return -np.concatenate([part.ravel() for part in lora_gradient(problem, b, a)])

    def outside(_: float, point: Array) -> float:
        return float(point @ point) - radius**2

    outside.terminal = True  # type: ignore[attr-defined]
    found = solve_ivp(flow, (0, 1e4), start, events=outside, rtol=1e-9, atol=1e-13, method="DOP853")
    assert found.t_events is not None
    return float(found.t_events[0][0])


def check_escape(settings: Settings) -> Check:
    """T(ε) = log(1/ε)/σ₁ + const: the time of gradient flow near (0, 0), from distance ε.

    σ₁ = σ₁(C ∘ W) for gates and σ₁(C) for LoRA. Near 0, θ' = Sθ + O(‖θ‖³) with the eigenvalues
    ±σ_i. Closed partners of a block behave in the same way, with φ' of ``flat-closed`` as σ₁. So
    gates that the penalty closes together reopen in a time that is logarithmic in how far they are
    closed, and from exactly 0 they never reopen. Measured: starts on the unstable direction and in
    a random direction, until the flow leaves the ball of radius 0.05.
    """
    cases, rows = [], []
    for problem in settings.drawn("well-conditioned", "under-parameterised")[:12]:
        random = settings.random("escape", problem.name)
        for method, matrix in (
            ("gates", saddle_coupling(problem)),
            ("LoRA 1", update_moment(problem)),
        ):
            left, singular, right = np.linalg.svd(matrix)
            unstable = np.concatenate([left[:, 0], right[0]]) / np.sqrt(2)
            other = random.standard_normal(len(unstable))
            other *= 0.3 / np.linalg.norm(other)
            times = [
                escape_time(problem, size * (unstable + other), 0.05, lora=method != "gates")
                for size in SIZES
            ]
            slope = float((times[-1] - times[-2]) / np.log(SIZES[-2] / SIZES[-1]))
            name = f"{problem.name}, {method}"
            cases.append(Case(name, "equal", 1 / float(singular[0]), slope, 0.02))
            rows += [
                {"problem": problem.name, "method": method, "size": size, "time": time,
                 "predicted": times[0] + np.log(SIZES[0] / size) / singular[0]}
                for size, time in zip(SIZES, times, strict=True)
            ]  # fmt: skip
    return Check(
        "escape-time",
        12,
        "law",
        "gradient flow from distance ε of (0, 0) needs log(1/ε)/σ₁ + const to leave, σ₁ of "
        "(YᵀX/n) ∘ W for gates, of (Y − XWᵀ)ᵀX/n for LoRA (slope in log(1/ε))",
        "a component along the unstable direction, ε → 0",
        tuple(cases),
        claim="conditioning",
        frames={"escape": pd.DataFrame(rows)},
    )


SHAPES = ((4, 4), (8, 8), (6, 16), (16, 16))
DRAWS = 60


def factor_reach(m: int, d: int) -> float:
    """An upper bound on the expected share of a Gaussian m × d change that LoRA 1 reaches.

    It is E σ₁²/md, since the share does not depend on the size of the change. E σ₁ ≤ √m + √d
    (Davidson and Szarek 2001), and Var σ₁ ≤ 1, since σ₁ is a 1-Lipschitz function of the entries
    (Poincaré's inequality for Gaussians). So it is at most ((√m + √d)² + 1)/md, and at most 1.
    """
    return float(min(1.0, ((np.sqrt(m) + np.sqrt(d)) ** 2 + 1) / (m * d)))


def check_reach(settings: Settings) -> Check:
    """The share of a small dense random change of W that gates reach, against LoRA of equal size.

    For white data, to first order in ε, gates reach the projection of Δ = εD (D Gaussian) on the
    tangent space {δ_a W_aj + W_aj γ_j}. For a W without zeros its dimension is m + d − 1. So the
    expected share of ‖D‖² is (m + d − 1)/md, for any W. LoRA of rank 1 has as many parameters and
    reaches σ₁²(D)/‖D‖² in the mean, see :func:`factor_reach`. This is up to twice as much, because
    LoRA chooses its direction. Measured: the relative decrease of the loss by one Gauss–Newton step
    from ω = 1 with ε = 10⁻³, and of the best factors of rank 1 by reduced-rank regression.
    """
    cases, rows = [], []
    for m, d in SHAPES:
        random = settings.random("reach", m, d)
        weight, ones = random.standard_normal((m, d)) + 0.3, np.ones(m + d)
        gates, factors = [], []
        for _ in range(DRAWS):
            change = 1e-3 * random.standard_normal((m, d))
            inputs = np.sqrt(d) * np.eye(d)
            problem = Problem(inputs, weight, inputs @ (weight + change).T)
            tangent = jacobian(problem, ones)
            step = np.linalg.lstsq(tangent, residual(problem, ones), rcond=None)[0]
            gates.append(1 - joint_loss(problem, ones - step) / joint_loss(problem, ones))
            _, _, low = lora_minimiser(problem, 1)
            factors.append(1 - low / joint_loss(problem, ones))
        predicted = (m + d - 1) / (m * d)
        # The share has a Beta distribution with these parameters; five standard errors of its mean,
        spread = np.sqrt(2 * predicted * (1 - predicted) / (m * d + 2) / DRAWS)
        tolerance = float(5 * spread / predicted) + 0.01  # plus the second-order terms in ε
        name, bound, reached = f"{m} x {d}", factor_reach(m, d), float(np.mean(factors))
        cases.append(Case(name, "equal", predicted, float(np.mean(gates)), tolerance, "gates"))
        # The bound is some ten standard errors above the mean.
        cases.append(Case(f"{name}, LoRA", "at most", bound, reached, constant="LoRA"))
        rows.append(
            {
                "rows": m,
                "cols": d,
                "gates": float(np.mean(gates)),
                "predicted": predicted,
                "lora": reached,
                "bound": bound,
            }
        )
    return Check(
        "reach-dense",
        12,
        "law",
        "of a small dense random change of W, gates reach the share (m + d − 1)/md, for any W; "
        "LoRA 1 with as many parameters at most ((√m + √d)² + 1)/md",
        "white data, W without zeros, change ≪ W; mean over changes",
        tuple(cases),
        claim="conditioning",
        frames={"reach_dense": pd.DataFrame(rows)},
    )
