"""Stochastic gates: Gaussian relaxations of Bernoulli variables.

A gate vector has one latent number per row or column of a weight. The latent defines a *centre* m
(shift included), a noisy training value ``clip(m + eps, 0, 1)`` with ``eps ~ N(0, noise_std^2)``, a
deterministic evaluation value ``clip(m, 0, 1)``, and the open probability in the penalty, ``Phi(m /
probability_std)``. The presets of the two versions of the paper differ only in the numbers of
:class:`finegates.gates.presets.GatePreset`; our preset also has a trained factor.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from finegates.gates.gate import Gate, resized
from finegates.gates.presets import GatePreset, preset_named

CLOSED_TO, OPEN_FROM = 0.05, 0.95
"""Evaluation gates strictly between these bounds count as half open."""


HARDNESS = "_extra_state"
"""The key of a gate's hardness in its state dict, as torch names extra states."""

# An importance is a mean over about a hundred steps.
_IMPORTANCE_RATE = 0.01


def centre_of(latent: Tensor, preset: GatePreset) -> Tensor:
    """Mean of the unclipped gates, ``m = tanh(a) + shift`` or ``a + shift``.

    Args:
        latent: a, of any shape.
        preset: decides which of the two, and gives the shift.
    """
    mean = torch.tanh(latent) if preset.tanh else latent
    return mean + preset.shift if preset.shift else mean


class StochasticGate(Gate):
    """A trainable gate vector.

    With latent a and centre m (:func:`centre_of`):

    - ``sample() = clip(m + eps, 0, 1)``, ``eps ~ N(0, noise_std^2)``, fresh at every call;
    - ``value() = clip(m, 0, 1)``;
    - ``open_probability() = Phi(m / probability_std)``;
    - ``closed()`` iff ``m <= 0``, where P(open) is at most one half;
    - ``final()`` iff closed for good (:meth:`close`): ``a = -inf``, so that m, sample and P(open)
      never rise again. Such a dimension can be removed (:meth:`narrow`). The noise of the others
      does not depend on it: it is drawn for all ``dense_size`` dimensions.

    Scaled presets multiply sample and value by a trained factor f >= ``OPEN_FROM``, initially 1: a
    gate that was hardened to open keeps a trainable magnitude. The gradient of the factor also
    measures the importance of the dimension; :meth:`observe` accumulates it.

    Args:
        size: number n of gated dimensions, at least 1.
        preset: a preset or its name.
        generator: source of the initial latents; the default generator when None.
        device: of the latents, the CPU if None. They are always float32: the steps of a
            half-precision gate would be lost to rounding.

    Attributes:
        latent: (n,), trained.
        scale: (n,), the factors, trained; None without.
        importance: (n,), see :meth:`observe`; None without factors.
        hardness: t in [0, 1], see :meth:`harden`; stored in the state dict (as the module's extra
            state), because it decides the gate's value and whether its latents train.
        led: whether a penalty covers the gate, or a trainer has warned that none does. Gates of a
            preset with a budget (``structured``), and gates of ``finegates.attach``, that train
            without a penalty warn once, because they would never close.
        of_stream: whether the gate is on the residual stream. Then all its uses in a step have one
            draw (:class:`finegates.gates.draw.GateDraw`), and its factor is 1: the factor's
            gradient measures the importance, but weights that embeddings share with an output layer
            could not be multiplied by it on one side only.
        configured: whether a ``GateConfig``, which names a penalty, made the gate.
        before: bool (dense_size,), what an earlier compaction had left of its dimensions when the
            gate was attached; None if it was all of them.
    """

    clips_at_zero = True
    can_resize = True
    _warned = False
    scale: nn.Parameter | None
    importance: Tensor | None
    before: Tensor | None = None

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
        self.size = self._dense_size = size
        self.preset = preset_named(preset) if isinstance(preset, str) else preset
        self.latent = nn.Parameter(self._start(generator, device or "cpu"))
        ones = torch.ones(size, dtype=torch.float32, device=device or "cpu")
        self.register_parameter("scale", nn.Parameter(ones) if self.preset.scaled else None)
        self.register_buffer("importance", torch.zeros_like(ones) if self.preset.scaled else None)
        self.hardness = 0.0
        self.led = False
        self.configured = False
        self.of_stream = False
        self._drawn: Tensor | None = None

    def _start(self, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
        if torch.device(device).type == "meta":  # a draw without a reader
            return torch.empty(self.size, dtype=torch.float32, device=device)
        # Drawn on the generator's device, so that the numbers do not depend on the default device.
        start = torch.randn(
            self.size,
            generator=generator,
            dtype=torch.float32,
            device="cpu" if generator is None else generator.device,
        )
        return (start * self.preset.init_std + self.preset.init_mean).to(device)

    def centre(self) -> Tensor:
        """m, shape (n,): the mean of the unclipped gate."""
        return centre_of(self.latent, self.preset)

    @property
    @override
    def dense_size(self) -> int:
        return self._dense_size

    def final(self) -> Tensor:
        """Boolean mask, shape (n,): closed for good, in training as at evaluation."""
        return self.latent == -math.inf

    @torch.no_grad()
    def close(self, mask: Tensor) -> None:
        """Closes dimensions for good.

        Args:
            mask: (n,), bool.

        Raises:
            ValueError: the preset's mean is bounded (tanh), so that noise could open any gate.
        """
        if self.preset.tanh:
            raise ValueError(f"gates of preset {self.preset.name!r} are never closed for good")
        self.latent.masked_fill_(mask, -math.inf)

    @torch.no_grad()
    def narrow(self, kept: Tensor) -> None:
        """Removes dimensions in place, from the same parameter objects.

        Args:
            kept: int64 (m,), increasing, positions of the others among the n present ones.
        """
        index = kept.to(self.latent.device)
        for parameter in (self.latent, self.scale):
            if parameter is not None:
                parameter.data, parameter.grad = parameter.data.index_select(0, index), None
        if self.importance is not None:
            self.importance = self.importance.index_select(0, index)
        # Without storage, the positions still have values: layers are made by them.
        index = kept.cpu() if index.is_meta else index
        positions = index if self.positions is None else self.positions[index]
        self.__dict__.pop("positions", None)
        self.register_buffer("positions", positions, persistent=False)
        self.size, self._drawn = kept.numel(), None

    @torch.no_grad()
    def widened(self) -> StochasticGate:
        """A gate of the dense size, closed for good where it has no entry."""
        # A generator of its own: the draw has no reader, and leaves the random state as it was.
        dense = StochasticGate(
            self.dense_size, self.preset, generator=torch.Generator(), device=self.latent.device
        )
        dense.to(self.latent.dtype)
        dense.latent.copy_(self.spread(self.latent, -math.inf))
        dense.latent.requires_grad_(self.latent.requires_grad)
        if self.scale is not None and dense.scale is not None:
            dense.scale.copy_(self.spread(self.scale, 1.0))
            dense.scale.requires_grad_(self.scale.requires_grad)
        if self.importance is not None and dense.importance is not None:
            dense.importance.copy_(self.spread(self.importance))
        dense.hardness, dense.led, dense.configured = self.hardness, self.led, self.configured
        dense.before = self.before
        dense.of_stream = self.of_stream
        return dense.train(self.training)

    def noise(self) -> Tensor:
        """Draws standard normal numbers, (n,).

        A dimension gets the same number whether others were removed or not.
        """
        drawn = torch.randn(self.dense_size, dtype=self.latent.dtype, device=self.latent.device)
        return drawn if self.positions is None else drawn[self.positions]

    @override
    @torch.no_grad()
    def resize(self, size: int) -> None:
        if self.positions is not None:
            raise NotImplementedError("a gate from which dimensions were removed has its size")
        target = 1.0 - self.preset.shift  # the mean of an open gate
        latent = math.atanh(min(target, 0.99)) if self.preset.tanh else target
        self.latent.data = resized(self.latent.data, size, latent)
        if self.scale is not None:
            self.scale.data, self.scale.grad = resized(self.scale.data, size, 1.0), None
        if self.importance is not None:
            self.importance = resized(self.importance, size, 0.0)
        self.latent.grad, self._drawn = None, None
        self.size = self._dense_size = size

    @override
    def value(self) -> Tensor:
        return self._times_factor(self.openness())

    @override
    def openness(self) -> Tensor:
        centre = self.centre()
        return self._hardened(centre.clamp(0.0, 1.0), centre)

    @override
    def sample(self) -> Tensor:
        if self._drawn is not None:
            return self._drawn.to(self.latent.device)  # a replica may be on another device
        if not self.led:
            self._warn_unless_led()
        centre = noisy = self.centre()
        if self.preset.noise_std:
            noisy = centre + self.noise() * self.preset.noise_std
        return self._times_factor(self._hardened(noisy.clamp(0.0, 1.0), centre))

    def _warn_unless_led(self) -> None:
        trains = torch.is_grad_enabled() and self.latent.requires_grad
        expected = self.configured or self.preset.penalty == "macs"
        if not trains or not expected or StochasticGate._warned:
            return
        if torch.compiler.is_compiling():
            return
        StochasticGate._warned = True
        warnings.warn(
            f"gates of preset {self.preset.name!r} are trained without a penalty and a schedule, "
            "so none of them closes: train with finegates.GateTrainer instead of "
            "transformers.Trainer; in a loop of your own, make the penalty before the first step "
            "(finegates.gates.penalty.sparsity_penalty)",
            stacklevel=3,
        )

    def _times_factor(self, gate: Tensor) -> Tensor:
        if self.scale is None:
            return gate
        if self.of_stream:
            return gate * (1.0 + (self.scale - self.scale.detach()))
        # Straight-through gradient at the bound, so that a factor below it can recover.
        bounded = self.scale + (self.scale.clamp(min=OPEN_FROM) - self.scale).detach()
        return gate * bounded

    def _hardened(self, soft: Tensor, centre: Tensor) -> Tensor:
        if not self.hardness:
            return soft
        return (1 - self.hardness) * soft + self.hardness * (centre > 0).to(soft.dtype)

    @torch.no_grad()
    def harden(self, hardness: float) -> None:
        """Moves the gate toward its nearer end: closed (m <= 0) or fully open.

        Args:
            hardness: t in [0, 1]; the gate becomes (1 - t) times itself plus t times 1[m > 0]. At 1
                this is written into the latents, which are frozen; a factor still trains.

        Raises:
            ValueError: not in [0, 1], or the preset's mean is bounded (tanh).
        """
        if not 0.0 <= hardness <= 1.0:
            raise ValueError(f"hardness must be in [0, 1], got {hardness}")
        if self.preset.tanh:
            raise ValueError(f"gates of preset {self.preset.name!r} cannot be hardened")
        self._set_hardness(hardness)
        if hardness == 1.0:
            # Closed for good stays that.
            self.latent.copy_(torch.where(self.latent > 0, 1.0, self.latent.clamp(max=-1.0)))

    def _set_hardness(self, hardness: float) -> None:
        # A latent that the user froze stays frozen while the hardness does not change.
        if (hardness == 0.0) != (self.hardness == 0.0):
            self.latent.requires_grad_(hardness == 0.0)
        self.hardness = hardness

    @override
    def get_extra_state(self) -> Tensor:
        """The hardness as a zero-dimensional float64 tensor, for safetensors."""
        return torch.tensor(self.hardness, dtype=torch.float64, device="cpu")

    @override
    def set_extra_state(self, state: Any) -> None:
        """Restores a hardness, which freezes the latents if it is above 0.

        Raises:
            ValueError: it is not in [0, 1].
        """
        hardness = float(state)
        if not 0.0 <= hardness <= 1.0:
            raise ValueError(
                f"a gate's state holds the hardness {hardness}, which is not in [0, 1]"
            )
        self._set_hardness(hardness)

    @override
    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Overrides ``nn.Module``; a state dict without hardness leaves it unchanged."""
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = f"{prefix}{HARDNESS}"
        if key in missing_keys:
            missing_keys.remove(key)

    def observe(self) -> None:
        """Updates the importance of open dimensions with the factors' gradients.

        The update is a moving average, ``0.99 importance + 0.01 (dL/df)^2``. With f at 1, dL/df is
        the first-order change of the loss L if the dimension were removed; squared, it is the
        importance of Molchanov et al. (arXiv 1906.10771, equation 8).

        Call it between the backward pass and the optimizer step, with gradients that are neither
        scaled nor clipped, and only if the step is taken. A penalty on openness has no gradient
        here.
        """
        seen = self.observed()
        if seen is not None and self.importance is not None:
            self.importance.copy_(seen)

    @torch.no_grad()
    def observed(self, loss_scale: float = 1.0) -> Tensor | None:
        """Computes the importance after :meth:`observe` without storing it.

        Args:
            loss_scale: factor of the loss in this gradient (``torch.amp.GradScaler.get_scale``).

        Returns:
            (n,), float32, unchanged where a dimension is closed, and everywhere if the gradient is
            not finite; None without factors or without a gradient.
        """
        if self.scale is None or self.importance is None or self.scale.grad is None:
            return None
        squares = (self.scale.grad / loss_scale).square()
        seen = torch.lerp(self.importance, squares, _IMPORTANCE_RATE)
        return torch.where((self.centre() > 0) & seen.isfinite().all(), seen, self.importance)

    @override
    def open_probability(self) -> Tensor:
        return torch.special.ndtr(self.centre() / self.preset.probability_std)

    @override
    def extra_repr(self) -> str:
        return f"size={self.size}, preset={self.preset.name!r}"
