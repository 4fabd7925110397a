"""The run record: one JSON file per run, the source of all tables.

A record ends with the SHA-256 of its own content, so that a flipped bit raises an error instead of
changing a number. Records of format version 1 do not have this digest. They are still read;
:func:`is_signed` distinguishes them.
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

    ``closed``, ``open`` and ``half_open`` are the fractions of gates whose evaluation value is
    exactly 0, exactly 1, and strictly between 0.05 and 0.95. ``histogram`` counts evaluation gates
    in equal bins of [0, 1]. The factor of gates of preset ``structured`` is not included.
    ``reopened`` is the fraction of gates that were closed at one inspection and not at a later one;
    None in records that predate it.
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
    """Metrics on the reported split after an epoch, ``score`` times 100."""

    epoch: Annotated[int, Field(ge=1)]
    train_loss: float
    metrics: dict[str, float]
    score: float
    gates: GateSummary | None


class CompactResult(Section):
    """The compact model against the gated one, both in evaluation mode."""

    score: float
    max_abs_logit_difference: float
    parameters: Count
    encoder_macs: Count


class Split(Section):
    """One split of a task, with the SHA-256 and the status of its file."""

    sha256: str | None
    status: str


class TaskTables(Section):
    """The tables of a run's task.

    Attributes:
        name: for captions.
        source: kind of source, see ``DataSource``.
        revision: commit hash on the hub.
        train_rows, validation_rows: numbers of rows used.
        official_train_rows: number of rows of GLUE's own table.
        validation_split: the reported split.
        splits: splits by name.
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
    """The gates of a run's method, with the target of a matched run."""

    preset: str
    target: float | None


class QuotedTraining(Quoted):
    """The training settings of a run, with the number of epochs of its task."""

    epochs: Count
    batch_size: Count
    precision: str | None = None


class RunConfig(Quoted):
    """Method, training and tier of a run, see :mod:`finegates.suite.config`."""

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
    """One run on a GLUE task.

    MACs are counted at ``budget.macs_batch`` x ``budget.macs_length`` tokens. ``predictions``
    describes the file next to the record; None in records without one.
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
    """Writes the record of any run atomically."""
    write_signed(record, path)


def read_record(path: str | Path) -> Record:
    """Reads and validates a record.

    Raises:
        RecordError: the file is missing, is not JSON, has another format version, does not match
            its digest, or does not follow the schema.
    """
    return read_signed(Record, path)


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """Reads many records in the given order, as :func:`read_record`."""
    return [read_record(path) for path in paths]
