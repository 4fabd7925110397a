"""Spectra and PL ratios of a network's loss, by Hessian-vector products and Lanczos' method.

For a loss L ≥ 0, ‖∇L‖²/2L is at most ‖∇L‖²/2(L − L*). So it is a lower estimate of the PL ratio
that needs no L*. ``scipy.sparse.linalg.eigsh`` finds the extreme eigenvalues of the operator v ↦
∇²L v, with two backward passes for each product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from theory.problems import Array


@dataclass(frozen=True)
class Local:
    """Loss, gradient and curvature at one point.

    Attributes:
        loss: L.
        squared_gradient: ‖∇L‖².
        ratio: ‖∇L‖²/2L.
        largest, smallest: extreme eigenvalues of ∇²L.
        size: number of parameters.
    """

    loss: float
    squared_gradient: float
    ratio: float
    largest: float
    smallest: float
    size: int


def local_landscape(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    seed: int,
    tolerance: float = 1e-3,
    vectors: int = 12,
) -> Local:
    """Loss, gradient and extreme eigenvalues at the current point.

    Args:
        loss: a deterministic function of the parameters, twice differentiable.
        parameters: with ``requires_grad``; those that do not affect the loss count as flat.
        seed: of Lanczos' start vector.
        tolerance: relative accuracy of the eigenvalues.
        vectors: size of the Krylov basis.

    Raises:
        ValueError: there are no parameters, or the loss or a second derivative is not finite.
    """
    parameters = list(parameters)
    if not parameters:
        raise ValueError("no parameters to look at; name those that are trained")
    value = loss()
    if not torch.isfinite(value):
        raise ValueError(f"the loss is {value.item()}: there is no landscape to look at")
    found = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
    gradient = torch.cat(
        [
            torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
            for p, g in zip(parameters, found, strict=True)
        ]
    )
    size = gradient.numel()

    def product(vector: Array) -> Array:
        direction = torch.as_tensor(vector.reshape(-1), dtype=gradient.dtype)
        second = torch.autograd.grad(
            gradient, parameters, direction, retain_graph=True, allow_unused=True
        )
        parts = [
            torch.zeros_like(p).reshape(-1) if h is None else h.reshape(-1)
            for p, h in zip(parameters, second, strict=True)
        ]
        image = np.asarray(torch.cat(parts).detach().numpy(), dtype=np.float64)
        if not np.isfinite(image).all():
            raise ValueError("the loss has no finite second derivative here; look elsewhere")
        return image

    squared = float(gradient.detach() @ gradient.detach())
    smallest, largest = _extremes(product, size, seed, tolerance, vectors)
    height = float(value.detach())
    return Local(height, squared, squared / (2 * height), largest, smallest, size)


def _extremes(
    product: Callable[[Array], Array], size: int, seed: int, tolerance: float, vectors: int
) -> tuple[float, float]:
    if size <= 2 * vectors:
        dense = np.stack([product(column) for column in np.eye(size)])
        values = np.linalg.eigvalsh((dense + dense.T) / 2)
        return float(values[0]), float(values[-1])
    start = np.random.default_rng(seed).standard_normal(size)
    if not product(start).any():
        return 0.0, 0.0
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    try:
        found = eigsh(
            operator,
            k=2,
            which="BE",
            v0=start,
            ncv=vectors,
            tol=tolerance,
            maxiter=6,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence:
        # An extreme eigenvalue near zero cannot reach a relative accuracy: use Ritz values, which
        # bound it from inside.
        found = _ritz(product, start, 2 * vectors)
    return float(np.min(found)), float(np.max(found))


def _ritz(product: Callable[[Array], Array], start: Array, steps: int) -> Array:
    """Ritz values: eigenvalues of the operator on a Krylov space of dimension ``steps``."""
    basis = [start / np.linalg.norm(start)]
    images: list[Array] = []
    for _ in range(steps):
        images.append(product(basis[-1]))
        rest = images[-1].copy()
        for vector in basis * 2:  # orthogonalise twice: once loses orthogonality
            rest -= (vector @ rest) * vector
        norm = np.linalg.norm(rest)
        if norm <= 1e-12 * np.linalg.norm(images[-1]):
            break
        basis.append(rest / norm)
    matrix = np.stack(basis[: len(images)]) @ np.stack(images).T
    return np.asarray(np.linalg.eigvalsh((matrix + matrix.T) / 2), dtype=np.float64)
