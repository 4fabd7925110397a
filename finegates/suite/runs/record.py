"""The run record: one JSON file per run, with everything that a table or an auditor asks of it.

A record ends with its own digest, so that a flipped bit is an error and no other number. Records of
format version 1 were written before there was one; they are read as they are, and
:func:`is_signed` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from finegates.suite.config.section import Count, Fraction, Section
from finegates.suite.config.tasks import task_named
from finegates.suite.runs.predictions import Predictions
from finegates.suite.runs.run_record import Quoted, RunRecord
from finegates.suite.runs.signed import read_signed, write_signed


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


class Split(Section):
    """A split of a task's table: digest of its file, and whether it holds the official rows."""

    sha256: str | None
    status: str


class TaskTables(Section):
    """The tables of a run's task.

    Attributes:
        name: for captions.
        source: where they come from, see ``DataSource``.
        revision: commit hash on the hub.
        train_rows, validation_rows: that were used.
        official_train_rows: of GLUE's own table.
        validation_split: the one that is reported.
        splits: by name.
    """

    name: str
    source: str
    revision: str | None
    train_rows: Count
    validation_rows: Count
    official_train_rows: Count
    validation_split: str
    splits: dict[str, Split]


class QuotedGates(Quoted):
    """The gates of a run's method; ``target`` is the one that a matching method took."""

    preset: str
    target: float | None


class QuotedTraining(Quoted):
    """The training settings of a run, with the numbers of epochs of its task."""

    epochs: Count
    batch_size: Count
    precision: str | None = None


class RunConfig(Quoted):
    """A run's method (``finegates.suite.config.methods.Method``), training and tier in words."""

    title: str
    gates: QuotedGates | None = None
    magnitude: Quoted | None = None
    prune: Quoted | None = None
    layers: Quoted | None = None
    precision: str | None = None
    rate_factor: float | None = None
    rates_of: str | None = None
    training: QuotedTraining
    tier_description: str

    @property
    def is_pruned(self) -> bool:
        """Whether the method closes rows and columns, or leaves layers out."""
        smaller = (self.gates, self.magnitude, self.prune, self.layers)
        return any(section is not None for section in smaller)


class Record(RunRecord):
    """One run on a task of GLUE; MACs at ``budget.macs_batch`` x ``budget.macs_length``.

    ``predictions`` names the file next to the record; None in records that have none.
    """

    task: str
    config: RunConfig
    data: TaskTables
    epochs: list[Epoch] = Field(min_length=1)
    last: Epoch
    best: Epoch
    compact: CompactResult | None
    predictions: Predictions | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Record:
        task_named(self.task)
        if [epoch.epoch for epoch in self.epochs] != list(range(1, len(self.epochs) + 1)):
            raise ValueError("epochs are not numbered 1, 2, ...")
        if self.last != self.epochs[-1] or self.best not in self.epochs:
            raise ValueError("'last' or 'best' is none of the epochs")
        if self.best.score < max(epoch.score for epoch in self.epochs):
            raise ValueError("'best' is not the best epoch")
        return self


def write_record(record: RunRecord, path: str | Path) -> None:
    """Writes a record of any run whole or not at all."""
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
