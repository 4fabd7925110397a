"""The record of a run on plain text, with a curve instead of epochs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import model_validator

from finegates.suite.config.llama import Experiment
from finegates.suite.config.names import check_label
from finegates.suite.config.section import Count, Fraction, Section
from finegates.suite.runs.run_record import Quoted, RunRecord
from finegates.suite.runs.signed import read_signed


class HeldOutResult(Section):
    """Held-out loss (nats per token), perplexity, bits per character, counts."""

    loss: float
    perplexity: float
    bits_per_character: float
    tokens: Count
    characters: Count


class CurvePoint(Section):
    """One logged step of a training. Quantities not measured at it are None.

    Attributes:
        step: optimizer steps done.
        tokens: tokens seen so far.
        task_loss: mean next-token loss since the previous point, in training mode, without penalty.
        held_out_loss: loss on held-out text, in evaluation mode.
        realised_sparsity: fraction of the gated weights in closed rows or columns.
        removable_weights: number of gated weights.
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
    """The compact model against the gated one, in evaluation mode and float32.

    ``perplexity_difference`` is relative. Of ``greedy_tokens`` tokens that both models decode
    greedily with a cache, ``same_tokens`` are equal.
    """

    perplexity: float
    perplexity_difference: float
    greedy_tokens: Count
    same_tokens: Count
    parameters: Count
    macs: Count


class Text(Section):
    """The text of a run.

    Attributes:
        name: for captions.
        source: kind of source, see ``TextSource``.
        revision: commit hash on the hub.
        validation_documents: maximum number of held-out documents; None for all.
        sha256: SHA-256 of the files, by split; empty for a streamed text.
        status: status that the files state, by split.
    """

    name: str
    source: str
    revision: str | None
    validation_documents: Count | None
    sha256: dict[str, str]
    status: dict[str, str | None]


class TextTraining(Quoted):
    """Settings of a training on text, see ``finegates.suite.config.llama.CausalTraining``."""

    steps: Count
    batch_size: Count
    length: Count
    learning_rate: float
    final_rate: float
    precision: str


class TextConfig(Quoted):
    """Gates or criterion, training (None if untrained) and tier of a run."""

    training: TextTraining | None
    tier_description: str


class CausalRecord(RunRecord):
    """One run on plain text. ``start`` is measured before training."""

    experiment: Experiment
    name: str
    title: str
    target: Fraction | None
    config: TextConfig
    data: Text
    start: HeldOutResult
    final: HeldOutResult
    curve: list[CurvePoint]
    compact: CausalCompact | None

    @model_validator(mode="after")
    def _agrees(self) -> CausalRecord:
        check_label(self.name, "name")
        steps = [point.step for point in self.curve]
        if steps != sorted(set(steps)):
            raise ValueError("the steps of the curve do not increase")
        return self


def read_causal_record(path: str | Path) -> CausalRecord:
    """Reads and validates a record.

    Raises:
        RecordError: see :func:`finegates.suite.runs.record.read_record`.
    """
    return read_signed(CausalRecord, path)


def read_causal_records(paths: Iterable[str | Path]) -> list[CausalRecord]:
    """Reads many records in the given order, as :func:`read_causal_record`."""
    return [read_causal_record(path) for path in paths]
