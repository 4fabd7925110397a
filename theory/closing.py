"""A second-order bound on the loss that closing gates adds, and what a network adds.

Closing the gates S of ω changes them by δ_j = −ω_j. With φ(t) = L(ω + tδ), Taylor's theorem gives

    L(ω + δ) − L(ω) ≤ −Σ_S ω_j ∂_jL + ½ max over [0, 1] of φ''.

Where the outputs are linear in the gates, φ''(t) = δᵀHδ with the Gauss–Newton matrix H, and

    δᵀHδ ≤ κ_S Σ_S ω_j² H_jj,    1 ≤ κ_S ≤ |S|,

with κ_S the largest eigenvalue of the correlation matrix H_jk/√(H_jj H_kk) on S, the *coherence* of
the closed gates: for x = D^{1/2}1 with D = Diag(ω_j² H_jj), δᵀHδ = xᵀ(correlations)x ≤ κ_S ‖x‖².
Equality holds where x is an eigenvector of κ_S: where the contributions ω_j · column to the outputs
have one length and one correlation ρ ≥ 0, κ_S = 1 + (|S| − 1)ρ. For ρ < 0, κ_S = 1 − ρ and the
bound is not attained, nor is it in general for contributions of unequal length. For least squares H
is constant. For cross-entropy ℓ'' is replaced by an upper bound
(:class:`theory.network.OutputLoss`), so that the statement holds for changes of any size.

ω_j² H_jj is the importance of gate j: where residuals are independent of the inputs, with mean 0
and variance τ², the mean square over rows of ω_j ∂_jℓ_i, which Molchanov et al. (2019) compare, has
the expectation τ² ω_j² H_jj.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from theory.free_gates import FreeGate, set_values
from theory.network import Batch, Tangents, output_loss, seen_outputs, tangents_of
from theory.problems import Array

SHARES = (0.01, 0.03, 0.1, 0.3)
"""Closed shares of the open gates."""
PLACES = (0.0, 0.5, 1.0)
"""Where φ'' is measured."""
STEP = 0.05
"""Of its central differences."""


def coherence(root: Array) -> float:
    """κ: the largest eigenvalue of the correlation matrix of H = BᵀB, at least 1.

    Args:
        root: B, shape (rows, gates). Gates without curvature do not count.
    """
    norms = np.linalg.norm(root, axis=0)
    if not norms.any():
        return 1.0
    unit = root[:, norms > 0] / norms[norms > 0]
    small = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    return float(np.linalg.eigvalsh(small)[-1])


def second_order_bound(root: Array) -> float:
    """½ κ Σ H_jj, with H = BᵀB in units of closing a gate (B has the factor ω_j)."""
    return coherence(root) * float(np.sum(root**2)) / 2


def importances(tangents: Tangents) -> Array:
    """Mean squares of the first-order change of a row's loss, in units of closing; (gates,)."""
    return np.asarray(np.mean(tangents.row_gradients() ** 2, axis=0))


def closing_rows(
    model: nn.Module, gates: Sequence[FreeGate], batches: Sequence[Batch]
) -> Iterator[dict[str, float]]:
    """Closes the least important open gates, and compares the added loss with its bound.

    Args:
        model: in float64 and evaluation mode.
        gates: all its gates.
        batches: inputs with labels.

    Yields:
        ``share``, ``closed`` (number of gates), ``added`` (measured), ``linear`` (−Σ ω_j ∂_jL),
        ``second`` (added − linear), ``curved`` (½φ'' at t = 0), ``steepest`` (the largest ½φ''
        found), ``gauss_newton`` (½δᵀHδ), ``coherence``, ``second_bound`` (½κ Σ ω_j² H_jj), and
        ``bound`` (linear + second_bound).
    """
    values = torch.cat([gate.values.detach() for gate in gates])
    tangents = tangents_of(model, gates, batches).scaled(values.numpy())
    slope, local, most = tangents.gradient, tangents.root(), tangents.root(most=True)
    opened = np.flatnonzero(values.numpy())
    order = opened[np.argsort(importances(tangents)[opened], kind="stable")]
    for share in SHARES:
        chosen = order[: max(1, round(share * len(order)))]
        end = values.clone()
        end[torch.as_tensor(chosen)] = 0.0

        def height(t: float, end: Tensor = end) -> float:
            set_values(list(gates), torch.lerp(values, end, t))
            return evaluated(model, batches)

        linear = -float(slope[chosen].sum())
        curved = []
        for t in PLACES:
            below, middle, above = (height(t + side * STEP) for side in (-1, 0, 1))
            curved.append((above - 2 * middle + below) / STEP**2 / 2)
        added = middle - tangents.mean  # at the last place, t = 1
        second_bound = second_order_bound(most[:, chosen])
        yield {
            "share": share,
            "closed": float(len(chosen)),
            "added": added,
            "linear": linear,
            "second": added - linear,
            "curved": curved[0],
            "steepest": max(curved),
            "gauss_newton": float(np.sum(local[:, chosen].sum(axis=1) ** 2)) / 2,
            "coherence": coherence(most[:, chosen]),
            "second_bound": second_bound,
            "bound": linear + second_bound,
        }
    set_values(list(gates), values)


@torch.no_grad()
def evaluated(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The mean loss over all rows."""
    parts = [
        output_loss(seen_outputs(model(**batch).logits).numpy(), batch["labels"].numpy()).value
        for batch in batches
    ]
    return float(np.concatenate(parts).mean())
