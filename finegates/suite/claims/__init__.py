"""The audit of the paper's claims: which hold, by which numbers.

``config/claims.yaml`` lists every claim with the tests that bear on it; a test is a measure of a
tier's results and a bound. Verdicts follow from the numbers and are written by nobody.
"""

from finegates.suite.claims.audit import VERDICTS, ClaimResult, TestResult, audit
from finegates.suite.claims.evidence import Evidence, MissingEvidenceError
from finegates.suite.claims.ledger import Claim, ClaimTest, load_ledger
from finegates.suite.claims.report import evidence_table, shown, verdict_table

__all__ = [
    "VERDICTS",
    "Claim",
    "ClaimResult",
    "ClaimTest",
    "Evidence",
    "MissingEvidenceError",
    "TestResult",
    "audit",
    "evidence_table",
    "load_ledger",
    "shown",
    "verdict_table",
]
