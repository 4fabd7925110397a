"""Draws the training noise of many gates at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finegates.gates.gate import Gate
from finegates.gates.stochastic import StochasticGate, centre_of


class GateDraw:
    """Draws the training samples of many gates as one long vector.

    This takes a few operations instead of a few for each gate. Inside ``with draw:`` every call of
    a gate's ``sample()`` returns its part of the draw, so the block should contain one training
    step, backward pass included. Gates that are being hardened draw independently; one on the
    residual stream still draws once for all its uses.

    Args:
        gates: of any kind, each used once in a step, or on the residual stream; those that cannot
            be drawn with the first one (constants, gates of another preset or on another device)
            are ignored.
    """

    def __init__(self, gates: Sequence[Gate]) -> None:
        found = [gate for gate in dict.fromkeys(gates) if isinstance(gate, StochasticGate)]
        self.gates = [
            gate
            for gate in found
            if gate.preset == found[0].preset and gate.latent.device == found[0].latent.device
        ]

    def __enter__(self) -> GateDraw:
        if len(self.gates) < 2 or any(gate.hardness for gate in self.gates):
            for gate in self.gates:
                if gate.of_stream:  # one draw for all its uses
                    gate._drawn = gate.sample()
            return self
        preset = self.gates[0].preset
        latent = torch.cat([gate.latent for gate in self.gates])
        centre = centre_of(latent, preset)
        if preset.noise_std:
            centre = torch.add(centre, self._noise(latent), alpha=preset.noise_std)
        samples = centre.clamp(0.0, 1.0).split([gate.size for gate in self.gates])
        for gate, sample in zip(self.gates, samples, strict=True):
            gate._drawn = gate._times_factor(sample)
        return self

    def _noise(self, latent: Tensor) -> Tensor:
        """Standard normal numbers of all gates, also of dimensions that were removed."""
        sizes = [gate.dense_size for gate in self.gates]
        noise = torch.randn(sum(sizes), dtype=latent.dtype, device=latent.device)
        if all(gate.positions is None for gate in self.gates):
            return noise
        present = [
            part if gate.positions is None else part[gate.positions]
            for gate, part in zip(self.gates, noise.split(sizes), strict=True)
        ]
        return torch.cat(present)

    def __exit__(self, *_: object) -> None:
        for gate in self.gates:
            gate._drawn = None
