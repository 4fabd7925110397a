"""Weights of the micro-batches of an optimizer step.

The loss of a step is a mean over the items of its whole batch: its labels, or its rows if it has
none. A micro-batch that returns its own mean is therefore weighted by its share of the step's
items, over all processes. Terms that do not depend on the rows, such as the penalty, are split
evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from finegates.training.label_use import LabelUse

IGNORED = -100
"""The label that losses ignore."""

POSITIONS = ("start_positions", "end_positions")
"""Label names of question answering."""

Batch = Mapping[str, Any]


def count_items(batch: Batch, use: LabelUse) -> Tensor:
    """Counts the items that the loss of a batch averages over, and its rows.

    Items are the labels that are not ``IGNORED``. For question answering they are the start and end
    positions within the sequence. Without labels they are the rows.

    Args:
        batch: the model's inputs.
        use: how the model's loss uses its labels.

    Returns:
        (2,), int64: items and rows.
    """
    rows = _rows(batch)
    labels = labels_of(batch)
    within = answers_within(batch)
    if labels is not None:
        items = _counted(labels, batch, use).sum()
    elif within is not None:
        items = torch.stack(within).sum()
    elif (alone := _label_alone(batch)) is not None:
        items = alone.ne(IGNORED).sum()
    else:
        items = torch.full((), rows, dtype=torch.int64, device=_device(batch))
    return torch.stack([items, torch.full_like(items, rows)])


def answers_within(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Marks the rows whose answer start, and whose end, the loss counts.

    Returns:
        two masks of shape (rows,), bool; None if the batch has no answers.
    """
    ids, starts, ends = (batch.get(name) for name in ("input_ids", *POSITIONS))
    if not (isinstance(ids, Tensor) and isinstance(starts, Tensor) and isinstance(ends, Tensor)):
        return None
    return starts < ids.shape[1], ends < ids.shape[1]


def _counted(labels: Tensor, batch: Batch, use: LabelUse) -> Tensor:
    """Mask of the labels that count."""
    counted = torch.ones_like(labels, dtype=torch.bool)
    if not labels.is_floating_point():
        counted = labels.ne(IGNORED)
    mask = batch.get("attention_mask")
    if use.masked and isinstance(mask, Tensor) and mask.shape == labels.shape:
        counted = counted & mask.eq(1).to(labels.device)
    if use.shifted and labels.ndim > 1 and "shift_labels" not in batch:
        counted = counted[..., 1:]
    return counted


def _label_alone(batch: Batch) -> Tensor | None:
    """The only label of a batch, under a name that Trainer does not count."""
    found = [v for k, v in batch.items() if k.endswith(("label", "labels")) and v is not None]
    alone = found[0] if len(found) == 1 else None
    return alone if isinstance(alone, Tensor) and not alone.is_floating_point() else None


def labels_of(batch: Batch) -> Tensor | None:
    """The labels that Trainer counts in a batch, or None."""
    labels = batch.get("shift_labels", batch.get("labels"))
    return labels if isinstance(labels, Tensor) else None


@dataclass(frozen=True)
class StepCut:
    """The micro-batches of an optimizer step.

    Attributes:
        micro_batches: of one process.
        totals: (2,), int64: items and rows of the step; None if they were not counted, then
            micro-batches have equal weights.
        processes: over which ``totals`` are sums and gradients are means.
        uneven: whether one weight does not fit the answers of some micro-batch, see
            :func:`finegates.training.loss_means.has_uneven_positions`.
    """

    micro_batches: int = 1
    totals: Tensor | None = None
    processes: int = 1
    uneven: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the step is a single micro-batch."""
        return self.micro_batches * self.processes == 1

    @property
    def even_share(self) -> float:
        """A micro-batch's share of a term that does not depend on its rows."""
        return 1.0 / self.micro_batches

    def with_items(self, items: Tensor | int, counts: Tensor, processes: int) -> StepCut:
        """The step of a caller that counted its items, but not its rows.

        Args:
            items: of the step, over all processes.
            counts: (2,), of one micro-batch.
            processes: number of processes.
        """
        total = torch.as_tensor(items, device=counts.device).reshape(-1)[0].to(counts.dtype)
        rows = counts[1] * self.micro_batches * processes
        return StepCut(self.micro_batches, torch.stack([total, rows]), processes)

    def weights(self, counts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weights of a micro-batch's means over items and over rows in the step's loss.

        Args:
            counts: (2,), of the micro-batch, as :func:`count_items` gives them.
            dtype: of the loss.

        Returns:
            two scalars, at least float32; NaN if the whole step has no items.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        totals = counts * self.micro_batches if self.totals is None else self.totals
        items, rows = counts.to(dtype) * self.processes / totals.to(counts.device, dtype)
        return items, rows


@contextmanager
def as_whole_batch(arguments: TrainingArguments) -> Iterator[None]:
    """Keeps Trainer from scaling the loss by the number of processes.

    :class:`StepCut` does that already. Trainer does it only for some models, by a rule that differs
    between versions.
    """
    averages = arguments.average_tokens_across_devices
    arguments.average_tokens_across_devices = False
    try:
        yield
    finally:
        arguments.average_tokens_across_devices = averages


def total_items(batches: Iterable[Batch], use: LabelUse, device: torch.device) -> Tensor:
    """The sum of :func:`count_items` over batches, (2,), int64."""
    total = torch.zeros(2, dtype=torch.int64, device=device)
    for batch in batches:
        total += count_items(batch, use).to(device)
    return total


def _tensors(batch: Batch) -> Iterator[Tensor]:
    first = batch.get("input_ids")
    if isinstance(first, Tensor):
        yield first
    yield from (value for value in batch.values() if isinstance(value, Tensor) and value.ndim)


def _rows(batch: Batch) -> int:
    return next((len(tensor) for tensor in _tensors(batch)), 1)


def _device(batch: Batch) -> torch.device | None:
    return next((tensor.device for tensor in _tensors(batch)), None)
