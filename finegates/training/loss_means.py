"""Detects losses that sum several means over different items.

The mean over a micro-batch can be weighted by its number of items. A sum of means over different
items (tokens and sentences, start and end positions) cannot: each mean would need its own weight,
and the model returns only the sum.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.utils.generic import find_labels

from finegates.training.label_use import LabelUse, without_peft
from finegates.training.micro_batches import POSITIONS, Batch, answers_within, labels_of

_SAME_ITEMS = (("labels", "shift_labels"), POSITIONS)


def labels_of_several_means(
    batch: Batch, model: nn.Module, label_names: Iterable[str] = ()
) -> list[str]:
    """Labels of a batch for which a model sums several means.

    Args:
        batch: the model's inputs.
        model: plain or wrapped by ``peft``; its ``forward`` tells which inputs are labels.
        label_names: further inputs that are labels.

    Returns:
        the names of the inputs, in the order of the batch; empty if the loss is one mean.
    """
    kind = type(without_peft(model))
    names = {*find_labels(kind), *label_names}
    # Models of transformers ignore what forward does not name; others may pass it on.
    handed_on = not kind.__module__.startswith("transformers.") and any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD
        for parameter in inspect.signature(kind.forward).parameters.values()
    )
    given = [
        key
        for key, value in batch.items()
        if value is not None
        and (key in names or (handed_on and key.endswith(("label", "labels", *POSITIONS))))
    ]
    first = {key: same[0] for same in _SAME_ITEMS for key in same}
    return given if len({first.get(key, key) for key in given}) > 1 else []


def has_uneven_positions(batch: Batch) -> Tensor:
    """Whether the numbers of answer starts and ends in a batch differ.

    Starts and ends have one mean each, over those inside their sequences. One weight fits both if
    their numbers are equal.

    Returns:
        a scalar, int64: 1 or 0.
    """
    within = answers_within(batch)
    if within is None:
        return torch.zeros((), dtype=torch.int64, device="cpu")
    starts, ends = (side.sum() for side in within)
    return (starts != ends).to(torch.int64)


def has_other_mask(batch: Batch, use: LabelUse) -> bool:
    """Whether the loss reads an attention mask of another shape than the labels."""
    labels, mask = labels_of(batch), batch.get("attention_mask")
    if not use.masked or labels is None or not isinstance(mask, Tensor):
        return False
    return mask.shape != labels.shape


def refuse_several_means(names: Iterable[str], model: nn.Module) -> None:
    """Raises ValueError for a loss that cannot be split into micro-batches."""
    _refuse(names, model, "sums means over different items")


def refuse_uneven_positions(model: nn.Module) -> None:
    """Raises ValueError for a step with unequal numbers of answer starts and ends."""
    _refuse(
        POSITIONS,
        model,
        "sums a mean over starts and one over ends, and their numbers within the sequences differ "
        "(put both inside, or both outside, of each row)",
    )


def refuse_other_mask(model: nn.Module) -> None:
    """Raises ValueError for a loss with a mask of another shape than its labels."""
    _refuse(["labels"], model, "reads an attention_mask of another shape than the labels")


def _refuse(names: Iterable[str], model: nn.Module, reason: str) -> None:
    raise ValueError(
        f"the loss of {type(without_peft(model)).__name__} for {' and '.join(names)} {reason}, so "
        "its micro-batches cannot be weighted; train with one micro-batch "
        "(gradient_accumulation_steps=1, one process), or with a compute_loss that is one mean"
    )


__all__ = [
    "has_other_mask",
    "has_uneven_positions",
    "labels_of_several_means",
    "refuse_other_mask",
    "refuse_several_means",
    "refuse_uneven_positions",
]
