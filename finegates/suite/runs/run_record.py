"""Shared fields of all run records: model, code, hardware, budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field, model_validator

from finegates.suite.config.names import check_label
from finegates.suite.config.section import Count, Fraction, Section
from finegates.suite.runs.signed import FORMAT_VERSION

if TYPE_CHECKING:
    from torch import nn

DIGEST_DIGITS = 12
"""Digits of a commit or of a SHA-256 that tables print."""


class Quoted(Section):
    """A part of the configuration as it was when the run was made.

    Fields that tables read are typed. All others are stored unchanged, under the names that they
    had then.
    """

    model_config = ConfigDict(extra="allow")


class Code(Section):
    """The source files behind a run.

    Attributes:
        commit: commit of the repository; None outside git.
        dirty: whether tracked files differed from the commit; None outside git.
        digest: SHA-256 of the source files that the run depends on.
    """

    commit: str | None
    dirty: bool | None
    digest: str | None = None

    @property
    def short_commit(self) -> str:
        """The commit as tables print it."""
        return (self.commit or "unknown")[:DIGEST_DIGITS]


class Model(Section):
    """The model that a run starts from.

    Attributes:
        name: for captions.
        source: kind of source, see ``ModelSource`` and ``CausalModel``.
        revision: commit hash on the hub.
        sha256: SHA-256 of its weights.
        architecture: ``model_type`` of transformers.
        parameters: number of parameters before anything is attached.
        vocabulary: size of the tokenizer's vocabulary, if the model starts from random weights.
    """

    name: str
    source: str
    revision: str | None
    sha256: str | None
    architecture: str
    parameters: Count
    vocabulary: Count | None = None

    @property
    def identity(self) -> list[str]:
        """The revision or digest as captions print it, empty if unknown."""
        for word, value in (("revision", self.revision), ("digest", self.sha256)):
            if value:
                return [f"{word} {value[:DIGEST_DIGITS]}"]
        return []


class Hardware(Section):
    """The machine of a run, memory in GiB."""

    cpu: str
    cores: Count | None
    threads: Count
    memory_gib: float
    gpu: str | None

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu}, {self.threads} thread{'' if self.threads == 1 else 's'}{gpu}"


class Parameters(Section):
    """Numbers of parameters, see ``finegates.budget.Budget``.

    ``trainable`` are the trained ones.
    """

    all: Count
    encoder: Count
    gated: Count
    trainable: Count
    gates: Count
    biases: Count
    head: Count
    low_rank: Count


class Macs(Section):
    """Multiply-accumulates of the encoder, dense and kept by the gates."""

    dense: Count
    kept: Count

    @property
    def kept_fraction(self) -> float:
        """The fraction that is kept."""
        return self.kept / self.dense


class RunBudget(Section):
    """Parameters and MACs that a run trained, removed and kept.

    Attributes:
        parameters: see :class:`Parameters`.
        removable_weights: number of weights of the gated layers.
        removed_weights: number of these in closed rows or columns.
        realised_sparsity: ``removed_weights / removable_weights``.
        macs_batch: sequences at which MACs are counted.
        macs_length: tokens of each sequence.
        macs: see :class:`Macs`.
        masked_fraction: fraction of the weights of masked layers that a 2:4 mask sets to zero.
    """

    parameters: Parameters
    removable_weights: Count
    removed_weights: Count
    realised_sparsity: Fraction
    macs_batch: Count
    macs_length: Count
    macs: Macs
    masked_fraction: Fraction | None = None


class Closed(Section):
    """Numbers of closed rows and columns of one gated layer."""

    rows: Count
    cols: Count


class RunRecord(Section):
    """Fields that all run records share. Durations in seconds, memory in MiB.

    Titles, names and quoted settings are those of the time of the run. The settings that a run
    depends on are in ``finegates.suite.config.dependencies``.
    """

    format_version: int = FORMAT_VERSION
    tier: str
    method: str
    seed: Count
    seeds: dict[str, int]
    code: Code
    model: Model
    versions: dict[str, str]
    hardware: Hardware
    budget: RunBudget
    realised_sparsity: Fraction
    closed: dict[str, Closed]
    timing: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _labelled(self) -> RunRecord:
        check_label(self.tier, "tier")
        check_label(self.method, "method")
        return self


def measured_budget(model: nn.Module, trainable: int, batch: int, length: int) -> RunBudget:
    """Counts the parameters and MACs of a model, before and after compaction.

    Args:
        model: dense or gated.
        trainable: number of parameters that were trained; gates may be frozen by now.
        batch: sequences at which MACs are counted.
        length: tokens of each sequence.
    """
    # Imported here, so that reading records (tables, figures) does not import torch.
    from finegates.budget import macs, measure_budget, planned_macs

    counted = measure_budget(model)
    # All models of the suite have adapters, which locate encoder and head.
    assert counted.encoder_parameters is not None
    assert counted.head_parameters is not None
    return RunBudget(
        parameters=Parameters(
            all=counted.all_parameters,
            encoder=counted.encoder_parameters,
            gated=counted.gated_weights,
            trainable=trainable,
            gates=counted.gate_parameters,
            biases=counted.gated_biases,
            head=counted.head_parameters,
            low_rank=counted.low_rank_parameters,
        ),
        removable_weights=counted.removable_weights or 0,
        removed_weights=counted.removed_weights or 0,
        realised_sparsity=counted.realised_sparsity or 0.0,
        macs_batch=batch,
        macs_length=length,
        macs=Macs(
            dense=macs(model, batch, length).total, kept=planned_macs(model, batch, length).total
        ),
    )
