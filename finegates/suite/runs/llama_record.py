"""The record of a run on plain text: as of a fine-tuning run, with a curve in place of epochs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from finegates.suite.config.llama import Experiment
from finegates.suite.config.names import check_label
from finegates.suite.config.section import Count, Fraction, Section
from finegates.suite.runs.record import Closed
from finegates.suite.runs.signed import FORMAT_VERSION, read_signed, write_signed


class HeldOutResult(Section):
    """Held-out prediction: nats a token, its exponential, bits a character; what it is over."""

    loss: float
    perplexity: float
    bits_per_character: float
    tokens: Count
    characters: Count


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

    step: Count
    tokens: Count
    task_loss: float | None = None
    held_out_loss: float | None = None
    realised_sparsity: Fraction | None = None
    removable_weights: Count | None = None
    closed: Fraction | None = None
    half_open: Fraction | None = None


class CausalCompact(Section):
    """The physically smaller model against the gated one, both in evaluation mode, float32.

    ``perplexity_difference`` is relative; ``same_tokens`` of ``greedy_tokens`` greedily decoded
    ones (with a cache) agree.
    """

    perplexity: float
    perplexity_difference: float
    greedy_tokens: Count
    same_tokens: Count
    parameters: Count
    macs: Count


class CausalRecord(Section):
    """One run. Durations in seconds, memory in MiB; ``start`` is before training, with gates."""

    format_version: int = FORMAT_VERSION
    tier: str
    experiment: Experiment
    name: str
    method: str
    title: str
    target: Fraction | None
    seed: Count
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
    realised_sparsity: Fraction
    closed: dict[str, Closed]
    compact: CausalCompact | None
    timing: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> CausalRecord:
        for what in ("tier", "name", "method"):
            check_label(getattr(self, what), what)
        steps = [point.step for point in self.curve]
        if steps != sorted(set(steps)):
            raise ValueError("the steps of the curve do not increase")
        return self


def write_causal_record(record: CausalRecord, path: str | Path) -> None:
    """Writes a record whole or not at all."""
    write_signed(record, path)


def read_causal_record(path: str | Path) -> CausalRecord:
    """Reads and validates a record.

    Raises:
        RecordError: as :func:`finegates.suite.runs.record.read_record`.
    """
    return read_signed(CausalRecord, path)


def read_causal_records(paths: Iterable[str | Path]) -> list[CausalRecord]:
    """Reads many records, in the given order. Raises RecordError as :func:`read_causal_record`."""
    return [read_causal_record(path) for path in paths]
