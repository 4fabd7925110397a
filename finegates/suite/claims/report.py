"""Tables of the audit: one row per claim, and one row per test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finegates.suite.claims.audit import (
    CONTRADICTED,
    NOT_MEASURABLE,
    ClaimResult,
    TestResult,
)
from finegates.suite.tables.render import BLANK, Column, Table

DECIMALS = 4

CAPTION = (
    "A test compares an interval with a bound fixed in advance: supported if the whole interval "
    "keeps the bound, contradicted if none of it does, inconclusive otherwise, or without an "
    "interval; ± is an equivalence test. Intervals are at 95 %: of scores over seeds (where there "
    "are several) and test rows, for just these tasks (paired row by row where predictions are "
    "stored, else as if drawn for each method by itself: an upper bound); of other values "
    "Student's t; of counts and sizes the range of all values; of single times the quartiles. A "
    'claim is contradicted if one of its tests is, supported if all are; one that says "up to" is '
    "supported if one of them is. What the width of the model alone decides is not testable below "
    "the stated size. Claims that the theory judges depend on the setting if its settings are "
    "decided both ways, each by an interval of its own. Lines in parentheses are shown with a "
    "claim and do not bear on its verdict."
)


SYNTHETIC = (
    "Models and data of this tier are made by the workflow itself: an outcome in parentheses shows "
    "that the test can be computed, and says nothing about the paper. "
)


def shown(result: ClaimResult) -> str:
    """The verdict on a claim for print.

    A claim that measurements contradict is marked "at this scale". What a theorem or a
    counterexample denies has no scale, and experiments are claimed of none.
    """
    contradicting = {
        test.test.measure
        for test in result.tests
        if test.verdict == CONTRADICTED and not test.test.beside
    }
    measured = result.verdict == CONTRADICTED and contradicting != {"theory_claim"}
    scale = measured and result.claim.kind == "claim"
    return f"{result.verdict} (at this scale)" if scale else result.verdict


def multiplicity(results: Sequence[ClaimResult]) -> str:
    """The number of tests, and the number expected to be wrong by chance."""
    decided = [
        test
        for result in results
        for test in result.tests
        if test.interval is not None and test.covers != "all values" and not test.test.beside
    ]
    return (
        f"{len(decided)} tests rest on intervals that chance moves; at 2.5 % a side "
        f"{0.025 * len(decided):.1f} of them would be wrong by chance, and nothing is corrected "
        "for that."
    )


def verdict_table(
    results: Sequence[ClaimResult], tier: str, about: str, synthetic: bool = False
) -> Table:
    """One row per claim: its verdict, and the number of supported tests.

    Args:
        results: see :func:`finegates.suite.claims.audit`.
        tier: name of the tier.
        about: description of the tier's models and data.
        synthetic: whether the workflow made models and data itself, so that verdicts test the
            workflow and not the paper.
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

    printed = {result.claim.id: shown(result) for result in results}

    def verdict(row: dict[str, Any]) -> str:
        return f"({row['verdict']})" if synthetic else f"**{printed[row['claim']]}**"

    columns = (
        Column("Claim", "claim", text=True),
        Column("Outcome" if synthetic else "Verdict", verdict, text=True),
        Column(
            "Tests",
            lambda row: f"{row['supported_tests']}/{row['tests']}" if row["tests"] else BLANK,
        ),
        Column("Statement", "statement", text=True),
        Column("Said in", "source", text=True),
    )
    return Table(
        name="claims",
        title=f"Checks of the workflow, no judgements of the paper (tier {tier})"
        if synthetic
        else f"Claims and verdicts (tier {tier})",
        caption=(
            f"{SYNTHETIC if synthetic else ''}Tests supported of all tests of a claim. After the "
            "paper's claims comes what its digest proposes to try, put as statements that could "
            f"fail. {about} {CAPTION} {multiplicity(results)}"
        ),
        numbers=pd.DataFrame(rows),
        columns=columns,
        rows=rows,
        rule_before=tuple(
            place for place in range(1, len(rows)) if rows[place]["kind"] != rows[place - 1]["kind"]
        ),
    )


def evidence_table(results: Sequence[ClaimResult], tier: str) -> Table:
    """One row per test with its measurement, as :func:`verdict_table`."""
    import pandas as pd

    rows = [_row(result, test) for result in results for test in result.tests]
    columns = (
        Column("Claim", "claim", text=True),
        Column("Test", lambda r: f"({r['test']})" if r["beside"] else r["test"], text=True),
        Column("Measured", _measured, text=True),
        Column("Bound", lambda row: row["bound"] or BLANK),
        Column("Claimed", lambda row: row["claimed"] or BLANK, text=True),
        Column(
            "Verdict",
            _reasoned,
            text=True,
        ),
        Column("Evidence", "files", _links, text=True),
    )
    return Table(
        name="claims-evidence",
        title=f"What the verdicts rest on (tier {tier})",
        caption=CAPTION,
        numbers=pd.DataFrame(rows).astype({"values": "Int64"}),
        columns=columns,
        rows=rows,
    )


def _reasoned(row: dict[str, Any]) -> str:
    """The verdict of a test, or the reason why there is none."""
    if not row["missing"]:
        return str(row["verdict"])
    noisy = row["verdict"] == NOT_MEASURABLE
    return f"{'not measurable here' if noisy else 'not testable'}: {row['missing']}"


def _row(result: ClaimResult, found: TestResult) -> dict[str, Any]:
    test, measured, interval = found.test, found.measured, found.interval
    return {
        "claim": result.claim.id,
        "test": test.label,
        "beside": test.beside,
        "verdict": found.verdict,
        "mean": None if found.mean is None else _rounded(found.mean),
        "low": _rounded(interval.low) if interval else None,
        "high": _rounded(interval.high) if interval else None,
        "covers": found.covers,
        "findings": measured.findings if measured else "",
        "values": len(measured.values) if measured and measured.values else None,
        "unit": measured.unit if measured else "",
        "bound": test.bound(),
        "claimed": test.claimed,
        "denominator": result.claim.denominator,
        "missing": found.missing,
        "files": " ".join(measured.files) if measured else "",
    }


def _measured(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return row["findings"] or BLANK
    number = f"{row['mean']:.3g}"
    if row["low"] is not None:
        number += f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{number} {row['unit']} (n = {row['values']}{_covered(row['covers'])})"


def _covered(covers: str) -> str:
    return f"; {covers}" if "test rows" in covers or covers == "quartiles" else ""


def _links(files: str) -> str:
    """Links to tables and to folders of records, relative to the results folder."""
    return ", ".join(f"[{name}]({name.split('*')[0]})" for name in files.split()) or BLANK


def _rounded(value: float) -> float:
    """Rounds to significant digits, because differences of logits are small."""
    return float(f"{value:.{DECIMALS}g}")
