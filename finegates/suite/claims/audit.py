"""From claims and evidence to verdicts, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finegates.suite.claims.evidence import Evidence, MissingEvidenceError
from finegates.suite.claims.ledger import Claim, ClaimTest
from finegates.suite.claims.measures import MEASURES, Measured
from finegates.suite.stats import Summary, summarise

SUPPORTED, PARTLY, CONTRADICTED = "supported", "partly", "contradicted"
NOT_TESTED = "not tested at this tier"


@dataclass(frozen=True)
class TestResult:
    """A test of a claim, carried out or not.

    Attributes:
        test: what was to be measured.
        verdict: one of the four.
        summary: of the values; None where evidence is missing.
        measured: the values; None where evidence is missing.
        missing: what is missing.
    """

    __test__ = False  # the name is no invitation to pytest

    test: ClaimTest
    verdict: str
    summary: Summary | None = None
    measured: Measured | None = None
    missing: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim, its verdict and its tests."""

    claim: Claim
    verdict: str
    tests: tuple[TestResult, ...]


def audit(claims: Sequence[Claim], evidence: Evidence) -> list[ClaimResult]:
    """Judges every claim by the results of a tier.

    A test is supported if the whole interval of its mean keeps the bound, contradicted if none of
    it does, and partly else. A claim is supported if all of its tests are, contradicted if all that
    could be carried out are, not tested if none could, and partly else.
    """
    results = []
    for claim in claims:
        tests = tuple(_judge(claim, test, evidence) for test in claim.tests)
        results.append(ClaimResult(claim, _overall(tests), tests))
    return results


def _judge(claim: Claim, test: ClaimTest, evidence: Evidence) -> TestResult:
    try:
        measured = MEASURES[test.measure](evidence, **test.of)
    except MissingEvidenceError as error:
        return TestResult(test, NOT_TESTED, missing=str(error))
    summary = summarise(measured.values.values(), claim.id, test.label)
    return TestResult(test, _verdict(test, summary), summary, measured)


def _verdict(test: ClaimTest, summary: Summary) -> str:
    interval = summary.interval
    ends = (interval.low, interval.high) if interval else (summary.mean, summary.mean)
    if test.at_least is not None:
        kept = [end >= test.at_least for end in ends]
    else:
        assert test.at_most is not None
        kept = [end <= test.at_most for end in ends]
    return SUPPORTED if all(kept) else PARTLY if any(kept) else CONTRADICTED


def _overall(tests: Sequence[TestResult]) -> str:
    verdicts = [result.verdict for result in tests if not result.test.beside]
    tested = [verdict for verdict in verdicts if verdict != NOT_TESTED]
    if not tested:
        return NOT_TESTED
    if all(verdict == SUPPORTED for verdict in verdicts):
        return SUPPORTED
    return CONTRADICTED if set(tested) == {CONTRADICTED} else PARTLY
