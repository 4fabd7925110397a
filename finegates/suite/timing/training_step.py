"""Times of a training step: contenders interleaved in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import nn
from transformers import TrainingArguments

from finegates.clock import interleaved
from finegates.seeds import derive_seed, seed_everything
from finegates.suite.config.methods import Method, first_of_each_kind
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import load_classifier
from finegates.suite.runs.preparation import prepare
from finegates.suite.timing.clock import ratios
from finegates.suite.timing.control import with_control
from finegates.training.trainer import GateTrainer


def time_training_step(tier: Tier, threads: int) -> pd.DataFrame:
    """Times a step of full fine-tuning, LoRA, gates, and gates with LoRA.

    A step is one of the trainer: forward, loss with penalty, backward, optimizer. All contenders
    see the same batch. Token ids are random, because the time does not depend on them.

    Returns:
        one row per contender, with the control of LoRA last; see :func:`ratios`.
    """
    if tier.step_benchmark is None:
        raise ValueError(f"tier {tier.tier!r} has no step_benchmark")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        contenders = task_step_contenders(tier, folder)
        steps = {label: step for label, (_, step) in contenders.items()}
        timed = with_control(steps, "lora")
        seconds = interleaved(timed, tier.step_benchmark.repeats)
    return ratios(seconds, to="lora")


def task_step_contenders(
    tier: Tier, folder: str
) -> dict[str, tuple[nn.Module, Callable[[], None]]]:
    """A model and its training step for the tier's first method of each kind.

    Args:
        tier: configuration.
        folder: output folder of the trainers, in which they do not write anything.
    """
    settings = tier.step_benchmark
    assert settings is not None
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
