"""Gates of a compact model are detached: it is the compact model that it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import finegates as fg
from finegates.compaction.removal import remove_closed
from finegates.gates.gated_linear import leaf_gates
from finegates.gates.stochastic import StochasticGate
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


def test_what_is_trained_and_the_mode_stay() -> None:
    small = compact_model("bert")
    for name, parameter in small.named_parameters():
        parameter.requires_grad_("layer.1." in name)
    model = fg.detach(pruned(small).train())
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("layer.1." in name), name


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
