"""Training with gates: a mixin on ``transformers.Trainer`` and the trainer made of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finegates.attachment import gate_config, head_parameters, sparsity_penalty
from finegates.distillation import TEACHER_LOGITS, Distillation
from finegates.gates import StochasticGate
from finegates.layers import gated_layers
from finegates.monitor import summarise_gates
from finegates.structured import MacsPenalty

GROUPS = ("gates", "low_rank", "biases", "head", "weights")


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message says when, and what to try."""


def parameter_groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The trainable parameters by kind and name.

    ``gates`` are latents of stochastic gates, ``low_rank`` LoRA factors, ``head`` the task head,
    ``biases`` other biases, ``weights`` the rest. Every trainable parameter is in exactly one.
    """
    head = {id(p) for p in head_parameters(model).values()}
    gates = {
        id(p)
        for module in model.modules()
        if isinstance(module, StochasticGate)
        for p in module.parameters()
    }
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in GROUPS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in gates:
            kind = "gates"
        elif ".lora_" in name:
            kind = "low_rank"
        elif id(parameter) in head or ".modules_to_save." in name:
            kind = "head"
        elif name.endswith("bias"):
            kind = "biases"
        else:
            kind = "weights"
        groups[kind][name] = parameter
    return groups


class GateTrainerMixin:
    """Adds the sparsity penalty, learning rates by parameter group, and gate metrics to a Trainer.

    Without gates attached it changes nothing but the NaN check. The penalty is the one that
    ``finegates.attach`` was configured with. After each epoch ``gate_history`` gains a summary of
    the gates, which is also logged under ``gates/...``.

    Args:
        learning_rates: rates of parameter groups (a subset of ``GROUPS``) that differ from
            ``args.learning_rate``; the schedule scales them all alike.
        distillation: how much to follow a teacher, whose logits are in the rows of the training
            set (``finegates.with_teacher``); needs ``remove_unused_columns=False``.

    Raises:
        ValueError: an unknown group.
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
        model: nn.Module = self.model  # type: ignore[attr-defined]
        self.penalty = sparsity_penalty(model)
        config = gate_config(model)
        self.penalty_weight = config.penalty_weight if config else 0.0
        self.gate_history: list[dict[str, Any]] = []
        self._unlogged: dict[str, float] = {}
        if isinstance(self.penalty, MacsPenalty):
            assert config is not None
            self.add_callback(_GateSchedule(self.penalty, config.schedule))  # type: ignore
        self.add_callback(_GateMonitor(self))  # type: ignore[attr-defined]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One optimizer group for each non-empty kind of parameter; weight decay on weights, head
        and low-rank factors only."""
        trained: nn.Module = self.model if model is None else model  # type: ignore[attr-defined]
        if self.optimizer is None:
            arguments: TrainingArguments = self.args  # type: ignore[attr-defined]
            cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, trained)  # type: ignore[arg-type]
            groups = [
                {
                    "params": list(parameters.values()),
                    "lr": self.learning_rates.get(kind, arguments.learning_rate),
                    "weight_decay": 0.0 if kind in ("gates", "biases") else arguments.weight_decay,
                    "kind": kind,
                }
                for kind, parameters in parameter_groups(trained).items()
                if parameters
            ]
            if not groups:
                raise ValueError("nothing to train: every parameter is frozen")
            self.optimizer = cls(groups, **settings)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Task loss + penalty_weight * penalty in training, the task loss alone in evaluation.

        With distillation, the task loss in training is mixed with the distance to the teacher.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        teacher = None
        if model.training and self.distillation is not None:
            if TEACHER_LOGITS not in inputs:
                raise KeyError(
                    f"the batch holds no {TEACHER_LOGITS}: make the rows of the training set with "
                    "finegates.with_teacher, and set remove_unused_columns=False"
                )
            teacher = inputs.pop(TEACHER_LOGITS)
        loss, outputs = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if model.training:
            if teacher is not None:
                assert self.distillation is not None
                share = self.distillation.weight
                loss = (1 - share) * loss + share * self.distillation.distance(
                    outputs["logits"], teacher
                )
            if self.penalty is not None:
                loss = loss + self.penalty_weight * self.penalty().to(loss.device)
            value = loss.item()
            if not math.isfinite(value):
                state: TrainerState = self.state  # type: ignore[attr-defined]
                raise NonFiniteLossError(
                    f"loss is {value} at step {state.global_step} (epoch {state.epoch}); try a "
                    "lower learning rate, a longer warm-up, or float32 in place of half precision"
                )
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs, with the gates' summary of the epoch beside the next training loss."""
        if "loss" in logs:
            logs = {**logs, **self._unlogged}
            self._unlogged = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class _GateSchedule(TrainerCallback):
    """Leads shared gates through a training: the budget falls, who is closed is decided, the gates
    become zero or one."""

    def __init__(self, penalty: MacsPenalty, schedule: tuple[float, float, float]) -> None:
        self._penalty = penalty
        _, self._settle, self._harden = schedule
        self._hardness = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._advance(state.global_step / max(1, state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._advance(1.0)

    def _advance(self, progress: float) -> None:
        self._penalty.progress = progress
        if progress < self._settle or self._hardness == 1.0:
            return
        if self._hardness == 0.0:
            self._penalty.settle()
        length = self._harden - self._settle
        passed = (progress - self._settle) / length if length else 1.0
        # Above zero from the first such step on: the latents rest from then.
        self._hardness = min(1.0, max(passed, 1e-6))
        for gate in self._penalty.gates():
            gate.harden(self._hardness)


class _GateMonitor(TrainerCallback):
    """Summarises the gates before training and after each epoch."""

    def __init__(self, trainer: GateTrainerMixin) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._record(0)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        summary = self._record(round(state.epoch or 0))
        if summary is not None:
            scalars = {f"gates/{k}": v for k, v in summary.items() if isinstance(v, float)}
            self._trainer._unlogged = scalars

    def _record(self, epoch: int) -> dict[str, Any] | None:
        model: nn.Module = self._trainer.model  # type: ignore[attr-defined]
        if not gated_layers(model):
            return None
        summary = summarise_gates(model, self._trainer.penalty)
        self._trainer.gate_history.append({"epoch": epoch, **summary})
        return summary


class GateTrainer(GateTrainerMixin, Trainer):
    """``transformers.Trainer`` for a model with gates; see :class:`GateTrainerMixin`."""
