"""Training with gates: a mixin for ``transformers.Trainer``, and the trainer."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finegates.gates.config import GateConfig
from finegates.gates.draw import GateDraw
from finegates.gates.gate import Gate
from finegates.gates.gated_linear import gated_layers, leaf_gates
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.monitor import closed_fraction
from finegates.gates.open_fractions import SparsityPenalty
from finegates.gates.parts import gated_parts
from finegates.gates.penalty import JointPenalty, penalty_of
from finegates.model_argument import check_model
from finegates.training.called import CalledLayers
from finegates.training.checkpoints import GatedCheckpoints
from finegates.training.closable import check_held, check_not_frozen, warn_of_gates_that_stay_open
from finegates.training.distillation import Distillation
from finegates.training.gate_history import GateHistory
from finegates.training.gate_schedule import GateSchedule
from finegates.training.optimizer_groups import GROUPS, all_trained, parameter_groups, split_by_kind
from finegates.training.shrinking import check_optimizer, check_training, shrink, shrinks
from finegates.training.step import NonFiniteLossError, WeighedStep

__all__ = [
    "GROUPS",
    "GateTrainer",
    "GateTrainerMixin",
    "NonFiniteLossError",
    "parameter_groups",
]

logger = logging.getLogger(__name__)


class GateTrainerMixin(GatedCheckpoints, WeighedStep):
    """Adds penalty, learning rates by kind, and gate metrics to a Trainer.

    Without gates and without these arguments it adds only the NaN check, and warns. The penalty
    follows the configuration of ``finegates.attach``. The weights of task loss, teacher and penalty
    do not depend on how a step's batch is split into micro-batches and over processes. After each
    epoch a summary of the gates is appended to ``gate_history`` and logged under ``gates/...``.

    Penalty, draws and schedule cover the gates that the model has when a training begins, in
    any of its parts. The penalties of several gated parts are summed. Checkpoints and saved
    models hold the whole gated model, adapters of ``peft`` included; :func:`finegates.load`
    reads them without the original weights.

    With shared gates, ``GateConfig.schedule`` sets when the budget is met and when the choice
    of closed gates is final. A final choice stays final in a further training.

    Args:
        learning_rates: rates of parameter groups (a subset of ``GROUPS``) that differ from the
            optimizer's; the scheduler scales all of them.
        distillation: settings of the distillation from a teacher, whose logits are in the rows of
            the training set (``finegates.with_teacher``); needs ``remove_unused_columns=False``.
        expect_gates: warn if the model has no gates when a training begins; False for baselines.

    Raises:
        ValueError: an unknown group; ``learning_rates`` together with ``optimizers``; shared gates
            with ``load_best_model_at_end``; gates or distillation on several GPUs of one process;
            an optimizer that was made before the gates; shared gates that are frozen before the
            choice of closed ones is final; gated layers that no step of the first epoch calls;
            with ``GateConfig(shrink=True)``, FSDP, DeepSpeed,
            ``torch_compile``, or an optimizer whose state cannot be cut; on resuming, a checkpoint
            of other gates, or a corrupt one (``GatedFormatError``).
        KeyError: in training with distillation, rows without the teacher's logits.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *args: Any,
        learning_rates: dict[str, float] | None = None,
        distillation: Distillation | None = None,
        expect_gates: bool = True,
        **kwargs: Any,
    ) -> None:
        unknown = set(learning_rates or {}) - set(GROUPS)
        if unknown:
            raise ValueError(f"unknown parameter groups {sorted(unknown)}; known: {list(GROUPS)}")
        self.learning_rates = dict(learning_rates or {})
        self.distillation = distillation
        model = args[0] if args else kwargs.get("model")
        if model is not None:
            check_model(model)
        super().__init__(*args, **kwargs)
        if self.learning_rates and self.optimizer is not None:
            raise ValueError(
                f"learning_rates of {sorted(self.learning_rates)} next to a given optimizer would "
                "not be used: give its groups these rates, or leave optimizers out"
            )
        self.expect_gates = expect_gates
        self.history = GateHistory()
        self.gate_history = self.history.entries
        self._counted: int | None = None
        self._has_warned = False
        self._bound: list[object] = []
        self.penalties: list[tuple[GateConfig, SparsityPenalty | MacsPenalty]] = []
        self._schedule = GateSchedule(self._remove_closed)
        self._bind()
        self.add_callback(self._schedule)  # type: ignore[attr-defined]
        self.add_callback(self.history)  # type: ignore[attr-defined]
        self.add_callback(_TermsLog(self))  # type: ignore[attr-defined]
        self._called = CalledLayers(self._summed)
        self.add_callback(self._called)  # type: ignore[attr-defined]

    def _bind(self) -> None:
        """Sets penalty, schedule and draws from the current model.

        Raises:
            ValueError: shared gates with ``load_best_model_at_end``.
        """
        model: nn.Module = self.model  # type: ignore[attr-defined]
        parts = gated_parts(model)
        gates = leaf_gates(model)
        bound: list[object] = [model, *gates, *(config for _, config in parts.values())]
        if len(bound) != len(self._bound) or any(
            now is not then for now, then in zip(bound, self._bound, strict=True)
        ):
            self._counted = self._checkpointed = None
            self.penalties = [(config, penalty_of(part, config)) for part, config in parts.values()]
            self.penalty, self.penalty_weight = _joined(self.penalties)
            self._schedule.lead(
                (penalty, config.schedule, config.finals())
                for config, penalty in self.penalties
                if isinstance(penalty, MacsPenalty)
            )
            self.gated = bool(gates)
            self.shrinks = shrinks(model)
            self._draw = GateDraw(_gates_used_once(model))
            self._bound = bound
        self._refuse_data_parallel()
        if any(isinstance(penalty, MacsPenalty) for _, penalty in self.penalties):
            self._prepare(self.args)  # type: ignore[attr-defined]

    def _remove_closed(self) -> None:
        """Removes what was closed for good before this step, where the configuration asks for it.

        Called by the schedule.
        """
        model: nn.Module = self.model  # type: ignore[attr-defined]
        if self.shrinks:
            wrapped: nn.Module = self.model_wrapped  # type: ignore[attr-defined]
            if shrink(model, wrapped, self.optimizer):
                self._counted = None

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Overrides Trainer; binds the gates of the current model first.

        ``model_init`` may have made another model, and gates may have been attached or detached
        since the trainer was made.
        """
        self._bind()
        self._check_optimizer()
        check_not_frozen(penalty for _, penalty in self.penalties)
        self._has_warned = False
        model: nn.Module = self.model  # type: ignore[attr-defined]
        self.history.watch(model, self.penalty, self.resumed)
        compiled = bool(self.args.torch_compile)  # type: ignore[attr-defined]
        with self._called.watching(model, compiled=compiled):
            output = super()._inner_training_loop(*args, **kwargs)  # type: ignore[misc]
        if self.gated and self.is_world_process_zero():  # type: ignore[attr-defined]
            logger.info("%s", self._what_came_of_it())
        return output

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        total: torch.Tensor = self.accelerator.reduce(values, reduction="sum")  # type: ignore[attr-defined]
        return total

    def _what_came_of_it(self) -> str:
        """One line for the log after a training: steps, closed gates, MACs."""
        model: nn.Module = self.model  # type: ignore[attr-defined]
        steps: int = self.state.global_step  # type: ignore[attr-defined]
        text = (
            f"trained {steps} steps: {100 * closed_fraction(model):.1f} % of the gates are closed"
        )
        if isinstance(self.penalty, MacsPenalty):
            text += (
                f", {100 * self.penalty.realised():.1f} % of the {self.penalty.unit} kept "
                f"(goal {100 * (1 - self.penalty.target):g} %)"
            )
        return text

    def _check_optimizer(self) -> None:
        """Raises ValueError if an existing optimizer would not train the gates."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # type: ignore[attr-defined]
        if self.shrinks:
            compiled = bool(self.args.torch_compile)  # type: ignore[attr-defined]
            check_training(sharded=sharded, compiled=compiled)
        if self.optimizer is None or sharded:
            return
        if self.shrinks:
            check_optimizer(self.optimizer)
        check_held(self.optimizer, self.model)  # type: ignore[attr-defined]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Overrides WeighedStep to warn once of gates that cannot close."""
        # Callbacks may have changed the model at the start of the training.
        if not self._has_warned:
            self._has_warned = True
            warn_of_gates_that_stay_open(
                self.model,  # type: ignore[attr-defined]
                self._bound,
                expect_gates=self.expect_gates,
            )
        return super().get_batch_samples(*args, **kwargs)

    def _prepare(self, arguments: TrainingArguments) -> None:
        """Checks the arguments, and prepares training on several devices."""
        if arguments.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end may restore a checkpoint whose gates had not met the "
                "budget; leave it off, and compare checkpoints of the last part of the training, "
                "in which the choice of closed gates is final"
            )
        # Latents of a final choice have no gradient that processes could wait for.
        arguments.ddp_find_unused_parameters = True
        # transformers 5 has read the arguments already.
        handler = getattr(self.accelerator, "ddp_handler", None)  # type: ignore[attr-defined]
        if handler is not None:
            handler.find_unused_parameters = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Overrides Trainer to split the groups by kind of parameter.

        Weight decay is that of Trainer, except that gates have none.

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
        if self.shrinks:
            check_optimizer(optimizer)
        if self.learning_rates or gated_layers(trained):
            split_by_kind(optimizer, trained, self.learning_rates)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Overrides WeighedStep to pass the step's gradients to the schedule."""
        loss = super().training_step(*args, **kwargs)
        accelerator: Any = self.accelerator  # type: ignore[attr-defined]
        if self._schedule is not None and accelerator.sync_gradients:
            self._schedule.on_gradients(accelerator.scaler)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Overrides Trainer, which would count all parameters at every step."""
        model: nn.Module = self.model  # type: ignore[attr-defined]
        tokens = inputs.get(getattr(model, "main_input_name", "input_ids"))
        if tokens is None or not tokens.numel():
            return 0
        if self._counted is None:
            self._counted = super().floating_point_ops(inputs) // tokens.numel()  # type: ignore[misc]
        return int(self._counted * tokens.numel())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs values with the terms of the loss and the state of the gates.

        ``loss`` is ``task_loss + penalty_weight * penalty``, with distillation
        ``(1 - weight) * task_loss + weight * teacher_distance + penalty_weight * penalty``: means
        over the same optimizer steps, over all processes. ``macs_kept`` is the fraction that shared
        gates keep, with ``GateConfig.cost`` ``time_kept`` that of the predicted time,
        ``gates_closed`` that of gates that are closed. The gates' summary of an epoch is in the
        next log.
        """
        if "loss" in logs:
            logs = {**logs, **self._terms_and_gates()}
        if "loss" in logs or "train_loss" in logs:
            logs = {**logs, **self.history.unlogged}
            self.history.unlogged = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _terms_and_gates(self) -> dict[str, float]:
        accelerator = self.accelerator  # type: ignore[attr-defined]
        found = self.loss_terms.take(
            self.state.global_step,  # type: ignore[attr-defined]
            lambda terms: accelerator.reduce(terms, reduction="mean"),
        )
        model: nn.Module = self.model  # type: ignore[attr-defined]
        if isinstance(self.penalty, MacsPenalty):
            timed = self.penalty.timer is not None
            found["time_kept" if timed else "macs_kept"] = self.penalty.realised()
        if gated_layers(model):
            found["gates_closed"] = closed_fraction(model)
        return found


def _joined(
    penalties: list[tuple[GateConfig, SparsityPenalty | MacsPenalty]],
) -> tuple[SparsityPenalty | MacsPenalty | JointPenalty | None, float]:
    """Combines the penalties into one, with its weight."""
    if not penalties:
        return None, 0.0
    if len(penalties) == 1:
        ((config, penalty),) = penalties
        return penalty, config.penalty_weight
    return JointPenalty([(config.penalty_weight, penalty) for config, penalty in penalties]), 1.0


def _gates_used_once(model: nn.Module) -> list[Gate]:
    """Gates with exactly one use, and of residual streams; others draw new noise at each use."""
    layers = gated_layers(model).values()
    uses = Counter(leaf for layer in layers for _, gate in layer.gates() for leaf in gate.leaves())
    return [g for g, count in uses.items() if count == 1 or getattr(g, "of_stream", False)]


class _TermsLog(TrainerCallback):
    """Callback that resets the terms of the loss at the start and logs the last ones."""

    def __init__(self, trainer: GateTrainerMixin) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.loss_terms.reset()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Logs the steps since the last full interval.
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last and args.logging_strategy == "steps" and not self._trainer.is_plain():
            control.should_log = True


class GateTrainer(GateTrainerMixin, Trainer):
    """``Trainer`` with :class:`GateTrainerMixin`, for models with gates."""
