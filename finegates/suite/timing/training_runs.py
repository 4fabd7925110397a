"""Times of whole training runs: full, LoRA, gates, gates with removal.

The time of one step does not describe a training whose model shrinks, so whole runs are timed. All
runs of a model have the same steps on the same token ids, which are random because the time does
not depend on them.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainingArguments

from finegates.adapters import unwrap
from finegates.budget import macs
from finegates.clock import quartiles
from finegates.compaction import compact
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import gated_layers
from finegates.lora import add_lora
from finegates.seeds import derive_seed, seed_everything
from finegates.suite.config.benchmarks import TrainingBenchmark
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import load_classifier
from finegates.suite.timing.backends import random_inputs
from finegates.suite.timing.control import CONTROL
from finegates.suite.timing.inference import random_model
from finegates.suite.timing.memory import peak_tensor_bytes
from finegates.training.trainer import GateTrainer

FULL, LORA = "full fine-tuning", "LoRA"
RATE = 1e-3


@dataclass(frozen=True)
class Contender:
    """A way to train a classifier.

    Attributes:
        name: name for tables.
        prepare: attaches the trained parameters to a copy of the classifier.
    """

    name: str
    prepare: Callable[[nn.Module], nn.Module]


def contenders(settings: TrainingBenchmark) -> tuple[Contender, ...]:
    """Full fine-tuning, LoRA, and gates of each budget, with removal too.

    Args:
        settings: settings of the benchmark.
    """
    found = [
        Contender(FULL, lambda model: model),
        Contender(LORA, lambda model: add_lora(model, settings.rank, 2.0 * settings.rank)),
    ]
    for kept in settings.kept:
        for shrink in (False, True):
            way = "removed while training" if shrink else "compact at the end"
            prepare = _gating(kept, shrink, settings.length)
            found.append(Contender(f"gates, {kept:.0%} of MACs, {way}", prepare))
    return tuple(found)


def _gating(kept: float, shrink: bool, length: int) -> Callable[[nn.Module], nn.Module]:
    config = GateConfig(target=1.0 - kept, shrink=shrink, sequence_length=length)

    def prepare(model: nn.Module) -> nn.Module:
        return attach(model, config)

    return prepare


def time_training_runs(tier: Tier, threads: int) -> pd.DataFrame:
    """Times whole runs of the tier's classifier and the benchmark's shapes.

    Returns:
        one row per model and contender, with the control of LoRA last for each model: ``model``,
        ``contender``, ``macs_kept`` (measured on the compact model), ``trainable`` (parameters at
        the start), ``seconds`` (median), ``q25``, ``q75``, ``ratio_to_lora``, ``end_mib`` (memory
        of parameters and optimizer at the end, plus the peak of one more step).

    Raises:
        ValueError: the tier does not have a ``training_benchmark``.
    """
    settings = tier.training_benchmark
    if settings is None:
        raise ValueError(f"tier {tier.tier!r} has no training_benchmark")
    torch.set_num_threads(threads)
    seed = derive_seed("time_training")
    frames = [_time_model(tier.model.name, load_classifier(tier, "sst2", seed), tier, settings)]
    for shape in settings.shapes:
        frames.append(_time_model(shape.name, random_model(shape), tier, settings))
    return pd.concat(frames, ignore_index=True)


def _time_model(
    name: str, model: nn.Module, tier: Tier, settings: TrainingBenchmark
) -> pd.DataFrame:
    ways = {each.name: each for each in contenders(settings)}
    turns = {**ways, CONTROL: ways[LORA]}
    seconds: dict[str, list[float]] = {each: [] for each in turns}
    facts: dict[str, dict[str, Any]] = {}
    for turn in range(-1, settings.repeats):  # the first round warms up
        for label, way in turns.items():
            with tempfile.TemporaryDirectory() as folder:
                trainer = _trainer(model, way, tier, settings, folder)
                trainable = _trainable(trainer)
                start = time.perf_counter()
                trainer.train()
                taken = time.perf_counter() - start
            if turn >= 0:
                seconds[label].append(taken)
            else:
                facts[label] = {"trainable": trainable, **_at_the_end(trainer, settings)}
    dense = macs(model, 1, settings.length).total
    median = {label: float(np.median(values)) for label, values in seconds.items()}
    rows = []
    for label, values in seconds.items():
        low, middle, high = quartiles(np.array(values))
        kept = facts[label].pop("macs") / dense
        rows.append(
            {
                "model": name,
                "contender": label,
                "macs_kept": kept,
                "seconds": middle,
                "q25": low,
                "q75": high,
                "ratio_to_lora": middle / median[LORA],
                **facts[label],
            }
        )
    return pd.DataFrame(rows)


class _Rows(Dataset[dict[str, torch.Tensor]]):
    """Random rows of one length with random labels."""

    def __init__(self, model: nn.Module, count: int, length: int) -> None:
        self._inputs = random_inputs(unwrap(model), count, length)
        self._inputs["labels"] = torch.randint(0, 2, (count,))

    def __len__(self) -> int:
        return len(self._inputs["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self._inputs.items()}


def _trainer(
    dense: nn.Module, way: Contender, tier: Tier, settings: TrainingBenchmark, folder: str
) -> GateTrainer:
    seed_everything(derive_seed("time_training", way.name))
    rows = _Rows(dense, settings.steps * settings.batch_size, settings.length)
    trainer = GateTrainer(
        model=way.prepare(copy.deepcopy(dense)),
        args=TrainingArguments(
            output_dir=folder,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=RATE,
            bf16=tier.training.precision == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        ),
        train_dataset=rows,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainable(trainer: GateTrainer) -> int:
    model: nn.Module = trainer.model  # type: ignore[assignment]
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _at_the_end(trainer: GateTrainer, settings: TrainingBenchmark) -> dict[str, Any]:
    """MACs per row of the compact model, and MiB of training after its last step."""
    model: nn.Module = trainer.model  # type: ignore[assignment]
    held = sum(tensor.numel() * tensor.element_size() for tensor in _held(trainer))
    batch = next(iter(trainer.get_train_dataloader()))

    def step() -> None:
        loss: torch.Tensor = model(**trainer._prepare_inputs(batch)).loss
        loss.backward()

    model.train()
    peak = peak_tensor_bytes(step)
    plain = unwrap(model)
    final = compact(plain) if gated_layers(plain) else plain
    return {
        "macs": macs(final, 1, settings.length).total,
        "end_mib": (held + peak) / 2**20,
    }


def _held(trainer: GateTrainer) -> Iterator[torch.Tensor]:
    """Yields parameters and optimizer state."""
    model: nn.Module = trainer.model  # type: ignore[assignment]
    yield from model.parameters()
    assert trainer.optimizer is not None
    for state in trainer.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
