"""Items 1 and 2: column gates alone, row gates alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from theory.cases import Case
from theory.checks.settings import ROUNDING, Settings
from theory.evidence import Check
from theory.outputs import (
    Side,
    autograd_hessian,
    descend_by_residuals,
    gradient_of,
    least_squares,
    loss_of,
    sign_problem,
    smallest_curvature,
    white_problem,
)
from theory.problems import FAMILIES, Array, Problem, draw_problem
from theory.quadratic import (
    Quadratic,
    column_quadratic,
    rank_tolerance,
    row_quadratic,
    schur_lower_bound,
    schur_range_bound,
)

STEPS = 300


def quadratic_of(problem: Problem, side: Side) -> Quadratic:
    """The loss in the gates of one side."""
    return column_quadratic(problem) if side == "columns" else row_quadratic(problem)


def check_hessian(settings: Settings, side: Side) -> Check:
    """∇²_c L = (XᵀX/n) ∘ (WᵀW); ∇²_r L = Diag(w_aᵀ G w_a).

    ∂²/∂c_j∂c_k of ½Σ (Y_ia − Σ_j X_ij W_aj c_j)²/n is Σ_ia X_ij W_aj X_ik W_ak/n, the product of
    the two sums. For rows, outputs a do not mix. Compared with automatic differentiation through
    the library's ``GatedLinear`` by Frobenius norm plus the distance of the two matrices, so an
    error cannot hide behind an equal norm.
    """
    cases = []
    for problem in settings.drawn():
        closed, automatic = quadratic_of(problem, side).hessian, autograd_hessian(problem, side)
        found = float(np.linalg.norm(closed) + np.linalg.norm(closed - automatic))
        scale = float(np.linalg.norm(automatic))
        cases.append(Case(problem.name, "equal", scale, found, ROUNDING))
    formula = "(XᵀX/n) ∘ (WᵀW)" if side == "columns" else "Diag(w_aᵀ G w_a)"
    return Check(
        f"{side}-hessian",
        1 if side == "columns" else 2,
        "law",
        f"the loss is quadratic with Hessian {formula} (norm, against automatic differentiation)",
        "the other side fixed",
        tuple(cases),
    )


def check_pl(settings: Settings, side: Side) -> Check:
    """inf ‖∇L‖²/2(L − L*) = λ⁺_min(H).

    With e = ω − ω*, ‖∇L‖² = eᵀH²e ≥ λ⁺ eᵀHe = 2λ⁺(L − L*) because H² ⪰ λ⁺H. Equality holds along
    the eigenvector of λ⁺. Measured with loss and gradient from residuals: at least the constant at
    random points, equal to it along that eigenvector.
    """
    cases = []
    for problem in settings.drawn():
        quadratic = quadratic_of(problem, side)
        mu = quadratic.pl_constant
        values, vectors = quadratic.spectrum()
        slowest = vectors[:, int(np.flatnonzero(values > 0)[0])]
        optimum = least_squares(problem, side)
        value, gradient = loss_of(problem, side), gradient_of(problem, side)
        low = value(optimum)
        random = settings.random("pl", side, problem.name)

        def ratio(gates: Array, value=value, gradient=gradient, low=low) -> float:  # type: ignore[no-untyped-def]
            slope = gradient(gates)
            return float(slope @ slope / (2 * (value(gates) - low)))

        points = optimum + random.standard_normal((16, len(optimum)))
        cases.append(Case(problem.name, "at least", mu, min(ratio(p) for p in points), ROUNDING))
        far = optimum + 10 * slowest
        cases.append(Case(f"{problem.name}, slowest", "equal", mu, ratio(far), 1e-6))
    return Check(
        f"{side}-pl",
        1 if side == "columns" else 2,
        "law",
        "PL holds globally, with the smallest non-zero eigenvalue of the Hessian as its largest "
        "constant",
        "the other side fixed; any X, W, Y, singular ones included",
        tuple(cases),
        claim="pl",
    )


def check_schur(settings: Settings) -> Check:
    """λ_min(G ∘ WᵀW) ≥ max(λ_min(G) min_j ‖w_j‖², λ_min(WᵀW) min_j G_jj).

    Schur 1911, see :func:`theory.quadratic.schur_lower_bound`. Attained for white data (G = gI),
    where H = g Diag(‖w_j‖²), and for one output whose weights are ±1, where H is G up to signs.
    Measured by singular values of the outputs in the gates.
    """
    cases, rows = [], []
    for problem in settings.drawn():
        bound = schur_lower_bound(problem.second_moment, problem.weight.T @ problem.weight)
        hessian = autograd_hessian(problem, "columns")
        values = np.linalg.eigvalsh(hessian)
        if bound > rank_tolerance(problem.cols, problem.samples) * float(values[-1]):
            smallest = float(values[0])
            cases.append(Case(problem.name, "at least", bound, smallest, ROUNDING))
            rows.append({"problem": problem.name, "bound": "Schur", "ratio": bound / smallest})
        signs = sign_problem(problem, settings.random("signs", problem.name))
        for built in (white_problem(problem), signs):
            bound = schur_lower_bound(built.second_moment, built.weight.T @ built.weight)
            if bound > 1e-9 * float(np.trace(built.second_moment)):
                found = smallest_curvature(built)
                cases.append(Case(built.name, "equal", bound, found, ROUNDING, built=True))
    return Check(
        "columns-schur",
        1,
        "law",
        "λ_min of the Hessian is at least max(λ_min(G) min_j ‖w_j‖², λ_min(WᵀW) min_j G_jj), with "
        "equality for white data, and for one output with weights ±1",
        "G or WᵀW regular (else the bound is 0)",
        tuple(cases),
        frames={"schur": pd.DataFrame(rows)},
    )


def check_schur_singular(settings: Settings) -> Check:
    """λ⁺(A ∘ B) ≥ λ⁺(A) λ⁺(P_A ∘ B), with A = G or A = WᵀW, for singular A.

    See :func:`theory.quadratic.schur_range_bound`. Attained if A is a multiple of a projector, and
    for one output whose weights are ±1. Measured by singular values of the outputs in the gates.
    """
    cases, rows = [], []

    def bound_of(problem: Problem) -> float:
        a, b = problem.second_moment, problem.weight.T @ problem.weight
        return max(schur_range_bound(a, b, problem.samples), schur_range_bound(b, a, problem.rows))

    for problem in settings.drawn("rank-deficient", "over-parameterised", "well-conditioned"):
        found, bound = smallest_curvature(problem), bound_of(problem)
        cases.append(Case(problem.name, "at least", bound, found, ROUNDING))
        rows.append({"problem": problem.name, "bound": "Schur, on ranges", "ratio": bound / found})
        left, singular, right = np.linalg.svd(problem.inputs, full_matrices=False)
        kept = singular > 1e-9 * singular[0]
        inputs = np.sqrt(3.0 * problem.samples) * left[:, kept] @ right[kept]
        flat = Problem(inputs, problem.weight, problem.targets, f"{problem.name}, flat spectrum")
        signs = sign_problem(problem, settings.random("signs", problem.name))
        for built in (flat, signs):
            found, bound = smallest_curvature(built), bound_of(built)
            cases.append(Case(built.name, "equal", bound, found, 1e-8, built=True))
    return Check(
        "columns-schur-singular",
        1,
        "law",
        "for singular A the smallest non-zero eigenvalue of A ∘ B is at least λ⁺(A) λ⁺(P_A ∘ B), "
        "with equality for a flat spectrum of A, and for one output with weights ±1",
        "A, B positive semidefinite; P_A the projector on A's range",
        tuple(cases),
        frames={"schur_singular": pd.DataFrame(rows)},
    )


def check_schur_naive(settings: Settings) -> Check:
    """λ⁺(A ∘ B) ≥ λ⁺(A) min_j B_jj for singular A: a plausible bound that is false.

    Counterexample: A = 11ᵀ has λ⁺ = 2 and A ∘ B = B. B = [[1, 1 − ε], [1 − ε, 1]] has diagonal 1
    and λ_min = ε. This is singular data with nearly equal columns of W: the gates trade off against
    each other.
    """
    a = np.ones((2, 2))
    cases = []
    for epsilon in (0.3, 0.1, 0.01):
        b = np.array([[1.0, 1 - epsilon], [1 - epsilon, 1.0]])
        found = float(np.linalg.eigvalsh(a * b)[0])
        cases.append(Case(f"ε = {epsilon}", "at least", 2.0, found, ROUNDING, proof="fails"))
    return Check(
        "columns-schur-naive",
        1,
        "claim",
        "for singular A the smallest non-zero eigenvalue of A ∘ B is at least λ⁺(A) min_j B_jj",
        "none: this is the form that does not hold",
        tuple(cases),
    )


def check_regularised(settings: Settings) -> Check:
    """rank(A ∘ B) = min(d, rank A · rank B) in general: W repairs singular data.

    A ∘ B is a principal submatrix of A ⊗ B, so its rank is at most the product of the ranks. Random
    factors attain min(d, product). With n < d samples the loss can be strongly convex in the gates
    although it is not in the weights. Repeated or zero columns of W remain singular.
    """
    cases = []
    for problem in settings.drawn("well-conditioned", "over-parameterised"):
        for count in (1, 2, 3):
            inputs = problem.inputs[:count]
            second = inputs.T @ inputs
            quadratic = Quadratic(
                second * (problem.weight.T @ problem.weight), np.zeros(problem.cols), 0.0, count
            )
            ranks = min(count, problem.samples) * min(problem.rows, problem.cols)
            found = int(np.sum(quadratic.spectrum()[0] > 0))
            cases.append(
                Case(f"{problem.name}, n = {count}", "equal", min(problem.cols, ranks), found)
            )
    return Check(
        "columns-rank",
        1,
        "law",
        "the Hessian has rank min(d, rank X · rank W), so that gates can be strongly convex on "
        "data with fewer samples than inputs",
        "X and W in general position",
        tuple(cases),
    )


def check_row_bounds(settings: Settings) -> Check:
    """λ_min(G) ‖w_a‖² ≤ H_aa ≤ λ_max(G) ‖w_a‖²: H_aa = w_aᵀ G w_a is a Rayleigh quotient."""
    cases = []
    for problem in settings.drawn("well-conditioned", "ill-conditioned", "under-parameterised"):
        values = np.linalg.eigvalsh(problem.second_moment)
        energy = np.sum(problem.weight**2, axis=1)
        found = np.diag(autograd_hessian(problem, "rows"))
        low = found / (values[0] * energy)
        high = found / (values[-1] * energy)
        cases.append(Case(f"{problem.name}, low", "at least", 1.0, float(low.min()), ROUNDING))
        cases.append(Case(f"{problem.name}, high", "at most", 1.0, float(high.max()), ROUNDING))
        # Rows along the extreme eigenvectors attain both.
        _, _, axes = np.linalg.svd(problem.inputs)
        ends = replace(problem, weight=axes[[-1, 0]], targets=problem.targets[:, :2])
        found = np.diag(autograd_hessian(ends, "rows"))
        for name, place in (("low", 0), ("high", 1)):
            share = float(found[place] / values[-place])
            built = Case(f"{problem.name}, {name}, attained", "equal", 1.0, share, 1e-8, built=True)
            cases.append(replace(built, constant=name))
    cases = [replace(case, constant=case.constant or case.name.split(", ")[1]) for case in cases]
    return Check(
        "rows-bounds",
        2,
        "law",
        "each curvature H_aa lies between λ_min(G) ‖w_a‖² and λ_max(G) ‖w_a‖², both attained along "
        "eigenvectors (ratios to the bounds)",
        "G regular for the lower bound",
        tuple(cases),
    )


def check_descent(settings: Settings, side: Side) -> Check:
    """L(ω_k) − L* ≤ (1 − μ/Λ)^{2k} (L(ω_0) − L*), step 1/Λ, Λ = λ_max(H), μ = λ⁺_min(H).

    Each eigenvector's share of the gap contracts by (1 − λ/Λ)² a step, at most (1 − μ/Λ)². PL with
    smoothness alone gives half that exponent (Polyak 1963). Attained from a start along the slowest
    eigenvector. Compared with −2 log(1 − μ/Λ): the smallest contraction exponent
    −log(gap_k/gap_0)/k over the path from ω = 1, and the exponent of the slowest start at the last
    step above rounding error.
    """
    cases, rows = [], []
    steps = np.arange(1, STEPS + 1)
    for problem in settings.drawn():
        quadratic = quadratic_of(problem, side)
        mu, smoothness = quadratic.pl_constant, quadratic.smoothness
        if mu >= (1 - 1e-9) * smoothness:
            continue  # one step reaches the minimiser
        predicted = float(-2 * np.log1p(-mu / smoothness))
        values, vectors = quadratic.spectrum()
        slowest = vectors[:, int(np.flatnonzero(values > 0)[0])]
        best = least_squares(problem, side)
        for built, start in ((False, np.ones(len(best))), (True, best + slowest)):
            gaps = descend_by_residuals(problem, side, start, 1 / smoothness, STEPS)
            # Below this, rounding errors in the gates dominate the gap.
            clear = gaps[1:] > 1e-16 * gaps[0]
            exponents = -np.log(gaps[1:][clear] / gaps[0]) / steps[clear]
            if built and len(exponents):
                name, last = f"{problem.name}, slowest", float(exponents[-1])
                cases.append(Case(name, "equal", predicted, last, 1e-3, built=True))
            elif len(exponents):
                least = float(exponents.min())
                cases.append(Case(problem.name, "at least", predicted, least, 1e-6))
    for family in FAMILIES:
        problem = draw_problem(family, 0, settings.seed)
        quadratic = quadratic_of(problem, side)
        gaps = descend_by_residuals(
            problem, side, np.ones(len(quadratic.linear)), 1 / quadratic.smoothness, STEPS
        )
        rate = (1 - quadratic.pl_constant / quadratic.smoothness) ** 2
        rows += [
            {
                "side": side,
                "family": family,
                "step": k,
                "gap": max(gaps[k] / gaps[0], 1e-30),
                "bound": max(rate**k, 1e-30),
            }
            for k in range(0, STEPS + 1, 4)
        ]
    return Check(
        f"{side}-descent",
        1 if side == "columns" else 2,
        "law",
        "gradient descent with step 1/Λ contracts the gap by at least (1 − μ/Λ)² a step, and by no "
        "more along the slowest eigenvector (exponent by step)",
        "the other side fixed; from ω = 1",
        tuple(cases),
        claim="convergence",
        frames={f"descent_{side}": pd.DataFrame(rows)},
    )
