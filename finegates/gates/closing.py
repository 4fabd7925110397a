"""Which dimensions are closed so that a goal is met: the least worthy first, none too many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 0.01
"""Of what is kept, as a fraction of the dense model: nearer to the goal need not be."""

# Of dimensions that are left open because closing one would miss the goal by too much.
_SKIPS = 32


def choose_closed(worth: Tensor, kept: Callable[[Tensor], float], goal: float) -> Tensor:
    """Chooses what to close for a goal.

    The least worthy dimensions are closed, in their order, as many as come nearest to the goal.
    Where one of them costs so much more than is left to remove that the goal would be missed (the
    last value of a head takes the head with it), it stays open, and the next ones are closed.

    Args:
        worth: (n,), of every dimension.
        kept: from a mask of closed dimensions, (n,), to the fraction of the dense model that stays;
            it falls as more are closed.
        goal: the fraction to keep.

    Returns:
        mask of the dimensions to close, (n,).
    """
    order = worth.argsort(stable=True)
    closed = torch.zeros_like(worth, dtype=torch.bool)
    best, miss = closed, abs(kept(closed) - goal)
    start = 0
    for _ in range(1 + _SKIPS):
        if kept(closed) <= goal + TOLERANCE or start >= len(order):
            break
        # The most of those that follow whose closing leaves at least the goal.
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
