"""Item 3: row and column gates together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.integrate import solve_ivp

from theory.bilinear import (
    LocalRegion,
    fit_gates,
    jacobian,
    joint_gradient,
    joint_hessian,
    joint_loss,
    local_region,
    pl_ratio,
    saddle_coupling,
    split,
    weight_components,
)
from theory.cases import Case
from theory.checks.settings import ROUNDING, Settings
from theory.critical import nearest_in_plane, smallest_ratio
from theory.evidence import Check
from theory.lora import count_zeros, lora_gradient, lora_loss, lora_minimiser, update_moment
from theory.problems import Array, Problem, draw_problem

DEVIATION = 0.002
"""Distance of the teacher's gates from 1 where W is nearly right."""


def nearly_right(settings: Settings, index: int) -> tuple[Problem, Array]:
    """A problem whose best gates are near 1, and the point of its optimal orbit nearest to 1."""
    drawn = draw_problem("well-conditioned", index, settings.seed)
    random = settings.random("nearly right", index)
    rows = 1 + DEVIATION * random.standard_normal(drawn.rows)
    cols = 1 + DEVIATION * random.standard_normal(drawn.cols)
    noise = DEVIATION * random.standard_normal(drawn.targets.shape)
    targets = drawn.inputs @ (rows[:, None] * drawn.weight * cols).T + noise
    problem = replace(drawn, targets=targets, name=f"nearly right {index}")
    r, c = split(problem, fit_gates(problem))
    scales = np.linspace(0.9, 1.1, 2001)
    distances = [np.sum((t * r - 1) ** 2) + np.sum((c / t - 1) ** 2) for t in scales]
    t = scales[int(np.argmin(distances))]
    return problem, np.concatenate([t * r, c / t])


def check_saddle(settings: Settings) -> Check:
    """At (0, 0): ∇L = 0 and ∇²L = [[0, −S], [−Sᵀ, 0]], S = (YᵀX/n) ∘ W.

    Its least eigenvalue is −σ₁(S), along (u₁, v₁)/√2. The proof expands the loss:
    L(r, c) = ‖Y‖²/2n − rᵀSc + ½‖B(r, c)‖². The saddle is strict iff S ≠ 0. If S = 0 the remaining
    terms are non-negative and (0, 0) is a global minimiser, so it is never a bad local minimum.
    Measured: the curvature of L along that direction by a central difference, exact for this
    quartic up to ε²‖B(u₁, v₁)‖²/4.
    """
    cases = []
    for problem in settings.drawn():
        coupling = saddle_coupling(problem)
        left, singular, right = np.linalg.svd(coupling)
        direction = np.concatenate([left[:, 0], right[0]]) / np.sqrt(2)
        zero = np.zeros(len(direction))
        flat = float(np.linalg.norm(joint_gradient(problem, zero)))
        cases.append(Case(f"{problem.name}, gradient", "at most", 1e-12, flat))
        least = float(np.linalg.eigvalsh(joint_hessian(problem, zero))[0])
        cases.append(Case(f"{problem.name}, Hessian", "equal", singular[0], -least, ROUNDING))
        step = 1e-3
        bend = joint_loss(problem, step * direction) - joint_loss(problem, zero)
        cases.append(
            Case(f"{problem.name}, loss along it", "equal", singular[0], -2 * bend / step**2, 1e-4)
        )
    return Check(
        "joint-saddle",
        3,
        "law",
        "(0, 0) is critical with least curvature −σ₁((YᵀX/n) ∘ W): a strict saddle, unless that "
        "matrix is zero, when it is a global minimiser",
        "no bias; a trained one changes the matrix, see joint-bias",
        tuple(cases),
        claim="bilinear",
    )


def with_known_least(problem: Problem, random: np.random.Generator) -> tuple[Problem, float]:
    """The same inputs and weight with other targets, and L* of row and column gates on them.

    The targets are outputs of gates, plus noise that is orthogonal to all outputs of the layer. So
    L* is the loss of that noise, and no solver can miss it.
    """
    gates = random.uniform(-0.2, 1.3, problem.rows + problem.cols)
    rows, cols = split(problem, gates)
    noise = 0.1 * random.standard_normal(problem.targets.shape)
    noise -= problem.inputs @ np.linalg.lstsq(problem.inputs, noise)[0]
    targets = problem.inputs @ (rows[:, None] * problem.weight * cols).T + noise
    return replace(problem, targets=targets), float(np.sum(noise**2)) / (2 * problem.samples)


def check_path(settings: Settings) -> Check:
    """‖∇L‖²/2(L − L*) = ε²σ₁²/2(L(0) − L*) (1 + O(ε²)) on the path θ = ε(u₁, v₁)/√2 → (0, 0).

    On this path ∇L = −σ₁θ + O(ε³), while L − L* tends to L(0) − L* > 0. So no global PL constant
    exists for any S ≠ 0 with L(0) > L*. The same holds for LoRA with C instead of S, see item 7.
    Measured on targets whose L* is known (:func:`with_known_least`).
    """
    cases, rows = [], []
    for drawn in settings.drawn():
        problem, low = with_known_least(drawn, settings.random("path", drawn.name))
        left, singular, right = np.linalg.svd(saddle_coupling(problem))
        direction = np.concatenate([left[:, 0], right[0]]) / np.sqrt(2)
        # ‖Y‖² is that of the outputs of gates plus that of the noise.
        reached = problem.inputs @ np.linalg.lstsq(problem.inputs, problem.targets)[0]
        height = float(np.sum(reached**2)) / (2 * problem.samples)
        for size in (1e-2, 1e-3):
            point = size * direction
            ratio = pl_ratio(joint_gradient(problem, point), joint_loss(problem, point) - low)
            predicted = float(size**2 * singular[0] ** 2 / (2 * height))
            cases.append(Case(f"{problem.name}, ε = {size}", "equal", predicted, ratio, 0.02))
    problem = draw_problem("well-conditioned", 0, settings.seed)
    left, singular, right = np.linalg.svd(saddle_coupling(problem))
    b_left, b_values, b_right = np.linalg.svd(update_moment(problem))
    low = joint_loss(problem, fit_gates(problem))
    _, _, lora_low = lora_minimiser(problem, 1)
    slopes_at_zero = {
        "rows + columns": singular[0] ** 2 / (2 * (problem.null_loss - low)),
        "LoRA 1": b_values[0] ** 2
        / (2 * (lora_loss(problem, 0 * b_left[:, :1], 0 * b_right[:1]) - lora_low)),
    }
    for size in np.geomspace(1e-3, 2.0, 40):
        point = size * np.concatenate([left[:, 0], right[0]]) / np.sqrt(2)
        b, a = size * b_left[:, :1] / np.sqrt(2), size * b_right[:1] / np.sqrt(2)
        slopes = np.concatenate([part.ravel() for part in lora_gradient(problem, b, a)])
        for method, ratio in (
            (
                "rows + columns",
                pl_ratio(joint_gradient(problem, point), joint_loss(problem, point) - low),
            ),
            ("LoRA 1", pl_ratio(slopes, lora_loss(problem, b, a) - lora_low)),
        ):
            predicted = size**2 * slopes_at_zero[method]
            rows.append(
                {"method": method, "distance": size, "ratio": ratio, "predicted": predicted}
            )
    return Check(
        "joint-path",
        3,
        "law",
        "along ε(u₁, v₁)/√2 into the saddle the PL ratio is ε²σ₁²/2(L(0) − L*): it tends to 0, no "
        "global PL constant exists",
        "no bias, (YᵀX/n) ∘ W ≠ 0",
        tuple(cases),
        claim="pl",
        frames={"saddle_path": pd.DataFrame(rows)},
    )


def check_symmetry(settings: Settings) -> Check:
    """L(tr, c/t) = L(r, c): ⟨r, ∇_r L⟩ = ⟨c, ∇_c L⟩, and gradient flow conserves ‖r‖² − ‖c‖².

    Differentiate in t at 1; the time derivative of the difference is −2 times that of the two
    products. Each connected component of the bipartite graph of W's non-zero entries has a symmetry
    of its own. At a minimiser each symmetry makes one zero eigenvalue, along (r, −c) of the
    component. There are more if best gates are not isolated up to rescaling: with W = 11ᵀ, white
    data and the target I, all r_a² = c_a² with r₁² + r₂² = 1 are best. Measured: zero eigenvalues
    at a minimiser, and the drift along the integrated flow relative to the distance that the gates
    moved.
    """
    cases = []
    for problem in settings.drawn("well-conditioned", "ill-conditioned"):
        minimiser = fit_gates(problem)
        zeros = flat_directions(problem, minimiser)
        parts = weight_components(problem.weight)
        cases.append(Case(f"{problem.name}, zeros", "equal", parts, zeros))
    for index in range(settings.problems):
        drawn = draw_problem("well-conditioned", index, settings.seed)
        weight = drawn.weight.copy()
        weight[:4, 5:], weight[4:, :5] = 0.0, 0.0  # two disconnected blocks
        targets = drawn.inputs @ (0.7 * weight).T
        problem = replace(drawn, weight=weight, targets=targets, name=f"two blocks {index}")
        zeros = flat_directions(problem, fit_gates(problem))
        cases.append(Case(f"{problem.name}, zeros", "equal", weight_components(weight), zeros))
    for problem in settings.drawn("well-conditioned")[:3]:
        start = np.ones(problem.rows + problem.cols)
        start[: problem.rows] *= 1.5

        def flow(_: float, gates: Array, problem: Problem = problem) -> Array:
            return -joint_gradient(problem, gates)

        # The flow's own tolerance explains the drift: a few times 10^-9 for gates of size 1.
        end = solve_ivp(flow, (0, 20), start, rtol=1e-10, atol=1e-12).y[:, -1]
        before, after = (
            float(np.sum(split(problem, gates)[0] ** 2) - np.sum(split(problem, gates)[1] ** 2))
            for gates in (start, end)
        )
        cases.append(Case(f"{problem.name}, conserved", "equal", abs(before), abs(after), 1e-6))
    return Check(
        "joint-symmetry",
        3,
        "law",
        "‖r‖² − ‖c‖² is conserved by gradient flow, and a minimiser has one zero Hessian "
        "eigenvalue for each connected component of W's non-zero pattern",
        "no bias, X of full rank, no zero row or column of W, no zero gate at the minimiser, "
        "targets in general position (else there may be more zeros)",
        tuple(cases),
        claim="bilinear",
    )


def flat_directions(problem: Problem, minimiser: Array) -> int:
    """Zero Hessian eigenvalues at a minimiser."""
    slope = float(np.linalg.norm(joint_gradient(problem, minimiser)))
    # The orbit's tangent (r, −c) has the norm of θ; here each block has at least a tenth of it.
    slack = 10 * slope / float(np.linalg.norm(minimiser))
    return count_zeros(joint_hessian(problem, minimiser), problem.samples * problem.rows, slack)


def check_local(settings: Settings) -> Check:
    """‖∇L‖² ≥ 2μ(ρ)(L − L*) on B(θ*, ρ), hence on B(1, ρ − ‖θ* − 1‖).

    The certified constant is μ(ρ) = (λ − 3σβρ' − 1.5β²ρ'²)/τ² of
    :class:`theory.bilinear.LocalRegion`: strong convexity on the slice orthogonal to the orbit,
    extended along the orbit. Measured: the smallest ratio that descent on the ratio finds in the
    ball around 1. The certificate is far from tight, as the table shows.
    """
    cases, rows = [], []
    for index in range(min(settings.problems, 12)):
        problem, minimiser = nearly_right(settings, index)
        region = local_region(problem, minimiser)
        offset = float(np.linalg.norm(minimiser - 1))
        radius = region.radius()
        random = settings.random("local", index)
        ones = np.ones(len(minimiser))
        for share in (0.3, 0.6, 0.9):
            certified = region.constant(share * radius)
            around = share * radius - offset
            centre, reach = (ones, around) if around > 0 else (minimiser, share * radius)
            found, _ = smallest_ratio(problem, centre, minimiser, reach, random, 0)
            cases.append(
                Case(f"{problem.name}, {share:.0%} of the radius", "at least", certified, found)
            )
        if index == 0:
            rows = _region_rows(problem, region, offset, random)
    return Check(
        "joint-local",
        3,
        "bound",
        "on a ball around the minimiser that contains ω = 1 a local PL constant holds, certified",
        f"best gates within some {DEVIATION:.1%} of 1, W connected, G regular",
        tuple(cases),
        claim="pl",
        frames={"local_region": pd.DataFrame(rows)},
    )


def check_curvature(settings: Settings) -> Check:
    """‖∇²L(θ* + Δ) − ∇²L(θ*)‖ ≤ 3σβ‖Δ‖ + 1.5β²‖Δ‖²: the bound behind the certified ball.

    Measured: the largest change of the Hessian that ascent finds on the sphere, from random
    directions and from the one in which the outputs change most.
    """
    from scipy.optimize import minimize

    cases = []
    for index in range(min(settings.problems, 4)):
        problem, minimiser = nearly_right(settings, index)
        region = local_region(problem, minimiser)
        here = joint_hessian(problem, minimiser)
        random = settings.random("curvature", index)
        steepest = np.linalg.svd(jacobian(problem, minimiser))[2][0]
        starts = [*random.standard_normal((2, len(minimiser))), steepest]
        for radius in (0.01, 1.0):

            def change(
                direction: Array,
                problem: Problem = problem,
                centre: Array = minimiser,
                here: Array = here,
                radius: float = radius,
            ) -> float:
                moved = centre + radius * direction / np.linalg.norm(direction)
                return -float(np.linalg.norm(joint_hessian(problem, moved) - here, 2))

            found = max(
                -minimize(change, start, method="L-BFGS-B", options={"maxiter": 12}).fun
                for start in starts
            )
            cases.append(
                Case(
                    f"{problem.name}, radius {radius}",
                    "at most",
                    region.curvature_loss(radius),
                    float(found),
                )
            )
    return Check(
        "joint-curvature",
        3,
        "bound",
        "within ρ of a minimiser the Hessian changes by at most 3σβρ + 1.5β²ρ², σ the norm of the "
        "Jacobian there and ‖B(r, c)‖ ≤ β‖r‖‖c‖",
        "none",
        tuple(cases),
        claim="pl",
    )


def _region_rows(
    problem: Problem, region: LocalRegion, offset: float, random: np.random.Generator
) -> list[dict[str, object]]:
    """Smallest ratio against the radius of the ball around ω = 1, certified and measured."""
    ones = np.ones(len(region.centre))
    saddle = float(np.sqrt(len(ones)))
    rows: list[dict[str, object]] = []
    certified_radius = max(region.radius() - offset, 1e-6)
    critical = float(np.linalg.norm(nearest_in_plane(problem) - 1))
    radii = [
        *np.geomspace(certified_radius / 20, certified_radius, 6),
        *np.geomspace(2 * certified_radius, critical, 12),
    ]
    smallest, place = np.inf, region.centre
    for radius in radii:
        found, point = smallest_ratio(
            problem, ones, region.centre, float(radius), random, 3, (place,)
        )
        # Balls are nested, so the smallest ratio cannot grow.
        if found < smallest:
            smallest, place = found, point
        rows.append(
            {
                "radius": float(radius),
                "certified": region.constant(float(radius) + offset),
                # The infimum is 0 if the ball meets the critical plane.
                "measured": 0.0 if radius >= critical else smallest,
                "transverse": region.transverse,
                "certified_radius": certified_radius,
                "critical_distance": critical,
                "saddle_distance": saddle,
                "offset": offset,
            }
        )
    return rows
