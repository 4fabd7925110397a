"""A model that a found description gates, and its compact form."""

from __future__ import annotations

import copy

import torch
from torch import nn

from finegates.compaction import compact
from finegates.gates.attachment import attach_gates
from finegates.gates.shared import build_structure
from finegates.gates.stochastic import StochasticGate
from finegates.spec_search.description import Description
from finegates.spec_search.replay import OnlyAdapter


def pruned(model: nn.Module, description: Description, seed: int) -> tuple[nn.Module, nn.Module]:
    """The model with a third of its shared gates closed, and its compact form."""
    adapter = OnlyAdapter(*description.specs)
    gated = copy.deepcopy(model)
    structure, sides = build_structure(
        gated,
        lambda name, size: StochasticGate(size, "structured"),
        experts=False,
        adapter=adapter,
    )
    attach_gates(gated, sides)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in structure:
            for gate in part.gates():
                closed = torch.rand(gate.size, generator=generator) < 0.35
                gate.latent.copy_(torch.where(closed, -1.0, 2.0))
    return gated.eval(), compact(gated, adapter=adapter)
