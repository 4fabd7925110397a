"""Item 5: the Gaussian relaxation."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pandas as pd
import torch
from scipy.integrate import quad
from scipy.optimize import minimize

from finegates.gates.presets import GatePreset
from finegates.gates.stochastic import StochasticGate
from theory.box import box_minimiser
from theory.cases import Case
from theory.checks.settings import Settings
from theory.evidence import Check
from theory.intervals import interval
from theory.outputs import quadratic_of_outputs
from theory.problems import Array
from theory.quadratic import column_quadratic
from theory.relaxation import (
    PEAK,
    Relaxed,
    density,
    inside_charge,
    mean_clip,
    mean_clip_curvature,
    mean_clip_slope,
    square_clip,
    square_clip_slope,
)
from theory.stochastic import fitted_slopes

SIGMAS = (0.05, 0.1, 0.3, 1.0)
CENTRES = (-0.4, 0.0, 0.3, 0.9, 1.5)
LIPSCHITZ_SIGMAS = np.geomspace(0.003, 1.0, 16)


def by_quadrature(power: int, centre: float, sigma: float) -> float:
    """E clip(μ + σZ, 0, 1)^power by ``scipy.integrate.quad``, restricted to the bulk of the
    density.
    """

    def integrand(x: float) -> float:
        return x**power * float(density(np.array((x - centre) / sigma))) / sigma

    # Otherwise the rule would miss a narrow peak inside a wide interval.
    cuts = np.unique(np.clip([0.0, centre - 9 * sigma, centre, centre + 9 * sigma, 1.0], 0.0, 1.0))
    middle = sum(
        quad(integrand, low, high, epsabs=1e-14, epsrel=1e-12, limit=200)[0]
        for low, high in pairwise(cuts)
    )
    low, high = (float(np.clip(end, -9.0, 9.0)) for end in ((1 - centre) / sigma, np.inf))
    tail, _ = quad(lambda x: float(density(np.array(x))), low, high, epsabs=1e-15)
    return float(middle + tail)


def noisy_gate(
    size: int, sigma: float, *, seed: int, probability_std: float | None = None
) -> StochasticGate:
    """A float64 library gate whose latent is its centre.

    Args:
        size: number of gates.
        sigma: of the noise.
        seed: of its noise.
        probability_std: σ_p of P(open); sigma by default.
    """
    std = sigma if probability_std is None else probability_std
    preset = GatePreset("theory", False, 0.0, sigma, std, 1.0, 0.0, "target", False)
    torch.manual_seed(seed)
    return StochasticGate(size, preset).double()


def check_moments(settings: Settings) -> Check:
    """E clip(μ + σZ) = μP + σ(φ(α) − φ(β)) + 1 − Φ(β) and E clip² as in ``theory.relaxation``.

    Split the integral at 0 and 1, with E[Z; α < Z < β] = φ(α) − φ(β) and
    E[Z²; ·] = P + αφ(α) − βφ(β). The slopes are m' = P and q' = 2E[ω; not clipped]. Moments are
    compared with quadrature, and slopes with the limit of the difference quotient, P itself.
    """
    cases = []
    for sigma in SIGMAS:
        for centre in CENTRES:
            where, point = f"μ = {centre}, σ = {sigma}", np.array(centre)
            for power, closed in ((1, mean_clip), (2, square_clip)):
                value = by_quadrature(power, centre, sigma)
                if value > 1e-12:
                    found = float(closed(point, sigma))
                    cases.append(Case(f"{where}, power {power}", "equal", value, found, 1e-9))
            width = 1e-5 * sigma
            for closed, slope in ((mean_clip, mean_clip_slope), (square_clip, square_clip_slope)):
                rise = float(closed(point + width, sigma) - closed(point - width, sigma))
                if rise > 1e-9:
                    # Central differences: error width²/6 · third derivative + eps/width.
                    cases.append(
                        Case(
                            f"{where}, slope of {closed.__name__}",
                            "equal",
                            rise / (2 * width),
                            float(slope(point, sigma)),
                            1e-4,
                        )
                    )
    return Check(
        "relaxation-moments",
        5,
        "law",
        "E clip(μ + σZ, 0, 1), E clip² and their slopes have the closed forms of "
        "theory.relaxation (against quadrature)",
        "σ > 0",
        tuple(cases),
    )


def check_monte_carlo(settings: Settings) -> Check:
    """The mean of ``StochasticGate.sample()`` and of its square, against the closed forms.

    The tolerance is five standard errors, so false alarms are rarer than one in 10^4 runs of the
    check.
    """
    cases = []
    for sigma in SIGMAS:
        for centre in (0.0, 0.3, 0.9):
            seed = int(settings.random("moments", sigma, centre).integers(2**31))
            gate = noisy_gate(settings.samples, sigma, seed=seed)
            gate.latent.data.fill_(centre)
            sample = gate.sample().detach().numpy()
            for power, closed in ((1, mean_clip), (2, square_clip)):
                predicted = float(closed(np.array(centre), sigma))
                error = float(np.std(sample**power) / np.sqrt(len(sample)))
                cases.append(
                    Case(
                        f"μ = {centre}, σ = {sigma}, power {power}",
                        "equal",
                        predicted,
                        float(np.mean(sample**power)),
                        5 * error / predicted,
                    )
                )
    return Check(
        "relaxation-modules",
        5,
        "law",
        "samples of the library's gates have these means (Monte Carlo, five standard errors)",
        "fresh Gaussian noise",
        tuple(cases),
    )


def measured_lipschitz(relaxed: Relaxed, random: np.random.Generator, starts: int) -> float:
    """Largest ‖∇²F‖ found, at the predicted worst corner and at random points moved to edges."""
    size, sigma = len(relaxed.quadratic.linear), relaxed.sigma
    corner = relaxed.steepest_corner()
    points = [corner]
    j = int(np.argmin(np.abs(corner * (corner - 1))))
    for shift in np.linspace(-2, 2, 9) * sigma:
        moved = corner.copy()
        moved[j] += shift
        points.append(moved)
    points += [*random.uniform(-0.2, 1.2, (starts, size))]
    edges = (random.uniform(size=(starts, size)) > 0.5).astype(np.float64)
    points += [*(edges + 0.5 * sigma * random.standard_normal((starts, size)))]
    return max(float(np.abs(np.linalg.eigvalsh(relaxed.hessian(p))).max()) for p in points)


def check_lipschitz(settings: Settings) -> Check:
    """sup ‖∇²F‖ ≤ ‖off-diagonal H‖ + max_j [H_jj max(1, κ) + β_j κ], κ = φ(0)/σ.

    F_jk = H_jk m'_j m'_k with 0 ≤ m' ≤ 1; |m''| ≤ κ and ½|q''| ≤ max(P, φ(β)/σ). So version 1's
    claim holds here: the relaxed task loss has a Lipschitz gradient for every σ > 0.
    """
    cases, rows = [], []
    for problem in settings.drawn("well-conditioned", "ill-conditioned", "rank-deficient"):
        for sigma in LIPSCHITZ_SIGMAS:
            relaxed = Relaxed(column_quadratic(problem), float(sigma))
            random = settings.random("lipschitz", problem.name)
            seen = Relaxed(quadratic_of_outputs(problem), float(sigma))
            found = measured_lipschitz(seen, random, 12)
            bound = relaxed.lipschitz_bound()
            cases.append(Case(f"{problem.name}, σ = {sigma:.3g}", "at most", bound, found))
            rows.append(
                {
                    "problem": problem.name,
                    "sigma": float(sigma),
                    "measured": found,
                    "bound": bound,
                    "limit": relaxed.lipschitz_growth() / float(sigma),
                    "hard": column_quadratic(problem).smoothness,
                }
            )
    return Check(
        "relaxation-lipschitz",
        5,
        "law",
        "the relaxed objective has a Lipschitz gradient, with constant at most ‖off H‖ + "
        "max_j [H_jj max(1, κ) + β_j κ], κ = 1/(σ√2π)",
        "column gates, σ > 0",
        tuple(cases),
        claim="convergence",
        frames={"lipschitz": pd.DataFrame(rows)},
    )


def steepest_found(relaxed: Relaxed, random: np.random.Generator) -> float:
    """Largest |∂²F/∂μ_j²| that coordinate search finds, by differences of the gradient.

    Each search holds one gate at a bound. It moves the others one at a time far beyond either
    bound, as long as the curvature, or its negative, grows. It does not use the predicted position.
    """
    size, sigma = len(relaxed.quadratic.linear), relaxed.sigma
    far = 40 * sigma

    def curvature(centres: Array, j: int, sign: float) -> float:
        ends = np.stack([centres, centres])
        ends[:, j] += 1e-3 * sigma * np.array([1.0, -1.0])
        up, down = relaxed.gradient(ends)[:, j]
        return float(sign * (up - down) / (2e-3 * sigma))

    best = 0.0
    for j in range(size):
        for bound, sign in product((0.0, 1.0), (1.0, -1.0)):
            centres = random.uniform(-0.2, 1.2, size)
            centres[j] = bound
            found, moved = curvature(centres, j, sign), True
            while moved:
                moved = False
                for k in set(range(size)) - {j}:
                    for place in (-far, 1 + far):
                        trial = centres.copy()
                        trial[k] = place
                        value = curvature(trial, j, sign)
                        if value > found + 1e-9 * abs(found):
                            centres, found, moved = trial, value, True
            best = max(best, found)
    return best


def check_growth(settings: Settings) -> Check:
    """lim σ Λ(σ) = max over the box and j of |∂_j L| / √(2π), as σ → 0.

    :meth:`theory.relaxation.Relaxed.lipschitz_growth` has the proof. So the growth is exactly C/σ,
    unless the loss is stationary on the whole box. Measured at σ = 10^-5, where the constant term
    is below 10^-3 of the growing one, by a search that does not know the predicted corner. Also
    measured as minus the slope of log Λ against log σ below 10^-3, with its interval over problems.
    """
    cases = []
    slopes = []
    small = np.geomspace(1e-4, 1e-3, 4)
    for problem in settings.drawn("well-conditioned", "ill-conditioned", "rank-deficient"):
        relaxed = Relaxed(column_quadratic(problem), 1e-5)
        seen = quadratic_of_outputs(problem)
        random = settings.random("growth", problem.name)
        found = 1e-5 * steepest_found(Relaxed(seen, 1e-5), random)
        cases.append(Case(problem.name, "equal", relaxed.lipschitz_growth(), found, 1e-2))
        values = [measured_lipschitz(Relaxed(seen, float(s)), random, 4) for s in small]
        slopes.append(float(fitted_slopes(small, np.array(values))))
    low, high = interval(np.array(slopes), "growth") if len(slopes) > 1 else (slopes[0],) * 2
    middle = float(np.median(slopes))
    named = f"slope of log Λ in log σ, 95 % interval {low:.3f} to {high:.3f}"
    slack = max(0.03, high - low)
    cases.append(Case(named, "equal", 1.0, -middle, slack, "exponent"))
    return Check(
        "relaxation-growth",
        5,
        "law",
        "as σ → 0 its Lipschitz constant grows as C/σ with C = max |∂_jL| over the box / √2π",
        "column gates; the gradient is not zero on the whole box",
        tuple(cases),
        claim="convergence",
    )


def descend_relaxed(relaxed: Relaxed, start: Array) -> tuple[Array, float]:
    """A minimiser of F by L-BFGS from given centres, and F there.

    If a gate should be exactly closed or open, F has no minimiser: F decreases towards μ = ∓∞. So
    centres are limited to 6σ beyond the box.
    """
    sigma = relaxed.sigma

    # In units of σ, F has the same scale for every σ.
    def value(x: Array) -> float:
        return relaxed.value(x * sigma)

    def gradient(x: Array) -> Array:
        return relaxed.gradient(x * sigma) * sigma

    point, height = np.asarray(start / sigma, dtype=np.float64), np.inf
    # Nearer bounds first: far outside, the slope is too small to bring back a gate on the wrong
    # side.
    for wide in (2.5, 6.0):
        found = minimize(
            value,
            np.asarray(np.clip(point, -wide, 1 / sigma + wide), dtype=np.float64),
            jac=gradient,
            method="L-BFGS-B",
            bounds=[(-wide, 1 / sigma + wide)] * len(start),
            options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 2000},
        )
        point, height = np.asarray(found.x, dtype=np.float64), float(found.fun)
    return point * sigma, height


def relaxed_minimum(relaxed: Relaxed, best: Array) -> tuple[Array, float]:
    """The best minimiser of F found from the hard optimum and from nearby vertices.

    F is not convex (``relaxation-minima``), so gates within a third of a bound start at the bound
    or inside.
    """
    wide = 3 * relaxed.sigma
    ends = np.where(best < 0.5, -wide, 1 + wide)
    # A gate on a bound starts beyond it, because noise costs most at the bound.
    on_bound = (best <= 1e-9) | (best >= 1 - 1e-9)
    near = (best < 1 / 3) | (best > 2 / 3)
    starts = [np.where(chosen, ends, best) for chosen in (on_bound, near, np.ones_like(near))]
    return min((descend_relaxed(relaxed, s) for s in starts), key=lambda found: found[1])


def check_bias(settings: Settings) -> Check:
    """0 ≤ min F − L*_box ≤ ½σ² Σ_{j inside} H_jj + small, and the ratio tends to 1 as σ → 0.

    Lower bound: E L(clip) averages values of L over the box, hence is ≥ L*_box. Upper bound: take
    centres at ω* for gates inside (variance σ², mean exact up to the tails), and far beyond the
    bound for the others (no variance). Measured: (F* − L*)/σ² against ½ Σ_{inside} H_jj, at a σ for
    which inside gates are at least 5σ from the bounds.
    """
    cases, rows = [], []
    for problem in settings.drawn("well-conditioned", "ill-conditioned"):
        quadratic, seen = column_quadratic(problem), quadratic_of_outputs(problem)
        best = box_minimiser(problem)
        low = seen.value(best)
        inside = (best > 1e-9) & (best < 1 - 1e-9)
        margin = np.where(inside, np.minimum(best, 1 - best), np.inf).min()
        if not inside.any():
            continue
        sigma = float(min(0.02, margin / 5))
        _, found = relaxed_minimum(Relaxed(seen, sigma), best)
        predicted = inside_charge(quadratic, np.where(inside, best, -1.0), sigma)
        cases.append(Case(problem.name, "equal", predicted, found - low, 0.05))
        for wide in np.geomspace(0.01, 1.0, 9):
            centres, relaxed_low = relaxed_minimum(Relaxed(quadratic, float(wide)), best)
            rows.append(
                {
                    "problem": problem.name,
                    "sigma": float(wide),
                    "relaxed": (relaxed_low - low) / quadratic.constant,
                    "evaluated": max(quadratic.value(np.clip(centres, 0, 1)) - low, 0.0)
                    / quadratic.constant,
                    "predicted": wide**2
                    * float(np.diag(quadratic.hessian)[inside].sum())
                    / (2 * quadratic.constant),
                }
            )
    return Check(
        "relaxation-bias",
        5,
        "law",
        "the relaxed optimum lies above the hard one by ½σ² Σ H_jj over the gates inside (0, 1), "
        "as σ → 0",
        "column gates, a regular Hessian; gates inside are 5σ from the bounds",
        tuple(cases),
        frames={"bias": pd.DataFrame(rows)},
    )


def check_curvature_peak(settings: Settings) -> Check:
    """m''(μ) = (φ(μ/σ) − φ((1 − μ)/σ))/σ: a peak of height 1/(σ√2π) at 0, and its negative mirror
    image at 1.

    Measured by second differences of the mean from ``scipy.integrate.quad``, at both bounds and
    half a σ to either side of them.
    """
    cases = []
    for sigma in (0.05, 0.1, 0.2):
        width = 0.02 * sigma
        for bound, sign in ((0.0, 1.0), (1.0, -1.0)):
            for shift in (-0.5, 0.0, 0.5):
                centre = bound + shift * sigma
                low, middle, high = (
                    by_quadrature(1, centre + step, sigma) for step in (-width, 0.0, width)
                )
                # Second differences: error width²/12 times the fourth derivative, below 10^-4 of
                # m''.
                found = sign * (low - 2 * middle + high) / width**2
                closed = sign * float(mean_clip_curvature(np.array(centre), sigma))
                name = f"σ = {sigma}, μ = {bound:g} + {shift:g} σ"
                cases.append(Case(name, "equal", found, closed, 1e-3, f"at {bound:g}"))
                if not shift:
                    peak = Case(f"{name}, peak", "equal", PEAK / sigma, found, 1e-3)
                    cases.append(replace(peak, constant="peak"))
    return Check(
        "relaxation-curvature",
        5,
        "law",
        "the second derivative of E clip(μ + σZ) is a bump of height 1/(σ√2π) at 0 and its mirror "
        "image at 1 (against quadrature)",
        "σ ≤ 0.2, where the two bounds do not interact",
        tuple(cases),
    )
