"""Stores which matmul each layer uses, and restores it on the same machine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from finegates.formats.bounds import LARGEST
from finegates.machine import arithmetic
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.kernels import has_onednn


def chosen_products(model: nn.Module) -> dict[str, Any] | None:
    """The choice of :func:`finegates.compaction.use_products` as plain values.

    Returns:
        ``machine``, and ``onednn_from`` by layer; None if all layers use torch's default.
    """
    chosen = {
        path: layer.onednn_from
        for path, layer in model.named_modules()
        if isinstance(layer, CompactLinear) and layer.onednn_from is not None
    }
    return {"machine": arithmetic(), "onednn_from": chosen} if chosen else None


def take_products(model: nn.Module, stored: Mapping[str, Any], *, take: bool) -> None:
    """Restores a stored choice if it was made on a machine like this one.

    On other machines layers use torch's default matmul, and a warning says how to choose again.

    Args:
        model: its compact layers are changed.
        stored: from :func:`chosen_products`; empty for none.
        take: whether to restore it; the choice is checked in any case.

    Raises:
        ValueError: it is not such a choice, or not for this model's layers.
    """
    chosen, machine = stored.get("onednn_from", {}), stored.get("machine")
    if not isinstance(chosen, dict):
        raise ValueError(f"products: {chosen!r} does not name its layer")
    layers = {path: m for path, m in model.named_modules() if isinstance(m, CompactLinear)}
    for path, rows in chosen.items():
        if path not in layers:
            raise ValueError(f"products: {path!r} is not a compact layer of the model")
        if type(rows) is not int or not 0 < rows <= LARGEST:
            raise ValueError(f"products: onednn_from of {path} is {rows!r}, not a number of rows")
    if not chosen or not take:
        return
    if machine != arithmetic() or not has_onednn():
        warnings.warn(
            f"this model's matmuls were chosen on another machine ({machine}; here "
            f"{arithmetic()}), so torch's default is used; choose again with "
            "finegates.use_products(model, finegates.calibrate())",
            stacklevel=4,
        )
        return
    for path, rows in chosen.items():
        layers[path].onednn_from = rows
