"""Conditioning, speed and reach of gates and low-rank adapters, on batches of problems.

A method is one of ``columns``, ``rows + columns`` and ``LoRA r``, with r below full rank. The
leading dimension of every array is the problem, within a family. Descent is steepest descent: the
step is the best of a grid of powers of √2, so that no method has a step size to tune.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finegates.seeds import derive_seed
from theory.lora import lora_minimiser
from theory.problems import FAMILIES, Array, Problem
from theory.quadratic import column_quadratic, rank_tolerance

RANKS = (1, 2, 4)
GATES = "rows + columns"
METHODS = ("columns", GATES, *(f"LoRA {rank}" for rank in RANKS))


def ranks_of(family: str) -> tuple[int, ...]:
    """Ranks below full rank in a family: an adapter of full rank is a free weight."""
    shape = FAMILIES[family]
    return tuple(rank for rank in RANKS if rank < min(shape.rows, shape.cols))


def methods_of(family: str) -> tuple[str, ...]:
    """The methods that are compared in a family."""
    return ("columns", GATES, *(f"LoRA {rank}" for rank in ranks_of(family)))


@dataclass(frozen=True)
class Batch:
    """Problems of equal shapes.

    Attributes:
        second: G, shape (p, d, d).
        cross: C = YᵀX/n, shape (p, m, d).
        weight: W, shape (p, m, d).
        null: ‖Y‖²/2n, shape (p,).
        terms: products in an entry of a Gram matrix, for the rank tolerance.
    """

    second: Array
    cross: Array
    weight: Array
    null: Array
    terms: int

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Batch:
        """Stacks problems."""
        return cls(
            np.stack([p.second_moment for p in problems]),
            np.stack([p.cross_moment for p in problems]),
            np.stack([p.weight for p in problems]),
            np.array([p.null_loss for p in problems]),
            problems[0].samples * problems[0].rows,
        )

    def take(self, chosen: NDArray[np.bool_]) -> Batch:
        """Some of the problems."""
        return Batch(
            self.second[chosen],
            self.cross[chosen],
            self.weight[chosen],
            self.null[chosen],
            self.terms,
        )


Point = tuple[Array, Array]
"""The two factors of a model: (r, c) of shapes (p, m), (p, d), or (B, A)."""


def is_lora(method: str) -> bool:
    """Whether a method is a low-rank adapter."""
    return method.startswith("LoRA")


def rank_of(method: str) -> int:
    """r of ``LoRA r``."""
    return int(method.split()[1])


def start(problems: Sequence[Problem], method: str, seed: int, scale: float = 1.0) -> Point:
    """Start of a method: gates at 1, or LoRA with B = 0 and A uniform in ±``scale``/√d.

    ``scale`` 1 is the usual start: Kaiming's uniform initialisation with a = √5, as in the LoRA
    paper's code and in peft.
    """
    count, (m, d) = len(problems), problems[0].weight.shape
    if not is_lora(method):
        return np.ones((count, m)), np.ones((count, d))
    rank = rank_of(method)
    drawn = [
        np.random.default_rng(derive_seed(p.name, method, seed)).uniform(-1, 1, (rank, d))
        for p in problems
    ]
    return np.zeros((count, m, rank)), scale * np.stack(drawn) / np.sqrt(d)


def start_loss(batch: Batch) -> Array:
    """Loss at the start, where every method has the weight W, shape (p,)."""
    return _losses(batch, batch.weight, batch.weight @ batch.second - batch.cross)


def solution(problems: Sequence[Problem], method: str) -> tuple[Point, Array]:
    """Minimisers and L*, shape (p,).

    They are exact for columns and for LoRA (balanced). With rows and columns they are the best of
    descents from 1 and from two random starts, each solved to the end.
    """
    if is_lora(method):
        found = [lora_minimiser(p, rank_of(method)) for p in problems]
        point = np.stack([b for b, _, _ in found]), np.stack([a for _, a, _ in found])
        return point, np.array([low for _, _, low in found])
    if method == "columns":
        return _column_solution(problems)
    batch = Batch.of(problems)
    count, (m, d) = len(problems), problems[0].weight.shape
    best, lows = solve_gates(batch, np.ones((count, m + d)))
    for number in range(2):
        random = np.random.default_rng(derive_seed(problems[0].name, count, "start", number))
        trial, heights = solve_gates(batch, random.standard_normal((count, m + d)))
        # By more than rounding: the last bit must not decide between equal minima.
        better = heights < lows - 1e-9 * batch.null
        best, lows = np.where(better[:, None], trial, best), np.where(better, heights, lows)
    return (best[:, :m], best[:, m:]), lows


def _column_solution(problems: Sequence[Problem]) -> tuple[Point, Array]:
    """Minimisers nearest to the start, which descent finds."""
    cols, lows = [], []
    for p in problems:
        quadratic = column_quadratic(p)
        values, vectors = quadratic.spectrum()
        null = vectors[:, values == 0]
        cols.append(quadratic.minimiser() + null @ (null.T @ np.ones(p.cols)))
        lows.append(quadratic.minimum())
    return (np.ones((len(problems), problems[0].rows)), np.stack(cols)), np.array(lows)


CALM = 8
"""Newton's method stops after this number of steps without progress on any problem."""


def solve_gates(batch: Batch, gates: Array, iterations: int = 120) -> tuple[Array, Array]:
    """Local minimisers in (r, c) from given starts (p, m + d), and their losses (p,).

    Newton's method with Levenberg–Marquardt damping. If a step with the Hessian fails, the
    Gauss–Newton matrix replaces it.
    """
    method, m = GATES, batch.weight.shape[1]
    size = gates.shape[1]
    damping = np.full(len(gates), 1e-2)
    newton = np.zeros(len(gates), dtype=bool)

    def measure(theta: Array) -> tuple[Array, Array]:
        model = _model(batch, method, theta[:, :m], theta[:, m:])
        error = model @ batch.second - batch.cross
        slopes = _gradient(batch, method, theta[:, :m], theta[:, m:], error)
        return _losses(batch, model, error), np.concatenate(slopes, axis=1)

    heights, slopes = measure(gates)
    calm = 0
    for _ in range(iterations):
        if calm == CALM:
            break
        point = gates[:, :m], gates[:, m:]
        # Newton after a step that lowered the loss, Gauss–Newton after one that did not.
        curvature = np.where(
            newton[:, None, None],
            hessian(batch, method, point),
            gauss_newton(batch, method, point),
        )
        scale = np.trace(curvature, axis1=1, axis2=2) / size + 1e-300
        damped = curvature + (damping * scale)[:, None, None] * np.eye(size)
        trial = gates - np.linalg.solve(damped, slopes[:, :, None])[:, :, 0]
        after, bent = measure(trial)
        better = after <= heights
        fallen = np.max(np.where(better, heights - after, 0.0) / batch.null)
        calm = calm + 1 if fallen < 1e-15 else 0
        gates = np.where(better[:, None], trial, gates)
        heights = np.where(better, after, heights)
        slopes = np.where(better[:, None], bent, slopes)
        damping = np.clip(damping * np.where(better, 0.3, 8.0), 1e-12, 1e6)
        newton = better
    return gates, heights


def gauss_newton(batch: Batch, method: str, point: Point) -> Array:
    """JᵀJ at a point, shape (p, size, size): the Hessian without its residual term.

    Symmetries and data make its zero eigenvalues, at every point. The Hessian has these zeros only
    at minimisers. For an exact fit the two matrices agree.
    """
    return _second_derivative(batch, method, point, residual=False)


def hessian(batch: Batch, method: str, point: Point) -> Array:
    """∇²L at a point, shape (p, size, size)."""
    return _second_derivative(batch, method, point, residual=True)


def _second_derivative(batch: Batch, method: str, point: Point, *, residual: bool) -> Array:
    first, second = point
    count, m, d = batch.weight.shape
    if is_lora(method):
        rank = rank_of(method)
        b, a = first, second
        mixed = np.einsum("pal,pkj->paklj", b, a @ batch.second)  # (p, m, r, r, d)
        if residual:
            error = (batch.weight + b @ a) @ batch.second - batch.cross
            mixed = mixed + np.einsum("kl,paj->paklj", np.eye(rank), error)
        mixed = mixed.reshape(count, m * rank, rank * d)
        inner = a @ batch.second @ a.transpose(0, 2, 1)  # A G Aᵀ, (p, r, r)
        upper = np.einsum("ab,pkl->pakbl", np.eye(m), inner).reshape(count, m * rank, m * rank)
        outer = b.transpose(0, 2, 1) @ b  # BᵀB, (p, r, r)
        lower = np.einsum("pkl,pij->pkilj", outer, batch.second).reshape(count, rank * d, rank * d)
        return _blocks(upper, mixed, lower)
    scaled = first[:, :, None] * batch.weight  # Diag(r) W, (p, m, d)
    columns = batch.second * (scaled.transpose(0, 2, 1) @ scaled)  # G ∘ (Wᵀ Diag(r)² W)
    if method == "columns":
        return columns
    kept = batch.weight * second[:, None, :]  # W Diag(c), (p, m, d)
    products = kept @ batch.second
    mixed = scaled * products  # JᵀJ between r_a and c_j, (p, m, d)
    if residual:
        error = (first[:, :, None] * kept) @ batch.second - batch.cross
        mixed = mixed + error * batch.weight
    energies = np.sum(products * kept, axis=2)  # h_a, (p, m)
    return _blocks(energies[:, :, None] * np.eye(m), mixed, columns)


def _blocks(upper: Array, mixed: Array, lower: Array) -> Array:
    return np.concatenate(
        [
            np.concatenate([upper, mixed], axis=2),
            np.concatenate([mixed.transpose(0, 2, 1), lower], axis=2),
        ],
        axis=1,
    )


def condition_numbers(matrices: Array, terms: int) -> tuple[Array, Array]:
    """Largest over smallest non-zero |eigenvalue|, and −λ_min/λ_max, of symmetric matrices.

    Returns:
        two arrays of shape (p,); the second is zero where the matrix is positive semidefinite.
    """
    values = np.linalg.eigvalsh(matrices)
    size = np.abs(values)
    largest = size.max(axis=1)
    floor = rank_tolerance(values.shape[1], terms) * largest
    smallest = np.where(size > floor[:, None], size, np.inf).min(axis=1)
    negative = np.where(values[:, 0] < -floor, -values[:, 0], 0.0)
    return largest / smallest, negative / values[:, -1]


@dataclass(frozen=True)
class Path:
    """Descents of one method on the problems of a family.

    Attributes:
        iterations: to each goal, infinite if the limit came first; shape (p, goals).
        points: at the steps of ``seen``, or the last point if the descent ended earlier.
    """

    iterations: Array
    points: tuple[Point, ...]


_GRID = np.sqrt(2.0) ** np.arange(-24, 25)


def steepest_descent(
    batch: Batch, method: str, point: Point, goals: Array, limit: int, seen: Sequence[int] = ()
) -> Path:
    """Descends until the loss reaches the lowest of its goals, at most ``limit`` steps.

    Args:
        batch: the problems.
        method: one of ``METHODS``.
        point: the start.
        goals: losses, shape (p, goals).
        limit: largest number of steps.
        seen: steps at which to record the point, increasing.
    """
    first, second = (np.array(part) for part in point)
    iterations = np.full(goals.shape, np.inf)
    active = np.arange(len(batch.null))
    work = batch
    points: list[Point] = []
    for k in range(limit + 1):
        if k in seen:
            points.append((first.copy(), second.copy()))
        x, y = first[active], second[active]
        # Loss at the current points of the active problems.
        model = _model(work, method, x, y)  # (active, m, d)
        error = model @ work.second - work.cross
        height = _losses(work, model, error)
        reached = height[:, None] <= goals[active]
        iterations[active] = np.where(reached & np.isinf(iterations[active]), k, iterations[active])
        # Drop the problems that have reached all of their goals.
        kept = ~np.asarray(reached.all(axis=1), dtype=np.bool_)
        if not kept.all():
            active, work = active[kept], work.take(kept)
            if not len(active):
                break
            x, y, error = x[kept], y[kept], error[kept]
        dx, dy = _gradient(work, method, x, y, error)
        step = _best_step(work, method, x, y, dx, dy, error)
        shape = (-1, *(1,) * (x.ndim - 1))
        first[active] = x - step.reshape(shape) * dx
        second[active] = y - step.reshape(shape) * dy
    while len(points) < len(seen):
        points.append((first.copy(), second.copy()))
    return Path(iterations, tuple(points))


def _model(batch: Batch, method: str, x: Array, y: Array) -> Array:
    if is_lora(method):
        return batch.weight + x @ y
    return x[:, :, None] * batch.weight * y[:, None, :]


def _losses(batch: Batch, model: Array, error: Array) -> Array:
    """½⟨M, MG⟩ − ⟨M, C⟩ + null, with E = MG − C."""
    return np.sum(model * (error - batch.cross), axis=(1, 2)) / 2 + batch.null


def _gradient(batch: Batch, method: str, x: Array, y: Array, error: Array) -> tuple[Array, Array]:
    if is_lora(method):
        return error @ y.transpose(0, 2, 1), x.transpose(0, 2, 1) @ error
    pulled = error * batch.weight  # E ∘ W, (p, m, d)
    columns = np.sum(pulled * x[:, :, None], axis=1)
    if method == "columns":
        return np.zeros_like(x), columns
    return np.sum(pulled * y[:, None, :], axis=2), columns


def _best_step(
    batch: Batch, method: str, x: Array, y: Array, dx: Array, dy: Array, error: Array
) -> Array:
    """The step t of the grid with the least loss of M(t) = M + t M₁ + t² M₂, a quartic in t."""
    if is_lora(method):
        linear, square = -(dx @ y + x @ dy), dx @ dy
    else:
        weight = batch.weight
        linear = -(dx[:, :, None] * y[:, None, :] + x[:, :, None] * dy[:, None, :]) * weight
        square = dx[:, :, None] * dy[:, None, :] * weight
    pushed, bent = linear @ batch.second, square @ batch.second  # M₁ G and M₂ G
    # Coefficients of t to t⁴ in the loss, each (p,).
    slope = np.sum(error * linear, axis=(1, 2))
    two = np.sum(linear * pushed, axis=(1, 2)) / 2 + np.sum(error * square, axis=(1, 2))
    three = np.sum(linear * bent, axis=(1, 2))
    four = np.sum(square * bent, axis=(1, 2)) / 2
    # Around the Gauss–Newton step along the line.
    curvature = np.sum(linear * pushed, axis=(1, 2))
    unit = -slope / np.where(curvature > 0, curvature, 1.0)
    t = unit[:, None] * _GRID
    values = t * (slope[:, None] + t * (two[:, None] + t * (three[:, None] + t * four[:, None])))
    return np.asarray(t[np.arange(len(t)), np.argmin(values, axis=1)])
