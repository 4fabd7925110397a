"""The record of a run on plain text: as of a fine-tuning run, with a curve in place of epochs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from finegates.record import FORMAT_VERSION, Closed, read_signed, write_signed
from finegates.section import Section

Experiment = Literal["posttraining", "pretraining"]


class HeldOutResult(Section):
    """Held-out prediction: nats a token, its exponential, bits a character; what it is over."""

    loss: float
    perplexity: float
    bits_per_character: float
    tokens: int
    characters: int


class CurvePoint(Section):
    """A moment of a training: what is not measured at it is None.

    Attributes:
        step: optimizer steps done.
        tokens: seen by then.
        task_loss: mean next-token loss since the point before, in training mode, without penalty.
        held_out_loss: on held-out text, in evaluation mode.
        realised_sparsity: fraction of the gated weights in closed rows or columns.
        removable_weights: their number.
        closed, half_open: fractions of the gates.
    """

    step: int
    tokens: int
    task_loss: float | None = None
    held_out_loss: float | None = None
    realised_sparsity: float | None = None
    removable_weights: int | None = None
    closed: float | None = None
    half_open: float | None = None


class CausalCompact(Section):
    """The physically smaller model against the gated one, both in evaluation mode, float32.

    ``perplexity_difference`` is relative; ``same_tokens`` of ``greedy_tokens`` greedily decoded
    ones (with a cache) agree.
    """

    perplexity: float
    perplexity_difference: float
    greedy_tokens: int
    same_tokens: int
    parameters: int
    macs: int


class CausalRecord(Section):
    """One run. Durations in seconds, memory in MiB; ``start`` is before training, with gates."""

    format_version: int = FORMAT_VERSION
    tier: str
    experiment: Experiment
    name: str
    method: str
    title: str
    target: float | None
    seed: int
    config: dict[str, Any]
    seeds: dict[str, int]
    code: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    start: HeldOutResult
    final: HeldOutResult
    curve: list[CurvePoint]
    budget: dict[str, Any]
    realised_sparsity: float
    closed: dict[str, Closed]
    compact: CausalCompact | None
    timing: dict[str, float] = Field(default_factory=dict)


def write_causal_record(record: CausalRecord, path: str | Path) -> None:
    """Writes a record whole or not at all."""
    write_signed(record, path)


def read_causal_record(path: str | Path) -> CausalRecord:
    """Reads and validates a record.

    Raises:
        RecordError: as :func:`finegates.record.read_record`.
    """
    return read_signed(CausalRecord, path)


def read_causal_records(paths: Iterable[str | Path]) -> list[CausalRecord]:
    """Reads many records, in the given order. Raises RecordError as :func:`read_causal_record`."""
    return [read_causal_record(path) for path in paths]
