"""Equal sizes of all layers, which a stock configuration can hold, within a budget.

Every layer keeps the same number F of feed-forward dimensions, K of key-value heads, and Q of query
heads of each:

1. F is a multiple of a power of two, for which matmuls are fast, or the dense width. K and Q are
   numbers that the configuration accepts.
2. For every (K, Q) the largest F within the goal is taken.
3. Each layer keeps its most important dimensions: the F best of its feed-forward part; in each
   group of heads the Q best; and the K groups whose Q best heads are the most important together.
4. Of all (K, F, Q) the one is chosen that closes the least importance in the whole model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finegates.adapters import adapter_for
from finegates.adapters.stock_sizes import HeadCounts, StockKeys, stock_keys
from finegates.gates.block_parts import AttentionGates, FeedForwardGates, Structure
from finegates.gates.closing import TOLERANCE
from finegates.gates.shared import has_free_heads
from finegates.gates.stochastic import StochasticGate

logger = logging.getLogger(__name__)

Masks = dict[StochasticGate, Tensor]
"""Zeros and ones (n,) by gate, 1 where open."""

MULTIPLES = (64, 32, 16, 8, 4, 2, 1)
"""Candidates for the multiple of feed-forward dimensions.

Matmuls of tensor cores are fastest with rows of whole 128 bytes, 64 numbers of 16 bits; vectors of
CPUs and blocks of quantised formats have 8 to 32 numbers.
"""


@dataclass(frozen=True)
class Sizes:
    """Sizes that every layer keeps, see the module.

    Attributes:
        hidden: F; None where feed-forward dimensions have no gates.
        heads: (K, Q); None where heads have no gates.
    """

    hidden: int | None
    heads: HeadCounts | None

    def __str__(self) -> str:
        said = [] if self.hidden is None else [f"{self.hidden} feed-forward dimensions"]
        if self.heads is not None:
            kv_heads, each = self.heads
            said.append(f"{kv_heads * each} heads, {kv_heads} of keys and values")
        return ", ".join(said)


class EqualSizes:
    """Chooses equal sizes of all layers within a budget.

    Args:
        structure: gates of heads and feed-forward dimensions; others are not closed.
        kept: maps masks of some gates to the kept fraction of the dense model, all others open.
        heads: numbers of heads that the configuration accepts; empty if heads have no gates.
        multiple: of the feed-forward dimensions; None selects the largest of ``MULTIPLES`` by which
            no step changes the kept fraction by more than two tolerances, so that any goal is met.

    Raises:
        ValueError: layers have different sizes, or the multiple exceeds the width.
    """

    def __init__(
        self,
        structure: Structure,
        kept: Callable[[Masks], float],
        heads: Sequence[HeadCounts] = (),
        multiple: int | None = None,
    ) -> None:
        self._feeds = [
            (p.part, p.hidden)
            for p in structure
            if isinstance(p, FeedForwardGates) and isinstance(p.hidden, StochasticGate)
        ]
        self._attentions = [
            (p.part, p.heads)
            for p in structure
            if isinstance(p, AttentionGates) and isinstance(p.heads, StochasticGate)
        ] if heads else []  # fmt: skip
        self._heads: list[HeadCounts | None] = [*heads] if self._attentions else [None]
        self._kept = kept
        self._check_equal()
        self._width = self._feeds[0][1].dense_size if self._feeds else None
        if multiple is not None and self._width is not None and multiple > self._width:
            raise ValueError(
                f"multiple_of={multiple} exceeds the {self._width} feed-forward dimensions of "
                f"{self._feeds[0][0].up}; choose a smaller one"
            )
        # The kept fraction is linear in F: its values with no and with all dimensions, by (K, Q).
        self._lines = {counts: self._line(counts) for counts in self._heads}
        self.multiple = multiple or self._fitting_multiple()

    def gates(self) -> Iterator[StochasticGate]:
        """The gates that are closed."""
        yield from (gate for _, gate in (*self._feeds, *self._attentions))

    def floor(self) -> float:
        """The smallest fraction that can be kept."""
        return min(self._fraction(Sizes(self._widths()[0], counts)) for counts in self._heads)

    def choose(
        self,
        importance: Mapping[StochasticGate, Tensor],
        goal: float,
        opened: Mapping[StochasticGate, Tensor] | None = None,
    ) -> Masks:
        """Chooses sizes for a goal, and the dimensions that each layer keeps.

        Args:
            importance: (dense_size,) of each gate, not negative.
            goal: the fraction to keep; more by :data:`TOLERANCE` counts as met.
            opened: masks of an earlier choice: what it closed stays closed; None if anything may be
                open.

        Returns:
            masks of all gates.

        Raises:
            ValueError: even the smallest sizes exceed the goal.
        """
        order = {gate: importance[gate].double() for gate in self.gates()}
        widest = self._width
        if opened is not None:  # closed dimensions come after all others
            order = {gate: torch.where(opened[gate] > 0, v, -1.0) for gate, v in order.items()}
            if self._feeds:
                widest = min(int(opened[gate].sum()) for _, gate in self._feeds)
        total = sum(float(values.sum()) for values in order.values())
        best: tuple[float, float] | None = None
        found: Masks = {}
        for sizes in self._within(goal, widest):
            masks = self.masks(order, sizes)
            if opened is not None and any(bool((m > opened[g]).any()) for g, m in masks.items()):
                continue
            kept = sum(float((order[gate] * mask).sum()) for gate, mask in masks.items())
            rank = (total - kept, -self._fraction(sizes))
            if best is None or rank < best:
                best, found = rank, masks
        if best is None:
            raise ValueError(
                f"layers of equal sizes keep at least {self.floor():.4f} of the MACs, more than "
                f"{goal:.4f}; choose a smaller target or multiple_of"
            )
        return found

    def masks(self, importance: Mapping[StochasticGate, Tensor], sizes: Sizes) -> Masks:
        """The dimensions that each layer keeps at given sizes (rule 3)."""
        found: Masks = {}
        for _, gate in self._feeds:
            values = importance[gate]
            count = values.numel() if sizes.hidden is None else sizes.hidden
            found[gate] = _largest(values, count)
        for part, gate in self._attentions:
            if sizes.heads is not None:
                kv_heads, each = sizes.heads
                values = importance[gate].view(part.kv_heads, -1)
                inside = torch.stack([_largest(row, each) for row in values])  # (kv_heads, group)
                groups = _largest((values * inside).sum(1), kv_heads)
                found[gate] = (inside * groups[:, None]).flatten()
        return found

    def _within(self, goal: float, widest: int | None) -> Iterator[Sizes]:
        """The widest sizes within a goal, for every (K, Q) (rule 2)."""
        for counts in self._heads:
            for width in reversed(self._widths()):
                sizes = Sizes(width, counts)
                fits = width is None or widest is None or width <= widest
                if fits and self._fraction(sizes) <= goal + TOLERANCE:
                    yield sizes
                    break

    def _widths(self) -> list[int | None]:
        """Numbers of feed-forward dimensions (rule 1), from the smallest to the dense one."""
        if self._width is None:
            return [None]
        return [*range(self.multiple, self._width, self.multiple), self._width]

    def _fraction(self, sizes: Sizes) -> float:
        none, every = self._lines[sizes.heads]
        if sizes.hidden is None or self._width is None:
            return every
        return none + (every - none) * sizes.hidden / self._width

    def _line(self, counts: HeadCounts | None) -> tuple[float, float]:
        zeros = {gate: gate.latent.detach().new_zeros(gate.dense_size) for gate in self.gates()}
        found = []
        for width in (0, self._width):
            masks = self.masks(zeros, Sizes(width, counts))
            found.append(self._kept({gate: mask.float() for gate, mask in masks.items()}))
        return found[0], found[1]

    def _fitting_multiple(self) -> int:
        if self._width is None:
            return 1
        none, every = max(self._lines.values(), key=lambda line: line[1] - line[0])
        step = (every - none) / self._width
        return next(
            (m for m in MULTIPLES if m <= self._width and m * step <= 2 * TOLERANCE), MULTIPLES[-1]
        )

    def _check_equal(self) -> None:
        """Raises ValueError, naming the layer, if dense sizes differ."""
        widths = {feed.up: gate.dense_size for feed, gate in self._feeds}
        counts = {part.path: (part.kv_heads, part.heads) for part, _ in self._attentions}
        for sizes in (widths, counts):
            first = next(iter(sizes.values()), None)
            for path, size in sizes.items():
                if size != first:
                    raise ValueError(
                        f"{path} has other sizes than {next(iter(sizes))} ({size} and {first}), "
                        "and equal sizes are chosen for all layers of a model at once; leave "
                        "uniform out"
                    )


def sizes_to_choose(model: nn.Module) -> StockKeys:
    """Sizes that a model's configuration can hold; logs the others.

    Raises:
        ValueError: there are none, or the model has stacked experts.
    """
    adapter, kind = adapter_for(model), type(model).__name__
    blocks = adapter.blocks(model)
    stacks = [block.experts.path for block in blocks if block.experts is not None]
    if stacks:
        raise ValueError(
            f"{stacks[0]} holds stacked experts, and equal sizes of all layers are chosen only for "
            "models without experts; set uniform=False, with dimensions='inner' for contiguous "
            "layers, and store the compact model with finegates.save"
        )
    keys = stock_keys(model, adapter)
    attentions = [part for block in blocks for part in block.attentions]
    fixed = next((part.path for part in attentions if not has_free_heads(part)), None)
    if fixed is not None:
        keys = replace(keys, heads=())
    if not keys.heads and not keys.intermediate:
        raise ValueError(
            f"the configuration of {kind} has names neither for the number of heads nor for the "
            "feed-forward width that change these alone, so equal sizes cannot be stored in it; "
            "set uniform=False, with dimensions='inner' for contiguous layers"
        )
    if fixed is not None:
        logger.info("uniform: no head of %s can be removed as a whole, so all heads stay", fixed)
    elif not keys.heads:
        logger.info(
            "uniform: the configuration of %s cannot say other numbers of heads of the same "
            "width, so all %d heads of a layer stay",
            kind,
            attentions[0].heads if attentions else 0,
        )
    if not keys.intermediate:
        logger.info(
            "uniform: the configuration of %s cannot say another feed-forward width, so all "
            "feed-forward dimensions stay",
            kind,
        )
    return keys


def _largest(values: Tensor, count: int) -> Tensor:
    """A mask (n,) of the largest ``count`` values; of equal ones the first are kept."""
    mask = torch.zeros_like(values)
    mask[values.argsort(descending=True, stable=True)[:count]] = 1
    return mask
