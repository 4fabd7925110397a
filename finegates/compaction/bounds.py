"""Bounds on what a description of a model may ask for before it is compared with its tensors.

A few digits in a file can ask for a billion layers or labels; a class of transformers would make
them one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

LARGEST = 2**40
"""Of any number in a configuration: beyond it, sizes overflow when they are multiplied."""

LARGEST_LABELS = 100_000
"""Labels have a name each, made before anything else."""


def check_numbers(config: Any) -> None:
    """Raises ValueError for a whole number that no model has, at any depth."""
    if isinstance(config, list):
        for value in config:
            check_numbers(value)
    elif isinstance(config, dict):
        for key, value in config.items():
            largest = LARGEST_LABELS if key in ("num_labels", "_num_labels") else LARGEST
            if isinstance(value, int) and abs(value) > largest:
                raise ValueError(f"{key} = {value} is larger than any model's")
            check_numbers(value)


@contextmanager
def at_most_parameters(limit: int) -> Iterator[None]:
    """Within the block, modules that are made get at most so many parameters, names counted.

    Raises:
        ValueError: in place of the one too many.
    """
    made = 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += 1
        if made > limit:
            raise ValueError(f"more than {limit} parameters, which its tensors do not have")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_index_buffers(model: nn.Module) -> None:
    """Raises ValueError where an embedding would be asked for a row that it may not have.

    transformers keeps the numbers of positions, 0, 1, ..., and token types, all 0, as buffers.
    """
    for name, buffer in model.named_buffers():
        kind = name.rpartition(".")[2]
        if kind == "position_ids":
            sound = bool((buffer == torch.arange(buffer.shape[-1], device=buffer.device)).all())
        else:
            sound = kind != "token_type_ids" or not buffer.any()
        if not sound:
            raise ValueError(f"tensor {name} holds other numbers than transformers gives it")
