"""Batches of the calibration set, and a model left unchanged by them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import unwrap
from finegates.training.micro_batches import IGNORED

Batch = dict[str, Any]
Collator = Callable[[list[Any]], Any]

# Kept by transformers.Trainer in addition to the arguments of forward.
_LABELS = {"label", "label_ids", "labels"}


def calibration_batches(
    data: Iterable[Any] | None, collator: Collator | None, batch_size: int, model: nn.Module
) -> list[Batch]:
    """Makes batches of the calibration set for a model.

    Args:
        data: batches, each a mapping of tensors; with a collator, rows.
        collator: makes a batch from a list of rows; columns that are not arguments of ``forward``
            are removed first, as in ``transformers.Trainer``.
        batch_size: rows of a batch, with a collator.
        model: whose ``forward`` gets the batches.

    Raises:
        ValueError: no data.
        TypeError: a batch is not a mapping.
    """
    if data is None:
        raise ValueError(
            "this criterion needs a calibration set; give batches, or rows and a collator"
        )
    batches = data if collator is None else _collated(data, collator, batch_size, model)
    found = []
    for batch in batches:
        if not isinstance(batch, Mapping) or not any(isinstance(v, Tensor) for v in batch.values()):
            raise TypeError(
                f"a calibration batch is a mapping of tensors, got {type(batch).__name__}; rows of "
                "a dataset need a collator (collator=DataCollatorWithPadding(tokenizer))"
            )
        found.append(dict(batch))
    if not found:
        raise ValueError("the calibration set is empty")
    return found


def _collated(
    data: Iterable[Any], collator: Collator, batch_size: int, model: nn.Module
) -> Iterator[Any]:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    named = set(inspect.signature(unwrap(model).forward).parameters) | _LABELS
    # PyTorch's datasets need not be iterable: they have a length and an index.
    rows: Iterable[Any] = data
    if not hasattr(data, "__iter__") and isinstance(data, Sequence | torch.utils.data.Dataset):
        rows = (data[place] for place in range(len(data)))
    pending: list[Any] = []
    for row in rows:
        known = {k: v for k, v in row.items() if k in named} if isinstance(row, Mapping) else row
        pending.append(known)
        if len(pending) == batch_size:
            yield collator(pending)
            pending = []
    if pending:
        yield collator(pending)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def single_rows(batch: Batch, rows: int) -> Iterator[Batch]:
    """Each row of a batch as a batch of one."""
    for row in range(rows):
        yield {
            key: value[row : row + 1]
            if isinstance(value, Tensor) and value.ndim and len(value) == rows
            else value
            for key, value in batch.items()
        }


def without_padding(row: Batch, *, encoder_decoder: bool) -> Batch:
    """Removes the padding from a batch of one row.

    Args:
        row: batch of one row, with ``attention_mask`` (1, length) if padded.
        encoder_decoder: whether labels belong to another sequence, padded with ``IGNORED``.
    """
    found = dict(row)
    mask = row.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        kept = mask[0].bool()
        for key, value in row.items():
            other = encoder_decoder and (key == "labels" or key.startswith("decoder_"))
            if isinstance(value, Tensor) and value.shape[:2] == mask.shape and not other:
                found[key] = value[:, kept]
    labels = row.get("labels")
    decoder = any(key.startswith("decoder_") for key in row)
    if encoder_decoder and not decoder and isinstance(labels, Tensor) and labels.ndim == 2:
        found["labels"] = labels[:, labels[0] != IGNORED]
    return found


@contextmanager
def left_unchanged(model: nn.Module) -> Iterator[None]:
    """Within the block, a model is in evaluation mode and needs no gradients.

    Afterwards modes, ``requires_grad`` and the random state of torch are restored.
    """
    training = {module: module.training for module in model.modules()}
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
            for module, mode in training.items():
                module.training = mode
