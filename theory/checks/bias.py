"""Item 3: how a bias changes the landscape of row and column gates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from finegates.gates.gated_linear import GatedLinear
from theory.bilinear import biased_coupling
from theory.cases import Case
from theory.checks.settings import ROUNDING, Settings
from theory.evidence import Check
from theory.free_gates import FreeGate
from theory.lora import count_zeros
from theory.problems import Array, Problem

Loss = Callable[[Tensor], Tensor]


def biased_residual(problem: Problem, bias: Array | None) -> Loss:
    """(y − Y)/√n of the library's gated layer, as a function of θ.

    Args:
        problem: X, W and Y.
        bias: frozen, shape (m,); if None the bias is trained and the last m entries of θ.
    """
    m, d = problem.weight.shape
    base = torch.nn.Linear(d, m, dtype=torch.float64).requires_grad_(False)
    base.weight.copy_(torch.as_tensor(problem.weight))
    layer = GatedLinear(base, FreeGate(torch.ones(m)), FreeGate(torch.ones(d)))
    inputs, targets = torch.as_tensor(problem.inputs), torch.as_tensor(problem.targets)

    def residual(theta: Tensor) -> Tensor:
        replaced = {
            "rows.values": theta[:m],
            "cols.values": theta[m : m + d],
            "base.bias": theta[m + d :] if bias is None else torch.as_tensor(bias),
        }
        output: Tensor = torch.func.functional_call(layer, replaced, (inputs,))
        return ((output - targets) / problem.samples**0.5).flatten()

    return residual


def _slope_and_zeros(residual: Loss, size: int, start: Array) -> tuple[float, int]:
    """‖∇L‖ at zero, and the number of zero Hessian eigenvalues at a minimiser."""
    slopes = torch.func.jacrev(residual)

    def jacobian(theta: Array) -> Array:
        return np.asarray(slopes(torch.as_tensor(theta)).numpy(), dtype=np.float64)

    def value(theta: Array) -> Array:
        return np.asarray(residual(torch.as_tensor(theta)).numpy(), dtype=np.float64)

    zero = np.zeros(size)
    slope = float(np.linalg.norm(jacobian(zero).T @ value(zero)))
    found = least_squares(value, start, jac=jacobian, method="lm", xtol=1e-15, ftol=1e-15)
    point = torch.as_tensor(found.x)
    hessian = torch.func.hessian(_loss(residual))(point).numpy()
    gradient = jacobian(found.x).T @ found.fun
    left = 10 * float(np.linalg.norm(gradient) / np.linalg.norm(found.x))
    return slope, count_zeros(hessian, len(found.fun), left + 1e-10 * np.abs(hessian).max())


def _loss(residual: Loss) -> Loss:
    return lambda theta: residual(theta).square().sum() / 2


def _least_curvature(residual: Loss, size: int) -> float:
    """The least Hessian eigenvalue at zero."""
    zero = torch.zeros(size, dtype=torch.float64)
    return float(torch.linalg.eigvalsh(torch.func.hessian(_loss(residual))(zero))[0])


def _drift(residual: Loss, theta: Array, rows: int) -> float:
    """Rate of change of ‖r‖² − ‖others‖² in gradient flow, over that of ‖r‖²."""
    slope = torch.func.grad(_loss(residual))(torch.as_tensor(theta)).numpy()
    changes = 2 * theta * slope
    return float(abs(changes[:rows].sum() - changes[rows:].sum()) / abs(changes[:rows].sum()))


def check_bias(settings: Settings) -> Check:
    """y = r ∘ (W(c ∘ x) + b): a frozen bias removes the saddle and the symmetry.

    Frozen b ≠ 0: ‖∇L(0, 0)‖ = ‖b ∘ Ȳ‖ with Ȳ the mean of the targets, so (0, 0) is not critical.
    (tr, c/t) is not a symmetry, so a minimiser has no flat direction. Trained b: (tr, c/t, b/t) is
    a symmetry, (0, 0, 0) is critical, and one flat direction is left. But b acts as column gates on
    a constant input. So the constants are those of [S, Diag(Ȳ)] (:func:`biased_coupling`), and the
    saddle is strict even where S = 0.

    At 0, ∂L/∂r_a = −b_a Ȳ_a, and ∂L/∂c = 0 because r = 0. The released code trains biases and
    version 1 freezes them, so their landscapes differ. If a combination of inputs is constant, a
    column gate can take the place of a frozen bias, so that this is excluded. Measured by automatic
    differentiation through the library's layer, as zero eigenvalues plus one.
    """
    cases = []
    for problem in settings.drawn("well-conditioned")[:4]:
        m, d = problem.weight.shape
        random = settings.random("bias", problem.name)
        bias = np.asarray(random.standard_normal(m))
        start = np.ones(m + d)
        # Gates of one sign: a trained bias keeps r_a from crossing 0, where b_a would be infinite.
        rows, cols = np.split(random.uniform(0.5, 1.3, m + d), [m])
        targets = problem.inputs @ (rows[:, None] * problem.weight * cols).T + rows * bias + 0.3
        targets += 0.05 * random.standard_normal(targets.shape)
        shifted = Problem(problem.inputs, problem.weight, targets, problem.name)
        slope, zeros = _slope_and_zeros(biased_residual(shifted, bias), m + d, start)
        predicted = float(np.linalg.norm(bias * shifted.targets.mean(0)))
        cases.append(Case(f"{problem.name}, frozen, slope", "equal", predicted, slope, ROUNDING))
        cases.append(Case(f"{problem.name}, frozen, zeros", "equal", 1, 1 + zeros))
        started = np.concatenate([start, bias])
        trained = biased_residual(shifted, None)
        slope, zeros = _slope_and_zeros(trained, 2 * m + d, started)
        cases.append(Case(f"{problem.name}, trained, slope", "equal", 1, 1 + slope, ROUNDING))
        cases.append(Case(f"{problem.name}, trained, zeros", "equal", 2, 1 + zeros))
        least = float(np.linalg.norm(biased_coupling(shifted), 2))
        found = -_least_curvature(trained, 2 * m + d)
        name = f"{problem.name}, trained, saddle"
        cases.append(Case(name, "equal", least, found, ROUNDING, "saddle"))
        drift, name = 1 + _drift(trained, started, m), f"{problem.name}, trained, conserved"
        cases.append(Case(name, "equal", 1, drift, ROUNDING, "conserved"))
    return Check(
        "joint-bias",
        3,
        "law",
        "a frozen bias b removes saddle and symmetry: the gradient at (0, 0) has norm ‖b ∘ Ȳ‖, and "
        "a minimiser has no flat direction; a trained bias restores both, with least curvature "
        "−σ₁([S, Diag(Ȳ)]), S = (YᵀX/n) ∘ W, and conserved ‖r‖² − ‖c‖² − ‖b‖²",
        "y = r ∘ (W(c ∘ x) + b), W without zeros, inputs and 1 linearly independent, b ∘ Ȳ ≠ 0; "
        "targets in general position",
        tuple(cases),
        claim="bilinear",
    )
