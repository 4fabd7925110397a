"""One run: fine-tune, evaluate and compact a model, then return a record."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from finegates.budget import macs
from finegates.compaction import compact
from finegates.gates.gated_linear import gated_layers
from finegates.gates.monitor import closed_counts
from finegates.seeds import derive_seed, seed_everything
from finegates.suite.baselines.two_of_four import MaskSchedule, fold_masks, zero_fraction
from finegates.suite.config.methods import Method
from finegates.suite.config.tasks import task_named
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import (
    describe_data,
    describe_model,
    load_classifier,
    load_tokenizer,
    read_table,
)
from finegates.suite.runs.machine import code_version, hardware, package_versions, peak_memory_mib
from finegates.suite.runs.metrics import GlueMetric, predictions_from_logits, score
from finegates.suite.runs.predictions import write_predictions
from finegates.suite.runs.preparation import prepare, with_target
from finegates.suite.runs.record import (
    CompactResult,
    Epoch,
    GateSummary,
    QuotedTraining,
    Record,
    RunConfig,
    TaskTables,
)
from finegates.suite.runs.run_record import Code, Hardware, Model, measured_budget
from finegates.suite.runs.smaller_start import keep_layers, prune_once
from finegates.suite.runs.step_timer import StepTimer
from finegates.suite.runs.trained_weights import write_trained
from finegates.training.distillation import Distillation, with_teacher
from finegates.training.trainer import GateTrainer

# Tables report MACs at this shape, so that tasks with different lengths are comparable.
MACS_BATCH, MACS_LENGTH = 1, 128


class TaskData:
    """A task's splits, tokenized once for all runs on it.

    Attributes:
        task: GLUE's name.
        train: rows of token ids and label, in the source's order.
        validation: the same, longest first, so that evaluation batches need little padding.
        places: position of each row of ``validation`` in the source, shape (rows,).
        labels: labels in the order of ``validation``, shape (rows,).
        rows: number of rows used, by split.
    """

    def __init__(self, tier: Tier, task: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.train = self._encode(tier, "train")
        found = self._encode(tier, "validation")
        order = sorted(range(len(found)), key=lambda place: -len(found[place]["input_ids"]))
        self.validation = [found[place] for place in order]
        self.places = np.asarray(order)
        self.labels = np.asarray([row["labels"] for row in self.validation])
        self.rows = {"train": len(self.train), "validation": len(self.validation)}

    def _encode(self, tier: Tier, split: str) -> list[dict[str, Any]]:
        table = read_table(tier, self.task, split).to_pydict()
        texts = [table[column] for column in task_named(self.task).columns]
        encoded = self.tokenizer(*texts, truncation=True, max_length=tier.training.max_length)
        keys = list(encoded)
        return [
            {**{key: encoded[key][i] for key in keys}, "labels": label}
            for i, label in enumerate(table["label"])
        ]


def finetune(
    tier: Tier,
    data: TaskData,
    label: str,
    seed: int,
    *,
    matched: Record | None = None,
    start: str | Path | None = None,
    keep: str | Path | None = None,
    predictions: str | Path | None = None,
    root: Path = Path(),
    code_digest: str | None = None,
    startup_s: float = 0.0,
    progress: bool = False,
) -> Record:
    """Runs one method on one task with one seed.

    Data order, dropout, noise and initial weights are seeded by the names of task and method and by
    the seed. The head has the same initial weights for every method, so that differences between
    methods are paired.

    Args:
        tier: configuration.
        data: the task's splits.
        label: the method's label in ``tier.all_methods``.
        seed: one of ``tier.seeds``.
        matched: the record to match: magnitude pruning matches its numbers of closed rows and
            columns, shared gates and shared groups match its MACs.
        start: weights that an earlier run saved: those of a teacher, or gates to continue with.
        keep: where to save the trained weights (safetensors), see :func:`write_trained`.
        predictions: where to write the predictions of the last and the best epoch, see
            :func:`finegates.suite.runs.predictions.write_predictions`.
        root: the repository, for the commit in the record.
        code_digest: digest of the source files behind the run, for the record.
        startup_s: this run's share of the process's start-up time, in seconds.
        progress: show a progress bar.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        ValueError: the method needs ``matched`` or ``start``, and it is None.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    code = code_version(root)  # read first: the checkout may change while the run trains
    method = with_target(tier.all_methods[label], matched)
    if method.start is not None and start is None:
        raise ValueError(f"this method needs what the run of {method.start!r} kept")
    seeds = {
        "init": derive_seed(data.task, seed, "init"),
        "method": derive_seed(data.task, seed, "method"),
        "train": derive_seed(data.task, seed, "train"),
    }
    torch.set_num_threads(tier.threads)
    pretrained = load_classifier(tier, data.task, seeds["init"], method.init)
    described = describe_model(tier, pretrained)
    dense_macs = macs(pretrained, MACS_BATCH, MACS_LENGTH).total
    train_rows: Sequence[Mapping[str, Any]] = data.train
    distillation = None
    if start is not None and method.start is not None and method.continues is None:
        load_model(pretrained, start)
    if method.distillation is not None:
        with torch.autocast("cpu", torch.bfloat16, enabled=_in_bfloat16(tier, method)):
            train_rows = with_teacher(data.train, predict(pretrained, data.tokenizer, data.train))
        distillation = Distillation(method.distillation.weight, method.distillation.temperature)
    seed_everything(seeds["method"])
    earlier = start if method.continues is not None else None
    if method.layers is not None:
        keep_layers(pretrained, method.layers.kept)
    model = prepare(pretrained, method, seeds["method"], matched, earlier)
    if method.prune is not None:
        collator = DataCollatorWithPadding(data.tokenizer)
        drawn = derive_seed(data.task, seed, "calibration")
        prune_once(model, method.prune, data.train, collator, MACS_LENGTH, drawn, progress)
    # Counted before training: hardened gates do not require gradients at the end.
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)

    metric = GlueMetric(data.task)
    evaluated: list[np.ndarray] = []

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = (
            np.asarray(given[0] if isinstance(given, tuple) else given)
            for given in (prediction.predictions, prediction.label_ids)
        )
        evaluated.append(logits)
        return _metrics(data.task, metric, logits, labels)

    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GateTrainer(
            model=model,
            args=_training_arguments(tier, data.task, method, seeds["train"], folder, progress),
            train_dataset=train_rows,
            eval_dataset=data.validation,
            data_collator=DataCollatorWithPadding(data.tokenizer),
            processing_class=data.tokenizer,
            compute_metrics=compute_metrics,
            callbacks=[timer, *([MaskSchedule(model)] if method.mask else [])],
            learning_rates=_learning_rates(method),
            distillation=distillation,
            expect_gates=method.gates is not None,
        )
        train_start = time.perf_counter()
        trainer.train()
        train_s = time.perf_counter() - train_start

    # Remove the trainer's autocast: in float32, only compaction separates gated and compact.
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    epochs = _epochs(data.task, trainer)
    best = max(epochs, key=lambda epoch: epoch.score)
    written = None
    if predictions is not None:
        logits_of = dict(zip((epoch.epoch for epoch in epochs), evaluated, strict=True))
        chosen = {"last": logits_of[epochs[-1].epoch], "best": logits_of[best.epoch]}
        written = write_predictions(predictions, data.task, data.places, data.labels, chosen)
    if keep is not None:
        write_trained(model, keep, whole=method.trains_all)
    if method.mask is not None:
        fold_masks(model)
    counted = measured_budget(model, trainable, MACS_BATCH, MACS_LENGTH)
    # The dense model has all layers, also for methods that drop some.
    counted = counted.model_copy(
        update={"macs": counted.macs.model_copy(update={"dense": dense_macs})}
    )
    if method.mask is not None:
        counted = counted.model_copy(update={"masked_fraction": zero_fraction(model)})
    shrunk = None
    if gated_layers(model):
        small = compact(model)
        logits = predict(small, data.tokenizer, data.validation)
        difference = logits - predict(model, data.tokenizer, data.validation)
        shrunk = CompactResult(
            score=score(data.task, _metrics(data.task, metric, logits.numpy(), data.labels)),
            max_abs_logit_difference=float(difference.abs().max()),
            parameters=sum(p.numel() for p in small.parameters()),
            encoder_macs=macs(small, MACS_BATCH, MACS_LENGTH).total,
        )
    return Record(
        tier=tier.tier,
        task=data.task,
        method=label,
        seed=seed,
        config=RunConfig(
            **method.model_dump(mode="json")
            | {"learning_rate": method.rate, "gate_learning_rate": method.gate_rate},
            training=QuotedTraining(
                **tier.training.model_dump()
                | {"epochs": tier.training.epochs_of(data.task) * method.epochs_factor}
            ),
            tier_description=tier.description,
        ),
        seeds=seeds,
        code=Code(**code, digest=code_digest),
        model=Model(**described),
        data=TaskTables(**describe_data(tier, data.task, data.rows)),
        versions=package_versions(),
        hardware=Hardware(**hardware(tier.threads)),
        epochs=epochs,
        last=epochs[-1],
        best=best,
        budget=counted,
        realised_sparsity=counted.realised_sparsity,
        closed=closed_counts(model),  # type: ignore[arg-type]
        compact=shrunk,
        predictions=written,
        timing={
            "wall_s": time.perf_counter() - began,
            "cpu_s": time.process_time() - cpu_began,
            "train_s": train_s,
            "startup_s": startup_s,
            "step_ms": 1e3 * timer.median(),
            "peak_memory_mib": peak_memory_mib(),
        },
    )


@torch.inference_mode()
def predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 64,
) -> torch.Tensor:
    """Evaluation logits of a classifier in the order of the rows.

    Returns:
        float32 on the CPU, shape (rows, outputs).
    """
    model.eval()
    device = next(model.parameters()).device
    collate = DataCollatorWithPadding(tokenizer)
    # Sort by length to reduce padding.
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))
    collected = []
    for start in range(0, len(rows), batch_size):
        batch = collate([dict(rows[place]) for place in order[start : start + batch_size]])
        inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
        collected.append(model(**inputs).logits.float().cpu())
    return torch.cat(collected)[torch.tensor(order).argsort()]


def _training_arguments(
    tier: Tier, task: str, method: Method, seed: int, folder: str, progress: bool
) -> TrainingArguments:
    training = tier.training
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=training.epochs_of(task) * method.epochs_factor,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.eval_batch_size,
        learning_rate=method.rate,
        weight_decay=training.weight_decay,
        lr_scheduler_type=_schedule(method, training.schedule),
        warmup_steps=method.warmup,
        # The protocol does not clip; Trainer's default would clip the penalty's gradient.
        max_grad_norm=0.0,
        bf16=_in_bfloat16(tier, method),
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        seed=seed,
        data_seed=seed,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=not progress,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        # Rows hold the model's inputs and, with distillation, the teacher's logits.
        remove_unused_columns=False,
    )


def _schedule(method: Method, default: str) -> str:
    schedule = method.schedule or default
    return "constant_with_warmup" if schedule == "constant" and method.warmup else schedule


def _in_bfloat16(tier: Tier, method: Method) -> bool:
    return (method.precision or tier.training.precision) == "bfloat16"


def _learning_rates(method: Method) -> dict[str, float]:
    rates = {"gates": method.gate_rate, "head": method.head_learning_rate}
    return {group: rate for group, rate in rates.items() if rate is not None}


def _metrics(
    task: str, metric: GlueMetric, logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    predictions = predictions_from_logits(task, logits)
    computed = metric.compute(predictions=predictions, references=labels)
    assert computed is not None
    return {name: float(value) for name, value in computed.items()}


def _epochs(task: str, trainer: GateTrainer) -> list[Epoch]:
    """One evaluation per epoch of a finished training, with a summary of the gates."""
    summaries = {round(s["epoch"]): s for s in trainer.gate_history}
    losses: dict[int, float] = {}
    epochs = []
    for entry in trainer.state.log_history:
        number = round(entry.get("epoch", 0))
        if "loss" in entry:
            losses[number] = float(entry["loss"])
        if "eval_loss" not in entry:
            continue
        metrics = {name: float(entry[f"eval_{name}"]) for name in task_named(task).metrics}
        summary = {k: v for k, v in summaries.get(number, {}).items() if k != "epoch"}
        epochs.append(
            Epoch(
                epoch=number,
                train_loss=losses[number],
                metrics=metrics,
                score=score(task, metrics),
                gates=GateSummary(**summary) if summary else None,
            )
        )
    return epochs


__all__ = ["TaskData", "finetune", "load_tokenizer", "predict", "prepare"]
