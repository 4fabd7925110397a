"""What the record of every run says: what was run, on what, by which code, and what it counted."""

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
    """A part of the configuration of the day that a run was made.

    What tables read of it has a type. Everything else is kept as it was, under the name that it had
    then.
    """

    model_config = ConfigDict(extra="allow")


class Code(Section):
    """The source files behind a run.

    Attributes:
        commit: of the repository; None outside git.
        dirty: whether tracked files differed from it; None outside git.
        digest: SHA-256 of the files that the run depends on.
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
        source: where it comes from, see ``ModelSource`` and ``CausalModel``.
        revision: commit hash on the hub.
        sha256: of its weights.
        architecture: ``model_type`` of transformers.
        parameters: their number, before anything is attached.
        vocabulary: tokens of the tokenizer of a model that is trained from random weights.
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
        """The revision or the digest as captions print it; empty if neither is known."""
        for word, value in (("revision", self.revision), ("digest", self.sha256)):
            if value:
                return [f"{word} {value[:DIGEST_DIGITS]}"]
        return []


class Hardware(Section):
    """The machine of a run; memory in GiB."""

    cpu: str
    cores: Count | None
    threads: Count
    memory_gib: float
    gpu: str | None

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu}, {self.threads} thread{'' if self.threads == 1 else 's'}{gpu}"


class Parameters(Section):
    """Parameters by denominator, see ``finegates.budget.Budget``.

    Those that training moved are ``trainable``.
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
    """Multiply-accumulates of the encoder: of the dense model, and of what gates leave."""

    dense: Count
    kept: Count

    @property
    def kept_fraction(self) -> float:
        """The fraction that is kept."""
        return self.kept / self.dense


class RunBudget(Section):
    """What a run trained, removed and kept.

    Attributes:
        parameters: by denominator.
        removable_weights: weights of the gated layers.
        removed_weights: those in closed rows or columns.
        realised_sparsity: their fraction.
        macs_batch: sequences of the MACs.
        macs_length: tokens of each.
        macs: of dense and kept.
        masked_fraction: weights that a 2:4 mask made zero, of those of its layers.
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
    """What the records of all runs have in common. Durations in seconds, memory in MiB.

    Titles, names and what is quoted of the configuration are those of the day that the run was
    made. What the run depends on of it, ``finegates.suite.config.dependencies`` says.
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
    """Counts what a model's gates leave.

    Args:
        model: dense or gated.
        trainable: parameters that training moved; gates may be at rest by now.
        batch: of the MACs.
        length: of the MACs.
    """
    # Imported here, because readers of records (tables, figures) do not need torch.
    from finegates.budget import macs, measure_budget, planned_macs

    counted = measure_budget(model)
    # Models of the suite have adapters, which know the encoder and the head.
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
