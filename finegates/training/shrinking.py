"""Shrinks the running model of a trainer: what must follow, and what cannot.

The parameters stay the same objects, so optimizer and scheduler need no others. The numbers that
the optimizer holds for their entries are cut along (:mod:`finegates.compaction.removal`).
``DistributedDataParallel`` reduces gradients in buckets of fixed sizes, which are made again.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from finegates.compaction.removal import remove_closed
from finegates.gates.parts import gated_parts

# Their numbers have one entry for each entry of a parameter.
_ELEMENTWISE = (
    *("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop"),
    *("Rprop", "SGD"),
)


def shrinks(model: nn.Module) -> bool:
    """Whether some gates of a model ask for removal while training."""
    return any(config.shrink for _, config in gated_parts(model).values())


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError unless the optimizer's numbers can be cut with the parameters."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    kinds = tuple(getattr(torch.optim, name) for name in _ELEMENTWISE)
    if type(inner) not in kinds:
        raise ValueError(
            f"{type(inner).__name__} may hold numbers that are not per entry of a parameter, so "
            f"they cannot be cut when dimensions are removed while training; choose one of "
            f"{', '.join(_ELEMENTWISE)} (optim='adamw_torch'), or GateConfig(shrink=False)"
        )


def check_training(*, sharded: bool, compiled: bool) -> None:
    """Raises ValueError if a training cannot follow the changed parameters.

    Args:
        sharded: whether parameters are divided among processes.
        compiled: whether the model is compiled for the sizes that it has at first.
    """
    if compiled:
        raise ValueError(
            "GateConfig(shrink=True) changes the sizes of the running model, so that "
            "torch_compile=True would compile it for sizes that pass; leave one of them out"
        )
    if sharded:
        raise ValueError(
            "GateConfig(shrink=True) removes rows and columns of whole parameters, but FSDP and "
            "DeepSpeed divide them among processes; train with DistributedDataParallel (torchrun "
            "alone), or set shrink=False"
        )


def shrink(model: nn.Module, wrapped: nn.Module, optimizer: Any) -> bool:
    """Removes what is closed for good from a model in training, in place.

    Args:
        model: with gated models in it.
        wrapped: the same, possibly in ``DistributedDataParallel``.
        optimizer: of its parameters.

    Returns:
        whether anything was removed.
    """
    parts = [part for part, config in gated_parts(model).values() if config.shrink]
    outer = next((m for m in wrapped.modules() if isinstance(m, DistributedDataParallel)), None)
    if outer is not None:
        _release(outer)
    removed = [remove_closed(part, optimizer) for part in parts]
    if outer is not None:
        _reduce_again(outer)
    return any(removed)


def _release(wrapped: DistributedDataParallel) -> None:
    """Drops the reducer and the places where it waits for gradients of the old shapes."""
    for name in ("reducer", "logger"):
        setattr(wrapped, name, None)
    gc.collect()


def _reduce_again(wrapped: DistributedDataParallel) -> None:
    """Gives a wrapper the reducer of its module's present parameters."""
    options = {
        name: getattr(wrapped, name)
        for name in (
            *("device_ids", "output_device", "dim", "broadcast_buffers", "process_group"),
            *("find_unused_parameters", "gradient_as_bucket_view", "static_graph"),
        )
    }
    training = wrapped.training
    DistributedDataParallel.__init__(wrapped, wrapped.module, **options)
    wrapped.training = training
