"""Functions that transform or measure a model leave torch's random state as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import finegates as fg
from support import tiny

CONFIG = fg.GateConfig(target=0.05, sequence_length=tiny.LENGTH)
OPTIONS = {"target": 0.05, "sequence_length": tiny.LENGTH, "progress": False}

PLAIN = {"target": 0.2, "criterion": "magnitude", "sequence_length": tiny.LENGTH, "progress": False}


def compact_model(architecture: str) -> nn.Module:
    model = fg.attach(tiny.tiny_model(architecture), CONFIG)
    tiny.scatter_gates(model, 1, 0.3)
    return fg.compact(model)


def data() -> list[dict[str, torch.Tensor]]:
    found = tiny.tokens()
    found["input_ids"][:, -1] = 1  # an end-of-sequence token, which T5 looks for
    return [{**found, "labels": torch.tensor([0, 1])}]


@pytest.fixture(params=[tiny.tiny_model, compact_model], ids=["dense", "compact"])
def model(request: pytest.FixtureRequest, architecture: str) -> nn.Module:
    made: nn.Module = request.param(architecture)
    return made


def unchanged(function: Callable[[], object]) -> bool:
    before = torch.get_rng_state()
    function()
    return torch.equal(before, torch.get_rng_state())


pytestmark = pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_prune(model: nn.Module, criterion: str) -> None:
    assert unchanged(lambda: fg.prune(model, data(), criterion=criterion, **OPTIONS))


def test_attach_compact_and_detach(model: nn.Module, tmp_path: Path) -> None:
    assert unchanged(lambda: fg.attach(model, CONFIG))
    assert unchanged(lambda: fg.compact(model))
    assert unchanged(lambda: fg.detach(model))


def test_uniform(architecture: str) -> None:
    model = tiny.tiny_model(architecture)
    assert unchanged(lambda: fg.uniform(fg.compact(fg.prune(model, uniform=True, **PLAIN))))


@pytest.mark.slow
def test_calibrate(architecture: str) -> None:
    model = tiny.tiny_model(architecture, dtype=torch.float32)
    inputs = None
    if architecture.startswith("t5"):  # it also decodes, and looks for the end of the sequence
        inputs = tiny.tokens()
        inputs["input_ids"][:, -1] = 1
    assert unchanged(
        lambda: fg.calibrate(model, batch=2, length=tiny.LENGTH, repeats=1, inputs=inputs)
    )
