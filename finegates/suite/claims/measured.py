"""The values that a measure gives, and the rows of tables that it takes them from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finegates.suite.claims.evidence import Evidence, MissingEvidenceError
from finegates.suite.stats import paired_differences

if TYPE_CHECKING:
    import pandas as pd

Unit = tuple[object, ...]

RUNS = "tables/runs.csv"


@dataclass(frozen=True)
class Measured:
    """The values of a measure.

    Attributes:
        values: values by unit; at least one, unless the measure gives a verdict.
        unit: unit of the values for print, such as points.
        files: source files, relative to the tier's results folder.
        row_errors: by unit, the standard error of the value from sampling test rows; None for
            values that are not computed from test rows. Units are then pairs of task and seed,
            and the mean is over a fixed set of tasks.
        paired: whether ``row_errors`` are those of row-wise differences instead of independent
            samples.
        ranges: by unit, bounds of the value from repeated measurements, if there are any.
        counted: whether values are counts and sizes, independent of seeds and test rows.
        verdict: verdict of a measure that judges itself; empty for numbers.
        findings: what such a verdict rests on, in words for print.
    """

    values: dict[Unit, float]
    unit: str
    files: tuple[str, ...]
    row_errors: dict[Unit, float] | None = None
    paired: bool = False
    ranges: dict[Unit, tuple[float, float]] | None = None
    counted: bool = False
    verdict: str = ""
    findings: str = ""


def paired_difference(
    evidence: Evidence,
    method: str,
    against: str,
    column: str,
    scale: float,
    unit: str,
    study: str | None,
) -> Measured:
    """A column of the runs of a method minus that of another, paired by task and seed.

    Args:
        evidence: results of a tier.
        method: label of the method.
        against: label of the other method.
        column: column of the table of runs.
        scale: factor on the differences.
        unit: unit of the result for print.
        study: name of a study; the main table if None.

    Raises:
        MissingEvidenceError: the two methods do not share any task and seed.
    """
    first, second = (by_run(evidence, label, column, study) for label in (method, against))
    found = paired_differences(first, second)
    if not found:
        raise MissingEvidenceError(f"no task and seed with both {method} and {against}")
    values = {key: scale * difference for key, difference in found.items()}
    return Measured(values, unit, records_of(method, against, study=study))


def runs_file(study: str | None) -> str:
    """The table of the runs of a study, or of the main table if it is None."""
    return RUNS if study is None else f"studies/runs/{study}.csv"


def rows_of(table: pd.DataFrame, method: str, file: str) -> pd.DataFrame:
    """The rows of a method; raises MissingEvidenceError if the table of a file has none."""
    rows = table[table["method"] == method]
    if rows.empty:
        raise MissingEvidenceError(f"no row of {method} in {file}")
    return rows


def by_run(
    evidence: Evidence, method: str, column: str, study: str | None = None
) -> dict[Unit, float]:
    """A column of the runs of a method, by task and seed.

    Raises:
        MissingEvidenceError: the method does not have any run, or the column is empty for it.
    """
    runs: pd.DataFrame = evidence.table(runs_file(study))
    rows = runs[runs["method"] == method]
    if rows.empty:
        raise MissingEvidenceError(f"no run of {method}")
    if column not in rows:
        raise MissingEvidenceError(f"no {column} in {runs_file(study)}")
    values = rows.set_index(["task", "seed"])[column].dropna()
    if values.empty:
        raise MissingEvidenceError(f"no {column} of {method}")
    return {unit: float(value) for unit, value in zip(values.index, values, strict=True)}


def records_of(*methods: str, study: str | None = None) -> tuple[str, ...]:
    """The files behind a measure of the runs of some methods: their table and their records."""
    return (runs_file(study), *(f"runs/*/{method}" for method in methods))
