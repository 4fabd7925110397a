"""Whether the loss of a model is one mean over the items of its batch, or a sum of several.

The mean over a micro-batch can be weighed by its items. A sum of means over different items (tokens
and sentences, start and end positions) cannot: each would need a weight of its own, and the model
returns their sum only.
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
    """The labels of a batch for which a model sums several means.

    Args:
        batch: as the model gets it.
        model: whose ``forward`` says which of its inputs are labels, in a wrapper of ``peft`` or
            not.
        label_names: more inputs that are labels.

    Returns:
        the names of the inputs, in the order of the batch; empty where the loss is one mean.
    """
    kind = type(without_peft(model))
    names = {*find_labels(kind), *label_names}
    # What forward does not name, models of transformers ignore; others may hand it on.
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
    """Whether other many starts than ends of answers are within the sequences of a batch.

    Starts and ends have a mean each, over those within. One weight fits both if they are as many.

    Returns:
        a scalar, int64: 1 or 0.
    """
    within = answers_within(batch)
    if within is None:
        return torch.zeros((), dtype=torch.int64, device="cpu")
    starts, ends = (side.sum() for side in within)
    return (starts != ends).to(torch.int64)


def has_other_mask(batch: Batch, use: LabelUse) -> bool:
    """Whether the loss reads an attention mask that does not say which of the labels count."""
    labels, mask = labels_of(batch), batch.get("attention_mask")
    if not use.masked or labels is None or not isinstance(mask, Tensor):
        return False
    return mask.shape != labels.shape


def refuse_several_means(names: Iterable[str], model: nn.Module) -> None:
    """Raises ValueError: the loss of a model for these labels cannot be cut into micro-batches."""
    _refuse(names, model, "sums means over different items")


def refuse_uneven_positions(model: nn.Module) -> None:
    """Raises ValueError: starts and ends of a step's answers are not as many."""
    _refuse(
        POSITIONS,
        model,
        "sums a mean over starts and one over ends, of which different numbers are within their "
        "sequences (put both outside, or both inside, of each row)",
    )


def refuse_other_mask(model: nn.Module) -> None:
    """Raises ValueError: a loss reads a mask of another shape than its labels."""
    _refuse(["labels"], model, "reads an attention_mask of another shape than the labels")


def _refuse(names: Iterable[str], model: nn.Module, reason: str) -> None:
    raise ValueError(
        f"the loss of {type(without_peft(model)).__name__} for {' and '.join(names)} {reason}, so "
        "its micro-batches cannot be weighed; train with one micro-batch "
        "(gradient_accumulation_steps=1, one process), or with a compute_loss of one mean"
    )


__all__ = [
    "has_other_mask",
    "has_uneven_positions",
    "labels_of_several_means",
    "refuse_other_mask",
    "refuse_several_means",
    "refuse_uneven_positions",
]
