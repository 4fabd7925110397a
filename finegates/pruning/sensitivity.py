"""Derivatives of each calibration row's loss by every shared gate.

With c_i the contribution of row i to the mean loss, ``L = mean_i c_i``, and g the gate of a
dimension, at 1:

- ``taylor``: ``mean_i |dc_i / dg|``, the expected sensitivity of Michel et al. (arXiv 1905.10650,
  equation 2), the first-order change of a row's loss if the dimension were removed;
- ``fisher``: ``mean_i (dc_i / dg)^2``, the diagonal of the empirical Fisher information of the
  gates, as in Kwon et al. (arXiv 2204.09656, section 4).

The derivative of L itself is not useful: for a trained model it is about zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from finegates.adapters import unwrap
from finegates.gates.gate import FixedGate, Gate
from finegates.gates.stochastic import StochasticGate
from finegates.pruning.calibration import Batch, single_rows, to_device
from finegates.pruning.groups import SharedGroups, Vectors
from finegates.training.label_use import LabelUse, label_use
from finegates.training.loss_means import has_uneven_positions, labels_of_several_means
from finegates.training.micro_batches import count_items

# Loss scale against underflow in float16; divided out in float32.
_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class Sensitivity:
    """Means over rows of the gates' derivatives, float32, (n,) by gate.

    Attributes:
        absolute: ``mean_i |dc_i / dg|``.
        square: ``mean_i (dc_i / dg)^2``.
    """

    absolute: Vectors
    square: Vectors


def measure_sensitivity(
    model: nn.Module, groups: SharedGroups, batches: Sequence[Batch], tick: Callable[[], object]
) -> Sensitivity:
    """Measures derivatives of the loss at the present state of the groups.

    Each row is weighted by its items (its labels), so that L is the mean over the items of all
    batches. Up to rounding, the result does not depend on how rows are cut into batches.

    Args:
        model: in evaluation mode; it does not change.
        groups: of the model.
        batches: with labels.
        tick: called after each batch.

    Raises:
        ValueError: the model returns no loss, or a sum of means over different items, or the
            batches have no labels that count.
        FloatingPointError: a derivative is not finite.
    """
    use = label_use(model)
    device = next(model.parameters()).device
    absolute = {gate: torch.zeros_like(mask) for gate, mask in groups.open.items()}
    square = {gate: torch.zeros_like(mask) for gate, mask in groups.open.items()}
    items = rows = 0
    together = True
    for batch in batches:
        placed = to_device(batch, device)
        several = labels_of_several_means(placed, model)
        if several or bool(has_uneven_positions(placed)):
            raise ValueError(
                f"the loss of {type(unwrap(model)).__name__} for "
                f"{' and '.join(several or ['start_positions', 'end_positions'])} sums means over "
                "different items, so its rows cannot be weighted; leave out all labels but one"
            )
        counted = count_items(placed, use)
        items, rows = items + int(counted[0]), rows + int(counted[1])
        parts: Iterator[Batch] | list[Batch] = [placed]
        if not together:
            parts = single_rows(placed, int(counted[1]))
        try:
            found = [_row_gradients(model, groups, part, use) for part in parts]
        except _OtherRows:  # a layer mixes rows, so they are passed one at a time
            together = False
            found = [
                _row_gradients(model, groups, part, use)
                for part in single_rows(placed, int(counted[1]))
            ]
        for gradients in found:
            for gate, gradient in gradients.items():
                absolute[gate] += gradient.abs().sum(0)
                square[gate] += gradient.square().sum(0)
        tick()
    if not items:
        raise ValueError("the calibration set has no labels that the loss counts")
    _check_finite(groups, absolute)
    return Sensitivity(
        {gate: total / items for gate, total in absolute.items()},
        {gate: total * (rows / items**2) for gate, total in square.items()},
    )


class _OtherRows(Exception):
    """The first dimension of a layer's input is not that of the batch."""


def _row_gradients(
    model: nn.Module, groups: SharedGroups, batch: Batch, use: LabelUse
) -> dict[StochasticGate, Tensor]:
    """Derivatives of each row's sum of losses over its items, (rows, n) by gate."""
    items, rows = (int(count) for count in count_items(batch, use))
    if items == 0:
        return {}
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    scale = _LOSS_SCALE if half else 1.0
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {
            gate: mask.expand(rows, -1).clone().requires_grad_()
            for gate, mask in groups.open.items()
        }
        with _gates_in_place(model, groups, leaves, rows):
            loss = _loss_of(model(**batch), model)
            summed = loss.float() if loss.dtype == torch.float16 else loss
            found = torch.autograd.grad(
                summed * (items * scale), list(leaves.values()), allow_unused=True
            )
    return {
        gate: gradient / scale
        for gate, gradient in zip(leaves, found, strict=True)
        if gradient is not None
    }


@contextmanager
def _gates_in_place(
    model: nn.Module, groups: SharedGroups, leaves: Mapping[StochasticGate, Tensor], rows: int
) -> Iterator[None]:
    """Within the block, layers apply gates to inputs and outputs, one vector per row."""

    def read(gate: Gate) -> Tensor:
        if isinstance(gate, FixedGate):
            return gate.values.expand(rows, -1)
        assert isinstance(gate, StochasticGate)
        return leaves[gate]

    inner = unwrap(model)
    handles: list[RemovableHandle] = []

    def gated(x: Tensor, values: Tensor) -> Tensor:
        if rows == 1:
            return x * values[0].to(x)
        if x.ndim != 3 or len(x) != rows:
            raise _OtherRows
        return x * values[:, None].to(x)

    def before(values: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda module, inputs: (gated(inputs[0], values), *inputs[1:])

    def after(values: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        return lambda module, inputs, y: gated(y, values)

    def added(values: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        # Positions are embedded once for all rows, and added to what has rows.
        def hook(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
            alike = rows > 1 and y.ndim == 3 and len(y) == 1
            return gated(y.expand(rows, -1, -1) if alike else y, values)

        return hook

    try:
        for path, (rows_gate, cols_gate) in groups.sides.items():
            layer = inner.get_submodule(path)
            if cols_gate is not None:
                handles.append(layer.register_forward_pre_hook(before(cols_gate.combined(read))))
            if rows_gate is not None:
                handles.append(layer.register_forward_hook(after(rows_gate.combined(read))))
        for path in groups.outputs:
            assert groups.width is not None
            written = inner.get_submodule(path)
            handles.append(written.register_forward_hook(added(leaves[groups.width])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _loss_of(outputs: Any, model: nn.Module) -> Tensor:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            f"{type(unwrap(model)).__name__} returns no loss for a calibration batch: the batch "
            "needs labels and the model a task head; without labels choose criterion "
            "'second_moment' or 'magnitude'"
        )
    return loss.reshape(())


def _check_finite(groups: SharedGroups, found: Vectors) -> None:
    for name, gate in groups.gates.items():
        if not bool(found[gate].isfinite().all()):
            raise FloatingPointError(
                f"a derivative of the loss at {name} is not finite, so the dimensions to "
                "close are unknown; measure in float32 or bfloat16, or look for NaN in weights and "
                "batches"
            )
