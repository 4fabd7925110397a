"""Terms of the training loss, averaged for the log."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class LossTerms:
    """Means over optimizer steps of the terms of a loss.

    A step adds the share of each of its micro-batches. There is no device synchronisation before
    :meth:`take`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._since = 0

    def reset(self) -> None:
        """Drops all terms."""
        self._sums = {}

    def add(self, step: int, **terms: Tensor) -> None:
        """Adds the share of a micro-batch.

        Args:
            step: optimizer steps before this one.
            terms: scalars by name.
        """
        if not self._sums:
            self._since = step
        for name, value in terms.items():
            share = value.detach().float()
            self._sums[name] = self._sums[name] + share if name in self._sums else share

    def take(self, step: int, mean: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Returns the mean of each term since the last call, and resets.

        Args:
            step: optimizer steps so far.
            mean: averages over processes; maps (terms,) to (terms,).
        """
        if not self._sums:
            return {}
        means = mean(torch.stack(list(self._sums.values()))) / max(1, step - self._since)
        found = dict(zip(self._sums, means.tolist(), strict=True))
        self.reset()
        return found
