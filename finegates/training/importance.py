"""What a training step says about the importance of gates, counted once the step is taken.

Between the backward pass and the clipping of gradients, the gradients of a step are whole and in
one unit, save for the scale of the loss. Whether the optimizer takes the step is known later:
training in half precision skips the steps whose gradients overflow. So gradients are read at the
one moment and count at the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from finegates.gates.gate import StochasticGate


class StepImportance:
    """Takes the gradients of training steps into the importances of gates.

    Args:
        gates: any; those without factors have no importance.
    """

    def __init__(self, gates: Iterable[StochasticGate]) -> None:
        self._gates = [gate for gate in dict.fromkeys(gates) if gate.scale is not None]
        self._seen: list[Tensor | None] = []

    def read(self, loss_scale: float = 1.0) -> None:
        """Reads the gradients of a step, after its last backward pass and before clipping.

        Args:
            loss_scale: what the loss was multiplied by before the backward pass.

        Raises:
            RuntimeError: the gradients are gone already, or cut into shards.
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
                f"{'cut into shards' if sharded else 'missing'} after the backward pass, so it "
                "cannot be seen which gates matter: DeepSpeed, LOMO and layer-wise GaLore step "
                "within the backward pass, FSDP keeps shards; train on one device or by "
                "DistributedDataParallel, with an optimizer that steps afterwards"
            )
        self._seen = [gate.observed(loss_scale) for gate in self._gates]

    def count(self) -> None:
        """Takes what was read last into the importances: the optimizer has taken the step."""
        for gate, seen in zip(self._gates, self._seen, strict=False):
            if seen is not None and gate.importance is not None:
                gate.importance.copy_(seen)
        self.forget()

    def forget(self) -> None:
        """Drops what was read last: the optimizer has skipped the step."""
        self._seen = []


def _is_sharded(gradient: Tensor | None) -> bool:
    return gradient is not None and (hasattr(gradient, "placements") or gradient.ndim != 1)
