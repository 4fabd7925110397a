"""Stochastic gates: Gaussian relaxations of Bernoulli variables, one per row or column of a weight.

A gate vector holds one latent number per dimension. From it follow a *centre* m (its shift
included), a noisy training value ``clip(m + eps, 0, 1)`` with ``eps ~ N(0, noise_std^2)``, a
deterministic evaluation value ``clip(m, 0, 1)``, and the probability of being open that the penalty
sees, ``Phi(m / probability_std)``. The presets of the two versions of the paper differ only in the
numbers of :class:`finegates.gates.presets.GatePreset`; gates of our own have a trained factor
besides.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from finegates.gates.presets import GatePreset, preset_named

CLOSED_TO, OPEN_FROM = 0.05, 0.95
"""Evaluation gates strictly between count as half open."""


HARDNESS = "_extra_state"
"""The key of a gate's hardness in its state dict, as torch names extra states."""


class Gate(nn.Module):
    """What every gate vector offers; ``forward`` is a sample in training, else the value.

    Attributes:
        size: the number n of dimensions that it gates.
        clips_at_zero: whether no gradient passes where a gate is 0, so that none need be computed.
        can_resize: whether :meth:`resize` works.
    """

    size: int
    clips_at_zero: bool = False
    can_resize: bool = False

    def value(self) -> Tensor:
        """Evaluation gate, shape (n,), in [0, 1] but for a factor."""
        raise NotImplementedError

    def openness(self) -> Tensor:
        """The evaluation gate without its factor, shape (n,), in [0, 1]."""
        return self.value()

    def sample(self) -> Tensor:
        """Training gate, shape (n,), in [0, 1] but for a factor."""
        raise NotImplementedError

    def open_probability(self) -> Tensor:
        """P(open) as the penalty sees it, shape (n,)."""
        raise NotImplementedError

    def leaves(self) -> Iterator[Gate]:
        """The gates that it is made of: itself, unless it is derived from others."""
        yield self

    def combined(self, read: Callable[[Gate], Tensor]) -> Tensor:
        """The gate, (..., n), where its :meth:`leaves` are what ``read`` gives, (..., sizes)."""
        return read(self)

    def resize(self, size: int) -> None:
        """Cuts the last dimensions off, or adds open ones, in place.

        Raises:
            NotImplementedError: the gate is made of others.
        """
        raise NotImplementedError(f"{type(self).__name__} has the size of what it is made of")

    def closed(self) -> Tensor:
        """Boolean mask, shape (n,): the evaluation gate is exactly zero."""
        return self.value() == 0

    def forward(self) -> Tensor:
        """A sample in training mode, the value in evaluation mode, shape (n,)."""
        return self.sample() if self.training else self.value()

    @override
    def extra_repr(self) -> str:
        return f"size={self.size}"


def _resized(vector: Tensor, size: int, added: float) -> Tensor:
    """The first entries of a vector, filled up to a size."""
    more = vector.new_full((max(0, size - vector.numel()),), added)
    return torch.cat([vector[:size], more])


# An importance is a mean over about a hundred steps.
_IMPORTANCE_RATE = 0.01


def centre_of(latent: Tensor, preset: GatePreset) -> Tensor:
    """Mean of the unclipped gates, ``m = tanh(a) + shift`` or ``a + shift``.

    Args:
        latent: a, of any shape.
        preset: says which of the two, and the shift.
    """
    mean = torch.tanh(latent) if preset.tanh else latent
    return mean + preset.shift if preset.shift else mean


class StochasticGate(Gate):
    """A trainable gate vector.

    With latent a and centre m (:func:`centre_of`):

    - ``sample() = clip(m + eps, 0, 1)``, ``eps ~ N(0, noise_std^2)``, fresh at every call;
    - ``value() = clip(m, 0, 1)``;
    - ``open_probability() = Phi(m / probability_std)``;
    - ``closed()`` iff ``m <= 0``, where P(open) is at most one half.

    Scaled presets multiply sample and value by a trained factor f >= ``OPEN_FROM``, at first 1:
    what is decided to be open stays so, and can still say how much. The factor's gradient also says
    what the loss would miss without the dimension; :meth:`observe` keeps it.

    Args:
        size: number n of gated dimensions, at least 1.
        preset: a preset or its name.
        generator: source of the initial latents; the default generator when None.
        device: of the latents, the CPU if None. They are float32 whatever the model's precision:
            steps of a half-precision gate would be lost to rounding.

    Attributes:
        latent: (n,), trained.
        scale: (n,), the factors, trained; None without.
        importance: (n,), see :meth:`observe`; None without factors.
        hardness: t in [0, 1], see :meth:`harden`; the state dict holds it (as the extra state of
            the module), because it decides what the gate computes and whether its latents train.
        led: whether a penalty has been made of it, or a trainer has said that none was. Gates of a
            preset with a budget (``structured``) that are trained without one warn once, for they
            would never close.
    """

    clips_at_zero = True
    can_resize = True
    _warned = False
    scale: nn.Parameter | None
    importance: Tensor | None

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
        self.latent = nn.Parameter(self._start(generator, device or "cpu"))
        ones = torch.ones(size, dtype=torch.float32, device=device or "cpu")
        self.register_parameter("scale", nn.Parameter(ones) if self.preset.scaled else None)
        self.register_buffer("importance", torch.zeros_like(ones) if self.preset.scaled else None)
        self.hardness = 0.0
        self.led = False
        self._drawn: Tensor | None = None

    def _start(self, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
        if torch.device(device).type == "meta":  # drawn for nobody
            return torch.empty(self.size, dtype=torch.float32, device=device)
        # Drawn where the generator is: the same numbers on every device, whatever the default is.
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

    @override
    @torch.no_grad()
    def resize(self, size: int) -> None:
        target = 1.0 - self.preset.shift  # of the function of the latent, where the gate is open
        latent = math.atanh(min(target, 0.99)) if self.preset.tanh else target
        self.latent.data = _resized(self.latent.data, size, latent)
        if self.scale is not None:
            self.scale.data, self.scale.grad = _resized(self.scale.data, size, 1.0), None
        if self.importance is not None:
            self.importance = _resized(self.importance, size, 0.0)
        self.latent.grad, self.size, self._drawn = None, size, None

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
            return self._drawn.to(self.latent.device)  # a replica may be on another one
        if not self.led:
            self._warn_unless_led()
        centre = noisy = self.centre()
        if self.preset.noise_std:
            noisy = centre + torch.randn_like(centre) * self.preset.noise_std
        return self._times_factor(self._hardened(noisy.clamp(0.0, 1.0), centre))

    def _warn_unless_led(self) -> None:
        trains = torch.is_grad_enabled() and self.latent.requires_grad
        if not trains or self.preset.penalty != "macs" or StochasticGate._warned:
            return
        if torch.compiler.is_compiling():
            return
        StochasticGate._warned = True
        warnings.warn(
            f"gates of preset {self.preset.name!r} are trained without a penalty and a schedule, "
            "so none of them closes: train with finegates.GateTrainer instead of "
            "transformers.Trainer",
            stacklevel=3,
        )

    def _times_factor(self, gate: Tensor) -> Tensor:
        if self.scale is None:
            return gate
        # The gradient passes the bound: a factor that steps below it finds back.
        bounded = self.scale + (self.scale.clamp(min=OPEN_FROM) - self.scale).detach()
        return gate * bounded

    def _hardened(self, soft: Tensor, centre: Tensor) -> Tensor:
        if not self.hardness:
            return soft
        return (1 - self.hardness) * soft + self.hardness * (centre > 0).to(soft.dtype)

    @torch.no_grad()
    def harden(self, hardness: float) -> None:
        """Moves the gate towards what it is closest to: closed (m <= 0) or fully open.

        Args:
            hardness: t in [0, 1]; the gate becomes (1 - t) times itself plus t times 1[m > 0]. At 1
                that is written into the latents, which are not trained any further; a factor is.

        Raises:
            ValueError: not in [0, 1], or the preset's mean is bounded (tanh).
        """
        if not 0.0 <= hardness <= 1.0:
            raise ValueError(f"hardness must lie in [0, 1], got {hardness}")
        if self.preset.tanh:
            raise ValueError(f"gates of preset {self.preset.name!r} cannot be hardened")
        self._set_hardness(hardness)
        if hardness == 1.0:
            self.latent.copy_(torch.where(self.latent > 0, 1.0, -1.0))

    def _set_hardness(self, hardness: float) -> None:
        # A latent that its owner froze by hand stays frozen while nothing changes.
        if (hardness == 0.0) != (self.hardness == 0.0):
            self.latent.requires_grad_(hardness == 0.0)
        self.hardness = hardness

    @override
    def get_extra_state(self) -> Tensor:
        """The hardness as a float64 tensor of no dimensions, which safetensors can hold."""
        return torch.tensor(self.hardness, dtype=torch.float64, device="cpu")

    @override
    def set_extra_state(self, state: Any) -> None:
        """Takes a hardness over; latents train from then on if it is 0, and else do not.

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
        """As of ``nn.Module``; a state dict from before hardness was kept leaves it as it is."""
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = f"{prefix}{HARDNESS}"
        if key in missing_keys:
            missing_keys.remove(key)

    def observe(self) -> None:
        """Takes the present gradient of the factors f into the importance of open dimensions:
        0.99 of what it was and 0.01 (dL/df)^2.

        With f at 1, dL/df is the first-order change of the loss L if the dimension were removed;
        squared, it is the importance of Molchanov et al. (arXiv 1906.10771, equation 8). Call it
        between the backward pass and the next step, with gradients that are neither scaled nor
        clipped, and only if the step is taken. A penalty on openness does not enter.
        """
        seen = self.observed()
        if seen is not None and self.importance is not None:
            self.importance.copy_(seen)

    @torch.no_grad()
    def observed(self, loss_scale: float = 1.0) -> Tensor | None:
        """What :meth:`observe` makes of the importance, which stays as it is.

        Args:
            loss_scale: what the loss was multiplied by before the backward pass, at least in this
                gradient (``torch.amp.GradScaler.get_scale``).

        Returns:
            (n,), float32, equal to the importance where a dimension is closed, and everywhere if
            the gradient is not finite; None without factors or without a gradient.
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


class GateDraw:
    """Draws the training samples of many gates at once: a few operations on one long vector in
    place of as many for each gate.

    Inside ``with draw:`` the ``sample()`` of each gate is its part of the draw, however often it is
    asked for; so the block holds one training step, its backward pass included. Gates that are
    being hardened draw for themselves.

    Args:
        gates: of any kind, each with one use in a step; those that cannot be drawn with the first
            one (constants, gates of another preset or on another device) are left alone.
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
            return self
        preset = self.gates[0].preset
        latent = torch.cat([gate.latent for gate in self.gates])
        centre = centre_of(latent, preset)
        if preset.noise_std:
            centre = torch.add(centre, torch.randn_like(centre), alpha=preset.noise_std)
        samples = centre.clamp(0.0, 1.0).split([gate.size for gate in self.gates])
        for gate, sample in zip(self.gates, samples, strict=True):
            gate._drawn = gate._times_factor(sample)
        return self

    def __exit__(self, *_: object) -> None:
        for gate in self.gates:
            gate._drawn = None


class FixedGate(Gate):
    """A constant gate vector: magnitude pruning, imported gates, tests.

    Args:
        values: shape (n,), floating point, finite. Stored as a buffer, never trained.
    """

    can_resize = True
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
    def resize(self, size: int) -> None:
        self.values, self.size = _resized(self.values, size, 1.0), size

    @override
    def value(self) -> Tensor:
        return self.values

    @override
    def sample(self) -> Tensor:
        return self.values

    @override
    def open_probability(self) -> Tensor:
        return (self.values != 0).to(self.values.dtype)


class DerivedGate(Gate):
    """A gate vector made of others: entry i is the product over sources of ``source[index[i]]``.

    Sources may serve several gates; each is asked anew, so that noise differs between uses.

    Args:
        sources: gates, each with an int64 index (n,) into it; -1 stands for the constant 1.

    Raises:
        ValueError: no sources, or indices of different lengths.
    """

    def __init__(self, sources: Sequence[tuple[Gate, Tensor]]) -> None:
        super().__init__()
        sizes = {index.numel() for _, index in sources}
        if len(sizes) != 1:
            raise ValueError(f"a derived gate needs indices of one length, got {sorted(sizes)}")
        self.size = sizes.pop()
        self.sources = nn.ModuleList([gate for gate, _ in sources])
        for number, (_, index) in enumerate(sources):
            self.register_buffer(f"index_{number}", index, persistent=False)
        self.clips_at_zero = all(gate.clips_at_zero for gate, _ in sources)

    @override
    def value(self) -> Tensor:
        return self._product(lambda gate: gate.value())

    @override
    def sample(self) -> Tensor:
        return self._product(lambda gate: gate.sample())

    @override
    def open_probability(self) -> Tensor:
        return self._product(lambda gate: gate.open_probability())

    @override
    def leaves(self) -> Iterator[Gate]:
        for source in self.sources:
            assert isinstance(source, Gate)
            yield from source.leaves()

    @override
    def combined(self, read: Callable[[Gate], Tensor]) -> Tensor:
        return self._product(lambda gate: gate.combined(read))

    def _product(self, read: Callable[[Gate], Tensor]) -> Tensor:
        result: Tensor | None = None
        for number, source in enumerate(self.sources):
            assert isinstance(source, Gate)
            values = read(source)
            # The entry behind the last is 1: that is what index -1 finds.
            ones = values.new_ones((*values.shape[:-1], 1))
            index = getattr(self, f"index_{number}")
            chosen = torch.cat([values, ones], dim=-1)[..., index]
            result = chosen if result is None else result * chosen
        assert result is not None
        return result
