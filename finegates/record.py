"""The run record: one JSON file per run, with everything that a table or an auditor asks of it.

A record ends with its own digest, so that a flipped bit is an error and no other number. Records of
format version 1 were written before there was one; they are read as they are, and
:func:`is_signed` tells them apart.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from finegates.config import ConfigError, validated
from finegates.files import parse_json, write_text
from finegates.machine import cpu_name
from finegates.names import check_label
from finegates.seals import content_digest
from finegates.section import Count, Fraction, Section
from finegates.tasks.glue import task_named

FORMAT_VERSION = 2

UNSIGNED_VERSION = 1
"""The format version of records without a digest of their own."""

DIGEST = "sha256"
"""The key of a record's own digest: of all other keys, see ``finegates.seals.content_digest``."""

TIMES = ("timing",)
"""The keys of a record that hold durations and memory. All others are the same whenever the same
run is done again on the same machine, at the same commit."""

PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "tokenizers", "numpy")


class RecordError(ValueError):
    """A record that cannot be read; the message names the file and what is wrong with it."""


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
    run was made. What the run depends on of it, ``finegates.dependencies`` says.
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


def write_signed(record: Section, path: str | Path) -> None:
    """Writes a record of any kind, with its digest, whole or not at all."""
    values = {**record.model_dump(), "format_version": FORMAT_VERSION}
    signed = {**values, DIGEST: content_digest(values)}
    write_text(path, json.dumps(signed, indent=1, allow_nan=False) + "\n")


def is_signed(record: Any) -> bool:
    """Whether a record that was read carries a digest of its own."""
    return bool(record.format_version != UNSIGNED_VERSION)


def without_times(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record's plain values without what differs when the same run is done again: its times, and
    the digest that covers them."""
    return {key: value for key, value in values.items() if key not in (*TIMES, DIGEST)}


_Model = TypeVar("_Model", bound=Section)


def read_signed(model: type[_Model], path: str | Path) -> _Model:
    """Reads a record of any kind.

    Raises:
        RecordError: as :func:`signed_values`, or not of the schema.
    """
    try:
        return validated(model, signed_values(path), path, strict=True)
    except ConfigError as error:
        raise RecordError(f"record does not fit its schema: {error}") from error


def signed_values(path: str | Path) -> dict[str, Any]:
    """The plain values of a record of any kind, after a look at its digest, which is left out.

    Raises:
        RecordError: missing, not JSON, of another format version, or not as it was written.
    """
    try:
        raw = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read record {path}: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"record {path} is damaged ({error}); delete it and run again") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version not in (FORMAT_VERSION, UNSIGNED_VERSION):
        raise RecordError(
            f"record {path} has format version {version!r}, expected {FORMAT_VERSION}"
        )
    if version == FORMAT_VERSION and raw.pop(DIGEST, None) != content_digest(raw):
        raise RecordError(
            f"record {path} is damaged (its content does not have the digest that it names); "
            "delete it and run again"
        )
    return dict(raw)


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """Reads many records, in the given order. Raises RecordError as :func:`read_record`."""
    return [read_record(path) for path in paths]


def code_version(root: Path) -> dict[str, Any]:
    """The repository's commit and whether tracked files differ from it; unknown outside git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def hardware(threads: int) -> dict[str, Any]:
    """CPU, cores, memory and accelerator of this machine, and the threads in use."""
    import psutil
    import torch

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory_mib() -> float:
    """The most memory that this process has held: on the accelerator, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
