"""The audit as tables: a line a claim, and a line a test with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finegates.suite.claims.audit import ClaimResult, TestResult
from finegates.suite.tables.render import BLANK, Table

DECIMALS = 4

CAPTION = (
    "A test is supported if the whole 95 % bootstrap interval of its mean keeps the bound, "
    "contradicted if none of it does, partly otherwise (one value has no interval); a claim is "
    "supported if all of its tests are, contradicted if all that could be carried out are. Lines "
    "in parentheses stand beside a claim and do not bear on its verdict. Intervals are over pairs "
    "of task and seed (of timings: over cases): with few of them, narrower than their level says."
)


def verdict_table(results: Sequence[ClaimResult], tier: str, about: str) -> Table:
    """One line for each claim: verdict, and how many of its tests were supported.

    Args:
        results: of :func:`finegates.suite.claims.audit`.
        tier: its name.
        about: what the tier's numbers are numbers of.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for result in results:
        counted = [test.verdict for test in result.tests if not test.test.beside]
        rows.append(
            {
                "claim": result.claim.id,
                "kind": result.claim.kind,
                "verdict": result.verdict,
                "supported_tests": counted.count("supported"),
                "tests": len(counted),
                "statement": result.claim.statement,
                "source": result.claim.source,
                "denominator": result.claim.denominator,
                "why_untested": result.claim.untested,
            }
        )
    cells = tuple(
        (
            row["claim"],
            f"**{row['verdict']}**",
            f"{row['supported_tests']}/{row['tests']}" if row["tests"] else BLANK,
            row["statement"],
            row["source"],
        )
        for row in rows
    )
    return Table(
        name="claims",
        title=f"Claims and verdicts (tier {tier})",
        caption=(
            "Tests supported of all tests of a claim. After the paper's claims stands what its "
            f"digest proposes to try, put as statements that could fail. {about} {CAPTION}"
        ),
        numbers=pd.DataFrame(rows),
        header=("Claim", "Verdict", "Tests", "Statement", "Said in"),
        cells=cells,
        rule_before=tuple(
            place for place in range(1, len(rows)) if rows[place]["kind"] != rows[place - 1]["kind"]
        ),
        text=(0, 1, 3, 4),
    )


def evidence_table(results: Sequence[ClaimResult], tier: str) -> Table:
    """One line for each test: what was measured, beside what was claimed; see `verdict_table`."""
    import pandas as pd

    rows = [_row(result, test) for result in results for test in result.tests]
    cells = tuple(
        (
            row["claim"],
            f"({row['test']})" if row["beside"] else row["test"],
            _measured(row),
            row["bound"],
            row["claimed"] or BLANK,
            row["verdict"] if not row["missing"] else f"not tested: {row['missing']}",
            _links(row["files"]),
        )
        for row in rows
    )
    return Table(
        name="claims-evidence",
        title=f"What the verdicts rest on (tier {tier})",
        caption=CAPTION,
        numbers=pd.DataFrame(rows).astype({"values": "Int64"}),
        header=("Claim", "Test", "Measured", "Bound", "Claimed", "Verdict", "Evidence"),
        cells=cells,
        text=(0, 1, 2, 4, 5, 6),
    )


def _row(result: ClaimResult, found: TestResult) -> dict[str, Any]:
    test, summary, measured = found.test, found.summary, found.measured
    interval = summary.interval if summary else None
    bound = f"≥ {test.at_least:g}" if test.at_least is not None else f"≤ {test.at_most:g}"
    return {
        "claim": result.claim.id,
        "test": test.label,
        "beside": test.beside,
        "verdict": found.verdict,
        "mean": _rounded(summary.mean) if summary else None,
        "low": _rounded(interval.low) if interval else None,
        "high": _rounded(interval.high) if interval else None,
        "values": summary.count if summary else None,
        "unit": measured.unit if measured else "",
        "bound": bound,
        "claimed": test.claimed,
        "denominator": result.claim.denominator,
        "missing": found.missing,
        "files": " ".join(measured.files) if measured else "",
    }


def _measured(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return BLANK
    number = f"{row['mean']:.3g}"
    if row["low"] is not None:
        number += f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{number} {row['unit']} (n = {row['values']})"


def _links(files: str) -> str:
    """Links from the results folder: tables, and the folders of records behind them."""
    return ", ".join(f"[{name}]({name.split('*')[0]})" for name in files.split()) or BLANK


def _rounded(value: float) -> float:
    """To significant digits: differences of logits are small."""
    return float(f"{value:.{DECIMALS}g}")
