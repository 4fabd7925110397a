"""Shared parts of the Llama tables: typed columns, and groups of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finegates.suite.runs.llama_record import CausalRecord
from finegates.suite.stats import mean
from finegates.suite.tables.render import Column, decimals, percent
from finegates.suite.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS

if TYPE_CHECKING:
    import pandas as pd


def typed_frame(rows: Sequence[dict[str, Any]], whole: Sequence[str]) -> pd.DataFrame:
    """Rows as a frame with typed columns.

    Names stay strings, the columns in ``whole`` become integers and all others floats. Blanks are
    allowed.
    """
    import pandas as pd

    frame = pd.DataFrame(rows)
    text = ("tier", "task", "name", "model", "method", "title")
    for column in frame.columns:
        if column in whole or column == "seeds":
            frame[column] = frame[column].astype("Float64").astype("Int64")
        elif column not in text:
            frame[column] = frame[column].astype("Float64")
    return frame


def group_starts(keys: Sequence[object]) -> tuple[int, ...]:
    """Indices, except 0, at which the key differs from the previous one."""
    return tuple(i for i in range(1, len(keys)) if keys[i] != keys[i - 1])


TARGET_AND_REALISED = (
    Column("Target (%)", "target", percent),
    Column("Realised (%)", "realised_sparsity", percent),
)
REMOVED_AND_KEPT = (
    Column("Removed", "removed_weights", decimals(0)),
    Column("of all (%)", "removed_of_all", percent),
    Column("MACs kept (%)", "macs_kept_fraction", percent),
)
PREDICTION = (
    Column("Perplexity", "perplexity", decimals(3)),
    Column("Bits/character", "bits_per_character", decimals(4)),
)

COUNTS = ("removed_weights", "gated_weights", "all", "trainable")


def groups(records: Sequence[CausalRecord]) -> list[list[CausalRecord]]:
    """Groups runs that differ only in the seed, in order of appearance."""
    groups: dict[tuple[str, str, float | None], list[CausalRecord]] = {}
    for record in records:
        groups.setdefault((record.name, record.method, record.target), []).append(record)
    return list(groups.values())


def causal_row(found: Sequence[CausalRecord]) -> dict[str, Any]:
    """Means over the seeds of one model, method and target, by column."""

    def average(value: Callable[[CausalRecord], float], decimals: int) -> float:
        return round(mean(map(value, found)), decimals) + 0.0

    first = found[0]
    counts = first.budget.parameters
    shrunk = [r.compact for r in found if r.compact is not None]
    return {
        "tier": first.tier,
        "name": first.name,
        "model": first.model.name,
        "method": first.method,
        "title": first.title,
        "seeds": len(found),
        "target": first.target,
        "realised_sparsity": average(lambda r: r.realised_sparsity, FRACTION_DECIMALS),
        "removed_weights": average(lambda r: r.budget.removed_weights, 0),
        "removed_of_gated": average(
            lambda r: r.budget.removed_weights / r.budget.parameters.gated,
            FRACTION_DECIMALS,
        )
        if counts.gated
        else None,
        "removed_of_all": average(
            lambda r: r.budget.removed_weights / r.budget.parameters.all,
            FRACTION_DECIMALS,
        ),
        "macs_kept_fraction": average(lambda r: r.budget.macs.kept_fraction, FRACTION_DECIMALS),
        "extra_parameters_fraction": round(counts.gates / counts.all, FRACTION_DECIMALS + 2),
        "gated_weights": counts.gated,
        "all": counts.all,
        "trainable": counts.trainable,
        "start_perplexity": average(lambda r: r.start.perplexity, SCORE_DECIMALS),
        "loss": average(lambda r: r.final.loss, FRACTION_DECIMALS),
        "perplexity": average(lambda r: r.final.perplexity, SCORE_DECIMALS),
        "bits_per_character": average(lambda r: r.final.bits_per_character, FRACTION_DECIMALS),
        "compact_perplexity_difference": float(
            f"{max(c.perplexity_difference for c in shrunk):.1e}"
        )
        if shrunk
        else None,
        "compact_same_tokens": min(c.same_tokens / c.greedy_tokens for c in shrunk)
        if shrunk
        else None,
    }
