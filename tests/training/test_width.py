"""Training with gates on the residual stream."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import finegates as fg
from finegates.gates.draw import GateDraw
from finegates.gates.gated_output import width_gate
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.stochastic import StochasticGate
from support.described import without_downcasts
from support.shrinking import train
from support.tiny import output, tiny_model, tokens
from support.width import stochastic_gates

CONFIG = fg.GateConfig(width=True, dimensions="inner", target=0.4, sequence_length=6)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_training_meets_the_budget_and_the_compact_model_is_the_gated_one(
    tmp_path: Path, architecture: str, lora: bool
) -> None:
    torch.manual_seed(0)
    model = tiny_model(architecture)
    if lora:
        model = fg.add_lora(model, rank=2)
    gated, trainer, losses = train(fg.attach(model, CONFIG), tmp_path)
    assert all(loss == loss for loss in losses)
    penalty = trainer.penalty
    assert isinstance(penalty, MacsPenalty)
    assert penalty.realised() == pytest.approx(0.6, abs=0.05)  # of few, coarse dimensions
    assert all(gate.hardness == 1.0 for gate in stochastic_gates(gated))
    width = width_gate(gated)
    assert isinstance(width, StochasticGate)
    values = width.value()
    assert torch.equal(values, (values > 0).to(values))
    gated.eval()
    with without_downcasts():
        ours, theirs = output(gated, tokens()), output(fg.compact(gated), tokens())
    assert (ours - theirs).abs().max() <= 1e-12 * ours.abs().max()


@pytest.mark.parametrize("hardness", [0.0, 0.5])
def test_all_uses_of_a_step_have_one_draw(hardness: float) -> None:
    model = fg.attach(tiny_model("bert"), dataclasses.replace(CONFIG)).train()
    width = width_gate(model)
    assert isinstance(width, StochasticGate)
    gates = stochastic_gates(model)
    for gate in gates:
        gate.led = True
        gate.harden(hardness)
    with GateDraw(gates):
        first, second = width.sample(), width.sample()
    assert torch.equal(first, second)
    assert not torch.equal(first, width.sample())


def test_the_importance_of_a_dimension_is_observed_and_its_factor_is_one() -> None:
    model = fg.attach(tiny_model("llama"), CONFIG).train()
    width = width_gate(model)
    assert isinstance(width, StochasticGate)
    assert width.scale is not None
    assert width.importance is not None
    torch.nn.init.constant_(width.scale, 1.3)
    torch.nn.init.ones_(width.latent)
    assert torch.equal(width.value(), torch.ones(width.size))
    with GateDraw(stochastic_gates(model)):
        output(model, tokens()).square().sum().backward()
    width.observe()
    assert bool((width.importance > 0).all())
