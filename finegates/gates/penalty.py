"""Penalties on the gates of a model: of independent gates, of shared ones, and their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from finegates.adapters import adapter_for
from finegates.adapters.stock_sizes import HeadCounts, head_counts, stock_keys
from finegates.gates.block_parts import (
    AttentionGates,
    Structure,
)
from finegates.gates.config import GateConfig
from finegates.gates.kurtosis import KurtosisWeights
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.open_fractions import SparsityPenalty
from finegates.gates.parts import (
    STRUCTURE,
    only_part,
)
from finegates.gates.shared import Sides
from finegates.gates.stochastic import StochasticGate
from finegates.gates.timing import predicting


class JointPenalty:
    """Weighted sum of the penalties of several gated models.

    Args:
        parts: pairs of a weight and a penalty, at least one.
    """

    def __init__(self, parts: Sequence[tuple[float, Callable[[], Tensor]]]) -> None:
        self.parts = tuple(parts)

    def __call__(self) -> Tensor:
        """The sum, a differentiable scalar (float32) on the device of the first part's gates."""
        terms = [weight * penalty() for weight, penalty in self.parts]
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def sparsity_penalty(model: nn.Module) -> SparsityPenalty | MacsPenalty | None:
    """The penalty of the attached configuration, or None without one.

    Args:
        model: gated, or with one gated model inside.

    Raises:
        ValueError: gates were attached to several models within it (:func:`gated_parts`).
    """
    part = only_part(model)
    return None if part is None else penalty_of(*part)


def penalty_on_macs(
    model: nn.Module,
    structure: Structure,
    config: GateConfig,
    sides: Sides | None = None,
    width: tuple[StochasticGate, tuple[str, ...]] | None = None,
) -> MacsPenalty:
    """The budget of a configuration on the shared gates of a model.

    Args:
        model: gated, or plain with the gates that it would get.
        structure: its gates by part.
        config: the configuration.
        sides: of a plain model, see :class:`finegates.gates.timing.Predicting`; so is ``width``.
    """
    cost, length = config.cost, config.sequence_length
    heads: list[HeadCounts] = []
    gated = [
        p.part
        for p in structure
        if isinstance(p, AttentionGates) and isinstance(p.heads, StochasticGate)
    ]
    if config.uniform and gated:
        keys = stock_keys(model, adapter_for(model))
        heads = head_counts(model.config, keys, gated[0])
    return MacsPenalty(
        structure,
        config.removed(),
        length,
        config.schedule[:2],
        equal=config.uniform,
        heads=heads,
        multiple=config.multiple_of,
        original=config.target_of == "original",
        cost=cost,
        timer=None if cost is None else predicting(cost).timer(model, length, sides, width),
    )


def penalty_of(part: nn.Module, config: GateConfig) -> SparsityPenalty | MacsPenalty:
    """The penalty of one of :func:`gated_parts`."""
    kind = config.penalty or config.gate_preset().penalty
    if kind == "macs":
        structure: Structure = vars(part)[STRUCTURE]
        penalty = penalty_on_macs(part, structure, config)
        for gate in penalty.gates():
            gate.led = True
        return penalty
    kurtosis = KurtosisWeights(part) if config.kurtosis else None
    return SparsityPenalty(part, config.removed(), kind, kurtosis)
