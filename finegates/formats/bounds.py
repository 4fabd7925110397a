"""Bounds on the sizes in a model's description, checked before it is built.

A few digits in a file can ask for a billion layers or labels, which a class of transformers would
make one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

LARGEST = 2**40
"""Largest number in a configuration: beyond it, products of sizes overflow."""

LARGEST_LABELS = 100_000
"""Largest number of labels: their names are made before anything else."""


def check_numbers(config: Any) -> None:
    """Raises ValueError for an integer larger than any model's, at any depth.

    Keys that the configuration's class does not know may hold any number, because no module uses
    them.
    """
    if isinstance(config, list):
        for value in config:
            check_numbers(value)
    elif isinstance(config, dict):
        known = _known_keys(config.get("model_type"))
        for key, value in config.items():
            if known is not None and key not in known and not isinstance(value, dict | list):
                continue
            if isinstance(value, int) and abs(value) > _largest(key, config):
                raise ValueError(f"{key} = {value} is larger than any model's")
            check_numbers(value)


_LABELS = ("num_labels", "_num_labels")


def _largest(key: str, config: dict[str, Any]) -> int:
    if key not in _LABELS:
        return LARGEST
    names = config.get("id2label")
    # Labels that are all named in the file are accepted.
    return max(LARGEST_LABELS, len(names) if isinstance(names, dict) else 0)


def _known_keys(model_type: Any) -> set[str] | None:
    """Keys that a type of configuration knows; None if the type is unknown."""
    from transformers import CONFIG_MAPPING

    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    kind: Any = CONFIG_MAPPING[model_type]
    if not is_dataclass(kind):
        return None
    # A class of the user may have an __init__ of its own.
    names = {field.name for field in fields(kind)}
    names |= set(inspect.signature(CONFIG_MAPPING[model_type]).parameters)
    return names | set(getattr(kind, "attribute_map", {})) | set(_LABELS)


@contextmanager
def at_most_parameters(limit: int) -> Iterator[None]:
    """Within the block, new modules may get at most ``limit`` named parameters.

    Raises:
        ValueError: instead of registering one parameter too many.
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
    """Raises ValueError if index buffers could exceed their embedding tables.

    transformers stores position ids, increasing by one, and token type ids, all 0, as buffers.
    Positions start at 0; some architectures start later, with a table that is longer by the same
    amount.
    """
    for name, buffer in model.named_buffers():
        path, _, kind = name.rpartition(".")
        if kind == "position_ids":
            numbers = torch.arange(buffer.shape[-1], device=buffer.device)
            first = int(buffer.flatten()[0]) if buffer.numel() else 0
            room = max([len(numbers), *_position_rows(model.get_submodule(path))])
            sound = 0 <= first <= room - len(numbers) and bool((buffer == numbers + first).all())
        else:
            sound = kind != "token_type_ids" or not buffer.any()
        if not sound:
            raise ValueError(f"tensor {name} has other values than transformers gives it")


def _position_rows(module: nn.Module) -> list[int]:
    """Sizes of the position tables of the modules that hold position ids."""
    return [
        child.num_embeddings
        for name, child in module.named_children()
        if "position" in name and isinstance(child, nn.Embedding)
    ]
