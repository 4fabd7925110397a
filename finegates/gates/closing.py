"""Choice of the dimensions to close for a budget, least important first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 0.01
"""Tolerance of the goal, as a fraction of the dense model."""

# Most dimensions that stay open because closing one would overshoot the goal.
_SKIPS = 32


def choose_closed(
    worth: Tensor,
    kept: Callable[[Tensor], float],
    goal: float,
    final: Tensor | None = None,
) -> Tensor:
    """Chooses the dimensions to close for a goal.

    Dimensions are closed in order of increasing worth, as many as come nearest to the goal. A
    dimension whose removal would overshoot the goal stays open (the last value of a head removes
    the whole head), and the next ones are closed.

    Args:
        worth: (n,), of every dimension.
        kept: maps a mask of closed dimensions, (n,), to the kept fraction of the dense model; it
            decreases as more are closed.
        goal: the fraction to keep.
        final: mask of dimensions that are closed in any case, (n,); None if there are none.

    Returns:
        mask of the dimensions to close, (n,).
    """
    order = worth.argsort(stable=True)
    closed = torch.zeros_like(worth, dtype=torch.bool)
    if final is not None:
        order, closed = order[~final[order]], final.clone()
    best, miss = closed, abs(kept(closed) - goal)
    start = 0
    for _ in range(1 + _SKIPS):
        if kept(closed) <= goal + TOLERANCE or start >= len(order):
            break
        # Largest number of the following dimensions that can close above the goal.
        low, high = start, len(order) + 1
        while high - low > 1:
            middle = (low + high) // 2
            enough = kept(_with(closed, order[start:middle])) >= goal
            low, high = (middle, high) if enough else (low, middle)
        for end in (low, min(low + 1, len(order))):
            found = _with(closed, order[start:end])
            if abs(kept(found) - goal) < miss:
                best, miss = found, abs(kept(found) - goal)
        if miss <= TOLERANCE:
            break
        closed, start = _with(closed, order[start:low]), low + 1
    return best


def _with(closed: Tensor, more: Tensor) -> Tensor:
    together = closed.clone()
    together[more] = True
    return together
