"""Stochastic gates: Gaussian relaxations of Bernoulli variables, one per row or column of a weight.

A gate vector holds one latent number per dimension. From it follow a *centre* m (its shift
included), a noisy training value ``clip(m + eps, 0, 1)`` with ``eps ~ N(0, noise_std^2)``, a
deterministic evaluation value ``clip(m, 0, 1)``, and the probability of being open that the penalty
sees, ``Phi(m / probability_std)``. The presets of the two versions of the paper differ only in the
numbers of :class:`GatePreset`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GatePreset:
    """The constants that define one family of gates.

    Attributes:
        name: the preset's name.
        tanh: whether the mean is ``tanh(latent)`` (bounded) or the latent itself.
        shift: what is added to the mean to give the centre m.
        noise_std: standard deviation of the training noise.
        probability_std: the sigma in ``P(open) = Phi(m / sigma)``; in the released code it is not
            the noise's.
        init_mean: mean of the latent at the start.
        init_std: standard deviation of the latent at the start.
        penalty: which penalty belongs to the preset, ``"target"`` or ``"hinge"``.
        train_biases: whether the biases of gated layers are trained with the gates.
    """

    name: str
    tanh: bool
    shift: float
    noise_std: float
    probability_std: float
    init_mean: float
    init_std: float
    penalty: str
    train_biases: bool

    def open_probability_range(self) -> tuple[float, float]:
        """The infimum and supremum of P(open); a sparsity above 1 - infimum is out of reach."""
        if not self.tanh:
            return 0.0, 1.0
        low, high = (self.shift + bound for bound in (-1.0, 1.0))
        return _normal_cdf(low / self.probability_std), _normal_cdf(high / self.probability_std)


PRESETS: dict[str, GatePreset] = {
    # The released code: mu = tanh(a), a ~ N(1, 0.1^2), centre mu + 1/2; P uses 0.5, the noise 0.1.
    "reference": GatePreset("reference", True, 0.5, 0.1, 0.5, 1.0, 0.1, "target", True),
    # Version 1 of the paper: mu itself, from 1.0. It leaves sigma open; 0.5 is the value of the
    # stochastic-gates literature that it builds on.
    "paper_v1": GatePreset("paper_v1", False, 0.0, 0.5, 0.5, 1.0, 0.0, "hinge", False),
}


def preset_named(name: str, noise_std: float | None = None) -> GatePreset:
    """Looks a preset up, if asked with another noise.

    Args:
        name: a key of ``PRESETS``.
        noise_std: replaces the preset's noise; where the preset uses one sigma for noise and
            probability (``paper_v1``), it replaces both.

    Raises:
        ValueError: the name is unknown, or the noise is negative.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown gate preset {name!r}; choose one of {sorted(PRESETS)}")
    preset = PRESETS[name]
    if noise_std is None:
        return preset
    if not noise_std >= 0:
        raise ValueError(f"noise_std of preset {name!r} must be at least 0, got {noise_std}")
    if preset.noise_std == preset.probability_std and noise_std > 0:
        return replace(preset, noise_std=noise_std, probability_std=noise_std)
    return replace(preset, noise_std=noise_std)


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
        return self.sample() if self.training else self.value()

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

    def value(self) -> Tensor:
        return self.centre().clamp(0.0, 1.0)

    def sample(self) -> Tensor:
        centre = self.centre()
        if self.preset.noise_std:
            centre = centre + torch.randn_like(centre) * self.preset.noise_std
        return centre.clamp(0.0, 1.0)

    def open_probability(self) -> Tensor:
        return torch.special.ndtr(self.centre() / self.preset.probability_std)

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

    def value(self) -> Tensor:
        return self.values

    def sample(self) -> Tensor:
        return self.values

    def open_probability(self) -> Tensor:
        return (self.values != 0).to(self.values.dtype)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))
