"""Groups of rows and columns that are removed together, and their costs.

They are the gates of preset ``structured`` (:mod:`finegates.gates.shared`), one for each dimension
that compaction can remove. Here a gate is an untrained mask of zeros and ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from finegates.adapters import Experts, adapter_for, unwrap
from finegates.adapters.stock_sizes import head_counts
from finegates.gates.attachment import attach_fixed
from finegates.gates.block_parts import (
    AttentionGates,
    ExpertsGates,
    Read,
    Ungated,
    part_macs,
    reading,
)
from finegates.gates.closing import TOLERANCE, choose_closed
from finegates.gates.config import Dimensions
from finegates.gates.equal_sizes import EqualSizes, sizes_to_choose
from finegates.gates.gate import FixedGate, Gate
from finegates.gates.gated_output import gate_outputs
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.prices import MACS, Cost, UnreachableTimeError
from finegates.gates.removed_before import before_of, mask_of
from finegates.gates.shared import build_structure
from finegates.gates.stochastic import StochasticGate
from finegates.gates.timing import Predicting, Timer

Vectors = dict[StochasticGate, Tensor]
"""A number for each dimension, (n,), by gate."""


class SharedGroups:
    """The groups of a model, initially all open; the model does not change.

    Args:
        model: plain, without gates.
        dimensions: the groups that may be closed.
        length: tokens of a sequence, for the MACs of attention.
        equal: whether every layer keeps equal sizes (:mod:`finegates.gates.equal_sizes`), as far
            as the configuration can say them; then only inner groups may be closed.
        multiple: with ``equal``, of the feed-forward dimensions; None selects one.
        width: whether dimensions of the residual stream may be closed, too.
        parts: whether attention and feed-forward parts may be closed as a whole, too.

    Attributes:
        structure: the gates by part of the model; their values are not used.
        sides: row and column gate of every gated layer.
        width: the gate of the residual stream, or None.
        outputs: paths of the modules whose outputs it multiplies.
        gates: all of them, by name.
        open: (n,) of every gate, float32: 1 where open, 0 where closed.
        dimensions: the groups that have gates.
        sizes: the choice of equal sizes, or None.
        cost: predicts times; None counts MACs.
    """

    cost: Cost | None = None
    timer: Timer | None = None

    dimensions: Dimensions = "all"
    sizes: EqualSizes | None = None
    width: StochasticGate | None = None
    outputs: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        dimensions: Dimensions,
        length: int,
        *,
        equal: bool = False,
        multiple: int | None = None,
        width: bool = False,
        parts: bool = False,
    ) -> None:
        names: dict[StochasticGate, str] = {}
        before = before_of(model)

        def make(name: str, size: int) -> StochasticGate:
            gate = StochasticGate(size, "structured")
            names[gate] = name
            return gate

        self.dimensions = "inner" if equal else dimensions
        with torch.random.fork_rng(devices=[]):  # gates draw latents, which are not used here
            keys = sizes_to_choose(model) if equal else None
            stream = adapter_for(model).stream(model) if width else None
            self.width = None if stream is None else make("width", stream.size)
            self.outputs = () if stream is None else stream.gated
            self.structure, self.sides = build_structure(
                model,
                make,
                experts=False,
                dimensions=self.dimensions,
                stock=keys,
                before=before,
                width=self.width,
                parts=parts,
            )
        self.length = length
        self.open: Vectors = {
            gate: torch.ones(gate.size, dtype=torch.float32, device="cpu") for gate in names
        }
        for gate, name in names.items():
            mask = mask_of(before, name, gate.size)
            if mask is not None:
                gate.before, self.open[gate] = mask, mask.to("cpu", torch.float32)
        self.gates = {name: gate for gate, name in names.items()}
        self.dense = float(self._macs(self.open.__getitem__, packed=bool(before)))
        if keys is not None:
            heads = [
                p.part
                for p in self.structure
                if isinstance(p, AttentionGates) and isinstance(p.heads, StochasticGate)
            ]
            counts = head_counts(model.config, keys, heads[0]) if heads else []
            self.sizes = EqualSizes(self.structure, self._kept_of_all, counts, multiple)

    def count_time(self, cost: Predicting, model: nn.Module) -> None:
        """Counts predicted time from now on, instead of MACs.

        Args:
            cost: predicts it.
            model: of the groups; it does not change.
        """
        width = None if self.width is None else (self.width, self.outputs)
        self.cost, self.timer = cost, cost.timer(model, self.length, self.sides, width)
        self.dense = float(self._macs(self.open.__getitem__, packed=True))

    def layers(self) -> list[str]:
        """Paths of all layers of which closing a group removes rows or columns."""
        parts = (p.part for p in self.structure if not isinstance(p, ExpertsGates | Ungated))
        return list(dict.fromkeys(path for part in parts for path in part.linears()))

    def values(
        self, opened: Mapping[StochasticGate, Tensor] | None = None
    ) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """Row gate (out,) and column gate (in,) of zeros and ones, by layer.

        Args:
            opened: masks that replace the present ones of some gates.
        """
        masks = {**self.open, **(opened or {})}
        read: Callable[[Gate], Tensor] = reading(masks.__getitem__)  # type: ignore[assignment]
        return {
            path: (
                None if rows is None else rows.combined(read),
                None if cols is None else cols.combined(read),
            )
            for path, (rows, cols) in self.sides.items()
        }

    def attach(self, model: nn.Module) -> nn.Module:
        """Wraps layers with the present masks as constant gates, in place; returns the model."""
        attach_fixed(model, self.values())
        if self.width is not None:
            gate_outputs(unwrap(model), self.outputs, FixedGate(self.open[self.width]))
        return model

    def kept(self, opened: Mapping[StochasticGate, Tensor] | None = None) -> float:
        """The fraction of the dense MACs, or of the predicted time, that compaction keeps.

        Args:
            opened: masks that replace the present ones of some gates.
        """
        masks = {**self.open, **(opened or {})}
        return float(self._macs(masks.__getitem__, packed=True)) / self.dense

    def _kept_of_all(self, opened: Mapping[StochasticGate, Tensor]) -> float:
        """:meth:`kept`, with every dimension open that is not masked."""
        masks = {
            gate: torch.ones(gate.size, dtype=torch.float32, device="cpu")
            for gate in self.gates.values()
        }
        return float(self._macs({**masks, **opened}.__getitem__, packed=True)) / self.dense

    def costs(self) -> Vectors:
        """The MACs, or the seconds, of one token that closing each dimension saves at present."""
        return self.slopes(self._macs)

    def slopes(self, count: Callable[[Read], Tensor]) -> Vectors:
        """The derivative of a count by the openness of each dimension, at present.

        Args:
            count: maps the values read from each gate, (n,), to a scalar.
        """
        with torch.enable_grad():
            opened = {gate: mask.clone().requires_grad_() for gate, mask in self.open.items()}
            found = torch.autograd.grad(
                count(reading(opened.__getitem__)), list(opened.values()), allow_unused=True
            )
        return {
            gate: torch.zeros_like(mask) if slope is None else slope.detach()
            for (gate, mask), slope in zip(opened.items(), found, strict=True)
        }

    def check_reachable(self, target: float) -> None:
        """Raises ValueError, with the largest target in reach, unless the target is."""
        penalty = MacsPenalty(
            self.structure, target, self.length, (0.0, 0.0), cost=self.cost, timer=self.timer
        )
        if self.dimensions == "all":
            penalty.check_reachable()
        floor = self.floor()
        if 1.0 - target < floor and self.sizes is not None:
            raise ValueError(
                f"target {target} cannot be reached with layers of equal sizes: {floor:.4f} of the "
                f"MACs stay at sequence_length={self.length}, so targets end at "
                f"{int(1e4 * (1.0 - floor)) / 1e4:.4f}; leave uniform out"
            )
        if 1.0 - target < floor and self.timer is not None:
            raise UnreachableTimeError(target, floor, self.length)
        if 1.0 - target < floor:
            raise ValueError(
                f"target {target} cannot be reached with heads and feed-forward dimensions alone: "
                f"{floor:.4f} of the MACs stay at sequence_length={self.length}, so targets end at "
                f"{int(1e4 * (1.0 - floor)) / 1e4:.4f}; choose dimensions='all'{self._experts()}"
            )

    def _experts(self) -> str:
        """What to do about stacked experts, for messages; empty without."""
        for part in self.structure:
            if isinstance(part.part, Experts):
                return f", or train gates (finegates.attach), which also narrow {part.part.path}"
        return ""

    def floor(self) -> float:
        """The smallest fraction that can be kept without closing the whole model.

        The part where this is cheapest keeps one dimension of each gate.
        """
        if self.sizes is not None:
            return self.sizes.floor()
        least = 1.0
        for part in self.structure:
            alive = set(part.gates())
            masks = {
                gate: torch.zeros(gate.size, dtype=torch.float32, device="cpu")
                for gate in self.gates.values()
            }
            for gate, mask in masks.items():
                first = int(self.open[gate].argmax())
                mask[first] = float(gate in alive) * float(self.open[gate][first])
            least = min(least, self.kept(masks))
        return least

    def close(
        self,
        worth: Mapping[StochasticGate, Tensor],
        goal: float,
    ) -> float:
        """Closes the dimensions of least worth until a goal is met.

        Closed dimensions stay closed.

        Args:
            worth: (n,) of each of :attr:`gates`, not negative; with equal sizes not divided by
                costs.
            goal: the fraction to keep.

        Returns:
            the kept fraction.
        """
        if self.sizes is not None:
            equal = self.sizes.choose(worth, goal, self.open)
            self.open.update({gate: mask.float() for gate, mask in equal.items()})
            return self.kept()
        gates = list(self.gates.values())
        sizes = [gate.size for gate in gates]
        shut = torch.cat([self.open[gate] for gate in gates]) == 0
        order = torch.where(shut, -1.0, torch.cat([worth[gate].float() for gate in gates]))

        def fraction(closed: Tensor) -> float:
            parts = (~(closed | shut)).float().split(sizes)
            return self.kept(dict(zip(gates, parts, strict=True)))

        chosen = choose_closed(order, fraction, goal) | shut
        for gate, part in zip(gates, chosen.split(sizes), strict=True):
            self.open[gate] = (~part).float()
        return fraction(chosen)

    def _macs(self, read: Callable[[StochasticGate], Tensor], *, packed: bool = False) -> Tensor:
        if packed and self.timer is not None:
            seconds = self.timer({gate: read(gate) for gate in self.gates.values()})
            return torch.tensor(seconds, dtype=torch.float64, device="cpu")
        every, prices = reading(read), MACS if self.cost is None else self.cost.prices()
        counts = [
            part_macs(part, every, self.length, packed=packed, prices=prices)
            for part in self.structure
        ]
        return torch.stack(counts).sum()


__all__ = ["TOLERANCE", "Dimensions", "SharedGroups", "Vectors"]
