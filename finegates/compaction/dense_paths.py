"""Paths of modules in the dense model, which gates and compact layers do not change."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from finegates.gates.gate import Gate
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.kinds import GatedLayer


def by_dense_path(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields modules with their dense paths; gates are left out.

    A layer that another one wraps (in gates, or between gather and scatter) has the same path, and
    comes after it.

    Args:
        model: plain, of any kind.
        path: of the model.
    """
    yield path, model
    for name, child in model._modules.items():
        if child is None or isinstance(child, Gate):
            continue
        inside = (isinstance(model, CompactLinear) and name == "linear") or (
            isinstance(model, GatedLayer) and name == "base"
        )
        yield from by_dense_path(child, path if inside else joined_path(path, name))


def joined_path(path: str, name: str) -> str:
    """The path of a child; that of the model itself is empty."""
    return f"{path}.{name}" if path else name
