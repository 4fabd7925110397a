"""Gates of a compact model are detached: it is the compact model that it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import finegates as fg
from finegates.compaction.removal import remove_closed
from finegates.gates.detachment import hold_gates
from finegates.gates.gated_linear import leaf_gates
from finegates.gates.stochastic import StochasticGate
from finegates.modules.compact_linear import CompactLinear
from support import tiny

FAST = ("bert", "gpt2", "llama")
ARCHITECTURES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(tiny.ARCHITECTURES)
]
OPTIONS = {"criterion": "random", "sequence_length": tiny.LENGTH, "progress": False}


def compact_model(architecture: str) -> nn.Module:
    model = tiny.tiny_model(architecture)
    return fg.compact(fg.prune(model, target=0.3, **OPTIONS))  # type: ignore[arg-type]


def pruned(small: nn.Module) -> nn.Module:
    return fg.prune(small, target=0.2, **OPTIONS)  # type: ignore[arg-type]


def gated(small: nn.Module) -> nn.Module:
    model = fg.attach(small, fg.GateConfig(target=0.2, sequence_length=tiny.LENGTH))
    tiny.scatter_gates(model)
    return model.eval()


def output(model: nn.Module) -> Tensor:
    return tiny.output(model, tiny.tokens()).detach()


def sizes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


@pytest.mark.parametrize("again", [pruned, gated])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_compact_model_comes_back(
    architecture: str, again: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    small = compact_model(architecture)
    expected, before = output(small), sizes(small)
    model = again(small)
    model = fg.detach(model)
    assert model is small
    assert sizes(model) == before
    assert (output(model) - expected).abs().max() < 1e-12
    assert not fg.gated_layers(model)
    fg.save(model, tmp_path / "small")
    loaded = fg.load(tmp_path / "small")
    for tensor, other in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(tensor, other)
    assert (output(loaded) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("again", [pruned, gated])
def test_gates_may_be_folded(again: Callable[[nn.Module], nn.Module]) -> None:
    small = compact_model("bert")
    before = sizes(small)
    model = again(small)
    expected = output(model)
    fg.detach(model, fold=True)
    assert sizes(model) == before
    assert (output(model) - expected).abs().max() < 1e-12


def modes(model: nn.Module) -> dict[str, bool]:
    return {path: module.training for path, module in model.named_modules()}


def trained(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_trained_and_the_modes_stay(architecture: str) -> None:
    small = compact_model(architecture)
    choice = random.Random(0)
    for module in small.modules():
        module.training = choice.random() < 0.5
    for module in small.modules():
        if isinstance(module, CompactLinear):
            module.linear.training = module.training
    for parameter in small.parameters():
        parameter.requires_grad_(choice.random() < 0.5)
    expected = {**modes(small), **trained(small)}
    model = fg.detach(pruned(small))
    found = {**modes(model), **trained(model)}
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_changes_only_what_was_trained_with_gates(architecture: str) -> None:
    small = compact_model(architecture)
    model = fg.attach(small, fg.GateConfig(target=0.2, sequence_length=tiny.LENGTH))
    weights = [layer.weight for layer in fg.gated_layers(model).values()]
    assert not any(weight.requires_grad for weight in weights)
    head = {id(p) for p in model.parameters() if p.requires_grad and p.ndim > 1}
    model = fg.detach(model)
    now = {id(p) for p in model.parameters() if p.requires_grad and p.ndim > 1}
    assert head
    assert now == head
    assert architecture != "bert" or any(p.requires_grad for p in model.parameters() if p.ndim == 1)


def test_a_fused_layer_is_trained_if_one_of_its_layers_is() -> None:
    small = compact_model("llama")
    path = "model.layers.0.mlp"
    before = {name for name, _ in small.named_parameters()}
    assert any(name.startswith(f"{path}.gate_up.") for name in before)
    model = pruned(small.requires_grad_(False))
    model.get_submodule(f"{path}.up_proj").requires_grad_(True)
    found = {name for name, flag in trained(fg.detach(model)).items() if flag}
    assert found == {name for name in before if name.startswith(f"{path}.gate_up.")}


@pytest.mark.parametrize("way", ["as it is", "saved", "held"])
@pytest.mark.parametrize("first", [tiny.tiny_model, compact_model], ids=["dense", "compact"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_was_pruned_several_times_comes_back(
    architecture: str, first: Callable[[str], nn.Module], way: str, tmp_path: Path
) -> None:
    model = first(architecture).eval()
    expected, before, left = output(model), sizes(model), fg.macs(model, 1, tiny.LENGTH).total
    for _ in range(3):
        model = pruned(model)
    assert fg.macs(fg.compact(model), 1, tiny.LENGTH).total < 0.75 * left
    if way == "saved":
        fg.save(model, tmp_path / "pruned")
        model = fg.load(tmp_path / "pruned")
    elif way == "held":
        hold_gates(model)
    fg.detach(model)
    assert sizes(model) == before
    assert (output(model) - expected).abs().max() < 1e-12


def test_what_cannot_be_detached_is_refused_and_does_not_change() -> None:
    model = gated(fg.add_lora(compact_model("bert"), rank=2))
    expected = output(model)
    with pytest.raises(ValueError, match="low-rank adapter"):
        fg.detach(model)
    assert torch.equal(output(model), expected)
    config = fg.GateConfig(target=0.2, sequence_length=tiny.LENGTH, shrink=True)
    model = fg.attach(compact_model("bert"), config)
    gate = next(g for g in leaf_gates(model) if isinstance(g, StochasticGate) and g.size > 2)
    gate.close(torch.arange(gate.size) == 1)
    assert remove_closed(model)
    with pytest.raises(ValueError, match=r"finegates\.compact"):
        fg.detach(model)
