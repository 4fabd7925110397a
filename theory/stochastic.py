"""Stochastic gradient descent with fresh gate noise, on column gates.

μ ← μ − η_k g_k, g_k = 1[0 < μ + ε < 1] ∇q(clip(μ + ε)), ε ~ N(0, σ² I) drawn at every step. While
gates stay several σ inside (0, 1) nothing is clipped and g = H(μ + ε) − b. In the eigenbasis of H
every mode is then a scalar recursion e ← (1 − ηλ)e − ηλ ε with exactly known moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from theory.problems import Array
from theory.quadratic import Quadratic
from theory.relaxation import Relaxed

Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Descent:
    """Runs of stochastic gradient descent.

    Attributes:
        steps: the recorded steps k, shape (s,).
        centres: μ_k of every run, shape (s, runs, d).
    """

    steps: Array
    centres: Array


def stochastic_descent(
    quadratic: Quadratic,
    start: Array,
    sigma: float,
    rate: Callable[[int], float] | float,
    record: Steps,
    runs: int,
    seed: int,
) -> Descent:
    """Runs stochastic gradient descent with clipped gates.

    Args:
        quadratic: the loss.
        start: μ_0, shape (d,).
        sigma: standard deviation of the gate noise.
        rate: η_k as a function of k, or a constant η.
        record: the steps to keep, increasing integers.
        runs: number of independent runs.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    centres = np.tile(start, (runs, 1))
    kept, wanted = [], {int(k) for k in record}
    hessian, linear = quadratic.hessian, quadratic.linear
    last = int(record[-1])
    for k in range(last + 1):
        if k in wanted:
            kept.append(centres)
        noisy = centres + sigma * random.standard_normal(centres.shape)
        gates = np.clip(noisy, 0.0, 1.0)
        gradient = np.where(gates == noisy, gates @ hessian - linear, 0.0)
        centres = centres - (rate(k) if callable(rate) else rate) * gradient
    return Descent(np.asarray(record, dtype=np.float64), np.stack(kept))


def excess(quadratic: Quadratic, centres: Array) -> Array:
    """q(μ) − q*, over the leading dimensions of ``centres``."""
    error = centres - quadratic.minimiser()
    return np.asarray(np.einsum("...i,ij,...j->...", error, quadratic.hessian, error) / 2)


def noise_ball(quadratic: Quadratic, sigma: float, rate: float) -> float:
    """E q(μ) − q* in the stationary state, exactly: ½ σ² Σ_i η λ_i²/(2 − ηλ_i), for η < 2/λ_max.

    A mode's variance v satisfies v = (1 − ηλ)² v + η²λ²σ². For small η the gap is ησ² tr(H²)/4: a
    ball of loss that grows linearly in the step and in σ².
    """
    values, _ = quadratic.spectrum()
    if not 0 < rate < 2 / values[-1]:
        raise ValueError(f"the step {rate} must lie between 0 and 2/λ_max = {2 / values[-1]}")
    return float(sigma**2 * np.sum(rate * values**2 / (2 - rate * values)) / 2)


def expected_excess(
    quadratic: Quadratic, start: Array, sigma: float, rate: float, steps: Steps
) -> Array:
    """E q(μ_k) − q* with a constant step, exactly: every mode contracts to its noise ball.

    ½ Σ λ_i [(1 − ηλ_i)^{2k} e_i² + (1 − (1 − ηλ_i)^{2k}) σ²ηλ_i/(2 − ηλ_i)].
    """
    values, vectors = quadratic.spectrum()
    error = vectors.T @ (start - quadratic.minimiser())
    decay = (1 - rate * values)[None, :] ** (2 * np.asarray(steps)[:, None])
    ball = sigma**2 * rate * values / (2 - rate * values)
    return np.asarray((decay * error**2 + (1 - decay) * ball) @ values / 2)


def decaying_constant(quadratic: Quadratic, sigma: float, scale: float) -> float:
    """lim k (E q(μ_k) − q*) with η_k = scale/(k + k₀): ½ σ² Σ_i scale² λ_i³/(2 scale λ_i − 1).

    From v_{k+1} = (1 − scale λ/k)² v_k + scale² λ² σ²/k², whose solution is v ~ a/k with a (2 scale
    λ − 1) = scale² λ² σ². Needs scale > 1/2μ; otherwise the slowest mode decays more slowly.
    """
    values, _ = quadratic.spectrum()
    values = values[values > 0]
    if not scale * values[0] > 0.5:
        raise ValueError(
            f"the scale {scale} must exceed 1/(2 mu) = {0.5 / values[0]:.3g} for a rate of 1/k"
        )
    return float(sigma**2 * np.sum(scale**2 * values**3 / (2 * scale * values - 1)) / 2)


def expected_squared_gradient(
    quadratic: Quadratic, start: Array, sigma: float, rate: float, steps: Steps
) -> Array:
    """E‖∇q(μ_k)‖² with a constant step, exactly, while nothing is clipped; shape (steps,).

    Σ λ_i² [(1 − ηλ_i)^{2k} e_i² + (1 − (1 − ηλ_i)^{2k}) σ²ηλ_i/(2 − ηλ_i)].
    """
    values, vectors = quadratic.spectrum()
    error = vectors.T @ (start - quadratic.minimiser())
    decay = (1 - rate * values)[None, :] ** (2 * np.asarray(steps)[:, None])
    ball = sigma**2 * rate * values / (2 - rate * values)
    return np.asarray((decay * error**2 + (1 - decay) * ball) @ values**2)


def stationarity_bound(
    relaxed: Relaxed, start: Array, low: float, rate: float, steps: int
) -> float:
    """Upper bound on the mean over k < K of E‖∇F(μ_k)‖²: (F(μ_0) − low)/(ηK) + ½ηΛv.

    It sums the descent lemma for an unbiased gradient, E F_{k+1} ≤ F_k − η‖∇F_k‖² + ½η²Λv. Λ is the
    Lipschitz constant of ∇F, v a bound on E‖g‖², and ``low`` a lower bound of F. With η ~ 1/√K it
    is O(1/√K). No convexity is used.
    """
    second_moment = float(np.sum(relaxed.gradient_bound() ** 2))
    return (relaxed.value(start) - low) / (
        rate * steps
    ) + rate * relaxed.lipschitz_bound() * second_moment / 2


def minibatch_ball(design: Array, targets: Array, sigma: float, rate: float, batch: int) -> float:
    """E q(μ) − q* in the stationary state with minibatches and gate noise, exactly: ½ tr(HV).

    V = E(I − ηH_B)V(I − ηH_B) + η²σ² E H_B² + η² Cov g_B, a linear system in V. For ``batch`` rows
    drawn with replacement, E H_B X H_B = HXH + (E H_i X H_i − HXH)/batch and Cov g_B = Cov
    g_i/batch, with H_i and g_i of one row at the optimum.

    Args:
        design: outputs as a linear function of the gates, shape (rows, outputs, d).
        targets: shape (rows, outputs).
        sigma: of the gate noise.
        rate: η.
        batch: rows of a minibatch.
    """
    count, _, size = design.shape
    single = np.einsum("imd,ime->ide", design, design)  # H_i, (rows, d, d)
    mean = single.mean(axis=0)
    linear = np.einsum("imd,im->id", design, targets)  # (rows, d)
    best = np.linalg.lstsq(mean, linear.mean(axis=0), rcond=None)[0]
    gradients = single @ best - linear  # g_i at the optimum, (rows, d)
    squares = np.einsum("iab,icd->acbd", single, single).reshape(size**2, size**2) / count
    whole = np.kron(mean, mean)
    pair = whole + (squares - whole) / batch  # X ↦ E H_B X H_B, on matrices flattened row by row
    # Stationarity in vec(V): drift vec(V) = η² noise.
    eye = np.eye(size)
    drift = rate * (np.kron(mean, eye) + np.kron(eye, mean)) - rate**2 * pair
    noise = sigma**2 * (pair @ eye.reshape(-1)) + (gradients.T @ gradients).reshape(-1) / (
        count * batch
    )
    covariance = np.linalg.solve(drift, rate**2 * noise).reshape(size, size)
    return float(np.trace(mean @ covariance) / 2)


def fitted_slopes(x: Array, y: Array) -> Array:
    """Slopes of log y against log x by least squares, over the last dimension of y."""
    logs = np.log(np.asarray(x, dtype=np.float64))
    centred = logs - logs.mean()
    return np.asarray(np.log(y) @ centred / (centred @ centred))
