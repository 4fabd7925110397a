"""Fine-tuning with gates for ``finegates shrink``."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    DataCollatorWithPadding,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import finegates as fg
from finegates.adapters import unwrap
from finegates.budget import planned_macs
from finegates.cli.examples import Examples
from finegates.cli.failures import CommandError
from finegates.cli.resumption import SealedCheckpoints
from finegates.seeds import derive_seed

Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Settings of ``finegates shrink``.

    Attributes:
        target: the fraction of the MACs to remove, in (0, 1); with ``target_time``, of the time.
        epochs: over the training rows.
        batch_size: sequences of a step.
        max_length: tokens after which a text is truncated; also the length at which MACs are
            counted.
        learning_rate: initial value, which decays linearly to zero.
        gate_learning_rate: the same for the gates.
        seed: of the head, the gates, the order of the rows, dropout and noise.
        lora: rank of the LoRA adapters inside the gates, or None.
        uniform: whether all layers keep equal sizes, see ``finegates.GateConfig``.
        inner: whether only heads and feed-forward dimensions are closed.
        width: whether hidden dimensions of the whole model are closed, too.
        parts: whether parts are closed as a whole, too.
        shrink: whether the running model loses what is closed for good.
        target_time: the fraction of the time that stays; None for a budget on MACs.
    """

    target: float
    epochs: int
    batch_size: int
    max_length: int
    learning_rate: float
    gate_learning_rate: float
    seed: int
    lora: int | None
    uniform: bool = False
    inner: bool = False
    width: bool = False
    parts: bool = False
    shrink: bool = False
    target_time: float | None = None

    def settings(self) -> dict[str, Any]:
        """The settings that identify a run.

        Options that are off are left out: results from before an option have the same settings.
        Of the two fractions there is the one that was given.
        """
        other = "target_time" if self.target_time is None else "target"
        return {
            key: value for key, value in vars(self).items() if value is not False and key != other
        }

    def gates(self, cost: fg.CostModel | None = None) -> fg.GateConfig:
        """The configuration of the gates.

        Args:
            cost: the cost model of a budget on time.

        Raises:
            ValueError: options exclude each other.
        """
        return fg.GateConfig(
            preset="structured",
            target=self.target if self.target_time is None else None,
            sequence_length=self.max_length,
            seed=self.seed_of("gates"),
            dimensions="inner" if self.inner else "all",
            uniform=self.uniform,
            width=self.width,
            parts=self.parts,
            shrink=self.shrink,
            target_time=self.target_time,
            cost=cost,
        )

    def seed_of(self, what: str) -> int:
        """The seed of one random stream."""
        return derive_seed("shrink", what, self.seed)

    def steps(self, rows: int) -> int:
        """Optimizer steps of a training."""
        return self.epochs * -(-rows // self.batch_size)


def device() -> torch.device:
    """The device for training and evaluation: the only GPU, or the CPU.

    Raises:
        CommandError: several GPUs are visible. The trainer would split each batch between copies of
            the model, whose gates would differ.
    """
    count = torch.cuda.device_count()
    if count > 1:
        raise CommandError(
            f"{count} GPUs are visible, and one is used; set CUDA_VISIBLE_DEVICES to its number"
        )
    return torch.device("cuda" if count else "cpu")


def encode(tokenizer: Any, examples: Examples, max_length: int) -> list[Row]:
    """Rows of token ids and label."""
    texts = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    return [
        {**{key: values[place] for key, values in encoded.items()}, "labels": label}
        for place, label in enumerate(examples.labels)
    ]


def fit_tokenizer(tokenizer: Any, model: Any) -> None:
    """Aligns the padding of tokenizer and model, and checks the vocabulary.

    Raises:
        CommandError: the tokenizer has more tokens than the model, or no padding token.
    """
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise CommandError(
            f"the tokenizer has {len(tokenizer)} tokens, {type(model).__name__} embeddings of "
            f"{size}; save the tokenizer that belongs to the model next to it"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CommandError(
                "the tokenizer has no padding token; set tokenizer.pad_token and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if (
        model.config.pad_token_id is None
    ):  # classifiers on decoders read the last token that is not padding
        model.config.pad_token_id = tokenizer.pad_token_id


def check_gates(model: nn.Module, recipe: Recipe, cost: fg.CostModel | None = None) -> None:
    """Raises what :func:`with_gates` would raise; the model does not change."""
    parameters = list(model.parameters())
    trained = [parameter.requires_grad for parameter in parameters]
    memo: dict[int, Any] = {id(t): t for t in (*parameters, *model.buffers())}
    try:
        with_gates(copy.deepcopy(model, memo), recipe, cost)
    finally:
        for parameter, trains in zip(parameters, trained, strict=True):
            parameter.requires_grad_(trains)


def with_gates(model: nn.Module, recipe: Recipe, cost: fg.CostModel | None = None) -> nn.Module:
    """Adds LoRA, if requested, and gates to a model, in place; returns the model."""
    set_seed(recipe.seed_of("adapters"))
    if recipe.lora is not None:
        model = fg.add_lora(model, rank=recipe.lora)
    # Without the wrapper of peft, whose checkpoints would contain adapters but no gates.
    return unwrap(fg.attach(model, recipe.gates(cost)))


def train(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    recipe: Recipe,
    folder: Path,
    *,
    checkpoint: Path | None,
    every: int | None,
    distillation: fg.Distillation | None,
) -> nn.Module:
    """Trains a model with gates until it meets its budget.

    Args:
        model: with gates.
        tokenizer: of the rows.
        rows: from :func:`encode`, with the teacher's logits if there is one.
        recipe: the settings.
        folder: for the checkpoints.
        checkpoint: to continue from, or None.
        every: steps between checkpoints; None saves at the end of each epoch.
        distillation: its settings, or None.

    Returns:
        the same model, in evaluation mode.
    """
    seed = recipe.seed_of("training")
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        seed=seed,
        data_seed=seed,
        save_strategy="epoch" if every is None else "steps",
        save_steps=500 if every is None else every,
        # A kill can leave the last checkpoint incomplete, so the one before is kept.
        save_total_limit=2,
        logging_strategy="steps",
        # Also in an epoch of fewer steps, whose end then has a loss to show.
        logging_steps=max(1, min(10, recipe.steps(len(rows)) // recipe.epochs)),
        use_cpu=device().type == "cpu",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        # Rows contain the model's inputs, and the teacher's logits if there is one.
        remove_unused_columns=False,
    )
    trainer = fg.GateTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        learning_rates={"gates": recipe.gate_learning_rate},
        distillation=distillation,
    )
    for callback in trainer.callback_handler.callbacks.copy():
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(callback)
    trainer.add_callback(SealedCheckpoints())
    trainer.add_callback(_Progress(recipe.max_length))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trained: nn.Module = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return trained.eval()


@torch.inference_mode()
def predict(model: nn.Module, tokenizer: Any, rows: Sequence[Row], batch_size: int) -> np.ndarray:
    """Evaluation logits (rows, outputs), float32, in the order of the rows."""
    model.eval()
    device = next(model.parameters()).device
    # Sorted by length, so that batches need little padding.
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))
    collected = []
    for start in tqdm(
        range(0, len(rows), batch_size), desc="evaluating", leave=False, disable=None
    ):
        places = order[start : start + batch_size]
        inputs = collate(tokenizer, [rows[place] for place in places])
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        collected.append(model(**inputs).logits.float().cpu())
    logits: np.ndarray = torch.cat(collected)[
        torch.tensor(order, dtype=torch.int64, device="cpu").argsort()
    ].numpy()
    return logits


def collate(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of rows, padded to the longest, without labels."""
    plain = [{name: row[name] for name in row if name != "labels"} for row in rows]
    batch: dict[str, torch.Tensor] = dict(DataCollatorWithPadding(tokenizer)(plain))
    return batch


class _Progress(TrainerCallback):
    """Shows the loss and the kept MACs.

    A terminal gets a bar over all steps, other outputs a line after each epoch.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._dense = 1
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        self._dense = fg.macs(model, 1, self._length).total
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="training", disable=None
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.update(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            kept = planned_macs(model, 1, self._length).total / self._dense
            self._shown = {"loss": f"{logs['loss']:.3f}", "MACs left": f"{100 * kept:.0f} %"}
            self._bar.set_postfix(self._shown)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar.disable:
            shown = ", ".join(f"{name} {value}" for name, value in self._shown.items())
            print(
                f"epoch {state.epoch:.0f} of {state.num_train_epochs}: {shown}",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.close()
