"""Item 7: low-rank adapters."""

from __future__ import annotations

import numpy as np

from theory.bilinear import joint_hessian
from theory.cases import Case
from theory.checks.settings import ROUNDING, Settings
from theory.evidence import Check
from theory.lora import (
    count_zeros,
    lora_gradient,
    lora_hessian,
    lora_loss,
    lora_minimiser,
    lora_start,
    update_moment,
    zero_eigenvalues,
)
from theory.outputs import least_of_rank
from theory.problems import draw_problem

RANKS = (1, 2, 4)


def check_saddle(settings: Settings) -> Check:
    """At (0, 0): ∇L = 0, Hessian −2⟨C, δB δA⟩ as a quadratic form, C = (Y − XWᵀ)ᵀX/n.

    The eigenvalues are ±σ_i(C), each r times, and r(m + d) − 2r rank C zeros. The saddle is strict
    iff C ≠ 0; else (0, 0) is a global minimiser. At the usual start B = 0, A ≠ 0 the gradient −CAᵀ
    is not zero, but the Hessian has negative eigenvalues as well. So the start is near the saddle,
    not on it.
    """
    cases = []
    for problem in settings.drawn():
        singular = np.linalg.svd(update_moment(problem), compute_uv=False)
        for rank in RANKS[:2]:
            zero_b = np.zeros((problem.rows, rank))
            zero_a = np.zeros((rank, problem.cols))
            values = np.linalg.eigvalsh(lora_hessian(problem, zero_b, zero_a))
            name = f"{problem.name}, r = {rank}"
            cases.append(Case(name, "equal", singular[0], float(-values[0]), ROUNDING))
            found = int(np.sum(values < -singular[0] * (1 - 1e-9)))
            cases.append(Case(f"{name}, multiplicity", "equal", rank, found))
            b, a = lora_start(problem, rank, 0)
            step = 1e-4
            slope_b, _ = lora_gradient(problem, b, a)
            away = float(np.linalg.norm(slope_b))
            fall = lora_loss(problem, b, a) - lora_loss(problem, b - step * slope_b, a)
            cases.append(Case(f"{name}, start", "equal", away**2, fall / step, 1e-3))
    return Check(
        "lora-saddle",
        7,
        "law",
        "(0, 0) is critical with least curvature −σ₁(C), r-fold: a strict saddle unless C = 0; the "
        "usual start B = 0, A ≠ 0 is not critical",
        "C = (Y − XWᵀ)ᵀX/n",
        tuple(cases),
        claim="bilinear",
    )


def check_zeros(settings: Settings) -> Check:
    """Zero Hessian eigenvalues at a minimiser: r(d − ρ) + r(m + ρ) − q(m + ρ − q).

    ρ = rank X, and q is the rank of the fitted update on the range of G. For q = r this is
    r² + r(d − ρ). L(BT, T⁻¹A) = L(B, A) for T in GL(r), so the orbit has dimension r² at full rank.
    Data of rank ρ do not see r(d − ρ) directions of A. On the rest the Hessian is positive if there
    is a gap σ_r > σ_{r+1} (Eckart and Young's minimiser is then unique up to the orbit), or if the
    fit is exact. Gates have one zero eigenvalue on the same problems, see ``joint-symmetry``.
    """
    cases = []
    for family in ("well-conditioned", "ill-conditioned", "rank-deficient", "over-parameterised"):
        for index in range(min(settings.problems, 4)):
            problem = draw_problem(family, index, settings.seed)
            data_rank = int(np.linalg.matrix_rank(problem.inputs))
            for rank in RANKS:
                b, a, _ = lora_minimiser(problem, rank)
                reached = int(np.linalg.matrix_rank(b @ a))
                slope = np.concatenate([g.ravel() for g in lora_gradient(problem, b, a)])
                # Generators change B and A by at most their own norm.
                slack = 10 * float(np.linalg.norm(slope)) / float(np.linalg.norm(a))
                found = count_zeros(
                    lora_hessian(problem, b, a), problem.samples * problem.rows, slack
                )
                exact = zero_eigenvalues(problem.rows, rank, data_rank, problem.cols, reached)
                cases.append(Case(f"{problem.name}, r = {rank}", "equal", exact, found))
    return Check(
        "lora-zeros",
        7,
        "law",
        "a minimiser has exactly r² zero Hessian eigenvalues from GL(r), and r(d − rank X) from "
        "the data (general count in theory.lora)",
        "a gap in the whitened target's singular values, or an exact fit",
        tuple(cases),
        claim="bilinear",
    )


def check_path(settings: Settings) -> Check:
    """‖∇L‖²/2(L − L*) = ε²σ₁(C)²/2(L(0) − L*) (1 + O(ε²)) on B = εu₁/√2, A = εv₁ᵀ/√2."""
    cases = []
    for problem in settings.drawn():
        left, singular, right = np.linalg.svd(update_moment(problem))
        b0, a0 = left[:, :1] / np.sqrt(2), right[:1] / np.sqrt(2)
        height = lora_loss(problem, 0 * b0, 0 * a0) - lora_minimiser(problem, 1)[2]
        low = least_of_rank(problem, 1)
        for size in (1e-2, 1e-3):
            slopes = lora_gradient(problem, size * b0, size * a0)
            squared = float(sum(np.sum(part**2) for part in slopes))
            gap = lora_loss(problem, size * b0, size * a0) - low
            predicted = float(size**2 * singular[0] ** 2 / (2 * height))
            cases.append(
                Case(f"{problem.name}, ε = {size}", "equal", predicted, squared / (2 * gap), 0.02)
            )
    return Check(
        "lora-path",
        7,
        "law",
        "along ε(u₁, v₁)/√2 the PL ratio is ε²σ₁(C)²/2(L(0) − L*): no global PL constant exists",
        "C ≠ 0",
        tuple(cases),
        claim="pl",
    )


def check_lipschitz(settings: Settings) -> Check:
    """λ_max(∇²L(tB, A)) / t² → λ_max(BᵀB) λ_max(G) as t → ∞: no global Lipschitz gradient.

    The block over A is BᵀB ⊗ G; the other blocks grow at most as t. Row and column gates without
    clipping grow in the same way. In the box they cannot (``joint-lipschitz``).
    """
    cases = []
    for problem in settings.drawn("well-conditioned", "ill-conditioned", "under-parameterised"):
        b, a, _ = lora_minimiser(problem, 2)
        limit = float(
            np.linalg.eigvalsh(b.T @ b)[-1] * np.linalg.eigvalsh(problem.second_moment)[-1]
        )
        found = float(np.linalg.eigvalsh(lora_hessian(problem, 1e4 * b, a))[-1]) / 1e8
        cases.append(Case(problem.name, "equal", limit, found, 1e-2))
    return Check(
        "lora-lipschitz",
        7,
        "law",
        "its gradient is not globally Lipschitz: λ_max of the Hessian at (tB, A) grows as "
        "t² ‖B‖² λ_max(G)",
        "none",
        tuple(cases),
        claim="convergence",
    )


def check_joint_lipschitz(settings: Settings) -> Check:
    """‖∇²L(r, c)‖ ≤ Λ_box for r, c in [0, 1]: at most σ² + β‖F‖, a finite constant.

    With ‖B(r, c)‖ ≤ β‖r‖‖c‖: ‖J‖² ≤ β²(‖r‖² + ‖c‖²) ≤ β²(m + d). The residual is at most
    β√(md) + ‖y‖ and enters through a form of norm β. Measured: the largest Hessian norm at random
    points and vertices of the box.
    """
    cases = []
    for problem in settings.drawn():
        m, d = problem.weight.shape
        beta = np.sqrt(
            max(
                float(np.linalg.eigvalsh(problem.second_moment * np.outer(w, w))[-1])
                for w in problem.weight
            )
        )
        target = np.sqrt(2 * problem.null_loss)
        bound = beta**2 * (m + d) + beta * (beta * np.sqrt(m * d) + target)
        random = settings.random("box hessian", problem.name)
        points = random.uniform(size=(16, m + d))
        points = np.concatenate([points, (points > 0.5) * 1.0, np.ones((1, m + d))])
        found = max(float(np.linalg.norm(joint_hessian(problem, p), 2)) for p in points)
        cases.append(Case(problem.name, "at most", float(bound), found))
    return Check(
        "joint-lipschitz",
        7,
        "bound",
        "row and column gates in [0, 1] have a Lipschitz gradient, constant at most "
        "β²(m + d) + β(β√(md) + ‖Y‖/√n)",
        "gates in the box; without it they are as LoRA",
        tuple(cases),
        claim="convergence",
    )
