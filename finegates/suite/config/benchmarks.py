"""Configuration of a tier's timing benchmarks."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from finegates.gates.config import Dimensions
from finegates.suite.config.section import Section


class StepBenchmark(Section):
    """The benchmark of one training step of a Llama: LoRA against gates, interleaved.

    Attributes:
        batch_size: examples of the step.
        length: tokens of each.
        repeats: interleaved rounds.
    """

    batch_size: int = Field(gt=0)
    length: int = Field(gt=0)
    repeats: int = Field(default=30, gt=0)


class InferenceCase(Section):
    """A compact model to time: its gates and its batch.

    Attributes:
        gates: ``random`` opens each row and column of each layer independently with probability
            ``kept``; ``structured`` uses shared gates that keep the fraction ``kept`` of the MACs.
        kept: see ``gates``; 1 closes nothing.
        batch: number of sequences.
        length: tokens of each sequence.
        reach: target for the ratio of times; None only reports the ratio.
        against: denominator of the ratio: ``limit`` (the dense time times the compact model's
            fraction of MACs) or ``dense`` (the dense time).
        decode: time the decoding of one token after ``length`` cached tokens, instead of a forward
            pass over the sequence.
        backends: backends for the dense, gated and compact model in addition to ``eager``:
            ``compile`` (torch.compile), ``onnx`` (ONNX Runtime), ``int8`` (ONNX Runtime with
            dynamically quantised weights), ``torchao`` (weights alone in int8); the last two not
            for the gated model.
        scattered: also time the dense model with the same number of unstructured zeros, as dense
            matmuls and in compressed sparse row format.
    """

    gates: Literal["random", "structured"]
    kept: float = Field(gt=0, le=1)
    batch: int = Field(gt=0)
    length: int = Field(gt=0)
    reach: float | None = Field(default=None, gt=0)
    against: Literal["limit", "dense"] = "limit"
    decode: bool = False
    backends: list[Literal["compile", "onnx", "int8", "torchao"]] = Field(default_factory=list)
    scattered: bool = False

    @model_validator(mode="after")
    def _decodes_eagerly(self) -> InferenceCase:
        if self.decode and self.backends:
            raise ValueError("decode is timed eagerly only; leave backends out")
        return self


class ModelShape(Section):
    """A classifier with random weights.

    Attributes:
        name: name of the shape, for tables.
        model_type: ``model_type`` of ``transformers`` (``roberta``, ``llama``, ...).
        sizes: sizes of its configuration that differ from the defaults.
    """

    name: str
    model_type: str
    sizes: dict[str, int] = Field(default_factory=dict)


class TrainingBenchmark(Section):
    """Whole training runs: full fine-tuning, LoRA, shared gates, and gates with removal.

    Attributes:
        batch_size: rows per step.
        length: tokens of each row.
        steps: steps of a run.
        repeats: interleaved rounds.
        kept: final fractions of the MACs of gated runs.
        rank: rank of LoRA.
        shapes: shapes of models to train in addition to the tier's own.
    """

    batch_size: int = Field(gt=0)
    length: int = Field(gt=0)
    steps: int = Field(default=60, gt=0)
    repeats: int = Field(default=3, gt=0)
    kept: list[float] = Field(default=[0.6, 0.4], min_length=1)
    rank: int = Field(default=8, gt=0)
    shapes: list[ModelShape] = Field(default_factory=list)


class TimeBudgetBenchmark(Section):
    """Models that are pruned to a wanted time, and the time that they then take.

    Attributes:
        batch_size: sequences of a forward pass.
        length: tokens of each.
        repeats: interleaved rounds.
        wanted: times to ask for, as fractions of the dense model's.
        dimensions: what may be closed, see ``finegates.prune``; one pruning each.
        shapes: shapes of random models in addition to the tier's own.
    """

    batch_size: int = Field(gt=0)
    length: int = Field(gt=0)
    repeats: int = Field(default=30, gt=0)
    wanted: list[float] = Field(default=[0.75, 0.5], min_length=1)
    dimensions: list[Dimensions] = Field(default=["all", "inner"], min_length=1)
    shapes: list[ModelShape] = Field(default_factory=list)


class InferenceBenchmark(ModelShape):
    """Forward passes of one model shape: dense, gated (masked), compact.

    Attributes:
        repeats: interleaved rounds.
        compaction: also measure the time and memory of compacting the first case's model.
        memory_mb: memory of all models of the shape together, for schedulers.
        cases: see :class:`InferenceCase`.
    """

    repeats: int = Field(default=20, gt=0)
    compaction: bool = False
    memory_mb: int = Field(default=6000, gt=0)
    cases: list[InferenceCase] = Field(min_length=1)

    @property
    def label(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")

    @model_validator(mode="after")
    def _has_label(self) -> InferenceBenchmark:
        if not self.label:
            raise ValueError(f"name {self.name!r} has no letter and no digit")
        return self
