"""Models with gates on the residual stream, and how their outputs compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import finegates as fg
from finegates.gates.gated_output import width_gate
from finegates.gates.stochastic import StochasticGate
from support import tiny


def width_model(model: nn.Module, **settings: object) -> nn.Module:
    """Gates a model on the stream, and on heads and feed-forward dimensions."""
    settings = {"dimensions": "inner", "target": 0.2, "sequence_length": 7, **settings}
    return fg.attach(model, fg.GateConfig(width=True, **settings)).eval()  # type: ignore[arg-type]


@torch.no_grad()
def hard(model: nn.Module, seed: int = 0, *, half: bool = False) -> nn.Module:
    """Closes about half of all gates; the others are one, or with ``half`` between."""
    if half:
        tiny.scatter_gates(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for gate in stochastic_gates(model):
        if not half:
            gate.latent.copy_(torch.randint(0, 2, gate.latent.shape, generator=generator) * 2 - 1)
        gate.latent[0] = 1.0
    return model.eval()


def stochastic_gates(model: nn.Module) -> list[StochasticGate]:
    """The trained gates, each once."""
    return [module for module in model.modules() if isinstance(module, StochasticGate)]


def kept_dimensions(model: nn.Module) -> Tensor:
    """Indices of the open dimensions of the stream."""
    gate = width_gate(model)
    assert gate is not None
    return (gate.value() != 0).nonzero().flatten()


def on_kept(gated: list[Tensor], small: list[Tensor], kept: Tensor) -> list[Tensor]:
    """The outputs of a gated model at the dimensions that a compact one has.

    Where the stream itself is an output, the other dimensions must be zero.
    """
    found = []
    for mine, theirs in zip(gated, small, strict=True):
        if mine.shape[-1] != theirs.shape[-1]:
            closed = torch.ones(mine.shape[-1], dtype=torch.bool)
            closed[kept] = False
            assert not mine[..., closed].any()
            mine = mine[..., kept]
        found.append(mine)
    return found
