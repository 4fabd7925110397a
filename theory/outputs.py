"""Measurements on the outputs of a layer with gates on one side.

They share no code with the closed forms of :mod:`theory.quadratic`. Losses and gradients come from
residuals, minimisers from ``numpy.linalg.lstsq``, and curvatures from singular values or from
automatic differentiation through the library's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear
from theory.problems import Array, Problem
from theory.quadratic import Quadratic, gradients, loss, rank_tolerance

Side = Literal["columns", "rows"]


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


def design_of(problem: Problem, side: Side) -> Array:
    """The outputs as a linear function of one side's gates, shape (n m, gates)."""
    if side == "columns":
        return (problem.inputs[:, None, :] * problem.weight[None]).reshape(-1, problem.cols)
    outputs = problem.inputs @ problem.weight.T
    return (outputs[:, :, None] * np.eye(problem.rows)).reshape(-1, problem.rows)


def least_squares(problem: Problem, side: Side) -> Array:
    """The gates of least loss and least norm, by ``numpy.linalg.lstsq`` on the outputs."""
    found = np.linalg.lstsq(design_of(problem, side), problem.targets.reshape(-1))[0]
    return np.asarray(found, dtype=np.float64)


def quadratic_of_outputs(problem: Problem, side: Side = "columns") -> Quadratic:
    """L in the gates of one side, from the outputs that single gates make."""
    design, count = design_of(problem, side), problem.samples
    flat = problem.targets.reshape(-1)
    return Quadratic(
        design.T @ design / count,
        design.T @ flat / count,
        float(flat @ flat) / (2 * count),
        len(flat),
    )


def prox_ratio(problem: Problem, best: Array, gates: Array) -> float:
    """½ D/(L − L*) of column gates in the box, if targets make ``best`` a minimiser.

    D is the proximal decrease with Λ, the largest curvature, by singular values.

    Args:
        problem: its targets are not used.
        best: gates in the box whose outputs are the targets, shape (d,).
        gates: in the box, shape (d,).
    """
    design = design_of(problem, "columns") / np.sqrt(problem.samples)
    most = float(np.linalg.norm(design, 2) ** 2)
    error = design @ (gates - best)
    slope = design.T @ error
    step = np.clip(gates - slope / most, 0.0, 1.0) - gates
    return float(-most * (slope @ step + most / 2 * step @ step) / (error @ error / 2))


def least_of_rank(problem: Problem, rank: int) -> float:
    """The least loss of LoRA, from the singular values of the fitted outputs."""
    rest = problem.targets - problem.inputs @ problem.weight.T
    fitted = problem.inputs @ np.linalg.lstsq(problem.inputs, rest)[0]
    left = np.linalg.svd(fitted, compute_uv=False)[rank:]
    squared = float(np.sum((rest - fitted) ** 2) + np.sum(left**2))
    return squared / (2 * problem.samples)


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


def smallest_curvature(problem: Problem) -> float:
    """The smallest non-zero curvature in column gates, by singular values of their design."""
    design = design_of(problem, "columns") / np.sqrt(problem.samples)
    singular = np.linalg.svd(design, compute_uv=False)
    floor = np.sqrt(rank_tolerance(problem.cols, problem.samples + problem.rows))
    return float(np.min(singular[singular > floor * singular[0]]) ** 2)


def descend_by_residuals(
    problem: Problem, side: Side, start: Array, step: float, count: int
) -> Array:
    """Gaps of gradient descent, k = 0..count, from the outputs alone.

    The residual of least squares is orthogonal to all changes of the gates. So the gap is half the
    mean squared distance of the outputs from the best ones.
    """
    design, gradient = design_of(problem, side), gradient_of(problem, side)
    best, gates = least_squares(problem, side), start
    gaps = np.empty(count + 1)
    for k in range(count + 1):
        gaps[k] = float(np.sum((design @ (gates - best)) ** 2)) / (2 * problem.samples)
        gates = gates - step * gradient(gates)
    return gaps


def white_problem(problem: Problem) -> Problem:
    """The same weight with inputs for which G = 2 I."""
    left, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, problem.cols + 3), problem.cols))
    inputs = np.sqrt(2.0 * len(left)) * left
    targets = inputs @ problem.weight.T
    return Problem(inputs, problem.weight, targets, f"{problem.name}, white")


def sign_problem(problem: Problem, random: np.random.Generator) -> Problem:
    """The same inputs with one output whose weights are ±1: H is G up to signs."""
    weight = np.where(random.uniform(size=(1, problem.cols)) > 0.5, 1.0, -1.0)
    return Problem(problem.inputs, weight, problem.targets[:, :1], f"{problem.name}, signs")
