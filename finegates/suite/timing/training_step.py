"""A training step of each kind of method, for timing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from finegates.seeds import derive_seed, seed_everything
from finegates.suite.config.benchmarks import StepBenchmark
from finegates.suite.config.methods import Method, first_of_each_kind
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import load_classifier
from finegates.suite.runs.preparation import prepare
from finegates.training.trainer import GateTrainer


def task_step_contenders(
    tier: Tier, settings: StepBenchmark, folder: str
) -> dict[str, tuple[nn.Module, Callable[[], None]]]:
    """A model and its training step for the tier's first method of each kind.

    Args:
        tier: configuration.
        settings: batch and length.
        folder: output folder of the trainers, in which they do not write anything.
    """
    chosen = first_of_each_kind(tier.methods)
    if "lora" not in chosen:
        raise ValueError(f"tier {tier.tier!r} has no LoRA method to compare a step with")
    return {
        kind: _training_step(tier, method, settings.batch_size, settings.length, folder)
        for kind, method in chosen.items()
    }


def _training_step(
    tier: Tier, method: Method, batch: int, length: int, folder: str
) -> tuple[nn.Module, Callable[[], None]]:
    seed = derive_seed("time_step")
    seed_everything(seed)
    model = load_classifier(tier, "sst2", seed)
    prepared = prepare(model, method, seed)
    trainer = GateTrainer(
        model=prepared,
        args=TrainingArguments(
            output_dir=folder,
            learning_rate=method.learning_rate,
            bf16=tier.training.precision == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        ),
    )
    # The setup of train() before its first step: mixed precision, optimizer, no accumulation.
    wrapped = trainer.accelerator.prepare(prepared)
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    inputs: dict[str, Any] = {
        "input_ids": torch.randint(5, model.config.vocab_size, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "labels": torch.randint(0, 2, (batch,)),
    }

    def step() -> None:
        trainer.training_step(wrapped, dict(inputs))
        optimizer.step()
        optimizer.zero_grad()

    return prepared, step
