"""A classifier prepared for a method: adapters, gates, masks and closed rows in their places."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from finegates.formats.task import load_task
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.detachment import hold_gates
from finegates.lora import add_lora
from finegates.one_shot import magnitude_gates
from finegates.suite.baselines.two_of_four import attach_masks
from finegates.suite.config.methods import Method
from finegates.suite.runs.record import Record


def with_target(method: Method, matched: Record | None) -> Method:
    """Sets the target of a method that matches another run.

    The target of its shared gates or groups is the fraction of MACs that the other run removed.

    Raises:
        ValueError: the method matches another one, and ``matched`` is None.
    """
    if method.matched is None:
        return method
    if matched is None:
        raise ValueError(f"this method needs the record of {method.matched!r}")
    if method.gates is None and method.prune is None:
        return method
    target = 1 - matched.budget.macs.kept_fraction
    if method.prune is not None:
        pruning = method.prune.model_copy(update={"target": target})
        return method.model_copy(update={"prune": pruning})
    assert method.gates is not None
    gates = method.gates.model_copy(update={"target": target})
    return method.model_copy(update={"gates": gates})


def prepare(
    model: nn.Module,
    method: Method,
    seed: int,
    matched: Record | None = None,
    earlier: str | Path | None = None,
) -> nn.Module:
    """Attaches a method's LoRA factors, gates or masks to a classifier.

    Magnitude pruning closes its rows and columns here, too.

    Args:
        model: the classifier.
        method: settings of the method.
        seed: seed of the gates' initial latents.
        matched: the record that magnitude pruning matches.
        earlier: file of :func:`finegates.suite.runs.trained_weights.write_trained` that the
            continued run saved.
    """
    if method.lora is not None:
        model = add_lora(model, method.lora.rank, method.lora.alpha, method.lora.dropout)
    if method.gates is not None:
        # A continued run trains no weights, so they are frozen here as well.
        frozen = {} if earlier is None else {"train_weights": False}
        attach(model, method.gates.gate_config(seed=seed, **frozen))
    if earlier is not None:
        load_task(model, earlier)
        if method.continues is not None and method.continues.hold:
            hold_gates(model)
        if method.trains_all:
            model.requires_grad_(True)
    if method.mask is not None:
        attach_masks(model, method.mask.scale)
    if method.magnitude is not None:
        assert matched is not None, "finetune has asked for it"
        counts = {name: closed.model_dump() for name, closed in matched.closed.items()}
        attach_fixed(model, magnitude_gates(model, counts))  # type: ignore[arg-type]
    return model
