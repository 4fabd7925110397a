"""A compact model is pruned again: what it trains, and its modes, stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import finegates as fg
from finegates.adapters import adapter_for
from finegates.gates.dense_form import dense_form
from support import tiny

FAST = ("bert", "gpt2", "qwen3")
ARCHITECTURES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(tiny.ARCHITECTURES)
]
OPTIONS = {"criterion": "magnitude", "sequence_length": tiny.LENGTH, "progress": False}


def compact_model(architecture: str, dimensions: str) -> nn.Module:
    model = tiny.tiny_model(architecture)
    fg.prune(model, target=0.05, dimensions=dimensions, **OPTIONS)  # type: ignore[arg-type]
    return fg.compact(model)


@pytest.mark.parametrize("dimensions", ["all", "inner"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_parameters_stay_frozen_and_others_trained(
    architecture: str, dimensions: str
) -> None:
    small = compact_model(architecture, dimensions)
    frozen = f"{adapter_for(small).blocks(small)[0].path}."
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    fg.prune(small, target=0.05, dimensions=dimensions, **OPTIONS)  # type: ignore[arg-type]
    for name, parameter in small.named_parameters():
        assert parameter.requires_grad == (not name.startswith(frozen)), name
    small.requires_grad_(False)
    again = fg.prune(fg.compact(small).requires_grad_(False), target=0.0, **OPTIONS)  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("architecture", FAST)
def test_layers_stay_in_evaluation_mode_or_in_training(
    architecture: str, shrink: bool, training: bool
) -> None:
    small = compact_model(architecture, "all").train(training)
    last = adapter_for(small).blocks(small)[-1].path
    small.get_submodule(last).train(not training)
    config = fg.GateConfig(target=0.01, sequence_length=tiny.LENGTH, shrink=shrink)
    model = fg.attach(small, config)
    assert dense_form(model) is not None
    for path, module in model.named_modules():
        expected = training != path.startswith(last)
        # Gates are shared by layers.
        assert module.training == expected or ".rows" in path or ".cols" in path, path
    torch.manual_seed(0)
    model.eval()
    assert torch.equal(*(tiny.output(model, tiny.tokens()) for _ in range(2)))
