"""Measures of saved time, with the bounds of repeated passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finegates.suite.claims.evidence import Evidence, MissingEvidenceError, NoisyEvidenceError
from finegates.suite.claims.measured import Measured, Unit, rows_of
from finegates.suite.timing.control import CONTROL, is_noisy

if TYPE_CHECKING:
    import pandas as pd

STUDY_TIMES = "timing/deployed.csv"
INFERENCE = "timing/inference.csv"


def deployed_time_saved(evidence: Evidence, method: str) -> Measured:
    """Percentage of the dense forward pass's time that a deployed model saves."""
    table = evidence.table(STUDY_TIMES)
    _check_control(table[table["method"] == CONTROL], STUDY_TIMES)
    found, dense = (rows_of(table, name, STUDY_TIMES).iloc[0] for name in (method, "dense"))
    saved = 100 * (1 - float(found["ratio_to_dense"]))
    unit = (method,)
    ranges: dict[Unit, tuple[float, float]] = {unit: _saved(found, dense)}
    return Measured({unit: saved}, "% of the time", (STUDY_TIMES,), ranges=ranges)


def _check_control(control: pd.DataFrame, name: str) -> None:
    """Raises NoisyEvidenceError if the dense model, timed twice, differs from itself."""
    off = [ratio - 1 for ratio in control["ratio_to_dense"] if is_noisy(ratio)]
    if off:
        worst = max(off, key=abs)
        raise NoisyEvidenceError(
            f"in {name} the dense model, timed twice, differs from itself by {100 * worst:+.0f} %; "
            "measure again on a quiet machine"
        )


def _saved(found: Any, dense: Any) -> tuple[float, float]:
    """Bounds of the saved time, in percent.

    They compare each quartile of repeated passes with the opposite quartile of the dense model.
    """
    low = 100 * (1 - float(found["q75_ms"]) / float(dense["q25_ms"]))
    return low, 100 * (1 - float(found["q25_ms"]) / float(dense["q75_ms"]))


def time_saved(
    evidence: Evidence,
    contender: str = "compact",
    gates: str = "random",
    kept: float | None = None,
    model: str | None = None,
) -> Measured:
    """Percentage of the dense model's eager forward time that is saved.

    Args:
        evidence: results of a tier.
        contender: ``compact``, or ``gated`` for the gated model before compaction.
        gates: ``random`` or ``structured``.
        kept: only cases that keep this fraction; all if None.
        model: only this shape; all if None.
    """
    table = evidence.table(INFERENCE)
    chosen = table[
        (table["contender"] == contender)
        & (table["backend"] == "eager")
        & (table["gates"] == gates)
        & ~table["decode"].astype(bool)
    ]
    if kept is not None:
        chosen = chosen[(chosen["kept"] - kept).abs() < 1e-9]
    if model is not None:
        chosen = chosen[chosen["model"] == model]
    if chosen.empty:
        raise MissingEvidenceError(f"{INFERENCE} has no such case")
    dense = table[(table["contender"] == "dense") & (table["backend"] == "eager")]
    control = table[table["contender"] == CONTROL]
    values: dict[Unit, float] = {}
    ranges: dict[Unit, tuple[float, float]] = {}
    for row in chosen.to_dict("records"):
        unit = (row["model"], row["kept"], row["batch"], row["length"])
        values[unit] = 100 * (1 - row["ratio_to_dense"])
        alike = ["model", "batch", "length", "decode", "gates", "kept"]
        case = [row[name] for name in alike]
        again = (control[alike] == case).all(axis=1)
        _check_control(control[again], INFERENCE)
        same = (dense[alike] == case).all(axis=1)
        (other,) = dense[same].to_dict("records")
        ranges[unit] = _saved(row, other)
    return Measured(values, "% of the time", (INFERENCE,), ranges=ranges)
