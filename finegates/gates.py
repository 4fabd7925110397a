"""Stochastic gates: Gaussian relaxations of Bernoulli variables, one per row or column of a weight.

A gate vector holds one latent number per dimension. From it follow a *centre* m (its shift
included), a noisy training value ``clip(m + eps, 0, 1)`` with ``eps ~ N(0, noise_std^2)``, a
deterministic evaluation value ``clip(m, 0, 1)``, and the probability of being open that the penalty
sees, ``Phi(m / probability_std)``. The presets of the two versions of the paper differ only in the
numbers of :class:`finegates.presets.GatePreset`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from finegates.presets import GatePreset, preset_named


class Gate(nn.Module):
    """What every gate vector offers; ``forward`` is a sample in training, else the value.

    Attributes:
        size: the number n of dimensions that it gates.
    """

    size: int

    def value(self) -> Tensor:
        """Evaluation gate, shape (n,), in [0, 1]."""
        raise NotImplementedError

    def sample(self) -> Tensor:
        """Training gate, shape (n,), in [0, 1]."""
        raise NotImplementedError

    def open_probability(self) -> Tensor:
        """P(open) as the penalty sees it, shape (n,)."""
        raise NotImplementedError

    def closed(self) -> Tensor:
        """Boolean mask, shape (n,): the evaluation gate is exactly zero."""
        return self.value() == 0

    def forward(self) -> Tensor:
        """A sample in training mode, the value in evaluation mode, shape (n,)."""
        return self.sample() if self.training else self.value()

    @override
    def extra_repr(self) -> str:
        return f"size={self.size}"


class StochasticGate(Gate):
    """A trainable gate vector.

    With latent a, centre ``m = tanh(a) + shift`` (or ``a + shift``):

    - ``sample() = clip(m + eps, 0, 1)``, ``eps ~ N(0, noise_std^2)``, fresh at every call;
    - ``value() = clip(m, 0, 1)``;
    - ``open_probability() = Phi(m / probability_std)``;
    - ``closed()`` iff ``m <= 0``, where P(open) is at most one half.

    Args:
        size: number n of gated dimensions, at least 1.
        preset: a preset or its name.
        generator: source of the initial latents; the default generator when None.
        device: of the latents, which are float32 whatever the model's precision: steps of a
            half-precision gate would be lost to rounding.
    """

    def __init__(
        self,
        size: int,
        preset: GatePreset | str = "reference",
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a gate needs at least one dimension, got size={size}")
        self.size = size
        self.preset = preset_named(preset) if isinstance(preset, str) else preset
        start = torch.randn(size, generator=generator) * self.preset.init_std
        self.latent = nn.Parameter((start + self.preset.init_mean).to(device))

    def centre(self) -> Tensor:
        """m, shape (n,): the mean of the unclipped gate."""
        mean = torch.tanh(self.latent) if self.preset.tanh else self.latent
        return mean + self.preset.shift if self.preset.shift else mean

    @override
    def value(self) -> Tensor:
        return self.centre().clamp(0.0, 1.0)

    @override
    def sample(self) -> Tensor:
        centre = self.centre()
        if self.preset.noise_std:
            centre = centre + torch.randn_like(centre) * self.preset.noise_std
        return centre.clamp(0.0, 1.0)

    @override
    def open_probability(self) -> Tensor:
        return torch.special.ndtr(self.centre() / self.preset.probability_std)

    @override
    def extra_repr(self) -> str:
        return f"size={self.size}, preset={self.preset.name!r}"


class FixedGate(Gate):
    """A constant gate vector: magnitude pruning, imported gates, tests.

    Args:
        values: shape (n,), floating point, finite. Stored as a buffer, never trained.
    """

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
    def value(self) -> Tensor:
        return self.values

    @override
    def sample(self) -> Tensor:
        return self.values

    @override
    def open_probability(self) -> Tensor:
        return (self.values != 0).to(self.values.dtype)
