"""The budget of shared gates: a penalty on the MACs, or the predicted time, that they keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from finegates.adapters import FeedForward, Undescribed
from finegates.adapters.stock_sizes import HeadCounts
from finegates.gates.block_parts import (
    ExpertsGates,
    Shared,
    Structure,
    Ungated,
    part_macs,
    reading,
)
from finegates.gates.closing import choose_closed
from finegates.gates.equal_sizes import EqualSizes
from finegates.gates.gate import FixedGate
from finegates.gates.prices import MACS, Cost, UnreachableTimeError
from finegates.gates.stochastic import StochasticGate
from finegates.gates.timing import Timer

# Centres given to dimensions that are closed, and reopened, in sigmas of the penalty.
_SHUT, _REOPENED = 0.2, 3.0


class MacsPenalty:
    """|kept MACs - goal|, as fractions of the dense model's, or the same of predicted time.

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
        equal: whether all layers keep equal sizes (:mod:`finegates.gates.equal_sizes`).
        heads: with ``equal``, the numbers of heads that the configuration accepts.
        multiple: with ``equal``, of the feed-forward dimensions; None selects one.
        original: whether fractions are of the dense model even if dimensions were removed from it
            before gates were attached; otherwise of the model that was gated.
        cost: predicts times; None counts MACs.
        timer: its predictions, of this model. The gradient is then that of the expected time
            without the movement of data.

    Attributes:
        unit: what is counted, for messages.
        sizes: the choice of equal sizes, or None.
        progress: the fraction of the training that is over, in [0, 1]; the trainer sets it.
    """

    def __init__(
        self,
        structure: Structure,
        target: float,
        length: int,
        ramp: tuple[float, float],
        *,
        equal: bool = False,
        heads: Sequence[HeadCounts] = (),
        multiple: int | None = None,
        original: bool = False,
        cost: Cost | None = None,
        timer: Timer | None = None,
    ) -> None:
        self.prices = MACS if cost is None else cost.prices()
        self.timer = timer
        self.unit = "MACs" if timer is None else "predicted time"
        self.structure = structure
        self.target = target
        self.length = length
        self.ramp = ramp
        self.progress = 1.0
        with torch.no_grad():
            if original or not self._is_reduced():
                self.dense = self._original()
            else:
                self.dense = float(self._count(_open_before, packed=True))
            self.sizes = EqualSizes(structure, self._left, heads, multiple) if equal else None

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
        if self.sizes is not None:
            return self.sizes.floor()
        least = []
        for part in self.structure:
            alive = {id(gate) for gate in part.gates()}

            def one(gate: StochasticGate, alive: set[int] = alive) -> Tensor:
                there = ~gate.final()
                kept = torch.zeros_like(gate.latent)
                if id(gate) in alive and bool(there.any()):
                    kept[int(there.float().argmax())] = 1.0
                return kept

            least.append(float(self._macs(one, packed=True)))
        return min(least) / self.dense

    def check_reachable(self) -> None:
        """Raises ValueError, with the largest target in reach, unless the target is.

        Raises it also for a target of the original model's MACs that a compact model has met.
        """
        if self._is_reduced():
            with torch.no_grad():
                left = float(self._count(_open_before, packed=True)) / self.dense
            if self.target > 0 and left < 1.0 and 1.0 - self.target >= left:
                raise ValueError(
                    f"target {self.target:.6g} of the original model's {self.unit} is met already: "
                    f"this one has {left:.4f} of them; give a larger target, or target_of='given'"
                )
        floor = self.floor()
        if 1.0 - self.target < floor and self.timer is not None:
            raise UnreachableTimeError(self.target, floor, self.length)
        if 1.0 - self.target < floor:
            raise ValueError(
                f"target {self.target} cannot be reached: with every possible gate closed, "
                f"{floor:.4f} of the MACs stay at sequence_length={self.length}, so targets end at "
                f"{math.floor(1e4 * (1.0 - floor)) / 1e4:.4f}. The rest are {self._rest()}"
            )

    def _rest(self) -> str:
        """What no gate can remove, for messages."""
        ungated = [part.path for part in self.structure if isinstance(part, Ungated)]
        kept = [part.part for part in self.structure if isinstance(part.part, Undescribed)]
        layer = next((path for part in kept for path in part.layers), None)
        if layer is not None:
            classes = dict.fromkeys(name for part in kept for name in part.classes)
            return (
                f"linear layers without a description, such as {layer}, which keep their sizes "
                f"(classes: {', '.join(classes) or 'described ones'}); "
                "finegates.describe(model, inputs) looks for a description"
            )
        if ungated:
            return f"parts without gates, such as {ungated[0]}, which keep their sizes"
        return (
            "products of attention heads that cannot become narrower; it grows with sequence_length"
        )

    def __call__(self) -> Tensor:
        """The penalty, a differentiable scalar (float32).

        Counting MACs does not synchronise with the device; predicting time does.
        """
        expected = self.expected()
        kept = (self._kept() / self.dense).to(expected)
        return (kept + expected - expected.detach() - self.goal()).abs()

    @torch.no_grad()
    def close_least(self) -> float:
        """Closes the dimensions of least importance per MAC to meet the goal.

        1. Dimensions are ordered by importance (:meth:`StochasticGate.observe`) divided by the MACs
           that one of them saves at present.
        2. The first ones are closed as far as the goal asks; a dimension that would overshoot it
           stays open (:func:`finegates.gates.closing.choose_closed`). Where layers keep equal
           sizes, these are chosen first.
        3. Closed centres are put slightly below zero, so that noise can still open them in
           training. Closed dimensions that were not chosen again are reopened, unless they are
           closed for good (:meth:`close_for_good`). All other latents keep their values.

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
        if self.sizes is not None:
            pairs = list(zip(gates, importance, strict=True))
            named = {gate: gate.spread(values) for gate, values in pairs}
            # Of all dimensions, removed ones included: 1 where not closed for good.
            left = {gate: gate.spread((~gate.final()).float()) for gate in gates}
            fixed = any(bool((mask == 0).any()) for mask in left.values())
            chosen = self.sizes.choose(named, self.goal(), left if fixed else None)
            for gate, open_ in chosen.items():
                _set_open(gate, (open_ if gate.positions is None else open_[gate.positions]) > 0)
            return self.realised()
        # Rule 1: a dimension that saves nothing at present still gets a finite ratio.
        costs = [cost.clamp(min=1e-9 * self.dense) for cost in self._costs(gates)]  # (n,) by gate
        sizes = [gate.size for gate in gates]

        # Rule 2: the kept fraction if exactly the masked dimensions of all gates were closed.
        def kept(closed: Tensor) -> float:  # (all dimensions,)
            parts = zip(gates, (~closed).float().split(sizes), strict=True)
            alive = {id(gate): part for gate, part in parts}
            return float(self._macs(lambda gate: alive[id(gate)], packed=True)) / self.dense

        order = torch.cat(self._levelled(gates, importance)) / torch.cat(costs)
        final = torch.cat([gate.final() for gate in gates])
        closed = choose_closed(order, kept, self.goal(), final)
        for gate, shut in zip(gates, closed.split(sizes), strict=True):  # rule 3
            _set_open(gate, ~shut)
        return self.realised()

    @torch.no_grad()
    def close_for_good(self) -> None:
        """Closes for good what is closed now: no noise and no later choice opens it again."""
        for gate in self.gates():
            gate.close(gate.centre() <= 0)

    def is_observed(self) -> bool:
        """Whether any importance has been observed yet."""
        known = [gate.importance for gate in self.gates() if gate.importance is not None]
        return any(bool(importance.any()) for importance in known)

    def _check_importance(self) -> None:
        """Raises ValueError if importances are missing or not finite."""
        for part in self.structure:
            path = part.part.up if isinstance(part.part, FeedForward) else part.part.path
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

    def _left(self, opened: Mapping[StochasticGate, Tensor]) -> float:
        """The kept fraction if gates had these masks, and all others were open."""

        def read(gate: StochasticGate) -> Tensor:
            mask = opened.get(gate)
            return gate.latent.new_ones(gate.dense_size) if mask is None else mask.to(gate.latent)

        return float(self._count(read, packed=True)) / self.dense

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
        yield from dict.fromkeys(gate for part in self.structure for gate in part.gates())

    def _macs(self, read: Callable[[StochasticGate], Tensor], *, packed: bool = False) -> Tensor:
        """The MACs or seconds, if ``read`` gives the openness of dimensions that were not removed.

        Packed, they are those after compaction.
        """
        return self._count(lambda gate: gate.spread(read(gate)), packed=packed)

    def _is_reduced(self) -> bool:
        """Whether dimensions were removed before gates were attached."""
        gates = [gate for part in self.structure for gate in part.all_gates()]
        return any(isinstance(gate, FixedGate) or gate.before is not None for gate in gates)

    def _original(self) -> float:
        """The MACs or seconds of the dense model, before any compaction.

        A dimension that was removed and gets no gate has a constant one, which counts as open here.
        """
        if self.timer is not None:
            return self.timer.original()

        def ones(gate: Shared) -> Tensor:
            if isinstance(gate, FixedGate):
                return torch.ones_like(gate.values)
            return gate.latent.new_ones(gate.dense_size)

        parts = self.structure
        counts = [part_macs(part, ones, self.length, prices=self.prices) for part in parts]
        return float(torch.stack([count.to(counts[0]) for count in counts]).sum())

    def _count(self, read: Callable[[StochasticGate], Tensor], *, packed: bool = False) -> Tensor:
        # Constant gates that nothing reads any more keep their first dtype and device.
        like = read(next(self.gates()))
        if packed and self.timer is not None:
            seconds = self.timer({gate: read(gate) for gate in self.gates()})
            return torch.tensor(seconds, dtype=torch.float64, device="cpu")

        def every(gate: Shared) -> Tensor:
            return reading(read)(gate).to(like)

        counts = [
            part_macs(part, every, self.length, packed=packed, prices=self.prices).to(like)
            for part in self.structure
        ]
        return torch.stack(counts).sum()


def _open_before(gate: StochasticGate) -> Tensor:
    """Ones where the gate had dimensions when it was attached."""
    ones = gate.latent.new_ones(gate.dense_size)
    return ones if gate.before is None else gate.before.to(ones)


def _set_open(gate: StochasticGate, open_: Tensor) -> None:
    """Puts closed centres slightly below zero, and reopens the others (rule 3 of closing)."""
    # The penalty's sigma equals the noise's, but is also defined without noise.
    sigma, centre = gate.preset.probability_std, gate.centre()
    gate.latent[~open_ & (centre > 0)] = -_SHUT * sigma
    gate.latent[open_ & (centre <= 0)] = _REOPENED * sigma
