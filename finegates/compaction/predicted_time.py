"""Predicted time of what compaction would keep, from masks of gates.

The time of a token is that of its linear layers, with gathers and scatters, of the matmuls and the
softmax of attention over a sequence, of the activations, and of what no gate touches. It is read
from the same choice as the plan, so that a gated model's time is that of its compact form.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, Block, adapter_for, unwrap
from finegates.compaction.choices import choose
from finegates.compaction.costs import Costs
from finegates.compaction.token_time import token_seconds
from finegates.gates.attachment import attach_gates
from finegates.gates.dense_form import DenseForm, dense_form, in_dense_sizes
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import leaf_gates
from finegates.gates.gated_output import gate_outputs
from finegates.gates.shared import Sides
from finegates.gates.stochastic import StochasticGate

# Largest number of masks whose times are remembered.
_REMEMBERED = 64


class PredictedTime:
    """Predicts the seconds of a token after compaction, from masks of gates.

    Masks are put into a copy of the modules, and the rules of compaction choose what is kept of it.

    Args:
        cost: the prices.
        model: gated, or plain with the gates that it would get; it does not change.
        length: tokens of a sequence.
        sides: of a plain model, see :class:`finegates.gates.prices.Cost`; so is ``width``.
    """

    def __init__(
        self,
        cost: Costs,
        model: nn.Module,
        length: int,
        sides: Sides | None = None,
        width: tuple[StochasticGate, tuple[str, ...]] | None = None,
    ) -> None:
        self._cost, self._length = cost, length
        self._constants: dict[StochasticGate, FixedGate] = {}
        inner = unwrap(model)
        if sides is None:
            form = dense_form(inner) or DenseForm.of(inner)
            self._copy = form.model
            self._constants = dict(form.gates.values())
        else:
            self._copy = self._with_constants(inner, sides, width)
        self._adapter = adapter_for(self._copy)
        self._blocks = self._adapter.blocks(self._copy)
        self._known: dict[bytes, float] = {}

    def _with_constants(
        self,
        model: nn.Module,
        sides: Sides,
        width: tuple[StochasticGate, tuple[str, ...]] | None,
    ) -> nn.Module:
        """A copy that shares the model's tensors, with constants where its gates would be."""
        memo: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
        found = copy.deepcopy(model, memo)
        gates = [gate for pair in sides.values() for gate in pair if gate is not None]
        own = [leaf for gate in gates for leaf in gate.leaves()]
        for gate in (*own, *(() if width is None else (width[0],))):
            if isinstance(gate, StochasticGate) and gate not in self._constants:
                ones = torch.ones(gate.dense_size, dtype=torch.float32, device="cpu")
                memo[id(gate)] = self._constants[gate] = FixedGate(ones)
        attach_gates(found, copy.deepcopy(sides, memo))
        if width is not None:
            gate_outputs(found, width[1], self._constants[width[0]])
        return found

    def gates(self) -> tuple[StochasticGate, ...]:
        """The gates whose masks it needs."""
        return tuple(self._constants)

    def gated(self, masks: Mapping[StochasticGate, Tensor]) -> nn.Module:
        """The copy of the model with masks as constant gates; the next masks replace them."""
        for gate, constant in self._constants.items():
            constant.values = (masks[gate] > 0).detach().float().cpu()
        return self._copy

    @torch.no_grad()
    def original(self) -> float:
        """The seconds of a token in the dense model, before any compaction."""
        constants = [gate for gate in leaf_gates(self._copy) if isinstance(gate, FixedGate)]
        values = [gate.values for gate in constants]
        try:
            for gate in constants:
                gate.values = torch.ones_like(gate.values)
            return predicted_seconds(
                self._copy, self._adapter, self._blocks, self._cost, self._length
            )
        finally:
            for gate, before in zip(constants, values, strict=True):
                gate.values = before

    @torch.no_grad()
    def __call__(self, masks: Mapping[StochasticGate, Tensor]) -> float:
        """The seconds of a token.

        Args:
            masks: (dense_size,) of every gate, 1 where open.
        """
        opened = [masks[gate].detach() for gate in self._constants]
        joined = (torch.cat(opened) > 0).cpu()  # one transfer from the device
        key = joined.numpy().tobytes()
        if key not in self._known:
            parts = joined.split([mask.numel() for mask in opened])
            found = self.gated(dict(zip(self._constants, parts, strict=True)))
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = predicted_seconds(
                found, self._adapter, self._blocks, self._cost, self._length
            )
        return self._known[key]


def predicted_time(model: nn.Module, cost: Costs, length: int) -> float:
    """The predicted seconds of a token, after compaction if the model has gates.

    Args:
        model: dense, with gates, or compact; plain or wrapped by ``peft``.
        cost: the prices.
        length: tokens of a sequence.

    Raises:
        ValueError: the architecture has no adapter.
    """
    plain = in_dense_sizes(unwrap(model))
    adapter = adapter_for(plain)
    return predicted_seconds(plain, adapter, adapter.blocks(plain), cost, length)


def predicted_seconds(
    plain: nn.Module, adapter: Adapter, blocks: Sequence[Block], cost: Costs, length: int
) -> float:
    """The predicted seconds of a token, see :func:`predicted_time`.

    Args:
        plain: the model in its dense sizes.
        adapter: of its architecture.
        blocks: of the model.
        cost: the prices.
        length: tokens of a sequence.
    """
    chosen = choose(plain, adapter, blocks, cost, [])
    return token_seconds(plain, blocks, chosen, cost, length)
