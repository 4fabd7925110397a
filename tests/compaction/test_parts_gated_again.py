"""A compact model that lost a whole part gets gates again: its layers may have no inputs left."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import finegates as fg
from finegates.gates.block_parts import AttentionGates, FeedForwardGates
from finegates.gates.gated_linear import leaf_gates
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from support import tiny

LENGTH = 7
FAST = ("bert", "gpt2")
ARCHITECTURES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(tiny.ARCHITECTURES)
]


def gated(model: nn.Module, dimensions: str, target: float = 0.01) -> nn.Module:
    config = fg.GateConfig(dimensions=dimensions, target=target, sequence_length=LENGTH)  # type: ignore[arg-type]
    return fg.attach(model, config)


def without_part(architecture: str, kind: type, dimensions: str) -> nn.Module:
    """A compact model whose first part of a kind gives the same for all inputs."""
    torch.manual_seed(0)
    model = gated(tiny.tiny_model(architecture), dimensions)
    tiny.scatter_gates(model, 0)
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    for gate in penalty.gates():
        gate.latent.data[0] = 1.0
    for gate in next(part for part in penalty.structure if isinstance(part, kind)).gates():
        gate.latent.data.fill_(-1.0)
    return fg.compact(model.eval())


def opened(model: nn.Module) -> nn.Module:
    for gate in leaf_gates(model):
        if isinstance(gate, StochasticGate):
            gate.latent.data[~gate.final()] = 1.0
    return model.eval()


@pytest.mark.parametrize("first", ["all", "inner"])
@pytest.mark.parametrize("second", ["all", "inner"])
@pytest.mark.parametrize("kind", [AttentionGates, FeedForwardGates])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gates_change_nothing_before_they_close(
    architecture: str, kind: type, first: str, second: str
) -> None:
    if architecture.startswith("t5") and kind is AttentionGates and first == "inner":
        pytest.skip("T5 keeps its number of heads")
    small = without_part(architecture, kind, first)
    expected = tiny.output(small, tiny.tokens())
    model = opened(gated(small, second, target=0.0))
    assert (tiny.output(model, tiny.tokens()) - expected).abs().max() < 1e-12
    again = fg.compact(model)
    assert (tiny.output(again, tiny.tokens()) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_layer_without_inputs_is_trained_and_compacted(low_rank: bool) -> None:
    small = without_part("gpt2", AttentionGates, "all")
    if low_rank:
        small = get_peft_model(small, LoraConfig(r=2, target_modules=["c_attn", "c_proj"]))
    model = gated(small, "inner").double().train()
    output = tiny.output(model, tiny.tokens())
    output.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    expected = tiny.output(opened(model), tiny.tokens())
    compacted = fg.compact(model, verify=tiny.tokens(), verify_dtype=torch.float64)
    assert (tiny.output(compacted, tiny.tokens()) - expected).abs().max() < 1e-12
