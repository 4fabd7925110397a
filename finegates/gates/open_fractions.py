"""Sparsity penalties of independent gates, on their open fractions.

For a gate vector with mean open probability p and a target sparsity s:

- ``target``: ``|p - (1 - s)|``, in the released code;
- ``hinge``: ``max(p, 1 - s)``, in version 1 of the paper: no reward for closing more than the
  target.

A layer's penalty is the mean over its gated sides, the model's the mean over its gated layers. With
kurtosis weighting, p becomes a weighted mean over the dimensions that are still open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from finegates.gates.config import PenaltyName
from finegates.gates.gated_linear import gated_layers
from finegates.gates.kurtosis import KurtosisWeights
from finegates.gates.presets import check_reachable
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
