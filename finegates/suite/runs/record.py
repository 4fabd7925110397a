"""The run record: one JSON file per run, with everything that a table or an auditor asks of it.

A record ends with its own digest, so that a flipped bit is an error and no other number. Records of
format version 1 were written before there was one; they are read as they are, and
:func:`is_signed` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import nn

from finegates.budget import (
    macs,
    measure_budget,
    planned_macs,
)
from finegates.suite.config.names import check_label
from finegates.suite.config.section import Count, Fraction, Section
from finegates.suite.config.tasks import task_named
from finegates.suite.runs.signed import (
    FORMAT_VERSION,
    read_signed,
    write_signed,
)


class GateSummary(Section):
    """The gates of a model at one moment.

    ``closed`` are exactly 0 at evaluation, ``open`` exactly 1, ``half_open`` strictly between 0.05
    and 0.95; fractions of all gates. ``histogram`` counts evaluation gates in equal bins of [0, 1].
    All of them without the factor that gates of preset ``structured`` have.
    ``reopened`` is the fraction of gates that were seen closed and, at a later look, not; None in
    records that are older than it.
    """

    gates: Count
    closed: Fraction
    open: Fraction
    half_open: Fraction
    closed_rows: Fraction
    closed_cols: Fraction
    mean_open_probability: Fraction
    realised_sparsity: Fraction
    penalty: float | None
    histogram: list[Count]
    reopened: Fraction | None = None


class Epoch(Section):
    """Metrics on the reported split after an epoch; ``score`` is GLUE's, times 100."""

    epoch: Annotated[int, Field(ge=1)]
    train_loss: float
    metrics: dict[str, float]
    score: float
    gates: GateSummary | None


class CompactResult(Section):
    """The physically smaller model against the gated one, both in evaluation mode."""

    score: float
    max_abs_logit_difference: float
    parameters: Count
    encoder_macs: Count


class Closed(Section):
    """Numbers of closed rows and columns of one gated layer."""

    rows: Count
    cols: Count


class Record(Section):
    """One run. Durations in seconds, memory in MiB, MACs at ``budget['macs_batch']`` x
    ``budget['macs_length']``.

    Titles, names and the section ``training`` are quoted from the configuration of the day that the
    run was made. What the run depends on of it, ``finegates.suite.config.dependencies`` says.
    """

    format_version: int = FORMAT_VERSION
    tier: str
    task: str
    method: str
    seed: Count
    config: dict[str, Any]
    seeds: dict[str, int]
    code: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    epochs: list[Epoch] = Field(min_length=1)
    last: Epoch
    best: Epoch
    budget: dict[str, Any]
    realised_sparsity: Fraction
    closed: dict[str, Closed]
    compact: CompactResult | None
    timing: dict[str, Annotated[float, Field(ge=0)]]

    @model_validator(mode="after")
    def _agrees(self) -> Record:
        task_named(self.task)
        check_label(self.tier, "tier")
        check_label(self.method, "method")
        if [epoch.epoch for epoch in self.epochs] != list(range(1, len(self.epochs) + 1)):
            raise ValueError("epochs are not numbered 1, 2, ...")
        if self.last != self.epochs[-1] or self.best not in self.epochs:
            raise ValueError("'last' or 'best' is none of the epochs")
        if self.best.score < max(epoch.score for epoch in self.epochs):
            raise ValueError("'best' is not the best epoch")
        return self


def write_record(record: Record, path: str | Path) -> None:
    """Writes a record whole or not at all."""
    write_signed(record, path)


def read_record(path: str | Path) -> Record:
    """Reads and validates a record.

    Raises:
        RecordError: missing, not JSON, of another format version, not as it was written, or not of
            the schema.
    """
    return read_signed(Record, path)


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """Reads many records, in the given order. Raises RecordError as :func:`read_record`."""
    return [read_record(path) for path in paths]


def budget_entry(model: nn.Module, trainable: int, batch: int, length: int) -> dict[str, Any]:
    """The ``budget`` entry of a record: parameters by denominator, and MACs of the encoder.

    Args:
        model: dense or gated.
        trainable: parameters that training moved; gates may be at rest by now.
        batch: of the MACs.
        length: of the MACs.
    """
    counted = measure_budget(model)
    return {
        "parameters": {
            "all": counted.all_parameters,
            "encoder": counted.encoder_parameters,
            "gated": counted.gated_weights,
            "trainable": trainable,
            "gates": counted.gate_parameters,
            "biases": counted.gated_biases,
            "head": counted.head_parameters,
            "low_rank": counted.low_rank_parameters,
        },
        "removable_weights": counted.removable_weights or 0,
        "removed_weights": counted.removed_weights or 0,
        "realised_sparsity": counted.realised_sparsity or 0.0,
        "macs_batch": batch,
        "macs_length": length,
        "macs": {
            "dense": macs(model, batch, length).total,
            "kept": planned_macs(model, batch, length).total,
        },
    }
