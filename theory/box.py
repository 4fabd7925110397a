"""Gates in [0, 1]: clipping makes plateaus; the box-constrained problem satisfies proximal PL.

Through clip(μ, 0, 1) the pathwise gradient of a gate outside (0, 1) is zero for every loss. So
∇ = 0 and L > L* on the open set where all gates are outside. The same problem over ω in the box
satisfies a *proximal* PL inequality (Karimi, Nutini and Schmidt 2016)

    ½ D(ω) ≥ μ (L(ω) − L*),   D(ω) = −2Λ min over y in the box of ⟨∇L, y − ω⟩ + Λ/2 ‖y − ω‖²,

with Λ = λ_max(H). Under it, projected gradient descent converges at the rate 1 − μ/Λ.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from scipy.optimize import lsq_linear

from theory.problems import Array, Problem
from theory.quadratic import Quadratic, rank_tolerance

MOST_SUBSETS = 20_000
"""Largest number of bases that :func:`box_constant` enumerates."""


def clip(centres: Array) -> Array:
    """Clips entries to [0, 1]."""
    return np.clip(centres, 0.0, 1.0)


def pathwise_gradient(quadratic: Quadratic, centres: Array) -> Array:
    """Gradient by back-propagation through ω = clip(μ): ∇q(ω) where 0 < μ < 1, else 0."""
    inside = (centres > 0) & (centres < 1)
    return np.where(inside, quadratic.gradient(clip(centres)), 0.0)


def box_minimiser(problem: Problem) -> Array:
    """Column gates of least loss in [0, 1]^d by ``scipy.optimize.lsq_linear``, row gates at 1."""
    # One column for each gate, with the entries X_ij W_aj for (sample, row).
    design = (problem.inputs[:, None, :] * problem.weight[None]).reshape(-1, problem.cols)
    found = lsq_linear(
        design, problem.targets.reshape(-1), bounds=(0.0, 1.0), method="bvls", tol=1e-14
    )
    return clip(found.x)


def prox_decrease(quadratic: Quadratic, gates: Array) -> float:
    """½ D(ω) with Λ = λ_max(H): the model's decrease over the box, times Λ."""
    smoothness = quadratic.smoothness
    gradient = quadratic.gradient(gates)
    step = clip(gates - gradient / smoothness) - gates
    return float(-smoothness * (gradient @ step + smoothness / 2 * step @ step))


def box_constant(quadratic: Quadratic) -> float:
    """The largest proximal PL constant on the box that holds for all targets.

    It is

        μ = min over K with rank H_KK = |K| = rank H of λ_min(H_KK).

    For H ≻ 0 this is λ_min(H), by strong convexity. For H = AᵀA of rank ρ < d, let x be in the box
    and p its projection on the minimisers {x in the box: Ax = z}.

    1. v = x − p = Aᵀλ + ν, where ν is supported on the bounds that are active at p, and vᵀν ≤ 0
       because x is in the box.
    2. By Carathéodory, the columns of A outside ν's support J may be assumed to have rank ρ. So
       ‖v‖² ≤ ⟨Av, λ⟩.
    3. On the columns outside J, ‖λ‖ ≤ ‖v‖/σ_ρ(A outside J). Hence ‖Av‖ ≥ σ_ρ ‖v‖, a Hoffman bound.
    4. This bound replaces strong convexity in L* ≥ L(x) + ⟨∇L, p − x⟩ + ½‖A(p − x)‖².
    5. Fewer columns have a smaller σ_ρ, so the minimum is over bases K.

    :func:`attaining` has targets for which it is attained.

    Raises:
        ValueError: more than ``MOST_SUBSETS`` bases.
    """
    return slowest_base(quadratic)[0]


def slowest_base(quadratic: Quadratic) -> tuple[float, list[int]]:
    """μ of :func:`box_constant` and its base K; infinite and empty for H = 0.

    Raises:
        ValueError: more than ``MOST_SUBSETS`` bases.
    """
    hessian = quadratic.hessian
    size = len(hessian)
    values, _ = quadratic.spectrum()
    rank = int(np.sum(values > 0))
    if rank == 0:
        return float("inf"), []
    if comb(size, rank) > MOST_SUBSETS:
        raise ValueError(
            f"{comb(size, rank)} bases of {rank} among {size} gates are too many to enumerate; "
            "take a smaller problem"
        )
    floor = rank_tolerance(size, quadratic.roundings) * values[-1]
    smallest = [
        (float(np.linalg.eigvalsh(hessian[np.ix_(chosen, chosen)])[0]), chosen)
        for chosen in map(list, combinations(range(size), rank))
    ]
    return min(found for found in smallest if found[0] > floor)


def attaining(quadratic: Quadratic) -> tuple[Array, Array]:
    """Gates p and x: with targets for which p is a minimiser, the proximal PL ratio at x is μ.

    On the base K of μ, p is inside and x = p + εv with the slowest eigenvector v of H_KK. The other
    gates are at the bound to which the gradient εH_{·K}v at x pushes them. So the proximal step at
    x moves K alone, by −εμv/Λ, and ½D = ½ε²μ² where L − L* = ½ε²μ.
    """
    _, chosen = slowest_base(quadratic)
    hessian = quadratic.hessian
    slowest = np.linalg.eigh(hessian[np.ix_(chosen, chosen)])[1][:, 0]
    best = np.where(hessian[:, chosen] @ slowest < 0, 1.0, 0.0)
    best[chosen] = 0.5
    point = best.copy()
    point[chosen] += 0.1 * slowest
    return best, point


def path_in_box(quadratic: Quadratic, start: Array, steps: int) -> Array:
    """Gates ω_k, k = 0..steps, of projected gradient descent with step 1/λ_max, (steps + 1, d)."""
    step = 1.0 / quadratic.smoothness
    path = np.empty((steps + 1, len(start)))
    path[0] = clip(start)
    for k in range(steps):
        path[k + 1] = clip(path[k] - step * quadratic.gradient(path[k]))
    return path


def descend_in_box(quadratic: Quadratic, start: Array, optimum: float, steps: int) -> Array:
    """Gaps q(ω_k) − ``optimum``, k = 0..steps, of projected gradient descent with step 1/λ_max."""
    path = path_in_box(quadratic, start, steps)
    return np.array([quadratic.value(gates) for gates in path]) - optimum


def price_prox(point: Array, price: float, target: float) -> Array:
    """argmin over y in the box of ½‖y − x‖² + λ|mean y − t|, by bisection on the multiplier.

    y(ν) = clip(x − ν/d) with ν in [−λ, λ]. The mean of y(ν) decreases in ν. The solution is the ν
    at which it equals t, or an end of the interval if there is none.
    """
    size = len(point)
    low, high = -price, price
    # The mean misses the target for all multipliers: take the nearer end.
    if clip(point - high / size).mean() > target:
        return clip(point - high / size)
    if clip(point - low / size).mean() < target:
        return clip(point - low / size)
    while high - low > 1e-15 * (price + size):
        middle = (low + high) / 2
        above = clip(point - middle / size).mean() > target
        low, high = (middle, high) if above else (low, middle)
    return clip(point - (low + high) / (2 * size))


def path_with_price(
    quadratic: Quadratic, start: Array, price: float, target: float, steps: int
) -> Array:
    """Gates of proximal descent on q + λ|mean ω − t| in the box, step 1/λ_max, (steps + 1, d)."""
    step = 1.0 / quadratic.smoothness
    path = np.empty((steps + 1, len(start)))
    path[0] = clip(start)
    for k in range(steps):
        forward = path[k] - step * quadratic.gradient(path[k])
        path[k + 1] = price_prox(forward, step * price, target)
    return path


def price_decrease(quadratic: Quadratic, gates: Array, price: float, target: float) -> float:
    """½ D(ω) of q + λ|mean ω − t| in the box: the model's decrease, times Λ = λ_max(H)."""
    smoothness, gradient = quadratic.smoothness, quadratic.gradient(gates)
    best = price_prox(gates - gradient / smoothness, price / smoothness, target)
    step = best - gates
    change = price * (abs(float(best.mean()) - target) - abs(float(gates.mean()) - target))
    return float(-smoothness * (gradient @ step + smoothness / 2 * step @ step + change))


def two_columns(ratio: float) -> Quadratic:
    """½(ω₁ + a ω₂)², a = ``ratio``: a singular problem that the box makes worse conditioned.

    Its unconstrained PL constant is 1 + a². In the box the point (0, 1) can only move along ω₂, so
    its proximal PL ratio is a². This equals :func:`box_constant`.
    """
    direction = np.array([1.0, ratio])
    return Quadratic(np.outer(direction, direction), np.zeros(2), 0.0, 1)
