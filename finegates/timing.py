"""Measured times: contenders interleaved in one process, medians and ratios."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm
from transformers import TrainingArguments

from finegates.finetune import prepare
from finegates.methods import Method, first_of_each_kind
from finegates.schema import Tier
from finegates.seeds import derive_seed, seed_everything
from finegates.sources import load_classifier
from finegates.train import GateTrainer


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 3
) -> dict[str, np.ndarray]:
    """Times contenders in turn, round after round, so that drift of the machine hits all alike.

    Args:
        contenders: by name, what to time.
        repeats: rounds that count.
        warmup: rounds before them that do not.

    Returns:
        seconds by contender, shape (repeats,).
    """
    seconds = {name: np.empty(repeats) for name in contenders}
    for turn in tqdm(range(-warmup, repeats), desc="timing", leave=False):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn >= 0:
                seconds[name][turn] = time.perf_counter() - start
    return seconds


def ratios(seconds: Mapping[str, np.ndarray], to: str) -> pd.DataFrame:
    """Median and quartiles in ms of each contender, and the median's ratio to that of ``to``."""
    rows = []
    for name, values in seconds.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        rows.append(
            {
                "contender": name,
                "median_ms": 1e3 * median,
                "q25_ms": 1e3 * low,
                "q75_ms": 1e3 * high,
                f"ratio_to_{to}": median / np.median(seconds[to]),
            }
        )
    return pd.DataFrame(rows)


def time_training_step(tier: Tier, threads: int) -> pd.DataFrame:
    """One training step of full fine-tuning, LoRA, gates, and gates with LoRA, on the same batch.

    A step is what the trainer does: forward, loss with penalty, backward, optimizer. Token ids are
    random; their values do not matter to the time.

    Returns:
        a row a contender; see :func:`ratios`.
    """
    if tier.step_benchmark is None:
        raise ValueError(f"tier {tier.tier!r} has no step_benchmark")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        contenders = task_step_contenders(tier, folder)
        steps = {label: step for label, (_, step) in contenders.items()}
        seconds = interleaved(steps, tier.step_benchmark.repeats)
    return ratios(seconds, to="lora")


def task_step_contenders(
    tier: Tier, folder: str
) -> dict[str, tuple[nn.Module, Callable[[], None]]]:
    """A model and its training step for the tier's first method of each kind.

    Args:
        tier: configuration.
        folder: for the trainers, which write nothing there.
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
    # What train() sets up before its first step: mixed precision, optimizer, no accumulation.
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
