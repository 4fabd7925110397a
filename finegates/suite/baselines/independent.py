"""One-shot pruning of independent rows and columns, without shared groups.

It is one of the four cells of the ablation {shared, independent} x {learned gates, importance
alone}. Every gated layer has row and column gates of its own, as with preset ``reference``. The
least important ones are closed until compaction reaches the target number of MACs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finegates.adapters import adapter_for
from finegates.budget import planned_macs
from finegates.gates.attachment import attach_fixed
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import gated_layers
from finegates.gates.stochastic import StochasticGate
from finegates.modules.linear import linear_shape
from finegates.pruning.groups import SharedGroups, Vectors


class IndependentGroups(SharedGroups):
    """A gate for each row and each column of each gated layer, initially open.

    Closing a gate removes the weights of its row or column, and all weights that compaction then
    finds unused. The model is not changed.

    Args:
        model: a model without gates.
        length: tokens of a sequence, for the MACs of attention.

    Attributes:
        sides: row gate and column gate of every gated layer.
        gates: all gates by name.
        open: float32 mask (n,) of every gate, 1 if open and 0 if closed.
    """

    def __init__(self, model: nn.Module, length: int) -> None:
        self.length = length
        self.structure = ()
        self.gates, self.sides = {}, {}
        self._costs: Vectors = {}
        with torch.random.fork_rng(devices=[]):  # gates draw latents, which are not used here
            for path in adapter_for(model).gated(model):
                columns, outputs = linear_shape(model.get_submodule(path))
                pair = StochasticGate(outputs, "reference"), StochasticGate(columns, "reference")
                self.sides[path] = pair
                for gate, name, others in zip(
                    pair, ("rows", "cols"), (columns, outputs), strict=True
                ):
                    self.gates[f"{path}.{name}"] = gate
                    self._costs[gate] = torch.full((gate.size,), float(others))
        self.open = {gate: torch.ones(gate.size) for gate in self.gates.values()}
        tensors = [*model.parameters(), *model.buffers()]
        self._shadow = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        attach_fixed(self._shadow, self.values())
        self.dense = float(planned_macs(self._shadow, 1, length).total)

    def kept(self, opened: Mapping[StochasticGate, Tensor] | None = None) -> float:
        """Fraction of MACs that compaction keeps, see :meth:`SharedGroups.kept`."""
        layers = gated_layers(self._shadow)
        for path, pair in self.values(opened).items():
            for side, values in zip(("rows", "cols"), pair, strict=True):
                gate = getattr(layers[path], side)
                assert isinstance(gate, FixedGate)
                assert values is not None
                gate.values.copy_(values)
        return planned_macs(self._shadow, 1, self.length).total / self.dense

    def costs(self) -> Vectors:
        """MACs per token of each row or column in the dense model."""
        return self._costs
