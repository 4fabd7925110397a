"""How gates are attached and trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from finegates.gates.presets import (
    SCHEDULE,
    GatePreset,
    check_reachable,
    check_schedule,
    preset_named,
)

PenaltyName = Literal["hinge", "target"]
"""The penalties of independent gates, see :mod:`finegates.gates.penalty`."""


@dataclass(frozen=True)
class GateConfig:
    """How gates are attached and trained.

    Attributes:
        preset: ``"structured"`` (shared gates under a budget on MACs), ``"reference"`` (the paper's
            released code) or ``"paper_v1"``; see ``finegates.gates.presets.PRESETS``. None takes
            ``"structured"``, or ``"reference"`` where ``penalty``, ``kurtosis``, ``rows``, ``cols``
            or ``modules`` asks for what only independent gates have. Read back, it is the name.
        target: target sparsity s in [0, 1): the fraction of rows, and of columns, to close. It is
            not the realised sparsity; ``finegates.budget`` measures that. With ``"structured"``,
            the fraction of the encoder's MACs to remove, which is met.
        penalty_weight: lambda, the factor of the penalty in the loss.
        penalty: ``"target"`` or ``"hinge"``; None takes the preset's, and ``"structured"`` has no
            other.
        kurtosis: weight the penalty by the kurtosis of what flows through rows and columns.
        noise_std: another training noise than the preset's.
        rows: gate the outputs of layers.
        cols: gate the inputs of layers.
        modules: patterns (``fnmatch``) of the module names to gate, instead of the choice of the
            architecture's adapter; an architecture without one needs them.
        train_biases: train the biases of gated layers; None takes the preset's.
        train_head: train the task head (:func:`head_parameters`). Where none is known, because the
            model is not laid out as those of transformers are, nothing is trained for it: set
            ``requires_grad`` after attaching.
        train_weights: train every weight beside the gates.
        sequence_length: with ``"structured"``, tokens of a sequence, for the MACs of attention.
        schedule: with ``"structured"``, four parts of the training in [0, 1]: when the budget
            begins to fall; when it has reached its target; when it is decided who is closed; when
            every gate is zero or one. While the budget falls, what matters least for its cost is
            closed, a hundredth of the training at a time. Between the last two the gates move
            evenly to zero or one; afterwards the rest is trained.
        random_biases: give gated layers that have no bias a random, frozen one, drawn as torch
            draws biases. The released code does this to every linear layer of a Llama, by mistake:
            the model computes something else from the first step on. For audits only.
        seed: of the gates' initial latents; each gate's stream is named by its module.
    """

    preset: str | None = None
    target: float = 0.4
    penalty_weight: float = 50.0
    penalty: PenaltyName | None = None
    kurtosis: bool = False
    noise_std: float | None = None
    rows: bool = True
    cols: bool = True
    modules: tuple[str, ...] | None = None
    train_biases: bool | None = None
    train_head: bool = True
    train_weights: bool = False
    sequence_length: int = 128
    schedule: tuple[float, float, float, float] = SCHEDULE
    random_biases: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        asked = self._only_independent()
        if self.preset is None:
            # The class is frozen for its users; what None stands for is settled once, here.
            object.__setattr__(self, "preset", "reference" if asked else "structured")
        preset = self.gate_preset()
        if self.penalty is not None and self.penalty not in get_args(PenaltyName):
            raise ValueError(
                f"unknown penalty {self.penalty!r}; choose one of {list(get_args(PenaltyName))}"
            )
        if not self.penalty_weight >= 0:
            raise ValueError(f"penalty_weight must be at least 0, got {self.penalty_weight}")
        if not (self.rows or self.cols):
            raise ValueError("rows and cols are both off: there would be no gates")
        check_reachable(preset, self.target)
        if preset.penalty == "macs":
            if asked:
                raise ValueError(
                    f"{asked[0]} cannot be chosen with preset {self.preset!r}, whose gates follow "
                    "the structure of the model; independent gates can: preset='reference'"
                )
            self._check_structured()

    def gate_preset(self) -> GatePreset:
        """The constants of the gates, with the noise that was asked for."""
        assert self.preset is not None
        return preset_named(self.preset, self.noise_std)

    def _only_independent(self) -> list[str]:
        """The options given that shared gates do not have, by name."""
        given = {
            "penalty": self.penalty is not None,
            "kurtosis": self.kurtosis,
            "rows": not self.rows,
            "cols": not self.cols,
            "modules": self.modules is not None,
        }
        return [name for name, asked in given.items() if asked]

    def _check_structured(self) -> None:
        check_schedule(self.schedule)
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {self.sequence_length}")

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return asdict(self)
