"""Training with gates: a mixin on ``transformers.Trainer`` and the trainer made of it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
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

from finegates.attachment import gate_config, head_parameters, sparsity_penalty
from finegates.compaction.serialize import save_checkpoint
from finegates.distillation import TEACHER_LOGITS, Distillation
from finegates.gates import Gate, GateDraw, StochasticGate
from finegates.importance import StepImportance
from finegates.layers import gated_layers
from finegates.monitor import GateWatch, summarise_gates
from finegates.stock_checkpoints import stock_obstacle
from finegates.structured import MacsPenalty

GROUPS = ("gates", "low_rank", "biases", "head", "weights")


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message says when, and what to try."""


def parameter_groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The trainable parameters by kind and name.

    ``gates`` are latents and factors of stochastic gates, ``low_rank`` LoRA factors, ``head`` the
    task head, ``biases`` other biases, ``weights`` the rest. Every trainable parameter is in
    exactly one. Latents that rest because their gate has been hardened are among the gates, so that
    the state of an optimizer fits the same model at any part of its training.
    """
    head = {id(p) for p in head_parameters(model).values()}
    stochastic = [module for module in model.modules() if isinstance(module, StochasticGate)]
    gates = {id(p) for gate in stochastic for p in gate.parameters()}
    resting = {id(gate.latent) for gate in stochastic if gate.hardness}
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in GROUPS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and id(parameter) not in resting:
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

    With shared gates the budget is met, and who is closed is decided, at the parts of the training
    that ``GateConfig.schedule`` names. What has been decided stays so when the model is trained on.

    Raises:
        ValueError: an unknown group; shared gates with ``load_best_model_at_end``.
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
        self._draw = GateDraw(_gates_used_once(model))
        self._counted: int | None = None
        self._checkpointed: list[nn.Module] | None = None
        self.gate_history: list[dict[str, Any]] = []
        self.task_loss: torch.Tensor | None = None
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
            self.task_loss = loss.detach()
            if teacher is not None:
                assert self.distillation is not None
                share = self.distillation.weight
                loss = (1 - share) * loss + share * self.distillation.distance(
                    outputs["logits"], teacher
                )
            if self.penalty is not None:
                share = self._penalty_share(num_items_in_batch)
                loss = loss + share * self.penalty_weight * self.penalty().to(loss.device)
            value = loss.item()
            if not math.isfinite(value):
                state: TrainerState = self.state  # type: ignore[attr-defined]
                raise NonFiniteLossError(
                    f"loss is {value} at step {state.global_step} (epoch {state.epoch}); try a "
                    "lower learning rate, a longer warm-up, or float32 in place of half precision"
                )
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As of Trainer, with all gates drawn at once, unless layers are computed again in a
        backward pass of their own (reentrant checkpoints): then each gate draws for itself."""
        if self._checkpointed is None:  # the model is not searched at every step
            self._checkpointed = [
                m for m in model.modules() if hasattr(m, "gradient_checkpointing")
            ]
        draw: AbstractContextManager[object] = (
            nullcontext() if _has_reentrant_checkpoints(self._checkpointed) else self._draw
        )
        with draw:
            loss: torch.Tensor = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
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

    def _penalty_share(self, num_items_in_batch: torch.Tensor | int | None) -> float:
        """The part of the penalty that a micro-batch carries, so that a step carries it once.

        Where the task loss is a mean over the micro-batch, the trainer divides the whole loss by
        the number of micro-batches; where it is a mean over all of them, nobody does.
        """
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None  # type: ignore[attr-defined]
        if not counted and self.compute_loss_func is None:  # type: ignore[attr-defined]
            return 1.0
        return 1.0 / getattr(self, "current_gradient_accumulation_steps", 1)

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
        """Logs, with the gates' summary of the epoch beside the next training loss."""
        if "loss" in logs:
            logs = {**logs, **self._unlogged}
            self._unlogged = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def _gates_used_once(model: nn.Module) -> list[Gate]:
    """The gates behind one side of one layer; shared ones have noise of their own at each use."""
    layers = gated_layers(model).values()
    uses = Counter(leaf for layer in layers for _, gate in layer.gates() for leaf in gate.leaves())
    return [gate for gate, count in uses.items() if count == 1]


def _has_reentrant_checkpoints(modules: Iterable[nn.Module]) -> bool:
    for module in modules:
        if getattr(module, "gradient_checkpointing", False):
            how = getattr(module, "_gradient_checkpointing_func", None)
            return bool(getattr(how, "keywords", {}).get("use_reentrant", True))
    return False


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
        self._watch = GateWatch(model) if gated_layers(model) else None
        self._record(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._watch is not None and state.global_step % self.INTERVAL == 0:
            self._watch.look()

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
