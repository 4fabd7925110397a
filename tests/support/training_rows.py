"""Rows for every kind of head, and the gradient of a training step, measured and by definition."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainingArguments

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.training.trainer import GateTrainer
from support.tiny import ARCHITECTURES, VOCABULARY, scatter_gates

Row = dict[str, Any]
LABELS = 3
HEADS = {
    "regression": "SequenceClassification",
    "two classes": "SequenceClassification",
    "three classes": "SequenceClassification",
    "many labels": "SequenceClassification",
    "tokens": "TokenClassification",
    "causal": "CausalLM",
    "masked": "MaskedLM",
    "seq2seq": "Seq2SeqLM",
    "question": "QuestionAnswering",
}
_OUTPUTS = {"regression": 1, "two classes": 2, "question": 2}
_LANGUAGE = {
    "causal": ("gpt2", "llama", "mistral", "qwen2", "qwen3"),
    "masked": ("bert", "roberta", "deberta-v2", "mpnet"),
    "seq2seq": ("t5", "t5-gated"),
}
COMBINATIONS = [
    (head, name) for head in HEADS for name in _LANGUAGE.get(head, tuple(ARCHITECTURES))
]


def model_for(head: str, architecture: str, preset: str = "paper_v1", **config: Any) -> nn.Module:
    """A tiny model in float64 with scattered gates, without noise and dropout."""
    settings = ARCHITECTURES[architecture]()
    settings.num_labels = _OUTPUTS.get(head, LABELS)
    for name in vars(settings):
        if "dropout" in name or "pdrop" in name:
            setattr(settings, name, 0.0)
    settings.classifier_dropout = 0.0  # heads of decoders have a dropout of their own
    if head == "many labels":
        settings.problem_type = "multi_label_classification"
    model = getattr(transformers, f"AutoModelFor{HEADS[head]}").from_config(settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    attach(model.double(), GateConfig(preset=preset, target=0.4, noise_std=0.0, **config))
    scatter_gates(model, mean=1.0)
    return model


def rows_for(head: str, count: int, seed: int = 0) -> list[Row]:
    """Rows of four to seven tokens; each label that may be ignored is ignored in some."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    rows = []
    for _ in range(count):
        # Answer positions compete with padding, so the length of a row matters.
        length = 7 if head == "question" else draw(4, 8, 1)[0]
        ids = [*draw(3, VOCABULARY, length - 1), 1]  # T5 reads the end-of-sequence token
        row: Row = {"input_ids": ids}
        if head == "regression":
            row["labels"] = float(torch.randn((), generator=generator))
        elif head in ("two classes", "three classes"):
            row["labels"] = draw(0, _OUTPUTS.get(head, LABELS), 1)[0]
        elif head == "many labels":
            row["labels"] = [float(one) for one in draw(0, 2, LABELS)]
        elif head == "question":
            outside = draw(0, 3, 1)[0] == 0
            row["start_positions"], row["end_positions"] = [9, 8] if outside else draw(0, 7, 2)
        else:
            top = LABELS if head == "tokens" else VOCABULARY
            labels = ids if head == "causal" else draw(3 if top > LABELS else 0, top, length)
            ignored = draw(0, 3, length)
            row["labels"] = [-100 if i == 0 else n for i, n in zip(ignored, labels, strict=True)]
        rows.append(row)
    return rows


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Collates rows to a batch, padded to the longest; padding has the label -100."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, Tensor] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if name == "input_ids" or (name == "labels" and len(_as_list(first)) >= 4):
            fill = 0 if name == "input_ids" else -100
            values = [value + [fill] * (longest - len(value)) for value in values]
        batch[name] = torch.tensor(values)
        if batch[name].is_floating_point():
            batch[name] = batch[name].double()
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    return batch


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def mean_loss(head: str, outputs: Any, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
    """The mean loss over a batch's rows, or over its tokens with a label."""
    if head == "question":
        length = batch["input_ids"].shape[1]
        losses = []
        for side in ("start", "end"):
            place = batch[f"{side}_positions"]
            kept = torch.where(place < length, place, -100)
            losses.append(F.cross_entropy(outputs[f"{side}_logits"], kept))
        return torch.stack(losses).mean()
    logits, labels = outputs["logits"], batch["labels"]
    if head == "regression":
        return (logits.reshape(-1) - labels).square().mean()
    if head == "many labels":
        return F.binary_cross_entropy_with_logits(logits, labels)
    if head == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def expected(
    model: nn.Module,
    batch: dict[str, Tensor],
    task: Callable[[Any, dict[str, Tensor]], Tensor],
    weight: float,
) -> tuple[dict[str, Tensor], float, float]:
    """The gradient of ``task + weight * penalty`` on a whole batch, and the two terms."""
    model = copy.deepcopy(model).train()
    penalty = sparsity_penalty(model)
    assert penalty is not None
    if isinstance(penalty, MacsPenalty):
        penalty.progress = 0.0
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if (
        getattr(model.config, "is_encoder_decoder", False)
        and "labels" in batch
        and batch["labels"].shape == inputs["input_ids"].shape
    ):
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    loss, closing = task(model(**inputs), batch), penalty()
    (loss + weight * closing).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found, loss.item(), closing.item()


class _Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.steps.append(
            {
                name.removeprefix("module."): p.grad.clone()
                for name, p in model.named_parameters()
                if p.grad is not None
            }
        )


def trained(
    model: nn.Module,
    rows: Sequence[Row],
    folder: str | Path,
    micro_batch: int,
    micro_batches: int,
    *,
    prepare: Callable[[GateTrainer], None] = lambda trainer: None,
    trainer_class: type[GateTrainer] = GateTrainer,
    arguments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[list[dict[str, Tensor]], GateTrainer]:
    """The gradients of the steps of one epoch, in row order, while no weight changes."""
    gradients = _Gradients()
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        **(arguments or {}),
    }
    trainer = trainer_class(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=list(rows),
        data_collator=collate,
        callbacks=[gradients],
        **kwargs,
    )
    prepare(trainer)
    trainer.train()
    return gradients.steps, trainer
