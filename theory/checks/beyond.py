"""Item 12: what the paper does not ask: the time near the saddle, and what gates can reach."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.integrate import solve_ivp

from theory.bilinear import jacobian, joint_gradient, joint_loss, residual, saddle_coupling
from theory.checks.settings import Settings
from theory.evidence import Case, Check
from theory.lora import lora_gradient, update_moment
from theory.problems import Array, Problem

SIZES = (1e-2, 1e-3, 1e-4)
"""Distances from (0, 0) at which gradient flow starts."""


def escape_time(problem: Problem, start: Array, radius: float, *, lora: bool) -> float:
    """The time at which gradient flow from a start leaves the ball around 0.

    Args:
        problem: the problem.
        start: θ = (r, c), or (B, A) of rank 1 alike, shape (m + d,).
        radius: of the ball.
        lora: flow of the low-rank factors instead of the gates.
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
    """The time that gradient flow spends near (0, 0) grows by 1/σ₁ for every factor of e of the
    start's smallness: T(ε) = log(1/ε)/σ₁ + const, σ₁ = σ₁(C ∘ W) for gates, σ₁(C) for LoRA.

    There θ' = Sθ + O(‖θ‖³) with the eigenvalues ±σ_i. Closed partners of a block behave the same,
    with φ' of ``flat-closed`` as σ₁: gates that the penalty closes together come back only in a
    time that is logarithmic in how far they are closed, and from exactly 0 never. Starts on the
    unstable direction and in a random one; times until the ball of radius 0.05 is left.
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


def check_reach(settings: Settings) -> Check:
    """What gates reach of a small dense random change of W, against LoRA of equal size.

    For white data a change Δ = εD with D Gaussian is reached, to first order in ε, in its
    projection on the tangent space {δ_a W_aj + W_aj γ_j}, of dimension m + d − 1 for a W without
    zeros: a share of (m + d − 1)/md of ‖D‖², in expectation and for any W. LoRA of rank 1, with as
    many parameters, reaches σ₁²(D)/‖D‖², about (√m + √d)²/md, up to twice as much, for it chooses
    its direction (Davidson and Szarek: E σ₁ ≤ √m + √d). Measured: the share by which a step of
    Gauss and Newton from ω = 1 lowers the loss, ε = 10⁻³, and σ₁² of the same changes.
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
            values = np.linalg.svd(change, compute_uv=False)
            factors.append(float(values[0] ** 2 / np.sum(values**2)))
        predicted = (m + d - 1) / (m * d)
        # The share is a Beta variable with these parameters; five standard errors of its mean.
        spread = np.sqrt(2 * predicted * (1 - predicted) / (m * d + 2) / DRAWS)
        tolerance = float(5 * spread / predicted) + 0.01  # and what is of second order in ε
        cases.append(Case(f"{m} x {d}", "equal", predicted, float(np.mean(gates)), tolerance))
        rows.append(
            {
                "rows": m,
                "cols": d,
                "gates": float(np.mean(gates)),
                "predicted": predicted,
                "lora": float(np.mean(factors)),
                "bound": float((np.sqrt(m) + np.sqrt(d)) ** 2 / (m * d)),
            }
        )
    return Check(
        "reach-dense",
        12,
        "law",
        "of a small dense random change of W, gates reach the share (m + d − 1)/md, for any W; "
        "LoRA 1 with as many parameters up to (√m + √d)²/md",
        "white data, W without zeros, change ≪ W; mean over changes",
        tuple(cases),
        claim="conditioning",
        frames={"reach_dense": pd.DataFrame(rows)},
    )
