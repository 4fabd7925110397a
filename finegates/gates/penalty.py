"""Sparsity penalties on the gates of a model.

For a gate vector with mean open probability p and a target sparsity s:

- ``target``: ``|p - (1 - s)|``, in the released code;
- ``hinge``: ``max(p, 1 - s)``, in version 1 of the paper: no reward for closing more than the
  target.

A layer's penalty is the mean over its gated sides, the model's the mean over its gated layers. With
kurtosis weighting, p becomes a weighted mean over the dimensions that are still open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from finegates.gates.block_parts import ExpertsGates, FeedForwardGates, Read, Structure, Ungated
from finegates.gates.closing import choose_closed
from finegates.gates.config import GateConfig, PenaltyName
from finegates.gates.gated_linear import gated_layers
from finegates.gates.kurtosis import KurtosisWeights, kurtosis
from finegates.gates.parts import (
    STRUCTURE,
    only_part,
)
from finegates.gates.presets import (
    check_reachable,
)
from finegates.gates.stochastic import StochasticGate, centre_of


def target_penalty(open_fraction: Tensor, sparsity: float) -> Tensor:
    """``|p - (1 - s)|`` for p of any shape."""
    return (open_fraction - (1.0 - sparsity)).abs()


def hinge_penalty(open_fraction: Tensor, sparsity: float) -> Tensor:
    """``max(p, 1 - s)`` for p of any shape; its gradient is zero once p is below 1 - s."""
    return open_fraction.clamp(min=1.0 - sparsity)


PENALTIES: dict[PenaltyName, Callable[[Tensor, float], Tensor]] = {
    "target": target_penalty,
    "hinge": hinge_penalty,
}


class SparsityPenalty:
    """The mean penalty over the gated layers of a model.

    Args:
        model: with gates attached.
        sparsity: the target s in [0, 1).
        kind: ``"target"`` or ``"hinge"``.
        kurtosis: a :class:`KurtosisWeights` of the same model, or None for plain means.

    Raises:
        ValueError: no trainable gates, an unknown kind, or an unreachable target.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        kind: str = "target",
        kurtosis: KurtosisWeights | None = None,
    ) -> None:
        if kind not in PENALTIES:
            raise ValueError(f"unknown penalty {kind!r}; choose one of {sorted(PENALTIES)}")
        self.sparsity = sparsity
        self.kurtosis = kurtosis
        self._penalty = PENALTIES[kind]
        self._layers = {
            name: sides
            for name, layer in gated_layers(model).items()
            if (sides := [(s, g) for s, g in layer.gates() if isinstance(g, StochasticGate)])
        }
        gates = [gate for sides in self._layers.values() for _, gate in sides]
        if not gates:
            raise ValueError("the model has no trainable gates; call finegates.attach first")
        for gate in gates:
            check_reachable(gate.preset, sparsity)
            gate.led = True
        # Gates of one preset are concatenated: three operations instead of three per gate. Each
        # side has weight 1 / (its layer's sides * layers).
        preset = gates[0].preset
        self._flat = all(gate.preset == preset for gate in gates)
        self._gates = gates
        self._side_of = torch.repeat_interleave(
            torch.arange(len(gates), device="cpu"),
            torch.tensor([gate.size for gate in gates], dtype=torch.int64, device="cpu"),
        )
        self._sizes = torch.tensor(
            [float(gate.size) for gate in gates], dtype=torch.float32, device="cpu"
        )
        self._share = torch.tensor(
            [1.0 / (len(s) * len(self._layers)) for s in self._layers.values() for _ in s],
            dtype=torch.float32,
            device="cpu",
        )

    def __call__(self) -> Tensor:
        """The penalty, a differentiable scalar (float32)."""
        if self._flat and self.kurtosis is None:
            fractions = self._open_fractions_flat()
        else:
            fractions = torch.stack(
                [
                    self._open_fraction(name, side, gate)
                    for name, sides in self._layers.items()
                    for side, gate in sides
                ]
            )
        share = self._share.to(fractions.device)
        return (self._penalty(fractions, self.sparsity) * share).sum()

    def gates(self) -> Iterator[StochasticGate]:
        """Every gate that it is on, once."""
        yield from dict.fromkeys(self._gates)

    def _open_fraction(self, name: str, side: str, gate: StochasticGate) -> Tensor:
        probability = gate.open_probability()
        if self.kurtosis is None:
            return probability.mean()
        weights = self.kurtosis.weights(name, side)
        return probability.mean() if weights is None else (weights * probability).sum()

    def _open_fractions_flat(self) -> Tensor:
        """Mean P of every side, shape (sides,), computed on one concatenated vector."""
        first = self._gates[0]
        latent = torch.cat([gate.latent for gate in self._gates])
        if self._side_of.device != latent.device:
            self._side_of = self._side_of.to(latent.device)
            self._sizes = self._sizes.to(latent.device)
        centre = centre_of(latent, first.preset)
        probability = torch.special.ndtr(centre / first.preset.probability_std)
        sums = probability.new_zeros(len(self._gates)).index_add(0, self._side_of, probability)
        return sums / self._sizes


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


__all__ = [
    "PENALTIES",
    "JointPenalty",
    "KurtosisWeights",
    "SparsityPenalty",
    "hinge_penalty",
    "kurtosis",
    "target_penalty",
]


def sparsity_penalty(model: nn.Module) -> SparsityPenalty | MacsPenalty | None:
    """The penalty of the attached configuration, or None without one.

    Args:
        model: gated, or with one gated model inside.

    Raises:
        ValueError: gates were attached to several models within it (:func:`gated_parts`).
    """
    part = only_part(model)
    return None if part is None else penalty_of(*part)


# Centres given to dimensions that are closed, and reopened, in sigmas of the penalty.
_SHUT, _REOPENED = 0.2, 3.0


class MacsPenalty:
    """|kept MACs - goal|, both as fractions of the dense model's.

    The value counts the dimensions that are open at evaluation, so that the compacted model meets
    the goal. The gradient is that of the expectation under P(open), which is the same sum of
    products with probabilities instead of zeros and ones. It reaches gates within a few sigma of
    zero; the others follow only the task until :meth:`close_least` closes the excess.

    Args:
        structure: the gates of a model.
        target: the fraction of the dense MACs to remove.
        length: tokens of a sequence, for the attention products.
        ramp: the fractions of the training between which the goal falls linearly from 1 to ``1 -
            target``.

    Attributes:
        progress: the fraction of the training that is over, in [0, 1]; the trainer sets it.
    """

    def __init__(
        self, structure: Structure, target: float, length: int, ramp: tuple[float, float]
    ) -> None:
        self.structure = structure
        self.target = target
        self.length = length
        self.ramp = ramp
        self.progress = 1.0
        with torch.no_grad():
            self.dense = float(self._macs(lambda gate: torch.ones_like(gate.latent)))

    def goal(self) -> float:
        """The fraction of the dense MACs to keep at the current progress."""
        begin, end = self.ramp
        if self.progress >= end:
            return 1.0 - self.target
        if self.progress <= begin:
            return 1.0
        return 1.0 - self.target * (self.progress - begin) / (end - begin)

    def expected(self) -> Tensor:
        """The expected kept fraction, differentiable."""
        return self._macs(lambda gate: gate.open_probability()) / self.dense

    def realised(self, shift: float = 0.0) -> float:
        """The kept fraction at evaluation, with ``shift`` added to every centre.

        Synchronises with the device.
        """
        return float(self._kept(shift)) / self.dense

    @torch.no_grad()
    def _kept(self, shift: float = 0.0) -> Tensor:
        """The MACs at evaluation, a scalar (float32) on the device of the gates."""
        return self._macs(lambda gate: (gate.centre() + shift > 0).float(), packed=True)

    @torch.no_grad()
    def floor(self) -> float:
        """The smallest fraction that can be kept without closing the whole model.

        The part where this is cheapest keeps one dimension of each gate. The rest is out of reach
        of gates: the products of heads that keep their sizes.
        """
        least = []
        for part in self.structure:
            alive = {id(gate) for gate in part.gates()}

            def one(gate: StochasticGate, alive: set[int] = alive) -> Tensor:
                kept = torch.zeros_like(gate.latent)
                kept[0] = float(id(gate) in alive)
                return kept

            least.append(float(self._macs(one, packed=True)))
        return min(least) / self.dense

    def check_reachable(self) -> None:
        """Raises ValueError, with the largest target in reach, unless the target is."""
        floor = self.floor()
        if 1.0 - self.target < floor:
            raise ValueError(
                f"target {self.target} cannot be reached: with every possible gate closed, "
                f"{floor:.4f} of the MACs stay at sequence_length={self.length}, so targets end at "
                f"{math.floor(1e4 * (1.0 - floor)) / 1e4:.4f}. The rest are {self._rest()}"
            )

    def _rest(self) -> str:
        """What no gate can remove, for messages."""
        ungated = [part.part.path for part in self.structure if isinstance(part, Ungated)]
        if ungated:
            return f"parts without gates, such as {ungated[0]}, which keep their sizes"
        return (
            "products of attention heads that cannot become narrower; it grows with sequence_length"
        )

    def __call__(self) -> Tensor:
        """The penalty, a differentiable scalar (float32); no device synchronisation."""
        expected = self.expected()
        return (self._kept() / self.dense + expected - expected.detach() - self.goal()).abs()

    @torch.no_grad()
    def close_least(self) -> float:
        """Closes the dimensions of least importance per MAC to meet the goal.

        1. Dimensions are ordered by importance (:meth:`StochasticGate.observe`) divided by the MACs
           that one of them saves at present.
        2. The first ones are closed as far as the goal asks; a dimension that would overshoot it
           stays open (:func:`finegates.gates.closing.choose_closed`).
        3. Closed centres are put slightly below zero, so that noise can still open them in
           training. Closed dimensions that were not chosen again are reopened. All other latents
           keep their values.

        Returns:
            the kept fraction.

        Raises:
            ValueError: dimensions must be closed, but their order is unknown: gates have no factor,
                were never observed, or have an importance that is not finite. No latent changes.
        """
        gates = list(self.gates())
        importance = [gate.importance for gate in gates if gate.importance is not None]
        if len(importance) < len(gates):
            raise ValueError("gates without a factor have no importance; choose 'structured'")
        if self.goal() < 1.0:
            self._check_importance()
        # Rule 1: a dimension that saves nothing at present still gets a finite ratio.
        costs = [cost.clamp(min=1e-9 * self.dense) for cost in self._costs(gates)]  # (n,) by gate
        sizes = [gate.size for gate in gates]

        # Rule 2: the kept fraction if exactly the masked dimensions of all gates were closed.
        def kept(closed: Tensor) -> float:  # (all dimensions,)
            parts = zip(gates, (~closed).float().split(sizes), strict=True)
            alive = {id(gate): part for gate, part in parts}
            return float(self._macs(lambda gate: alive[id(gate)], packed=True)) / self.dense

        order = torch.cat(self._levelled(gates, importance)) / torch.cat(costs)
        chosen = choose_closed(order, kept, self.goal())
        for gate, shut in zip(gates, chosen.split(sizes), strict=True):  # rule 3
            # The penalty's sigma equals the noise's, but is also defined without noise.
            sigma, centre = gate.preset.probability_std, gate.centre()
            gate.latent[shut & (centre > 0)] = -_SHUT * sigma
            gate.latent[~shut & (centre <= 0)] = _REOPENED * sigma
        return self.realised()

    def is_observed(self) -> bool:
        """Whether any importance has been observed yet."""
        known = [gate.importance for gate in self.gates() if gate.importance is not None]
        return any(bool(importance.any()) for importance in known)

    def _check_importance(self) -> None:
        """Raises ValueError if importances are missing or not finite."""
        for part in self.structure:
            path = part.part.up if isinstance(part, FeedForwardGates) else part.part.path
            for gate in part.gates():
                if gate.importance is not None and not bool(gate.importance.isfinite().all()):
                    raise ValueError(
                        f"an importance at {path} is not finite, so the dimensions to close are "
                        "unknown: a gradient overflowed or was NaN when observed; observe only "
                        "steps that the optimizer takes, and set the gates' importance buffers "
                        "to zero before training again"
                    )
        if not self.is_observed():
            raise ValueError(
                "the importance of every gate is zero, so the dimensions to close are unknown: no "
                "gradient has been observed; train with GateTrainer, or call "
                "StochasticGate.observe of each gate between the backward pass and the step. "
                "DeepSpeed, FSDP and LOMO take gradients away before that"
            )

    def _levelled(self, gates: list[StochasticGate], importance: list[Tensor]) -> list[Tensor]:
        """Importances by which dimensions are closed, by gate."""
        experts = {id(p.hidden): p for p in self.structure if isinstance(p, ExpertsGates)}
        return [
            experts[id(gate)].levelled(values) if id(gate) in experts else values
            for gate, values in zip(gates, importance, strict=True)
        ]

    def _costs(self, gates: list[StochasticGate]) -> list[Tensor]:
        """By gate, the derivative of the kept MACs by the openness of each dimension."""
        with torch.enable_grad():
            opened = {id(g): (g.centre() > 0).float().requires_grad_() for g in gates}
            counted = self._macs(lambda gate: opened[id(gate)])
            return list(torch.autograd.grad(counted, [opened[id(gate)] for gate in gates]))

    def gates(self) -> Iterator[StochasticGate]:
        """Every gate of the model, once."""
        for part in self.structure:
            yield from part.gates()

    def _macs(self, read: Read, *, packed: bool = False) -> Tensor:
        counts = [part.macs(read, self.length, packed=packed) for part in self.structure]
        return torch.stack(counts).sum()


def penalty_of(part: nn.Module, config: GateConfig) -> SparsityPenalty | MacsPenalty:
    """The penalty of one of :func:`gated_parts`."""
    kind = config.penalty or config.gate_preset().penalty
    if kind == "macs":
        structure: Structure = vars(part)[STRUCTURE]
        penalty = MacsPenalty(structure, config.target, config.sequence_length, config.schedule[:2])
        for gate in penalty.gates():
            gate.led = True
        return penalty
    kurtosis = KurtosisWeights(part) if config.kurtosis else None
    return SparsityPenalty(part, config.target, kind, kurtosis)
