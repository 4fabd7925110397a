"""One training step: task loss, distillation and penalty, correctly weighted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments

from finegates.gates.draw import GateDraw
from finegates.training.distillation import TEACHER_LOGITS, Distillation, logits_of, problem_type
from finegates.training.label_use import label_use
from finegates.training.loss_means import (
    has_other_mask,
    has_uneven_positions,
    labels_of_several_means,
    refuse_other_mask,
    refuse_several_means,
    refuse_uneven_positions,
)
from finegates.training.loss_terms import LossTerms
from finegates.training.micro_batches import (
    StepCut,
    as_whole_batch,
    count_items,
    labels_of,
    total_items,
)


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite."""


class WeighedStep:
    """Mixin for the training step of a Trainer whose loss has several terms.

    Trainer has several conventions for a loss under gradient accumulation and several processes,
    and not every model follows the one assumed for it. Here every micro-batch returns its own mean,
    and :class:`StepCut` gives its weight in the step.

    Attributes:
        gated: whether the model has gates.
        penalty: on the gates, or None.
        penalty_weight: its factor.
        distillation: its settings, or None.
        loss_terms: the terms of the loss, for the log.
    """

    gated: bool
    penalty: Callable[[], torch.Tensor] | None
    penalty_weight: float
    distillation: Distillation | None
    _draw: GateDraw

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.loss_terms = LossTerms()
        self._cut: StepCut | None = None
        self._step_loss: torch.Tensor | None = None
        self._checkpointed: list[nn.Module] | None = None
        super().__init__(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Overrides Trainer; counts the items of the step's micro-batches."""
        batches, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._refuse_data_parallel()
        self._step_loss = None
        self._cut = None if self.is_plain() else self._cut_into(batches)
        return batches, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns task loss + penalty_weight * penalty; in evaluation the task loss.

        With distillation, the task loss in training is mixed with the distance to the teacher. In a
        training step the result is a micro-batch's share of the step's loss.

        Raises:
            KeyError: a training batch without the teacher's logits, with distillation.
            NonFiniteLossError: the loss of a step is NaN or infinite.
            ValueError: in a training step of several micro-batches, the model's loss is a sum of
                means over different items, or reads an attention mask of another shape than its
                labels.
        """
        teacher = None
        if self.distillation is not None:
            inputs = dict(inputs)
            teacher = inputs.pop(TEACHER_LOGITS, None)
            if teacher is None and model.training:
                raise KeyError(
                    f"the batch has no {TEACHER_LOGITS}: make the rows of the training set with "
                    "finegates.with_teacher, and set remove_unused_columns=False"
                )
        if not model.training or self.is_plain():
            result = super().compute_loss(  # type: ignore[misc]
                model,
                inputs,
                return_outputs=return_outputs,
                num_items_in_batch=num_items_in_batch,
            )
            if model.training:
                self._check_finite(result[0] if return_outputs else result)
            return result
        loss, outputs = self._share_of_loss(model, inputs, teacher, num_items_in_batch)
        self._check_finite(loss)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Overrides Trainer; draws all gates at once.

        With reentrant gradient checkpointing, which recomputes layers in their own backward pass,
        each gate draws independently.
        """
        if self.is_plain():
            plain: torch.Tensor = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
            return plain
        if self._checkpointed is None:  # avoids a search of the model at every step
            self._checkpointed = [
                m for m in model.modules() if hasattr(m, "gradient_checkpointing")
            ]
        draw: AbstractContextManager[object] = (
            nullcontext() if _has_reentrant_checkpoints(self._checkpointed) else self._draw
        )
        parts = getattr(self, "current_gradient_accumulation_steps", 1)
        alone = self._cut is None
        if self._cut is None:
            self._cut = StepCut(parts)
        # The loss is this micro-batch's share already; Trainer must not divide it again.
        self.current_gradient_accumulation_steps = 1
        try:
            with draw:
                loss: torch.Tensor = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.current_gradient_accumulation_steps = parts
            if alone or self.accelerator.sync_gradients:  # type: ignore[attr-defined]
                self._cut = None
        return loss

    def is_plain(self) -> bool:
        """Whether Trainer's own step suffices."""
        return not self.gated and self.distillation is None

    def _refuse_data_parallel(self) -> None:
        """Raises ValueError for ``nn.DataParallel``, whose replicas draw their own noise."""
        arguments: TrainingArguments = self.args  # type: ignore[attr-defined]
        if arguments.n_gpu > 1 and not self.is_plain():
            raise ValueError(
                f"Trainer would train on {arguments.n_gpu} GPUs with nn.DataParallel, whose copies "
                "of a model draw different gates and weight their rows wrongly; start the program "
                "with torchrun --nproc-per-node, or let it see one GPU (CUDA_VISIBLE_DEVICES=0)"
            )

    def _cut_into(self, batches: list[dict[str, Any]]) -> StepCut:
        arguments: TrainingArguments = self.args  # type: ignore[attr-defined]
        use = label_use(self.model)  # type: ignore[attr-defined]
        totals = total_items(batches, use, arguments.device)
        uneven = totals.new_zeros(1)
        for batch in batches:
            uneven += has_uneven_positions(batch).to(totals.device)
        processes = self._averaging_processes()
        if processes > 1:  # all processes raise if one does, so that none waits for it
            together = torch.cat([totals, uneven])
            together = self.accelerator.reduce(together, reduction="sum")  # type: ignore[attr-defined]
            totals, uneven = together[:2], together[2:]
        return StepCut(max(1, len(batches)), totals, processes, uneven=bool(uneven))

    def _check_one_mean(self, inputs: dict[str, Any], cut: StepCut) -> None:
        """Raises ValueError if the loss of a micro-batch needs several weights.

        A loss outside the model (of the user, or of label smoothing) is one mean.
        """
        if cut.is_whole or self.compute_loss_func is not None:  # type: ignore[attr-defined]
            return
        takes_loss = getattr(super().compute_loss, "__func__", None)  # type: ignore[misc]
        smooths = self.label_smoother is not None and "labels" in inputs  # type: ignore[attr-defined]
        if takes_loss is not Trainer.compute_loss or smooths:
            return
        model: nn.Module = self.model  # type: ignore[attr-defined]
        several = labels_of_several_means(inputs, model, self.label_names)  # type: ignore[attr-defined]
        if several:
            refuse_several_means(several, model)
        use = label_use(model)
        if has_other_mask(inputs, use):
            refuse_other_mask(model)
        if cut.uneven or (cut.totals is None and bool(has_uneven_positions(inputs))):
            refuse_uneven_positions(model)

    def _averaging_processes(self) -> int:
        """Number of processes whose items are counted together."""
        averages = self.args.average_tokens_across_devices  # type: ignore[attr-defined]
        return self.accelerator.num_processes if averages else 1  # type: ignore[attr-defined]

    def _share_of_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        teacher: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any]:
        """Returns a micro-batch's share of the step's loss, and the model's outputs.

        The model gets the micro-batch's own item count. It then returns the mean over the
        micro-batch, whether it divides by this count or ignores it.
        """
        self._check_one_mean(inputs, self._cut or StepCut())
        counts = count_items(inputs, label_use(self.model))  # type: ignore[attr-defined]
        labelled = labels_of(inputs) is not None
        names_labels = "labels" in inputs
        with as_whole_batch(self.args):  # type: ignore[attr-defined]
            task, outputs = super().compute_loss(  # type: ignore[misc]
                model,
                inputs,
                return_outputs=True,
                num_items_in_batch=counts[0].clamp(min=1) if labelled else None,
            )
        counts = counts.to(task.device)
        cut = self._cut or StepCut()
        if cut.totals is None and num_items_in_batch is not None:
            cut = cut.with_items(num_items_in_batch, counts, self._averaging_processes())
        of_items, of_rows = cut.weights(counts, task.dtype)
        # A model's mean over no items is NaN.
        loss = task = of_items * torch.where(counts[0] > 0, task, 0.0)
        terms = {"task_loss": task}
        if teacher is not None:
            assert self.distillation is not None
            behind_loss = not names_labels or "labels" in inputs
            logits = logits_of(outputs, behind_loss=behind_loss)
            kind = problem_type(self.model)  # type: ignore[attr-defined]
            distance = of_rows * self.distillation.distance(logits, teacher, kind)
            share = self.distillation.weight
            loss = (1 - share) * task + share * distance
            terms["teacher_distance"] = distance
        if self.penalty is not None:
            penalty = cut.even_share * self.penalty().to(loss.device)
            loss = loss + self.penalty_weight * penalty
            terms["penalty"] = penalty
        if self._cut is not None:
            self.loss_terms.add(self.state.global_step, **terms)  # type: ignore[attr-defined]
        return loss, outputs

    def _check_finite(self, loss: torch.Tensor) -> None:
        """Raises NonFiniteLossError before the last backward pass of a step.

        All processes raise if one of them must, because it spoils the gradients of all.
        """
        share = loss.detach().sum()  # several values with nn.DataParallel
        total = share if self._step_loss is None else self._step_loss + share
        self._step_loss = total
        accelerator = self.accelerator  # type: ignore[attr-defined]
        if not accelerator.sync_gradients:
            return
        self._step_loss = None
        if accelerator.num_processes > 1 and self.is_in_train:  # type: ignore[attr-defined]
            total = accelerator.reduce(total, reduction="sum")
        value = total.item()
        if not math.isfinite(value):
            state: TrainerState = self.state  # type: ignore[attr-defined]
            raise NonFiniteLossError(
                f"loss is {value} at step {state.global_step} (epoch {state.epoch}); try a lower "
                "learning rate, a longer warm-up, or float32 instead of half precision"
            )


def _has_reentrant_checkpoints(modules: Iterable[nn.Module]) -> bool:
    for module in modules:
        if getattr(module, "gradient_checkpointing", False):
            how = getattr(module, "_gradient_checkpointing_func", None)
            return bool(getattr(how, "keywords", {}).get("use_reentrant", True))
    return False
