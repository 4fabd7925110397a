"""Importance of gates from training steps.

Gradients are read between the backward pass and gradient clipping, where they are complete and
differ from the true ones only by the loss scale. Whether the optimizer takes the step is known
later: training in half precision skips steps whose gradients overflow. So gradients are read first
and counted once the step is taken.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from finegates.gates.stochastic import StochasticGate


class StepImportance:
    """Accumulates gradients of training steps into the importances of gates.

    Args:
        gates: any; gates without factors have no importance.
    """

    def __init__(self, gates: Iterable[StochasticGate]) -> None:
        self._gates = [gate for gate in dict.fromkeys(gates) if gate.scale is not None]
        self._seen: list[Tensor | None] = []

    def read(self, loss_scale: float = 1.0) -> None:
        """Reads the gradients of a step, after its last backward pass and before clipping.

        Args:
            loss_scale: factor of the loss in the backward pass.

        Raises:
            RuntimeError: the gradients are missing or sharded.
        """
        gradients = [gate.scale.grad for gate in self._gates if gate.scale is not None]
        there = [gradient for gradient in gradients if gradient is not None]
        sharded = any(
            gate.scale is not None and (gate.scale.shape != (gate.size,) or _is_sharded(gradient))
            for gate, gradient in zip(self._gates, gradients, strict=True)
        )
        if sharded or (self._gates and not there):
            raise RuntimeError(
                f"the gradients of all {len(self._gates)} shared gates are "
                f"{'sharded' if sharded else 'missing'} after the backward pass, so their "
                "importance is unknown: DeepSpeed, LOMO and layer-wise GaLore step "
                "within the backward pass, FSDP keeps shards; train on one device or with "
                "DistributedDataParallel, with an optimizer that steps afterwards"
            )
        self._seen = [gate.observed(loss_scale) for gate in self._gates]

    def count(self) -> None:
        """Adds the last gradients to the importances, after the optimizer step."""
        for gate, seen in zip(self._gates, self._seen, strict=False):
            if seen is not None and gate.importance is not None:
                gate.importance.copy_(seen)
        self.forget()

    def forget(self) -> None:
        """Drops the last gradients, because the optimizer skipped the step."""
        self._seen = []


def _is_sharded(gradient: Tensor | None) -> bool:
    return gradient is not None and (hasattr(gradient, "placements") or gradient.ndim != 1)
