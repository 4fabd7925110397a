"""Item 12: a bound on the loss that closing gates by importance adds."""

from __future__ import annotations

import numpy as np
import torch

from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear
from theory.cases import Case
from theory.checks.convergence import INTERVALS
from theory.checks.settings import Settings
from theory.closing import second_order_bound
from theory.evidence import Check
from theory.intervals import interval
from theory.network import output_loss
from theory.outputs import design_of, least_squares
from theory.problems import Array, Problem
from theory.stochastic import Steps as Indices

CLOSED = 0.4
"""Share of the gates that are closed, the least important first."""
UNEQUAL = np.array([1.0, 0.5, 0.2, 0.8])
"""Gates of a built case."""


def layer_loss(
    weight: Array, inputs: Array, targets: Array | Indices, gates: Array
) -> tuple[float, Array]:
    """Loss and gradient in the column gates of a ``GatedLinear``, by automatic differentiation.

    Args:
        weight: (outputs, d).
        inputs: (n, d).
        targets: (n, outputs) for ½ the mean squared error of rows, (n,) integers for cross-entropy.
        gates: (d,).
    """
    outputs, size = weight.shape
    linear = torch.nn.Linear(size, outputs, bias=False, dtype=torch.float64)
    linear.weight.data = torch.as_tensor(weight)
    gate = FixedGate(torch.as_tensor(gates))
    gate.values.requires_grad_()
    found = GatedLinear(linear, None, gate)(torch.as_tensor(inputs))
    wanted = torch.as_tensor(targets)
    if wanted.ndim == 1:
        loss = torch.nn.functional.cross_entropy(found, wanted)
    else:
        loss = ((found - wanted) ** 2).sum() / (2 * len(inputs))
    (slope,) = torch.autograd.grad(loss, gate.values)
    return float(loss.detach()), slope.numpy()


def second_order(
    weight: Array, inputs: Array, targets: Array | Indices, gates: Array, chosen: Indices
) -> float:
    """What closing adds above the first order, through the library's layer."""
    before, slope = layer_loss(weight, inputs, targets, gates)
    left = gates.copy()
    left[chosen] = 0.0
    after, _ = layer_loss(weight, inputs, targets, left)
    return after - before + float(slope[chosen] @ gates[chosen])


def squares_root(problem: Problem, gates: Array) -> Array:
    """B with Hessian BᵀB in units of closing: the outputs' columns times the gates."""
    return design_of(problem, "columns") * gates / np.sqrt(problem.samples)


def entropy_root(weight: Array, inputs: Array, gates: Array) -> Array:
    """The same for two classes, with the largest curvature ¼ of the difference of logits."""
    most = output_loss(np.zeros((1, 1)), np.array([0])).most[0, 0]
    return np.asarray(
        np.sqrt(most / len(inputs)) * inputs * (weight[1] - weight[0]) * gates, dtype=np.float64
    )


def least_important(root: Array) -> Indices:
    """The gates with the smallest ω_j² H_jj."""
    order = np.argsort(np.sum(root**2, axis=0), kind="stable")
    return order[: max(1, round(CLOSED * len(order)))]


def equally_correlated(share: float) -> Array:
    """Four columns of 12 numbers, of length 1 and with scalar products ``share``."""
    basis = np.linalg.qr(np.vander(np.linspace(-1, 1, 12), 5))[0]
    return np.asarray(np.sqrt(share) * basis[:, :1] + np.sqrt(1 - share) * basis[:, 1:])


def check_bound(settings: Settings) -> Check:
    """ΔL + Σ_S ω_j ∂_jL ≤ ½ κ_S Σ_S ω_j² H_jj; see :mod:`theory.closing` for the proof.

    Least squares from the best gates, and cross-entropy of two classes with ¼ for ℓ''. Measured
    through the library's layer with closed gates. The bound is attained where the contributions of
    all closed gates have one length and one correlation ρ ≥ 0: κ = 1 + (|S| − 1)ρ. Built with gates
    that are equal, and unequal with columns that make up for it. For cross-entropy the outputs must
    be small, too: here p(1 − p) is ¼ up to 10⁻³.
    """
    cases = []
    for problem in settings.drawn():
        gates = least_squares(problem, "columns")
        root = squares_root(problem, gates)
        chosen = least_important(root)
        bound = second_order_bound(root[:, chosen])
        if bound > 1e-12 * problem.null_loss:
            parts = (problem.weight, problem.inputs, problem.targets, gates, chosen)
            name = f"{problem.name}, squares"
            cases.append(Case(name, "at most", bound, second_order(*parts), 1e-7, "squares"))
    for index in range(min(settings.problems, 8)):
        random = settings.random("closing", index)
        weight = random.standard_normal((2, 10))
        inputs = random.standard_normal((24, 10))
        gates = random.uniform(0.3, 1.0, 10)
        labels = random.integers(0, 2, 24)
        root = entropy_root(weight, inputs, gates)
        chosen = least_important(root)
        bound = second_order_bound(root[:, chosen])
        added = second_order(weight, inputs, labels, gates, chosen)
        cases.append(Case(f"classes {index}", "at most", bound, added, 1e-7, "cross-entropy"))
    # All columns of the outputs are equal.
    inputs = np.repeat(np.linspace(-1, 1, 12)[:, None], 4, axis=1)
    alike = Problem(inputs, np.ones((2, 4)), np.zeros((12, 2)), "equal columns")
    gates, chosen = np.ones(4), np.arange(3)
    bound = second_order_bound(squares_root(alike, gates)[:, chosen])
    added = second_order(alike.weight, inputs, alike.targets, gates, chosen)
    cases.append(Case(alike.name, "equal", bound, added, 1e-7, "squares", built=True))
    # Contributions of equal length and equal correlation ρ: κ = 1 + (s − 1)ρ, also attained.
    for share in (0.0, 0.25, 0.6):
        for opened in (gates, UNEQUAL):
            mixed = equally_correlated(share) / opened
            where = f"equal correlation {share}, gates {'equal' if opened is gates else 'unequal'}"
            alike = Problem(mixed, np.ones((2, 4)), np.zeros((12, 2)), where)
            bound = second_order_bound(squares_root(alike, opened)[:, chosen])
            added = second_order(alike.weight, mixed, alike.targets, opened, chosen)
            cases.append(Case(alike.name, "equal", bound, added, 1e-7, "κ", built=True))
    weight = 0.01 * np.array([[1.0], [-1.0]]) * np.ones((2, 4))
    bound = second_order_bound(entropy_root(weight, inputs, gates)[:, chosen])
    labels = np.tile([0, 1], 6)
    added = second_order(weight, inputs, labels, gates, chosen)
    cases.append(
        Case("equal columns, classes", "equal", bound, added, 2e-3, "cross-entropy", built=True)
    )
    return Check(
        "closing-bound",
        12,
        "law",
        "closing column gates S adds at most −Σ ω_j ∂_jL + ½κ_S Σ ω_j² H_jj, κ_S the coherence of "
        "the closed gates, attained where their contributions ω_j · column to the outputs have one "
        "length and one correlation ≥ 0 (second-order part)",
        "least squares; cross-entropy with ¼ for its curvature; 40 % of the gates, least important "
        "first",
        tuple(cases),
        claim="binary",
    )


def check_importance(settings: Settings) -> Check:
    """E (1/n) Σ_i (ω_j ∂_jℓ_i)² = τ² ω_j² H_jj for residuals of variance τ² that are noise.

    At the gates that generate the targets, ∂_jℓ_i = −Σ_a ε_ia X_ij W_aj, and the squares add up
    because the noise is independent. So comparing mean squared gradients is comparing the diagonal
    of the Hessian, the second-order part of the bound. Measured: gradients of single rows from the
    residuals, means over draws of the noise, within five standard errors; summed over gates and for
    the largest.
    """
    cases = []
    noise, draws = 0.3, 20 * settings.runs
    for problem in settings.drawn("well-conditioned", "ill-conditioned"):
        random = settings.random("importance", problem.name)
        gates = random.uniform(0.2, 1.0, problem.cols)
        root = squares_root(problem, gates)
        predicted = noise**2 * np.sum(root**2, axis=0)
        errors = noise * random.standard_normal((draws, problem.samples, problem.rows))
        slopes = (errors @ problem.weight) * problem.inputs * gates  # (draws, n, d)
        found = np.mean(slopes**2, axis=1)
        largest = int(np.argmax(predicted))
        for name, value, sample in (
            ("all gates", float(predicted.sum()), found.sum(axis=1)),
            ("largest", float(predicted[largest]), found[:, largest]),
        ):
            where = f"{problem.name}, {name}"
            low, high = interval(sample, where, statistic=np.mean)
            slack = INTERVALS * (high - low) / 2 / value
            cases.append(Case(where, "equal", value, float(sample.mean()), slack, name))
    return Check(
        "closing-importance",
        12,
        "law",
        "the mean squared gradient of single rows, by which gates are closed, has the expectation "
        "τ² ω_j² H_jj",
        "least squares; residuals are noise of variance τ² that does not depend on the inputs",
        tuple(cases),
        claim="binary",
    )
