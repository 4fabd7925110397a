"""What a tier's configuration may say about its benchmarks of time."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from finegates.suite.config.section import Section


class StepBenchmark(Section):
    """The benchmark of one training step: LoRA against gates, interleaved.

    Attributes:
        batch_size: examples of the step.
        length: tokens of each.
        repeats: interleaved rounds.
    """

    batch_size: int = Field(gt=0)
    length: int = Field(gt=0)
    repeats: int = Field(default=30, gt=0)


class InferenceCase(Section):
    """A compact model to time: which gates close what, on which batch.

    Attributes:
        gates: ``random``: each row and column of each layer is open with probability ``kept``, on
            its own; ``structured``: shared gates that leave the fraction ``kept`` of the MACs.
        kept: see there; 1 closes nothing.
        batch: sequences.
        length: tokens of each.
        reach: the ratio of times to reach, None where it is only shown.
        against: what the ratio is to: the ``limit`` (the dense time times the fraction of MACs that
            the compact model has), or the ``dense`` time.
        decode: time one further token after ``length`` tokens in the cache, not the whole sequence.
        backends: backends for the dense, gated and compact model in addition to ``eager``:
            ``compile`` (torch.compile), ``onnx`` (ONNX Runtime), ``int8`` (the same with weights
            quantised dynamically; not for the gated model).
        scattered: time, too, the dense model with as many zeros scattered over its weights, in
            dense products and in compressed sparse rows.
    """

    gates: Literal["random", "structured"]
    kept: float = Field(gt=0, le=1)
    batch: int = Field(gt=0)
    length: int = Field(gt=0)
    reach: float | None = Field(default=None, gt=0)
    against: Literal["limit", "dense"] = "limit"
    decode: bool = False
    backends: list[Literal["compile", "onnx", "int8"]] = Field(default_factory=list)
    scattered: bool = False

    @model_validator(mode="after")
    def _decodes_eagerly(self) -> InferenceCase:
        if self.decode and self.backends:
            raise ValueError("decode is timed eagerly only; leave backends out")
        return self


class InferenceBenchmark(Section):
    """Forward passes of one model shape with random weights: dense, gated (masked), compact.

    Attributes:
        name: of the shape, for tables.
        model_type: of ``transformers`` (``roberta``, ``llama``, ...).
        sizes: sizes of its configuration that differ from the defaults.
        repeats: interleaved rounds.
        compaction: measure the time and memory of compacting the first case's model, too.
        memory_mb: what all models of the shape take at once, for schedulers.
        cases: see :class:`InferenceCase`.
    """

    name: str
    model_type: str
    sizes: dict[str, int] = Field(default_factory=dict)
    repeats: int = Field(default=20, gt=0)
    compaction: bool = False
    memory_mb: int = Field(default=6000, gt=0)
    cases: list[InferenceCase] = Field(min_length=1)

    @property
    def label(self) -> str:
        """The name as part of a file's."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")

    @model_validator(mode="after")
    def _has_label(self) -> InferenceBenchmark:
        if not self.label:
            raise ValueError(f"name {self.name!r} has no letter and no digit")
        return self
