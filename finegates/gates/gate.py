"""Gate vectors: their interface, constant gates, and gates derived from others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override


class Gate(nn.Module):
    """Interface of gate vectors; ``forward`` samples in training mode.

    Attributes:
        size: the number n of dimensions that it gates.
        clips_at_zero: whether no gradient passes where a gate is 0.
        can_resize: whether :meth:`resize` works.
        positions: int64 (n,), increasing, of its dimensions among those that the gate had before
            some were removed (:meth:`StochasticGate.narrow`); None if none were.
    """

    size: int
    clips_at_zero: bool = False
    can_resize: bool = False
    positions: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.positions = None

    @property
    def dense_size(self) -> int:
        """Number of dimensions before any were removed."""
        return self.size

    def spread(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Numbers of its dimensions among those of removed ones.

        Args:
            values: (n,), of any dtype.
            fill: for removed dimensions.

        Returns:
            (dense_size,); ``values`` itself if nothing was removed.
        """
        if self.positions is None:
            return values
        dense = values.new_full((self.dense_size,), fill)
        return dense.index_copy(0, self.positions, values)

    def value(self) -> Tensor:
        """Evaluation gate, shape (n,), in [0, 1] times a factor."""
        raise NotImplementedError

    def openness(self) -> Tensor:
        """The evaluation gate without its factor, shape (n,), in [0, 1]."""
        return self.value()

    def sample(self) -> Tensor:
        """Training gate, shape (n,), in [0, 1] times a factor."""
        raise NotImplementedError

    def open_probability(self) -> Tensor:
        """P(open) in the penalty, shape (n,)."""
        raise NotImplementedError

    def leaves(self) -> Iterator[Gate]:
        """The gates it is computed from: itself, unless it is derived."""
        yield self

    def uses(self) -> Iterator[tuple[Gate, Tensor]]:
        """The gates it is computed from, each with the int64 index (n,) of its dimensions in it."""
        yield self, torch.arange(self.size, device="cpu")

    def combined(self, read: Callable[[Gate], Tensor]) -> Tensor:
        """The gate, (..., n), with ``read`` giving those of its :meth:`leaves`."""
        return read(self)

    def resize(self, size: int) -> None:
        """Truncates the gate or appends open dimensions, in place.

        Raises:
            NotImplementedError: the gate is derived from others.
        """
        raise NotImplementedError(
            f"a {type(self).__name__} cannot be resized; resize the gates that it is derived from"
        )

    def closed(self) -> Tensor:
        """Boolean mask, shape (n,): the evaluation gate is exactly zero."""
        return self.value() == 0

    def forward(self) -> Tensor:
        """A sample in training mode, the value in evaluation mode, shape (n,)."""
        return self.sample() if self.training else self.value()

    @override
    def extra_repr(self) -> str:
        return f"size={self.size}"


def resized(vector: Tensor, size: int, added: float) -> Tensor:
    """Truncates a vector or fills it up to a size."""
    more = vector.new_full((max(0, size - vector.numel()),), added)
    return torch.cat([vector[:size], more])


class FixedGate(Gate):
    """A constant gate vector: magnitude pruning, imported gates, tests.

    Args:
        values: shape (n,), floating point, finite. Stored as a buffer, never trained.
    """

    can_resize = True
    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        if values.ndim != 1 or values.numel() < 1 or not values.is_floating_point():
            raise ValueError(
                "fixed gates are a non-empty floating-point vector, "
                f"got shape {tuple(values.shape)}, {values.dtype}"
            )
        if not torch.isfinite(values).all():
            raise ValueError("fixed gates must be finite")
        self.size = values.numel()
        self.register_buffer("values", values.detach().clone())

    @override
    def resize(self, size: int) -> None:
        self.values, self.size = resized(self.values, size, 1.0), size

    @override
    def value(self) -> Tensor:
        return self.values

    @override
    def sample(self) -> Tensor:
        return self.values

    @override
    def open_probability(self) -> Tensor:
        return (self.values != 0).to(self.values.dtype)


class DerivedGate(Gate):
    """A gate vector computed from others: ``g[i] = prod_s s[index_s[i]]``.

    A source may be used by several gates; each samples it again, so that noise differs between
    uses.

    Args:
        sources: gates s, each with an int64 index (n,) into it; -1 means the constant 1.

    Raises:
        ValueError: no sources, or indices of different lengths.
    """

    def __init__(self, sources: Sequence[tuple[Gate, Tensor]]) -> None:
        super().__init__()
        sizes = {index.numel() for _, index in sources}
        if len(sizes) != 1:
            raise ValueError(f"a derived gate needs indices of one length, got {sorted(sizes)}")
        self.size = sizes.pop()
        self.sources = nn.ModuleList([gate for gate, _ in sources])
        for number, (_, index) in enumerate(sources):
            self.register_buffer(f"index_{number}", index, persistent=False)
        self.clips_at_zero = all(gate.clips_at_zero for gate, _ in sources)

    @override
    def value(self) -> Tensor:
        return self._product(lambda gate: gate.value())

    @override
    def sample(self) -> Tensor:
        return self._product(lambda gate: gate.sample())

    @override
    def open_probability(self) -> Tensor:
        return self._product(lambda gate: gate.open_probability())

    @override
    def leaves(self) -> Iterator[Gate]:
        for source in self.sources:
            assert isinstance(source, Gate)
            yield from source.leaves()

    @override
    def uses(self) -> Iterator[tuple[Gate, Tensor]]:
        for number, source in enumerate(self.sources):
            assert isinstance(source, Gate)
            yield source, getattr(self, f"index_{number}")

    @override
    def combined(self, read: Callable[[Gate], Tensor]) -> Tensor:
        return self._product(lambda gate: gate.combined(read))

    def _product(self, read: Callable[[Gate], Tensor]) -> Tensor:
        result: Tensor | None = None
        for number, source in enumerate(self.sources):
            assert isinstance(source, Gate)
            values = read(source)
            # A one is appended: index -1 selects it.
            ones = values.new_ones((*values.shape[:-1], 1))
            index = getattr(self, f"index_{number}")
            chosen = torch.cat([values, ones], dim=-1)[..., index]
            result = chosen if result is None else result * chosen
        assert result is not None
        return result
