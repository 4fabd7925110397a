"""Items 1 and 2: column gates alone, row gates alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd
import torch

from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear
from theory.checks.settings import ROUNDING, Settings
from theory.evidence import Case, Check
from theory.problems import FAMILIES, Array, Problem, draw_problem
from theory.quadratic import (
    Quadratic,
    column_quadratic,
    descend,
    gradients,
    loss,
    rank_tolerance,
    row_quadratic,
    schur_lower_bound,
    schur_range_bound,
)

Side = Literal["columns", "rows"]
STEPS = 300


def autograd_hessian(problem: Problem, side: Side) -> Array:
    """∇²L in the gates of one side, by automatic differentiation through a ``GatedLinear``."""
    linear = torch.nn.Linear(problem.cols, problem.rows, bias=False, dtype=torch.float64)
    linear.weight.data = torch.as_tensor(problem.weight)
    inputs, targets = torch.as_tensor(problem.inputs), torch.as_tensor(problem.targets)
    size = problem.cols if side == "columns" else problem.rows
    gate = FixedGate(torch.ones(size, dtype=torch.float64))
    layer = GatedLinear(linear, *((None, gate) if side == "columns" else (gate, None)))

    def objective(values: torch.Tensor) -> torch.Tensor:
        gate.values = values
        return ((layer(inputs) - targets) ** 2).sum() / (2 * problem.samples)

    ones = torch.ones(size, dtype=torch.float64)
    found = torch.autograd.functional.hessian(objective, ones)
    assert isinstance(found, torch.Tensor)
    return np.asarray(found.detach().numpy(), dtype=np.float64)


def quadratic_of(problem: Problem, side: Side) -> Quadratic:
    """The loss in the gates of one side."""
    return column_quadratic(problem) if side == "columns" else row_quadratic(problem)


def loss_of(problem: Problem, side: Side) -> Callable[[Array], float]:
    """L as a function of one side's gates, from residuals."""
    rows, cols = np.ones(problem.rows), np.ones(problem.cols)
    if side == "columns":
        return lambda gates: loss(problem, rows, gates)
    return lambda gates: loss(problem, gates, cols)


def gradient_of(problem: Problem, side: Side) -> Callable[[Array], Array]:
    """∇L as a function of one side's gates, from residuals."""
    rows, cols = np.ones(problem.rows), np.ones(problem.cols)
    if side == "columns":
        return lambda gates: gradients(problem, rows, gates)[1]
    return lambda gates: gradients(problem, gates, cols)[0]


def check_hessian(settings: Settings, side: Side) -> Check:
    """∇²_c L = (XᵀX/n) ∘ (WᵀW); ∇²_r L = Diag(w_aᵀ G w_a).

    ∂²/∂c_j∂c_k of ½Σ (Y_ia − Σ_j X_ij W_aj c_j)²/n is Σ_ia X_ij W_aj X_ik W_ak/n: the product of
    the two sums. Rows: outputs a do not mix. Compared with automatic differentiation through the
    library's ``GatedLinear``: Frobenius norm, and on top of it the distance of the two, so that no
    error can hide in an equal norm.
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

    With e = ω − ω*, ‖∇L‖² = eᵀH²e ≥ λ⁺ eᵀHe = 2λ⁺(L − L*) as H² ⪰ λ⁺H; equality along the
    eigenvector of λ⁺. Measured on loss and gradient from residuals: at random points (at least) and
    along that eigenvector (equal).
    """
    cases = []
    for problem in settings.drawn():
        quadratic = quadratic_of(problem, side)
        mu = quadratic.pl_constant
        values, vectors = quadratic.spectrum()
        slowest = vectors[:, int(np.flatnonzero(values > 0)[0])]
        optimum, low = quadratic.minimiser(), quadratic.minimum()
        value, gradient = loss_of(problem, side), gradient_of(problem, side)
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

    Schur 1911: see :func:`theory.quadratic.schur_lower_bound`. Attained where G = gI (white data):
    then H = g Diag(‖w_j‖²).
    """
    cases, rows = [], []
    for problem in settings.drawn():
        a, b = problem.second_moment, problem.weight.T @ problem.weight
        bound = schur_lower_bound(a, b)
        smallest = float(np.linalg.eigvalsh(a * b)[0])
        floor = rank_tolerance(problem.cols, problem.samples) * float(np.linalg.eigvalsh(a * b)[-1])
        if bound > floor:
            cases.append(Case(problem.name, "at least", bound, smallest, ROUNDING))
            rows.append({"problem": problem.name, "bound": "Schur", "ratio": bound / smallest})
        white = np.eye(problem.cols) * 2.0
        energy = float(np.diag(b).min())
        if energy > 0:
            found = float(np.linalg.eigvalsh(white * b)[0])
            cases.append(Case(f"{problem.name}, white data", "equal", 2 * energy, found, ROUNDING))
    return Check(
        "columns-schur",
        1,
        "law",
        "λ_min of the Hessian is at least max(λ_min(G) min_j ‖w_j‖², λ_min(WᵀW) min_j G_jj), and "
        "equal to min_j G_jj ‖w_j‖² for white data",
        "G or WᵀW regular (else the bound is 0)",
        tuple(cases),
        frames={"schur": pd.DataFrame(rows)},
    )


def check_schur_singular(settings: Settings) -> Check:
    """λ⁺(A ∘ B) ≥ λ⁺(A) λ⁺(P_A ∘ B), with A = G or A = WᵀW, for singular A.

    See :func:`theory.quadratic.schur_range_bound`. Attained where A is a multiple of a projector.
    """
    cases, rows = [], []
    for problem in settings.drawn("rank-deficient", "over-parameterised", "well-conditioned"):
        a, b = problem.second_moment, problem.weight.T @ problem.weight
        found = column_quadratic(problem).pl_constant
        bound = max(schur_range_bound(a, b, problem.samples), schur_range_bound(b, a, problem.rows))
        cases.append(Case(problem.name, "at least", bound, found, ROUNDING))
        rows.append({"problem": problem.name, "bound": "Schur, on ranges", "ratio": bound / found})
        values, vectors = np.linalg.eigh(a)
        kept = vectors[:, values > rank_tolerance(len(values), problem.samples) * values[-1]]
        flat = Quadratic(3.0 * kept @ kept.T * b, np.zeros(len(b)), 0.0, problem.samples)
        bound = schur_range_bound(3.0 * kept @ kept.T, b, problem.samples)
        cases.append(
            Case(f"{problem.name}, flat spectrum", "equal", bound, flat.pl_constant, ROUNDING)
        )
    return Check(
        "columns-schur-singular",
        1,
        "law",
        "for singular A the smallest non-zero eigenvalue of A ∘ B is at least λ⁺(A) λ⁺(P_A ∘ B), "
        "with equality for a flat spectrum of A",
        "A, B positive semidefinite; P_A the projector on A's range",
        tuple(cases),
        frames={"schur_singular": pd.DataFrame(rows)},
    )


def check_schur_naive(settings: Settings) -> Check:
    """λ⁺(A ∘ B) ≥ λ⁺(A) min_j B_jj: the tempting form for singular A. It is false.

    Counterexample: A = 11ᵀ has λ⁺ = 2 and A ∘ B = B; B = [[1, 1 − ε], [1 − ε, 1]] has diagonal 1
    and λ_min = ε. Singular data with nearly equal columns of W: gates that trade off against each
    other.
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

    A ∘ B is a principal submatrix of A ⊗ B, so that its rank is at most the product of ranks;
    random factors attain min(d, product). With n < d samples the loss can be strongly convex in the
    gates though it is not in the weights. Repeated or zero columns of W stay singular.
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
        found = np.diag(row_quadratic(problem).hessian)
        low = found / (values[0] * energy)
        high = found / (values[-1] * energy)
        cases.append(Case(f"{problem.name}, low", "at least", 1.0, float(low.min()), ROUNDING))
        cases.append(Case(f"{problem.name}, high", "at most", 1.0, float(high.max()), ROUNDING))
    return Check(
        "rows-bounds",
        2,
        "law",
        "each curvature H_aa lies between λ_min(G) ‖w_a‖² and λ_max(G) ‖w_a‖² (ratios to the "
        "bounds)",
        "G regular for the lower bound",
        tuple(cases),
    )


def check_descent(settings: Settings, side: Side) -> Check:
    """L(ω_k) − L* ≤ (1 − μ/Λ)^k (L(ω_0) − L*), step 1/Λ, Λ = λ_max(H), μ = λ⁺_min(H).

    Smoothness: L decreases by at least ‖∇L‖²/2Λ; PL bounds that below by (μ/Λ)(L − L*) (Polyak
    1963). Compared: the smallest contraction exponent −log(gap_k/gap_0)/k over the path, against
    −log(1 − μ/Λ). A quadratic contracts twice as fast in the end, (1 − μ/Λ)^{2k}: tightness ½.
    """
    cases, rows = [], []
    for problem in settings.drawn():
        quadratic = quadratic_of(problem, side)
        mu, smoothness = quadratic.pl_constant, quadratic.smoothness
        gaps = descend(quadratic, np.ones(len(quadratic.linear)), STEPS)
        steps = np.arange(1, STEPS + 1)
        # Below, rounding errors in the gates make the gap, not descent.
        clear = gaps[1:] > 1e-24 * gaps[0]
        exponents = -np.log(gaps[1:][clear] / gaps[0]) / steps[clear]
        predicted = -np.log1p(-min(mu / smoothness, 1 - 1e-12))
        cases.append(
            Case(problem.name, "at least", float(predicted), float(exponents.min()), ROUNDING)
        )
    for family in FAMILIES:
        problem = draw_problem(family, 0, settings.seed)
        quadratic = quadratic_of(problem, side)
        gaps = descend(quadratic, np.ones(len(quadratic.linear)), STEPS)
        rate = 1 - quadratic.pl_constant / quadratic.smoothness
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
        "gradient descent with step 1/Λ contracts the gap by 1 − μ/Λ a step (exponent by step)",
        "the other side fixed; from ω = 1",
        tuple(cases),
        claim="convergence",
        frames={f"descent_{side}": pd.DataFrame(rows)},
    )
