"""Schedules structured gates: lower the budget, choose which to close, harden.

1. While the budget falls, the dimensions with the least importance per MAC are closed.
2. At the third fraction of the schedule the choice of closed gates becomes final.
3. Then the gates move linearly to zero or one.
4. At the fractions ``GateConfig.finals()``, and once all gates are zero or one, the dimensions that
   are closed are closed for good, and can be removed from the running model.

A model can contain several gated models, each with its own budget and schedule.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finegates.gates.closing import TOLERANCE
from finegates.gates.macs_penalty import MacsPenalty
from finegates.training.importance import StepImportance

Parts = tuple[float, float, float, float]
"""Fractions of a training, see ``GateConfig.schedule``."""


class GateSchedule(TrainerCallback):
    """Schedules the shared gates of the trained model, if it has any.

    Args:
        on_final: called before a step at which dimensions were closed for good.
    """

    def __init__(self, on_final: Callable[[], None] | None = None) -> None:
        self._led: list[_LedGates] = []
        self._on_final = on_final
        self._scaler: torch.amp.GradScaler | None = None
        self._loss_scale = 1.0

    def lead(self, penalties: Iterable[tuple[MacsPenalty, Parts, tuple[float, ...]]]) -> None:
        """Schedules the gates of these penalties from now on, and no others.

        Args:
            penalties: each with its schedule, and the fractions at which what is closed is final.
        """
        self._led = [_LedGates(*each) for each in penalties]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continues from a checkpoint or from an earlier training."""
        for led in self._led:
            led.begin(state.global_step, max(1, state.max_steps))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the goal and closes or hardens gates when due."""
        steps = max(1, state.max_steps)
        final = [led.step(state.global_step, steps) for led in self._led]
        if any(final) and self._on_final is not None:
            self._on_final()

    def on_gradients(self, scaler: torch.amp.GradScaler | None) -> None:
        """Observes importances until the choice of closed gates is final.

        Args:
            scaler: of the loss; None if it is not scaled.
        """
        self._scaler, self._loss_scale = scaler, _scale_of(scaler)
        for led in self._led:
            if led.hardness == 0.0:
                led.importance.read(self._loss_scale)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts the step's importances, unless the optimizer skipped the step."""
        # Fused optimizers skip a step internally, which shows only in the next step's scale.
        skipped = getattr(kwargs.get("optimizer"), "step_was_skipped", False)
        skipped = skipped or _scale_of(self._scaler) < self._loss_scale
        for led in self._led:
            if skipped:
                led.importance.forget()
            else:
                led.importance.count()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hardens every gate fully and warns of missed budgets."""
        for led in self._led:
            led.advance(1.0)
            led.warn_of_miss()


class _LedGates:
    """State of the gates of one penalty within the schedule.

    Attributes:
        hardness: of the gates; above zero the choice of closed gates is final.
        importance: of the steps.
    """

    # Closing decisions per training, if the budget fell during all of it.
    DECISIONS = 100

    def __init__(
        self, penalty: MacsPenalty, parts: Parts, final_at: tuple[float, ...] = ()
    ) -> None:
        self._penalty = penalty
        self._begin, _, self._decide, self._harden = parts
        # Hardened gates that are zero are removable, too, if any are meant to be.
        self._final_at = (*final_at, self._harden) if final_at else ()
        self.hardness = 0.0
        self.importance = StepImportance(penalty.gates())

    def begin(self, step: int, steps: int) -> None:
        """Resumes from the gates' own hardness, so that a final choice stays final.

        This holds for a longer training, too.
        """
        self.hardness = max(gate.hardness for gate in self._penalty.gates())
        if step:
            self._set_progress((step - 1) / steps)

    def step(self, step: int, steps: int) -> bool:
        """Does what is due before a step; whether dimensions were closed for good."""
        progress = step / steps
        self.advance(progress)
        final = any((step - 1) / steps < point <= progress for point in self._final_at)
        if self._begin <= progress < self._decide and not self.hardness:
            part, before = (done * self.DECISIONS // steps for done in (step, step - 1))
            # Before the first optimizer step no importance is known.
            if (part > before or final) and self._penalty.is_observed():
                self._penalty.close_least()
        if final:
            self._penalty.close_for_good()
        return final

    def advance(self, progress: float) -> None:
        """Sets the goal at this progress; closes and hardens gates when due."""
        self._set_progress(progress)
        hardness = self._hardness_at(progress)
        if (
            hardness <= self.hardness
        ):  # never decreases, even if this training is longer than the last
            return
        if self.hardness == 0.0:
            self._penalty.close_least()
        self.hardness = hardness
        for gate in self._penalty.gates():
            gate.harden(hardness)

    def warn_of_miss(self) -> None:
        """Warns if the kept MACs miss the budget by more than a percentage point."""
        kept, goal = self._penalty.realised(), 1.0 - self._penalty.target
        if abs(kept - goal) > TOLERANCE:
            warnings.warn(
                f"the gates keep {kept:.1%} of the {self._penalty.unit}, and target "
                f"{self._penalty.target:g} asks "
                f"for {goal:.1%}: the dimensions of this model are so coarse that closing one "
                "more, or one fewer, misses the target by as much; choose a target that is near "
                "what is kept, or a wider model",
                stacklevel=2,
            )

    def _set_progress(self, progress: float) -> None:
        # A final choice met its budget: the goal of a further training is not above it.
        self._penalty.progress = 1.0 if self.hardness else progress

    def _hardness_at(self, progress: float) -> float:
        if progress < self._decide:
            return 0.0
        length = self._harden - self._decide
        passed = (progress - self._decide) / length if length else 1.0
        # Above zero from the first such step on, from which the latents are frozen.
        return min(1.0, max(passed, 1e-6))


def _scale_of(scaler: torch.amp.GradScaler | None) -> float:
    return 1.0 if scaler is None else scaler.get_scale()
