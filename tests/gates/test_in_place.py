"""Gated layers save their output for the backward pass only if nothing modifies it in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import gated_layers


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).relu())
        y += x
        return y


class Clamped(Added):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(x)
        y.clamp_(min=-1, max=1)
        return self.down(y)


class Pure(Added):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu()) + x


@pytest.mark.parametrize(("module", "saves"), [(Added, False), (Clamped, False), (Pure, True)])
def test_training_works_whatever_is_done_to_the_output(module: type, saves: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(module())
    attach(model, GateConfig(preset="reference", modules=("0.*",)))
    assert all(layer.saves_output is saves for layer in gated_layers(model).values())
    with torch.no_grad():
        for layer in gated_layers(model).values():
            layer.rows.latent.fill_(0.5)  # between 0 and 1: noise opens or closes none permanently
    model.train()
    model(torch.randn(4, 6)).square().sum().backward()
    for layer in gated_layers(model).values():
        assert layer.rows.latent.grad.abs().sum() > 0
