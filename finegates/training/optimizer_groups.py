"""Kinds of trainable parameters, and a learning rate for each kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from finegates.gates.attachment import head_parameters
from finegates.gates.stochastic import StochasticGate

GROUPS = ("gates", "low_rank", "biases", "head", "weights")


def parameter_groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The trainable parameters by kind and name.

    ``gates`` are latents and factors of stochastic gates, ``low_rank`` LoRA factors, ``head`` the
    task head, ``biases`` other biases, ``weights`` the rest. Every trainable parameter is in
    exactly one. Latents that are frozen because their gate was hardened count as gates, so that an
    optimizer's state fits the model at any stage of its training.
    """
    head = {id(p) for p in head_parameters(model).values()}
    gates = {id(p) for gate in _gates(model) for p in gate.parameters()}
    resting = {id(latent) for latent in _resting(model)}
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in GROUPS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and id(parameter) not in resting:
            continue
        if id(parameter) in gates:
            kind = "gates"
        elif ".lora_" in name:
            kind = "low_rank"
        elif id(parameter) in head or ".modules_to_save." in name:
            kind = "head"
        elif name.endswith("bias"):
            kind = "biases"
        else:
            kind = "weights"
        groups[kind][name] = parameter
    return groups


@contextmanager
def all_trained(model: nn.Module) -> Iterator[None]:
    """Within the block, hardened latents require gradients, as optimizers expect."""
    resting = [latent for latent in _resting(model) if not latent.requires_grad]
    for latent in resting:
        latent.requires_grad_(True)
    try:
        yield
    finally:
        for latent in resting:
            latent.requires_grad_(False)


def _gates(model: nn.Module) -> list[StochasticGate]:
    return [module for module in model.modules() if isinstance(module, StochasticGate)]


def _resting(model: nn.Module) -> list[nn.Parameter]:
    return [gate.latent for gate in _gates(model) if gate.hardness]


def split_by_kind(
    optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]
) -> None:
    """Splits the groups of a new optimizer by kind, each with its learning rate.

    A parameter keeps the other settings of its group, except that gates have no weight decay. A new
    group stores its kind under ``"kind"``.

    Args:
        optimizer: before its first step.
        model: whose parameters it trains.
        rates: by kind; other kinds keep their rate.

    Raises:
        ValueError: the optimizer hides parameters that a rate is for.
    """
    kinds = {
        id(parameter): kind
        for kind, parameters in parameter_groups(model).items()
        for parameter in parameters.values()
    }
    split = [
        _part(group, kind, kinds, rates)
        for group in optimizer.param_groups
        for kind in (*GROUPS, None)
    ]
    shown = {id(p) for group in split for p in group["params"]}
    hidden = sorted({kind for p, kind in kinds.items() if p not in shown and kind in rates})
    if hidden:
        raise ValueError(
            f"{type(optimizer).__name__} hides parameters from its param_groups, so that the "
            f"learning_rates of {hidden} would not be used; choose another optim, or leave "
            "learning_rates out"
        )
    optimizer.param_groups[:] = [group for group in split if group["params"]]


def _part(
    group: dict[str, Any], kind: str | None, kinds: Mapping[int, str], rates: Mapping[str, float]
) -> dict[str, Any]:
    """The part of an optimizer's group that has one kind.

    The kind None selects parameters that are not in the model.
    """
    chosen = [i for i, p in enumerate(group["params"]) if kinds.get(id(p)) == kind]
    part = {**group, "params": [group["params"][i] for i in chosen]}
    if "param_names" in group:
        part["param_names"] = [group["param_names"][i] for i in chosen]
    if kind is not None:
        part["kind"] = kind
        part["lr"] = rates.get(kind, group["lr"])
    if kind == "gates":
        part["weight_decay"] = 0.0
    return part
