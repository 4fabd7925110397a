"""Constants of the gate families: released code, version 1 of the paper, ours."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class GatePreset:
    """Constants that define one family of gates.

    Attributes:
        name: the preset's name.
        tanh: whether the mean is ``tanh(latent)`` (bounded) or the latent itself.
        shift: what is added to the mean to give the centre m.
        noise_std: standard deviation of the training noise.
        probability_std: the sigma in ``P(open) = Phi(m / sigma)``; in the released code it differs
            from ``noise_std``.
        init_mean: mean of the latent at the start.
        init_std: standard deviation of the latent at the start.
        penalty: the preset's default penalty, ``"target"``, ``"hinge"`` or ``"macs"``; the last is
            for gates shared along the dependencies of a block.
        train_biases: whether the biases of gated layers are trained with the gates.
        scaled: whether a gate is also multiplied by a trained factor, so that hardened gates keep a
            trainable magnitude.
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
    scaled: bool = False

    def open_probability_range(self) -> tuple[float, float]:
        """Infimum and supremum of P(open); a sparsity above 1 - infimum is unreachable."""
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
    # Ours: shared gates with one sigma under a budget on MACs (finegates.gates.shared). Sigma was
    # chosen from 0.05, 0.1 and 0.3 on rows held out of SST-2's training table (tier tuning), before
    # gates had a factor and were closed by importance.
    "structured": GatePreset(
        "structured", False, 0.0, 0.1, 0.1, 1.0, 0.05, "macs", True, scaled=True
    ),
}


SCHEDULE = (0.1, 0.5, 0.6, 0.75)
"""Default of ``GateConfig.schedule``, fractions of the training."""


def preset_named(name: str, noise_std: float | None = None) -> GatePreset:
    """Looks up a preset, optionally with another noise.

    Args:
        name: a key of ``PRESETS``.
        noise_std: replaces the preset's noise; where the preset uses one sigma for noise and
            probability (``paper_v1``, ``structured``), it replaces both.

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


def check_schedule(schedule: tuple[float, ...]) -> None:
    """Raises ValueError unless the fractions increase within [0, 1].

    The third, when the choice of closed gates is final, must be above 0: importances are observed
    before it.
    """
    if sorted((0.0, *schedule, 1.0)) != [0.0, *schedule, 1.0]:
        raise ValueError(f"schedule must increase within [0, 1], got {schedule}")
    if schedule[2] == 0.0:
        raise ValueError(f"schedule closes gates before any importance was observed: {schedule}")


def check_reachable(preset: GatePreset, sparsity: float, size: int | None = None) -> None:
    """Raises ValueError unless some latents meet the target sparsity.

    Args:
        preset: of the gates.
        sparsity: the target s, to be met by a mean open probability of 1 - s.
        size: dimensions of the largest gate vector of a model, at least one of which must be able
            to stay open, with P(open) of a half or more; None if the model is unknown.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"target sparsity must be in [0, 1), got {sparsity}")
    infimum, _ = preset.open_probability_range()
    low = infimum if size is None else infimum + (0.5 - infimum) / size
    # The infimum itself is not attained: latents would have to be infinite.
    if 1.0 - sparsity < low or (1.0 - sparsity == infimum > 0.0):
        within = "" if size is None else f" while one of {size} dimensions is open"
        raise ValueError(
            f"target sparsity {sparsity} cannot be reached by preset {preset.name!r}: its open "
            f"probability never falls below {low:.3f}{within}, so targets end at {1.0 - low:.3f}"
        )


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))
