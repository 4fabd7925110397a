"""Targets: met if possible; otherwise attach refuses them and names the largest reachable one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from finegates.budget import macs, planned_macs
from finegates.gates.attachment import attach
from finegates.gates.closing import TOLERANCE, choose_closed
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import gated_layers
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.presets import check_reachable, preset_named
from finegates.gates.stochastic import StochasticGate
from support.tiny import ARCHITECTURES, tiny_model

FIXED_HEADS = ("deberta-v2", {"share_att_key": False})


def model_of(architecture: str) -> nn.Module:
    if architecture == "deberta-v2-own-positions":
        return tiny_model(FIXED_HEADS[0], **FIXED_HEADS[1])
    return tiny_model(architecture)


EVERY = [*sorted(ARCHITECTURES), "deberta-v2-own-positions"]


def kept_when_closed(architecture: str, length: int) -> float:
    """The fraction of the MACs that remain after compaction with every gate closed."""
    model = attach(model_of(architecture), GateConfig(preset="structured", target=0.0))
    for module in model.modules():
        if isinstance(module, StochasticGate):
            module.latent.data.fill_(-1.0)
    return planned_macs(model, 1, length).total / macs(model, 1, length).total


@pytest.mark.sampled
@pytest.mark.parametrize("length", [1, 12, 128, 2048])
@pytest.mark.parametrize("architecture", EVERY)
def test_a_target_below_what_stays_is_refused_with_the_largest_in_reach(architecture, length):
    empty = kept_when_closed(architecture, length)
    model = model_of(architecture)
    state = {name: p.requires_grad for name, p in model.named_parameters()}
    impossible = min(1 - 1e-7, 1 - 0.5 * empty)
    with pytest.raises(ValueError, match=r"targets end at 0\.\d+\. .*sequence_length") as refusal:
        attach(model, GateConfig(preset="structured", target=impossible, sequence_length=length))
    assert not gated_layers(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == state
    assert not hasattr(model, "finegates_structure")
    largest = float(re.search(r"targets end at (0\.\d+)\.", str(refusal.value))[1])
    assert 1 - largest >= empty
    attach(model, GateConfig(preset="structured", target=largest, sequence_length=length))


@pytest.mark.parametrize("architecture", EVERY)
def test_what_can_be_reached_by_closing_everything_alone_is_refused(architecture):
    empty = kept_when_closed(architecture, 7)
    with pytest.raises(ValueError, match="targets end at"):
        attach(
            model_of(architecture),
            GateConfig(preset="structured", target=1 - empty, sequence_length=7),
        )


def few_heads(architecture: str) -> nn.Module:
    """A one-layer model with one or two heads, each a large part of the model."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2}
    if architecture in ("llama", "qwen3"):
        sizes |= {"num_key_value_heads": 1, "head_dim": 24, "hidden_size": 48}
    else:
        sizes |= {"hidden_size": 48, "num_attention_heads": 1}
    if architecture == "t5":
        sizes = {"d_model": 48, "d_kv": 24, "num_heads": 2, "num_layers": 1, "d_ff": 96}
    return tiny_model(architecture, **sizes)


@pytest.mark.parametrize("target", [0.1, 0.3, 0.55])
@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "gpt2", "llama", "qwen3", "t5"])
def test_a_budget_is_met_though_a_head_is_a_large_part_of_the_model(architecture, target):
    model = attach(
        few_heads(architecture),
        GateConfig(preset="structured", target=target, sequence_length=32),
    )
    penalty = sparsity_penalty(model)
    generator = torch.Generator().manual_seed(1)
    for gate in penalty.gates():
        gate.importance.copy_(torch.rand(gate.size, generator=generator))
    for part in model.finegates_structure:  # heads and their contents matter least
        if hasattr(part, "heads"):
            for gate in (part.heads, part.values):
                if gate is not None:
                    gate.importance.mul_(1e-4)
    penalty.close_least()
    kept = planned_macs(model, 1, 32).total / macs(model, 1, 32).total
    assert abs(kept - (1 - target)) <= 0.02


def test_what_would_go_too_far_stays_open_and_the_next_are_closed():
    costs = torch.tensor([0.01, 0.5, 0.02, 0.03, 0.04, 0.4])
    worth = torch.arange(6.0)

    def kept(closed: torch.Tensor) -> float:
        return 1.0 - float(costs[closed].sum())

    chosen = choose_closed(worth, kept, 0.9)
    assert chosen.tolist() == [True, False, True, True, True, False]
    assert abs(kept(chosen) - 0.9) <= TOLERANCE
    assert not choose_closed(worth, kept, 1.0).any()
    assert choose_closed(worth, kept, 0.0).all()


@pytest.mark.parametrize("preset", ["reference", "paper_v1"])
@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_independent_gates_need_not_close_everything_to_meet_their_target(architecture, preset):
    """The mean is least with one of the n dimensions at P = 1/2 and the others at the infimum."""
    infimum, _ = preset_named(preset).open_probability_range()
    model = tiny_model(architecture)
    attach(model, GateConfig(preset=preset, target=0.0))
    largest = max(gate.size for layer in gated_layers(model).values() for _, gate in layer.gates())
    most = 1 - infimum - (0.5 - infimum) / largest
    for target in (most - 1e-6, 0.4):
        attach(tiny_model(architecture), GateConfig(preset=preset, target=target))
    model = tiny_model(architecture)
    with pytest.raises(ValueError, match=rf"targets end at {most:.3f}"):
        attach(model, GateConfig(preset=preset, target=most + 1e-6))
    assert not gated_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_infimum_of_the_open_probability_is_out_of_reach_itself():
    preset = preset_named("reference")
    infimum, _ = preset.open_probability_range()
    with pytest.raises(ValueError, match="cannot be reached"):
        check_reachable(preset, 1.0 - infimum)
