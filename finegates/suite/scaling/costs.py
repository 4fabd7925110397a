"""Cost model of a tier's runs: operations, time, memory, disk.

A step costs 2 * MACs * (1 + b + c) operations for forward pass, backward pass and recomputation. b
is 2 if weights are trained and 1 if they are frozen, because their gradients are not computed. c is
1 with gradient checkpointing and 0 without. The time of a step is the maximum of the times of its
operations and of its kernel launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig

from finegates.budget import macs
from finegates.suite.config.llama import CausalTraining
from finegates.suite.config.llama_runs import (
    Run,
    gates_of,
    posttraining_runs,
    pretraining_runs,
    pruning_runs,
    training_of,
)
from finegates.suite.config.methods import Method
from finegates.suite.config.tasks import task_named
from finegates.suite.config.tier import ModelSource, Tier, Training
from finegates.suite.models.llama import llama_config
from finegates.suite.runs.llama_trainer import KEPT_CHECKPOINTS
from finegates.suite.scaling.assumptions import (
    DEVICE,
    DOCUMENT_TOKENS,
    TOKENS,
    VALIDATION_ROWS,
    VOCABULARY,
    Device,
    shape_of,
)

Activations = Callable[[PretrainedConfig, str, bool, bool], float]
"""Bytes per token and layer: shape, precision, whether all is trained, whether gated."""


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        table: the table that the run is for.
        part: model or size, which has a row of its own.
        steps: optimizer steps.
        operations: floating-point operations.
        seconds: time on one device.
        memory: peak bytes on a single device.
        kept: bytes on disk after the run.
        held: further bytes on disk during the run.
    """

    table: str
    part: str
    steps: int
    operations: float
    seconds: float
    memory: float
    kept: float
    held: float


@dataclass
class Shape:
    """The shape of a model in the cost model.

    Attributes:
        config: configuration of the model.
        head: parameters of a head that is applied to every token; 0 for a classifier.
    """

    config: PretrainedConfig
    head: int

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Parameters without the head, and MACs per token in linear layers."""
        with torch.device("meta"):
            model = AutoModel.from_config(self.config)
        return sum(p.numel() for p in model.parameters()), macs(model, 1, 1).linear

    @property
    def parameters(self) -> int:
        """All parameters. A tied head counts once."""
        tied = getattr(self.config, "tie_word_embeddings", False)
        return self.sizes[0] + (0 if tied else self.head)

    def forward(self, sequences: float, length: float) -> float:
        """Operations of a forward pass: linear layers, attention matmuls, head."""
        attention = 2 * length * self.config.hidden_size * self.config.num_hidden_layers
        return 2 * sequences * length * (self.sizes[1] + attention + self.head)


def training_seconds(
    shape: Shape, operations: float, passes: float, precision: str, device: Device
) -> float:
    """Training time in seconds.

    ``passes`` is the number of kernel launches in units of forward passes.
    """
    computing = operations / (device.peak[precision] * device.utilisation)
    return max(computing, passes * shape.config.num_hidden_layers * device.launch_s)


def step_factor(trains_all: bool, recomputes: bool = False) -> int:
    """Cost of a training step in units of forward passes."""
    return 1 + (2 if trains_all else 1) + recomputes


def glue_costs(
    tier: Tier, table: str, source: ModelSource, methods: dict[str, Method], training: Training,
    tasks: list[str], seeds: list[int], activations: Activations, record_bytes: float,
) -> Iterator[Cost]:  # fmt: skip
    """Costs of fine-tuning for every task, method and seed."""
    assert source.hub is not None
    shape = Shape(shape_of(source.hub), 0)
    limit = tier.data.train_rows or 10**9
    for task in tasks:
        rows, length = min(limit, task_named(task).train_rows), TOKENS[task]
        epochs = training.epochs_of(task)
        batches = math.ceil(rows / training.batch_size)
        evaluations = epochs + 1  # one more for the compact model
        for method in methods.values():
            precision = method.precision or training.precision
            factor = step_factor(method.trains_all)
            trained = epochs * factor * shape.forward(rows, length)
            tested = evaluations * shape.forward(VALIDATION_ROWS[task], length)
            passes = epochs * batches * factor
            passes += evaluations * math.ceil(VALIDATION_ROWS[task] / training.eval_batch_size)
            tokens = training.batch_size * training.max_length
            gated = method.gates is not None
            cost = Cost(
                table,
                source.name,
                epochs * batches,
                trained + tested,
                training_seconds(shape, trained + tested, passes, precision, DEVICE),
                _memory(shape, precision, method.trains_all, gated, tokens, False, activations),
                record_bytes,
                0.0,
            )
            for _ in seeds:
                yield cost


def _memory(
    shape: Shape, precision: str, trains_all: bool, gated: bool, tokens: float,
    recomputes: bool, activations: Activations,
) -> float:  # fmt: skip
    """Bytes of weights, gradients and AdamW's moments (float32), activations, logits."""
    weights = shape.parameters
    held = 4.0 * weights + (12.0 * weights if trains_all else 0.0)
    if precision == "bfloat16":
        held += 2.0 * weights  # autocast caches the bfloat16 weights
    layer = activations(shape.config, precision, trains_all, gated) * tokens
    layers = shape.config.num_hidden_layers
    if recomputes:
        held += layer + 4.0 * layers * shape.config.hidden_size * tokens
    else:
        held += layers * layer
    # Logits, log-probabilities and the gradient of logits, all in float32.
    return held + (12.0 * tokens * shape.config.vocab_size if shape.head else 0.0)


def causal_costs(
    tier: Tier, run: Run, shape: Shape, activations: Activations, record_bytes: float
) -> Cost:
    """The cost of a run on plain text. One-shot pruning only evaluates."""
    assert tier.llama is not None
    settings = training_of(tier, run)
    pretraining = run.experiment == "pretraining"
    one_shot = run.criterion is not None or (run.method == "dense" and not pretraining)
    documents = tier.llama.text.validation_documents or 0
    held_out = documents * DOCUMENT_TOKENS / settings.length
    steps = 0 if one_shot else settings.steps
    evaluations = 3 + (steps // settings.eval_every)  # before, after, the compact model
    factor = step_factor(pretraining, settings.gradient_checkpointing)
    trained = steps * factor * shape.forward(settings.batch_size, settings.length)
    tested = evaluations * shape.forward(held_out, settings.length)
    passes = steps * settings.accumulation * factor
    passes += evaluations * math.ceil(held_out / settings.eval_batch_size)
    return Cost(
        "Llama, pretraining" if pretraining else "Llama, without a task",
        run.name,
        steps,
        trained + tested,
        training_seconds(shape, trained + tested, passes, settings.precision, DEVICE),
        _causal_memory(tier, run, shape, settings, one_shot, activations),
        record_bytes + (4.0 * shape.parameters if pretraining else 0.0),
        0.0
        if one_shot
        # One more is being written. A frozen model saves only its weights.
        else (KEPT_CHECKPOINTS + 1) * shape.parameters * (12.0 if pretraining else 4.0),
    )


def _causal_memory(
    tier: Tier, run: Run, shape: Shape, settings: CausalTraining, one_shot: bool,
    activations: Activations,
) -> float:  # fmt: skip
    if one_shot:
        tokens = settings.eval_batch_size * settings.length
        return 4.0 * shape.parameters + 12.0 * tokens * shape.config.vocab_size
    tokens = settings.per_device * settings.length
    gated = gates_of(tier, run) is not None
    return _memory(
        shape, settings.precision, run.experiment == "pretraining", gated, tokens,
        settings.gradient_checkpointing, activations,
    )  # fmt: skip


def llama_shape(tier: Tier, run: Run) -> Shape:
    """The shape of a run's model."""
    assert tier.llama is not None
    if run.experiment == "posttraining":
        assert tier.llama.posttraining is not None
        hub = tier.llama.posttraining.models[run.name].hub
        assert hub is not None
        config: Any = shape_of(hub)
        return Shape(config, config.vocab_size * config.hidden_size)
    assert tier.llama.pretraining is not None
    sizes = tier.llama.pretraining.sizes[run.name]
    vocabulary = VOCABULARY[str(tier.llama.pretraining.tokenizer.hub)]
    return Shape(llama_config(sizes, vocabulary), vocabulary * sizes.hidden)


def tier_costs(tier: Tier, activations: Activations, record_bytes: float) -> Iterator[Cost]:
    """Costs of all runs of a tier that takes its models from the hub."""
    yield from glue_costs(
        tier, "GLUE", tier.model, tier.methods, tier.training, tier.tasks, tier.seeds,
        activations, record_bytes,
    )  # fmt: skip
    if tier.studies is not None:
        further = [seed for seed in tier.studies.seeds if seed not in tier.seeds]
        for own, seeds in ((False, tier.studies.seeds), (True, further)):
            labels = [label for label in tier.study_methods if (label in tier.methods) == own]
            methods = {label: tier.all_methods[label] for label in labels}
            yield from glue_costs(
                tier, "Studies", tier.model, methods, tier.training, tier.studies.tasks, seeds,
                activations, record_bytes,
            )  # fmt: skip
    if tier.llama is None:
        return
    on_task = tier.llama.on_task
    if on_task is not None:
        yield from glue_costs(
            tier, "Llama, on a task", on_task.model, on_task.methods, on_task.training,
            on_task.tasks, tier.seeds, activations, record_bytes,
        )  # fmt: skip
    shapes: dict[tuple[str, str], Shape] = {}
    for run in [*posttraining_runs(tier), *pruning_runs(tier), *pretraining_runs(tier)]:
        key = (run.experiment, run.name)
        if key not in shapes:
            shapes[key] = llama_shape(tier, run)
        yield causal_costs(tier, run, shapes[key], activations, record_bytes)
