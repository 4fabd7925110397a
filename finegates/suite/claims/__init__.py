"""Audits the paper's claims against the results of a tier.

``config/claims.yaml`` lists every claim with its tests. A test is a measure of a tier's results and
a bound. Verdicts are computed from the numbers, never typed.
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
