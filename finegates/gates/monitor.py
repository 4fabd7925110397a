"""Summaries of a model's gates: how many are closed, open or half open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from finegates.gates.dense_form import dense_layers
from finegates.gates.gate import Gate
from finegates.gates.gated_linear import leaf_gates
from finegates.gates.stochastic import CLOSED_TO, OPEN_FROM

BINS = 20


@torch.no_grad()
def summarise_gates(
    model: nn.Module, penalty: Callable[[], torch.Tensor] | None = None
) -> dict[str, Any]:
    """Summarises the gates of a model as a dictionary.

    Its keys are the fields of ``finegates.suite.runs.record.GateSummary``. Fractions are over all
    gate entries, where a gate shared between layers counts once. The realised sparsity is the
    fraction of the gated layers' weights in a closed row or column.
    """
    gates = leaf_gates(model)  # refuses what is not a model
    layers = dense_layers(model)
    # Dimensions that were removed before, or while training, count as closed.
    values = torch.cat([gate.spread(gate.openness().float()).cpu() for gate in gates])
    probability = torch.cat([gate.spread(gate.open_probability().float()).cpu() for gate in gates])
    closed = {
        side: torch.cat(
            [g.closed().cpu() for layer in layers.values() for s, g in layer.gates() if s == side]
            or [torch.zeros(1, dtype=torch.bool, device="cpu")]
        )
        for side in ("rows", "cols")
    }
    return {
        "gates": values.numel(),
        "closed": float((values == 0).double().mean()),
        "open": float((values == 1).double().mean()),
        "half_open": float(((values > CLOSED_TO) & (values < OPEN_FROM)).double().mean()),
        "closed_rows": float(closed["rows"].double().mean()),
        "closed_cols": float(closed["cols"].double().mean()),
        "mean_open_probability": float(probability.double().mean()),
        "realised_sparsity": realised_sparsity(model),
        "penalty": None if penalty is None else float(penalty()),
        "histogram": [int(n) for n in torch.histc(values, BINS, 0.0, 1.0)],
    }


@torch.no_grad()
def closed_fraction(model: nn.Module) -> float:
    """Fraction of closed gate entries, shared gates counted once; 0 without gates."""
    closed = [_closed_of(gate) for gate in leaf_gates(model)]
    count = sum(mask.numel() for mask in closed)
    return sum(int(mask.sum()) for mask in closed) / count if count else 0.0


def _closed_of(gate: Gate) -> torch.Tensor:
    """Mask of closed dimensions, removed ones included, (dense_size,)."""
    closed: torch.Tensor = gate.closed()
    return ~gate.spread(~closed)


class GateWatch:
    """Watches which gates close and open again.

    Args:
        model: with gates.

    Attributes:
        model: see there.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._gates = leaf_gates(model)
        self._was_closed = self._closed()
        self._reopened = torch.zeros_like(self._was_closed)

    def look(self) -> None:
        """Records the current state of the gates."""
        closed = self._closed()
        self._reopened |= self._was_closed & ~closed
        self._was_closed |= closed

    def reopened(self) -> float:
        """Fraction of all gates that were closed at one look and not at a later one."""
        return float(self._reopened.double().mean())

    def state(self) -> dict[str, Any]:
        """The recorded state, as plain values that JSON can hold."""
        return {
            "gates": self._was_closed.numel(),
            "was_closed": _packed(self._was_closed),
            "reopened": _packed(self._reopened),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a recorded state.

        Args:
            state: from :meth:`state`, of a model with the same gates.

        Raises:
            ValueError: the number of gates differs.
        """
        size = self._was_closed.numel()
        if state["gates"] != size:
            raise ValueError(f"{state['gates']} gates were watched, the model has {size}")
        was_closed, reopened = (_unpacked(state[key], size) for key in ("was_closed", "reopened"))
        self._was_closed, self._reopened = was_closed, reopened

    @torch.no_grad()
    def _closed(self) -> torch.Tensor:
        return torch.cat([_closed_of(gate).cpu() for gate in self._gates])


def _packed(flags: torch.Tensor) -> str:
    return np.packbits(flags.numpy()).tobytes().hex()


def _unpacked(text: str, size: int) -> torch.Tensor:
    bits = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    if len(bits) != (size + 7) // 8:
        raise ValueError(f"{len(bits)} bytes are not the flags of {size} gates")
    return torch.from_numpy(np.unpackbits(bits, count=size).astype(bool))


def closed_counts(model: nn.Module) -> dict[str, dict[str, int]]:
    """Closed rows and columns of every gated layer, by module name.

    They include those that were removed while training.
    """
    return {
        name: {
            "rows": 0 if layer.rows is None else int(layer.rows.closed().sum()),
            "cols": 0 if layer.cols is None else int(layer.cols.closed().sum()),
        }
        for name, layer in dense_layers(model).items()
    }


def realised_sparsity(model: nn.Module) -> float:
    """Fraction of the gated layers' weights that lie in a closed row or a closed column."""
    total = kept = 0
    counts = closed_counts(model)
    for name, layer in dense_layers(model).items():
        total += layer.in_features * layer.out_features
        kept += (layer.out_features - counts[name]["rows"]) * (
            layer.in_features - counts[name]["cols"]
        )
    # Rounded once, as in finegates.budget, so that both give the same number.
    return (total - kept) / total if total else 0.0
