"""Time and memory of a gated training step, against LoRA and dense."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn
from transformers import TrainingArguments

from finegates.clock import interleaved
from finegates.gates.attachment import attach
from finegates.lora import add_lora
from finegates.seeds import derive_seed, seed_everything
from finegates.suite.config.llama import CausalGates
from finegates.suite.config.llama_runs import study
from finegates.suite.config.llama_task import task_tier
from finegates.suite.config.tier import Tier
from finegates.suite.models.llama import load_causal, load_text_tokenizer, make_llama
from finegates.suite.timing.clock import ratios
from finegates.suite.timing.control import CONTROL, with_control
from finegates.suite.timing.memory import peak_tensor_bytes
from finegates.suite.timing.training_step import task_step_contenders
from finegates.training.trainer import GateTrainer

LIMITS = {"task": 1.15, "posttraining": 1.15, "pretraining": 1.2}
"""A gated step's time, relative to LoRA's, and in pretraining to the dense model's, at most."""

MEMORY_LIMIT = 1.15
"""Peak memory of posttraining relative to LoRA's, at most."""

LORA_RANK = 8

Step = Callable[[], None]


def time_llama_steps(tier: Tier, threads: int) -> pd.DataFrame:
    """Training steps of the tier's experiments on Llama, interleaved.

    A step is one of the trainer: forward, loss with penalty, backward, optimizer. Token ids are
    random, because the time does not depend on them. Memory is that of all tensors at the peak of a
    step, with weights and optimizer state.

    Returns:
        one row per experiment and contender, with the control of the reference last
        (:mod:`finegates.suite.timing.control`): ``experiment``, ``contender``, ``median_ms``,
        ``q25_ms``, ``q75_ms``, ``to`` (the reference of the ratios), ``time_ratio``,
        ``time_limit``, ``peak_mib``, ``memory_ratio``, ``memory_limit`` (blank without a limit).
    """
    torch.set_num_threads(threads)
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        for experiment, (reference, contenders) in _contenders(tier, folder).items():
            peaks = {name: _peak(model, step) for name, (model, step) in contenders.items()}
            steps = {name: step for name, (_, step) in contenders.items()}
            peaks[CONTROL] = peaks[reference]
            timed = with_control(steps, reference)
            seconds = interleaved(timed, study(tier).step_benchmark.repeats)
            frame = ratios(seconds, to=reference).rename(
                columns={f"ratio_to_{reference}": "time_ratio"}
            )
            frame.insert(0, "experiment", experiment)
            frame["to"] = reference
            gated = frame["contender"].str.startswith("gates")
            frame["time_limit"] = [LIMITS[experiment] if g else None for g in gated]
            frame["peak_mib"] = [peaks[name] / 2**20 for name in frame["contender"]]
            frame["memory_ratio"] = frame["peak_mib"] / (peaks[reference] / 2**20)
            limit = MEMORY_LIMIT if experiment == "posttraining" else None
            frame["memory_limit"] = [limit if g else None for g in gated]
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _contenders(
    tier: Tier, folder: str
) -> dict[str, tuple[str, dict[str, tuple[nn.Module, Step]]]]:
    llama = study(tier)
    found: dict[str, tuple[str, dict[str, tuple[nn.Module, Step]]]] = {}
    if llama.on_task is not None:
        contenders = task_step_contenders(task_tier(tier), llama.step_benchmark, folder)
        found["task"] = ("lora", {k: v for k, v in contenders.items() if k != "gates and lora"})
    if llama.posttraining is not None:
        source = next(iter(llama.posttraining.models.values()))
        models = {"lora": add_lora(load_causal(source, tier.results)[0], LORA_RANK)}
        for name, parameter in models["lora"].named_parameters():
            parameter.requires_grad_(".lora_" in name)
        for label, gates in llama.posttraining.methods.items():
            if gates.random_biases:
                continue
            model, _ = load_causal(source, tier.results)
            models[f"gates ({label})"] = _gated(model, gates, llama.posttraining.training.length)
        found["posttraining"] = (
            "lora",
            {k: (m, _step(tier, m, folder)) for k, m in models.items()},
        )
    if llama.pretraining is not None:
        tokenizer = load_text_tokenizer(llama.pretraining.tokenizer, tier.results)
        # The first size is timed, so a tier lists a size first whose step fits the benchmark.
        sizes = next(iter(llama.pretraining.sizes.values()))
        seed = derive_seed("time_llama_step")
        models = {"dense": make_llama(sizes, tokenizer, seed)}
        for label, gates in llama.pretraining.methods.items():
            model = make_llama(sizes, tokenizer, seed)
            models[f"gates ({label})"] = _gated(
                model, gates, llama.pretraining.training.length, train_weights=True
            )
        found["pretraining"] = (
            "dense",
            {k: (m, _step(tier, m, folder)) for k, m in models.items()},
        )
    return found


def _gated(
    model: nn.Module, gates: CausalGates, length: int, *, train_weights: bool = False
) -> nn.Module:
    config = gates.gate_config(
        gates.targets[0],
        train_biases=train_weights,
        train_head=train_weights,
        train_weights=train_weights,
        sequence_length=length,
    )
    return attach(model, config)


def _step(tier: Tier, model: nn.Module, folder: str) -> Step:
    settings = study(tier).step_benchmark
    seed_everything(derive_seed("time_llama_step"))
    trainer = GateTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            learning_rate=1e-4,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        ),
    )
    wrapped = trainer.accelerator.prepare(model)
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    vocabulary = model.config.vocab_size  # type: ignore[union-attr]
    ids = torch.randint(5, int(vocabulary), (settings.batch_size, settings.length))  # type: ignore
    inputs = {"input_ids": ids, "labels": ids.clone()}

    def step() -> None:
        trainer.training_step(wrapped, dict(inputs))
        optimizer.step()
        optimizer.zero_grad()

    return step


def _peak(model: nn.Module, step: Step) -> float:
    """Peak bytes of a step, including weights and optimizer state."""
    step()  # makes the optimizer's state
    resting = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    state = sum(2 * p.numel() * p.element_size() for p in trained)
    return float(resting + state + peak_tensor_bytes(step))
