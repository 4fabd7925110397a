"""Training with gates: a mixin on ``transformers.Trainer`` and the trainer made of it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME

from finegates.attachment import gate_config, sparsity_penalty
from finegates.compaction.serialize import save_checkpoint
from finegates.distillation import Distillation
from finegates.gates import Gate, GateDraw
from finegates.importance import StepImportance
from finegates.layers import gated_layers
from finegates.monitor import GateWatch, closed_fraction, summarise_gates
from finegates.optimizer_groups import GROUPS, all_trained, parameter_groups, split_by_kind
from finegates.stock_checkpoints import stock_obstacle
from finegates.structured import MacsPenalty
from finegates.training_step import NonFiniteLossError, WeighedStep

__all__ = [
    "GROUPS",
    "GateTrainer",
    "GateTrainerMixin",
    "NonFiniteLossError",
    "StepTimer",
    "parameter_groups",
]


class GateTrainerMixin(WeighedStep):
    """Adds the sparsity penalty, learning rates by parameter group, and gate metrics to a Trainer.

    Without gates and without these arguments it changes nothing but the NaN check. The penalty is
    the one that ``finegates.attach`` was configured with. Task loss, teacher and penalty keep their
    balance however a step's batch is cut into micro-batches and spread over processes. After each
    epoch ``gate_history`` gains a summary of the gates, which is also logged under ``gates/...``.

    Args:
        learning_rates: rates of parameter groups (a subset of ``GROUPS``) that differ from
            the optimizer's; the schedule scales them all alike.
        distillation: how much to follow a teacher, whose logits are in the rows of the training
            set (``finegates.with_teacher``); needs ``remove_unused_columns=False``.

    With shared gates the budget is met, and who is closed is decided, at the parts of the training
    that ``GateConfig.schedule`` names. What has been decided stays so when the model is trained on.

    Raises:
        ValueError: an unknown group; ``learning_rates`` next to ``optimizers``; shared gates with
            ``load_best_model_at_end``; gates or distillation on several GPUs of one process.
        KeyError: in training with distillation, rows without a teacher's logits.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *args: Any,
        learning_rates: dict[str, float] | None = None,
        distillation: Distillation | None = None,
        **kwargs: Any,
    ) -> None:
        unknown = set(learning_rates or {}) - set(GROUPS)
        if unknown:
            raise ValueError(f"unknown parameter groups {sorted(unknown)}; known: {list(GROUPS)}")
        self.learning_rates = dict(learning_rates or {})
        self.distillation = distillation
        super().__init__(*args, **kwargs)
        if self.learning_rates and self.optimizer is not None:
            raise ValueError(
                f"learning_rates of {sorted(self.learning_rates)} next to a given optimizer would "
                "not be used: give its groups these rates, or leave optimizers out"
            )
        model: nn.Module = self.model  # type: ignore[attr-defined]
        self.penalty = sparsity_penalty(model)
        config = gate_config(model)
        self.penalty_weight = config.penalty_weight if config else 0.0
        self.gated = bool(gated_layers(model))
        self._draw = GateDraw(_gates_used_once(model))
        self._refuse_data_parallel()
        self._counted: int | None = None
        self.gate_history: list[dict[str, Any]] = []
        self._unlogged: dict[str, float] = {}
        self._schedule: _GateSchedule | None = None
        if isinstance(self.penalty, MacsPenalty):
            assert config is not None
            self._schedule = _GateSchedule(self.penalty, config.schedule)
            self._prepare(self.args)  # type: ignore[attr-defined]
            self.add_callback(self._schedule)  # type: ignore[attr-defined]
        self.add_callback(_GateMonitor(self))  # type: ignore[attr-defined]

    def _prepare(self, arguments: TrainingArguments) -> None:
        """Refuses arguments that miss the budget; tells several devices what to wait for."""
        if arguments.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end may bring back a checkpoint whose gates had not met the "
                "budget; leave it off, and compare checkpoints of the last part of the training, "
                "in which it is decided who is closed"
            )
        # Once it is decided, their latents have no gradient that processes could wait for.
        arguments.ddp_find_unused_parameters = True
        # transformers 5 has read the arguments already.
        handler = getattr(self.accelerator, "ddp_handler", None)  # type: ignore[attr-defined]
        if handler is not None:
            handler.find_unused_parameters = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As of Trainer; with gates or ``learning_rates`` its groups are split by kind.

        What decays is what decays with Trainer, gates left out.

        Raises:
            ValueError: every parameter is frozen, or the optimizer cannot have these rates.
        """
        trained: nn.Module = self.model if model is None else model  # type: ignore[attr-defined]
        if self.optimizer is not None:
            return self.optimizer
        if not any(parameter.requires_grad for parameter in trained.parameters()):
            raise ValueError("nothing to train: every parameter is frozen")
        given = () if model is None else (model,)
        with all_trained(trained):
            optimizer: torch.optim.Optimizer = super().create_optimizer(*given)  # type: ignore[misc]
        if self.learning_rates or gated_layers(trained):
            split_by_kind(optimizer, trained, self.learning_rates)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As of :class:`WeighedStep`; the last micro-batch shows its gradients to the schedule."""
        loss = super().training_step(*args, **kwargs)
        accelerator: Any = self.accelerator  # type: ignore[attr-defined]
        if self._schedule is not None and accelerator.sync_gradients:
            self._schedule.on_gradients(accelerator.scaler)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As of Trainer, which counts the model's parameters again at every step."""
        model: nn.Module = self.model  # type: ignore[attr-defined]
        tokens = inputs.get(getattr(model, "main_input_name", "input_ids"))
        if tokens is None or not tokens.numel():
            return 0
        if self._counted is None:
            self._counted = super().floating_point_ops(inputs) // tokens.numel()  # type: ignore[misc]
        return int(self._counted * tokens.numel())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves a checkpoint's model; a gate that several layers share is written under the first
        of its names, for the format refuses tensors that share memory.

        A compact model is written as finegates.save does, which no stock checkpoint can hold.
        """
        model: nn.Module = self.model  # type: ignore[attr-defined]
        if not gated_layers(model) and stock_obstacle(model) and isinstance(model, PreTrainedModel):
            self._save_compact(model, output_dir)
            return
        if state_dict is None and gated_layers(model):
            once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
            state_dict = {
                name: tensor
                for name, tensor in model.state_dict().items()
                if name in once or not name.endswith((".latent", ".scale", ".importance"))
            }
        super()._save(output_dir, state_dict)  # type: ignore[misc]

    def _save_compact(self, model: nn.Module, output_dir: str | None) -> None:
        arguments: TrainingArguments = self.args  # type: ignore[attr-defined]
        if not arguments.should_save:
            return
        folder = Path(output_dir or arguments.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(model, folder)
        if self.processing_class is not None:  # type: ignore[attr-defined]
            self.processing_class.save_pretrained(folder)  # type: ignore[attr-defined]
        torch.save(arguments, folder / TRAINING_ARGS_NAME)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs; next to a training loss what it is made of, and the gates as they now are.

        ``loss`` is ``task_loss + penalty_weight * penalty``, with distillation
        ``(1 - weight) * task_loss + weight * teacher_distance + penalty_weight * penalty``: means
        over the same optimizer steps, over all processes. ``macs_kept`` is the fraction that shared
        gates keep, ``gates_closed`` that of gates that are closed. The gates' summary of an epoch
        is in the next log.
        """
        if "loss" in logs:
            logs = {**logs, **self._terms_and_gates()}
        if "loss" in logs or "train_loss" in logs:
            logs = {**logs, **self._unlogged}
            self._unlogged = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _terms_and_gates(self) -> dict[str, float]:
        accelerator = self.accelerator  # type: ignore[attr-defined]
        found = self.loss_terms.take(
            self.state.global_step,  # type: ignore[attr-defined]
            lambda terms: accelerator.reduce(terms, reduction="mean"),
        )
        model: nn.Module = self.model  # type: ignore[attr-defined]
        if isinstance(self.penalty, MacsPenalty):
            found["macs_kept"] = self.penalty.realised()
        if gated_layers(model):
            found["gates_closed"] = closed_fraction(model)
        return found


def _gates_used_once(model: nn.Module) -> list[Gate]:
    """The gates behind one side of one layer; shared ones have noise of their own at each use."""
    layers = gated_layers(model).values()
    uses = Counter(leaf for layer in layers for _, gate in layer.gates() for leaf in gate.leaves())
    return [gate for gate, count in uses.items() if count == 1]


class _GateSchedule(TrainerCallback):
    """Leads shared gates through a training: the budget falls, who is closed is decided, the gates
    become zero or one."""

    # Decisions while the budget falls, if the whole training were of that kind.
    DECISIONS = 100

    def __init__(self, penalty: MacsPenalty, schedule: tuple[float, float, float, float]) -> None:
        self._penalty = penalty
        self._begin, _, self._decide, self._harden = schedule
        self._hardness = 0.0
        self._importance = StepImportance(penalty.gates())
        self._scaler: torch.amp.GradScaler | None = None
        self._loss_scale = 1.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continues where a checkpoint was made, or a training ended: what had been decided is not
        decided again. The gates themselves say how far they were, also to a longer training."""
        self._hardness = max(gate.hardness for gate in self._penalty.gates())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        steps = max(1, state.max_steps)
        progress = state.global_step / steps
        self._advance(progress)
        if not self._begin <= progress < self._decide or self._hardness:
            return
        part, before = (
            step * self.DECISIONS // steps for step in (state.global_step, state.global_step - 1)
        )
        # Before the first step that is taken nothing is known of what matters.
        if part > before and self._penalty.is_observed():
            self._penalty.close_least()

    def on_gradients(self, scaler: torch.amp.GradScaler | None) -> None:
        """Sees which gates matter, until it is decided who is closed.

        Args:
            scaler: of the loss; None where it is not scaled.
        """
        if self._hardness == 0.0:
            self._scaler, self._loss_scale = scaler, _scale_of(scaler)
            self._importance.read(self._loss_scale)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts what was seen in the step, unless it was skipped because a gradient overflowed."""
        # Fused optimizers skip a step within, which only the scale of the next one tells.
        skipped = getattr(kwargs.get("optimizer"), "step_was_skipped", False)
        if skipped or _scale_of(self._scaler) < self._loss_scale:
            self._importance.forget()
        else:
            self._importance.count()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._advance(1.0)

    def _hardness_at(self, progress: float) -> float:
        if progress < self._decide:
            return 0.0
        length = self._harden - self._decide
        passed = (progress - self._decide) / length if length else 1.0
        # Above zero from the first such step on: the latents rest from then.
        return min(1.0, max(passed, 1e-6))

    def _advance(self, progress: float) -> None:
        # What has been decided met its budget: the goal of a further training is not above it.
        self._penalty.progress = 1.0 if self._hardness else progress
        hardness = self._hardness_at(progress)
        if hardness <= self._hardness:  # never back, if this training is longer than the last
            return
        if self._hardness == 0.0:
            self._penalty.close_least()
        self._hardness = hardness
        for gate in self._penalty.gates():
            gate.harden(hardness)


def _scale_of(scaler: torch.amp.GradScaler | None) -> float:
    return 1.0 if scaler is None else scaler.get_scale()


class _GateMonitor(TrainerCallback):
    """Summarises the gates before training and after each epoch, and counts those that open again.

    Gates are looked at every ``INTERVAL`` steps; a gate that closes and opens between two looks
    is missed. A training that continues from a checkpoint counts from there.
    """

    INTERVAL = 10

    def __init__(self, trainer: GateTrainerMixin) -> None:
        self._trainer = trainer
        self._watch: GateWatch | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = self._trainer.model  # type: ignore[attr-defined]
        self._trainer.loss_terms.reset()
        self._watch = GateWatch(model) if gated_layers(model) else None
        self._record(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._watch is not None and state.global_step % self.INTERVAL == 0:
            self._watch.look()
        # The steps since the last full interval are logged, too.
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last and args.logging_strategy == "steps" and not self._trainer.is_plain():
            control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        summary = self._record(round(state.epoch or 0))
        if summary is not None:
            scalars = {f"gates/{k}": v for k, v in summary.items() if isinstance(v, float)}
            self._trainer._unlogged = scalars

    def _record(self, epoch: int) -> dict[str, Any] | None:
        if self._watch is None:
            return None
        self._watch.look()
        summary = summarise_gates(self._watch.model, self._trainer.penalty)
        summary["reopened"] = self._watch.reopened()
        self._trainer.gate_history.append({"epoch": epoch, **summary})
        return summary


class StepTimer(TrainerCallback):
    """Wall time of training steps, evaluation and data loading left out."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops it."""
        self._seconds.append(time.perf_counter() - self._start)

    def median(self) -> float:
        """Seconds of the median step."""
        return float(np.median(self._seconds))


class GateTrainer(GateTrainerMixin, Trainer):
    """``transformers.Trainer`` for a model with gates; see :class:`GateTrainerMixin`."""
