"""Sizes of layers before anything was removed from them."""

from __future__ import annotations

from torch import nn

from finegates.modules.kinds import between_gates
from finegates.modules.linear import is_linear, linear_shape


def dense_shape(model: nn.Module, path: str) -> tuple[int, int] | None:
    """Dense (in, out) of a layer of a dense, gated or compact model, or None.

    It is None if there is no such layer.
    """
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        return None
    if hasattr(layer, "dense_shape"):  # compact
        outputs, inputs = layer.dense_shape  # type: ignore[misc]
        return int(inputs), int(outputs)
    layer = between_gates(layer)
    return linear_shape(layer) if is_linear(layer) else None
