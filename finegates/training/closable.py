"""Checks before the first step whether a training can close the gates of its model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from finegates.gates.gated_linear import gated_layers, leaf_gates
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.open_fractions import SparsityPenalty
from finegates.gates.parts import gated_parts
from finegates.gates.stochastic import StochasticGate
from finegates.modules.stock_checkpoints import stock_obstacle
from finegates.training.optimizer_groups import parameter_groups


def check_held(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raises ValueError if an optimizer lacks a gate that trains."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameter_groups(model)["gates"].items():
        if parameter.requires_grad and id(parameter) not in held:
            raise ValueError(
                f"the optimizer was made before {name} was in the model and would not train "
                "it; make the trainer, or the optimizer, after attaching gates"
            )


def check_not_frozen(penalties: Iterable[SparsityPenalty | MacsPenalty]) -> None:
    """Refuses shared gates that are frozen, and warns of independent ones.

    Once the choice of closed gates is final, latents of shared gates need no gradient.

    Args:
        penalties: the penalty of each gated part of the model.

    Raises:
        ValueError: a shared gate is frozen, so its importance would not be measured.
    """
    remedy = (
        "put adapters in before finegates.attach, since get_peft_model and add_adapter freeze "
        "what they find, or call requires_grad_(True) on the gates"
    )
    for penalty in penalties:
        gates = list(penalty.gates())
        frozen = [
            gate
            for gate in gates
            if not gate.hardness
            and not (gate.latent if gate.scale is None else gate.scale).requires_grad
        ]
        if frozen and isinstance(penalty, MacsPenalty):
            raise ValueError(
                f"{len(frozen)} of {len(gates)} shared gates are frozen, so the training would "
                f"not see how much they matter and would close them first; {remedy}"
            )
        if frozen and len(frozen) == len(gates):
            warnings.warn(
                f"all {len(gates)} gates are frozen, so none of them closes; {remedy}",
                stacklevel=3,
            )


def warn_of_gates_that_stay_open(
    model: nn.Module, led: Iterable[object], *, expect_gates: bool
) -> None:
    """Warns if :func:`finegates.compact` could remove nothing after the training that starts.

    Args:
        model: as it is at the first step.
        led: the gates, among other objects, that penalty, schedule and optimizer know.
        expect_gates: warn if there are none.
    """
    known = {id(part) for part in led}
    late = [gate for gate in leaf_gates(model) if id(gate) not in known]
    if late:
        for gate in late:
            if isinstance(gate, StochasticGate):
                gate.led = True  # a gate's own warning gives the remedy for another Trainer
        warnings.warn(
            f"{len(late)} gates of {type(model).__name__} were attached after the training had "
            "begun, so neither penalty nor schedule nor optimizer knows them and none of them "
            "closes; call finegates.attach before train(), or in model_init",
            stacklevel=3,
        )
        return
    if not gated_layers(model):
        if expect_gates and stock_obstacle(model) is None:  # compact models train further, too
            warnings.warn(
                f"{type(model).__name__} has no gates, so GateTrainer trains it as Trainer "
                "does, and nothing can be removed afterwards; call finegates.attach before "
                "training, or pass expect_gates=False for a baseline without gates",
                stacklevel=3,
            )
        return
    parts = gated_parts(model).values()
    configured = {id(gate) for part, _ in parts for gate in leaf_gates(part)}
    alone = [
        gate
        for gate in leaf_gates(model)
        if isinstance(gate, StochasticGate) and id(gate) not in configured
    ]
    if any(gate.latent.requires_grad for gate in alone):
        warnings.warn(
            f"{len(alone)} gates of {type(model).__name__} were attached without a GateConfig, "
            "so no penalty closes them; attach them with finegates.attach(model, config), or "
            "freeze their latents",
            stacklevel=3,
        )
