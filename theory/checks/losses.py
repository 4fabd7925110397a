"""Item 13: the trained loss: minibatches of rows, and cross-entropy."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize

from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear
from theory.cases import Case
from theory.checks.convergence import interior_problem, mean_case
from theory.checks.settings import Settings
from theory.evidence import Check
from theory.outputs import design_of
from theory.problems import Array, Problem
from theory.quadratic import Quadratic, column_quadratic
from theory.stochastic import excess, minibatch_ball


def minibatch_runs(
    problem: Problem, sigma: float, rate: float, batch: int, settings: Settings
) -> tuple[Quadratic, Array]:
    """Centres of descent on minibatches of rows, drawn with replacement, and fresh gate noise."""
    quadratic = column_quadratic(problem)
    design = design_of(problem, "columns").reshape(problem.samples, problem.rows, problem.cols)
    random = settings.random("minibatch", sigma, batch)
    runs, burn, count = settings.runs, 1000, 2000
    centres = np.tile(quadratic.minimiser(), (runs, 1))
    kept = []
    for step in range(burn + count):
        chosen = random.integers(problem.samples, size=(runs, batch))
        gates = centres + sigma * random.standard_normal(centres.shape)
        rows = design[chosen]  # (runs, batch, outputs, gates)
        residual = np.einsum("rbmd,rd->rbm", rows, gates) - problem.targets[chosen]
        centres = centres - rate * np.einsum("rbmd,rbm->rd", rows, residual) / batch
        if step >= burn and step % 4 == 0:
            kept.append(centres)
    return quadratic, np.stack(kept)


def check_minibatch(settings: Settings) -> Check:
    """E L(μ_∞) − L* = ½ tr(H V) with minibatches of rows, V the solution of a linear system.

    V = E(I − ηH_B)V(I − ηH_B) + η²σ² E H_B² + η² Cov g_B, exactly
    (:func:`theory.stochastic.minibatch_ball`). H_B and g_B are the Hessian and the gradient at the
    optimum of a minibatch B, drawn with replacement. The noise of gates and that of minibatches are
    not additive: the batch scales both. Measured: means over runs from the optimum, within five
    standard errors.
    """
    cases = []
    problem = interior_problem(settings, 0)
    for sigma, batch in ((0.0, 1), (0.02, 1), (0.02, 8)):
        rate = 0.1 / column_quadratic(problem).smoothness
        quadratic, centres = minibatch_runs(problem, sigma, rate, batch, settings)
        found = excess(quadratic, centres).mean(axis=0)
        design = design_of(problem, "columns").reshape(problem.samples, problem.rows, -1)
        predicted = minibatch_ball(design, problem.targets, sigma, rate, batch)
        name = f"σ = {sigma}, batch {batch}"
        cases.append(mean_case(name, predicted, found, 0.02))
    return Check(
        "sgd-minibatch",
        13,
        "law",
        "with minibatches B the ball is ½ tr(HV), where V = E(I − ηH_B)V(I − ηH_B) + η²σ² E H_B² + "
        "η² Cov g_B",
        "column gates that stay inside (0, 1); rows drawn with replacement, fresh gate noise",
        tuple(cases),
        claim="convergence",
    )


def check_cross_entropy(settings: Settings) -> Check:
    """Cross-entropy on separable data: ‖∇L‖²/2L ~ ½‖z‖² e^{−tγ}/n along tω.

    γ is the least margin and z the gradient of the margin of its sample. L → 0 = L*, so the ratio
    needs no L* and tends to 0. So even column gates alone, without clipping, have no global PL
    constant. In the box t is at most 1 and the ratio has a positive minimum. Measured through the
    library's layer and ``torch.nn.functional.cross_entropy``, with two classes.
    """
    cases = []
    for index in range(min(settings.problems, 3)):
        random = settings.random("cross-entropy", index)
        least = gap = 0.0
        while gap < least or least == 0:  # log(1 + e^{−tγ}) is 0 in float64 where tγ > 37
            weight = random.standard_normal((2, 6))
            inputs = random.standard_normal((12, 6))
            labels = (inputs @ (weight[1] - weight[0]) > 0).astype(int)
            # Slopes of the margins in the gates, (12, 6).
            slopes = (2.0 * labels - 1)[:, None] * inputs * (weight[1] - weight[0])
            least, second = np.sort(slopes.sum(axis=1))[:2]
            gap = second - least
        nearest = slopes[np.argmin(slopes.sum(axis=1))]
        linear = torch.nn.Linear(6, 2, bias=False, dtype=torch.float64)
        linear.weight.data = torch.as_tensor(weight)
        gate = FixedGate(torch.ones(6, dtype=torch.float64))
        layer = GatedLinear(linear, None, gate)
        for scale in (10.0 / least, 20.0 / least):
            gate.values = torch.full((6,), scale, dtype=torch.float64, requires_grad=True)
            logits = layer(torch.as_tensor(inputs))
            loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels))
            (slope,) = torch.autograd.grad(loss, gate.values)
            ratio = float(slope @ slope) / (2 * float(loss.detach()))
            predicted = float(nearest @ nearest * np.exp(-scale * least) / (2 * len(labels)))
            name = f"data {index}, t = {scale:.3g}"
            cases.append(Case(name, "equal", predicted, ratio, 0.05))
    return Check(
        "cross-entropy-pl",
        13,
        "law",
        "on separable data cross-entropy has PL ratio ½‖z‖²e^{−tγ}/n → 0 along tω: no global PL "
        "constant even for column gates alone",
        "column gates without clipping; γ the least margin, attained once",
        tuple(cases),
        claim="pl",
    )


def check_entropy_box(settings: Settings) -> Check:
    """Cross-entropy in the box: ½D(ω) ≥ c λ_min(AᵀA/n) (L − L*), c = min over the box of p(1 − p).

    With the margins z = Aω of two classes, L = mean log(1 + e^{−z}). In the box z_i is
    between the sum of row i's negative entries and that of its positive ones. So every curvature
    p(1 − p) is at least c = e^{−b}/(1 + e^{−b})², b the largest of these sums, and c is attained.
    Hence L is strongly convex there with c λ_min(AᵀA/n), and proximal PL holds (Karimi, Nutini and
    Schmidt 2016), separable data included. Measured at random points and at vertices, with
    Λ = λ_max(AᵀA/n)/4, and L* from L-BFGS-B. The bound is loose, since not all margins are extreme.
    """
    cases = []
    for index in range(min(settings.problems, 8)):
        random = settings.random("entropy in the box", index)
        weight, inputs = random.standard_normal(5) / 2, random.standard_normal((40, 5))
        margins = np.abs(inputs @ weight) / (inputs @ weight) * (inputs * weight).T
        design = margins.T  # separable at ω = 1
        smoothness = float(np.linalg.norm(design, 2) ** 2) / 4 / len(design)

        def value(gates: Array, a: Array = design) -> float:
            return float(np.mean(np.logaddexp(0.0, -a @ gates)))

        def slope(gates: Array, a: Array = design) -> Array:
            return np.asarray(-(1 / (1 + np.exp(a @ gates))) @ a / len(a), dtype=np.float64)

        found = minimize(
            value, np.full(5, 0.5), jac=slope, method="L-BFGS-B", bounds=[(0.0, 1.0)] * 5,
            options={"ftol": 1e-16, "gtol": 1e-12},
        )  # fmt: skip
        ends = np.maximum(design, 0).sum(axis=1), np.maximum(-design, 0).sum(axis=1)
        power = float(np.exp(-np.max(ends)))
        least = float(np.linalg.eigvalsh(design.T @ design / len(design))[0])
        bound = power / (1 + power) ** 2 * least
        points = random.uniform(size=(24, 5))
        ratios = []
        for gates in np.concatenate([points, np.round(points)]):
            gap = value(gates) - float(found.fun)
            step = np.clip(gates - slope(gates) / smoothness, 0.0, 1.0) - gates
            decrease = -smoothness * (slope(gates) @ step + smoothness / 2 * step @ step)
            if gap > 1e-9:
                ratios.append(decrease / gap)
        cases.append(Case(f"data {index}", "at least", bound, float(min(ratios)), 1e-6))
    return Check(
        "cross-entropy-box",
        13,
        "bound",
        "in the box cross-entropy satisfies proximal PL with c λ_min(AᵀA/n), c the least p(1 − p) "
        "there, separable data included",
        "column gates as variables in [0, 1], two classes, A regular",
        tuple(cases),
        claim="pl",
    )
