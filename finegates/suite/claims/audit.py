"""Computes verdicts from claims and evidence.

A test compares an interval with a bound that was fixed in advance. A single number without an
interval is inconclusive. The kind of interval depends on the quantity:

1. Deterministic counts and sizes: the range of all values.
2. Scores: the mean over a fixed set of tasks. For each task, the variance over seeds (if there are
   several) and the variance from sampling test rows are added. The degrees of freedom are those of
   Welch and Satterthwaite.
3. Repeated measurements of one quantity (a time): the range of its quartiles.
4. All others: Student's t interval over at least two values.

The theory judges each of its settings by an interval of its own. If they are decided both ways, the
verdict is that the claim depends on the setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finegates.suite.claims.evidence import Evidence, MissingEvidenceError, NoisyEvidenceError
from finegates.suite.claims.ledger import Claim, ClaimTest
from finegates.suite.claims.measured import Measured, Unit
from finegates.suite.claims.measures import MEASURES, model_parameters
from finegates.suite.stats import (
    Interval,
    Variance,
    combined_interval,
    mean,
    mean_variance,
    t_interval,
)

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
DEPENDS = "depends on the setting"
NOT_TESTABLE = "not testable at this tier"
NOT_MEASURABLE = "not measurable here"
VERDICTS = (SUPPORTED, CONTRADICTED, DEPENDS, INCONCLUSIVE, NOT_TESTABLE, NOT_MEASURABLE)

JUDGED = {
    "supported": SUPPORTED,
    "contradicted": CONTRADICTED,
    "depends": DEPENDS,
    "inconclusive": INCONCLUSIVE,
}
"""Verdicts of the theory on a part of a claim, in the words of the audit."""


@dataclass(frozen=True)
class TestResult:
    """The result of a test of a claim, whether or not the test could be run.

    Attributes:
        test: the test.
        verdict: one of :data:`VERDICTS`.
        mean: mean of the values; None if the test could not be run, or gives no number.
        interval: interval of the mean, if there is one.
        covers: the sources of variation that the interval covers, in words.
        measured: the values; None if the test could not be run.
        missing: why the test could not be run.
    """

    __test__ = False  # pytest collects classes whose names begin with Test

    test: ClaimTest
    verdict: str
    mean: float | None = None
    interval: Interval | None = None
    covers: str = ""
    measured: Measured | None = None
    missing: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim, its verdict and its tests."""

    claim: Claim
    verdict: str
    tests: tuple[TestResult, ...]


def audit(claims: Sequence[Claim], evidence: Evidence) -> list[ClaimResult]:
    """Computes the verdict of every claim from the results of a tier.

    A test is supported if the whole interval satisfies the bound, and contradicted if no part of it
    does. It is inconclusive otherwise, and without an interval. A conjunction is contradicted by
    one contradicted test, and depends on the setting if all others are supported. A claim of "up
    to" needs one supported test. A time is not measurable if its control
    (:mod:`finegates.suite.timing.control`) is off.
    """
    results = []
    for claim in claims:
        tests = tuple(_judge(test, evidence) for test in claim.tests)
        results.append(ClaimResult(claim, _overall(claim, tests), tests))
    return results


def _judge(test: ClaimTest, evidence: Evidence) -> TestResult:
    try:
        if test.parameters is not None:
            _check_size(test, test.parameters, evidence)
        measured = MEASURES[test.measure](evidence, **test.of)
    except NoisyEvidenceError as error:
        return TestResult(test, NOT_MEASURABLE, missing=str(error))
    except MissingEvidenceError as error:
        return TestResult(test, NOT_TESTABLE, missing=str(error))
    if measured.verdict:
        return TestResult(test, JUDGED[measured.verdict], measured=measured)
    centre = _mean(measured)
    interval, covers = interval_of(measured)
    return TestResult(test, _verdict(test, interval), centre, interval, covers, measured)


def _check_size(test: ClaimTest, parameters: float, evidence: Evidence) -> None:
    found = model_parameters(evidence, test.measure)
    if found < parameters:
        raise MissingEvidenceError(
            f"the width of the model decides this, and it is of {found / 1e6:.1f} M parameters "
            f"instead of at least {parameters / 1e6:.0f} M"
        )


def interval_of(measured: Measured) -> tuple[Interval | None, str]:
    """The interval of a measure's mean by the module's rules, and its scope."""
    values = list(measured.values.values())
    if measured.counted:
        return Interval(min(values), max(values), level=1.0), "all values"  # rule 1
    if measured.row_errors is not None:  # rule 2
        interval, covers = _over_fixed_tasks(measured.values, measured.row_errors)
        return interval, f"{covers}, paired" if measured.paired else covers
    if measured.ranges is not None and len(values) == 1:
        ((low, high),) = measured.ranges.values()
        return Interval(low, high, level=0.5), "quartiles"  # rule 3
    found = t_interval(values)  # rule 4
    return found, "" if found is None else f"{len(values)} values"


def _over_fixed_tasks(
    values: dict[Unit, float], row_errors: dict[Unit, float]
) -> tuple[Interval, str]:
    """Interval of the mean over a fixed set of tasks (rule 2 of the module)."""
    by_task = _by_task(values)
    variances = []
    several = all(len(units) > 1 for units in by_task.values())
    for units in by_task.values():
        # All seeds of a task share its test rows, so averaging does not reduce this variance.
        rows = mean(row_errors[unit] for unit in units) ** 2
        parts = [Variance(rows)]
        if len(units) > 1:
            parts.append(mean_variance([values[unit] for unit in units]))
        variances += [Variance(part.value / len(by_task) ** 2, part.freedom) for part in parts]
    covers = "seeds and test rows" if several else "test rows"
    return combined_interval(mean(_task_means(values)), variances), covers


def _mean(measured: Measured) -> float:
    fixed = measured.row_errors is not None
    return mean(_task_means(measured.values) if fixed else measured.values.values())


def _task_means(values: dict[Unit, float]) -> list[float]:
    return [mean(values[unit] for unit in units) for units in _by_task(values).values()]


def _by_task(values: dict[Unit, float]) -> dict[object, list[Unit]]:
    by_task: dict[object, list[Unit]] = {}
    for unit in values:
        by_task.setdefault(unit[0], []).append(unit)
    return by_task


def _verdict(test: ClaimTest, interval: Interval | None) -> str:
    if interval is None:
        return INCONCLUSIVE
    least, most = test.bounds()
    if least <= interval.low and interval.high <= most:
        return SUPPORTED
    return CONTRADICTED if interval.high < least or most < interval.low else INCONCLUSIVE


def _overall(claim: Claim, tests: Sequence[TestResult]) -> str:
    verdicts = [result.verdict for result in tests if not result.test.beside]
    if set(verdicts) <= {NOT_TESTABLE, NOT_MEASURABLE}:
        return NOT_MEASURABLE if NOT_MEASURABLE in verdicts else NOT_TESTABLE
    decisive, other = SUPPORTED, CONTRADICTED
    if claim.combine == "all":
        decisive, other = other, decisive
    if decisive in verdicts:
        return decisive
    if set(verdicts) == {other}:
        return other
    # What is decided both ways is more than what is open.
    return DEPENDS if DEPENDS in verdicts and set(verdicts) <= {DEPENDS, other} else INCONCLUSIVE
