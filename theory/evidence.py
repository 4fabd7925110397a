"""What a check leaves behind: cases of predicted against measured, and a verdict computed from
them.

A *case* compares one predicted constant with one measured value. A *check* is a statement, the
assumptions that it needs, and its cases. A law is universal: one case that does not hold
contradicts it. A claim is what somebody said of the method, put to the test in several settings: it
is supported where all of them bear it out, partly where some do, contradicted where none does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

Relation = Literal["equal", "at least", "at most"]
Verdict = Literal["supported", "partly", "contradicted"]

DIGITS = 4
"""Significant digits of every number that is written: fewer than rounding errors reach."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: the setting, for example ``"well-conditioned 3"``.
        relation: what ``measured`` should be to ``predicted``.
        predicted: the constant of the statement; positive and finite.
        measured: what was found.
        tolerance: relative; from rounding errors, or from an interval where draws are random.
    """

    name: str
    relation: Relation
    predicted: float
    measured: float
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.predicted) and self.predicted > 0):
            raise ValueError(
                f"case {self.name!r}: the predicted constant must be positive and finite, got "
                f"{self.predicted}; state the claim so that it names such a constant"
            )
        if not self.tolerance >= 0:
            raise ValueError(f"case {self.name!r}: negative tolerance {self.tolerance}")

    @property
    def holds(self) -> bool:
        """Whether the relation holds within the tolerance; false where nothing was measured."""
        slack = self.tolerance * self.predicted
        if self.relation == "equal":
            return bool(abs(self.measured - self.predicted) <= slack)
        if self.relation == "at least":
            return bool(self.measured >= self.predicted - slack)
        return bool(self.measured <= self.predicted + slack)

    @property
    def tightness(self) -> float:
        """1 where the constant is attained, less where a bound is loose, more where it is broken.

        For equalities the larger of measured/predicted and its inverse.
        """
        if self.measured != self.measured:
            return math.inf
        above = self.measured / self.predicted
        below = self.predicted / self.measured if self.measured > 0 else math.inf
        if self.relation == "equal":
            return max(above, below)
        return above if self.relation == "at most" else below

    @property
    def power(self) -> float:
        """The smallest factor on the constant, in the direction that claims more, that breaks it.

        For equalities the larger of the factors up and down, as an error in either direction must
        be noticed. 1 where the case is broken as it is, infinite where no factor breaks it.
        """
        if not self.holds:
            return 1.0
        most, least = 1 + self.tolerance, 1 - self.tolerance
        down = self.predicted * most / self.measured if self.measured > 0 else math.inf
        up = self.measured / (self.predicted * least) if least > 0 else math.inf
        if self.relation == "equal":
            return max(up, down, 1.0)
        return max(down if self.relation == "at most" else up, 1.0)

    def strengthened(self, factor: float) -> Case:
        """The same case with a constant wrong by ``factor`` in the direction that claims more."""
        scale = 1 / factor if self.relation == "at most" else factor
        return replace(self, predicted=self.predicted * scale)


@dataclass(frozen=True)
class Check:
    """A statement and the evidence for or against it.

    Attributes:
        id: short name.
        item: the question it belongs to, a key of ``ITEMS``.
        kind: ``"law"`` or ``"claim"``, see the module's text.
        statement: one sentence, with the constant.
        assumptions: under which it is said to hold.
        cases: at least one.
        claim: the claim of the paper that it bears on, or "".
        frames: tables behind figures, by file name.
    """

    id: str
    item: int
    kind: Literal["law", "claim"]
    statement: str
    assumptions: str
    cases: tuple[Case, ...]
    claim: str = ""
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cases:
            raise ValueError(f"check {self.id!r} has no cases: nothing was measured")

    @property
    def held(self) -> int:
        """The number of cases that hold."""
        return sum(case.holds for case in self.cases)

    @property
    def verdict(self) -> Verdict:
        """Computed from the cases; see the module's text."""
        if self.held == len(self.cases):
            return "supported"
        return "contradicted" if self.kind == "law" or self.held == 0 else "partly"

    @property
    def deciding(self) -> Case:
        """The case nearest to breaking its relation, or furthest beyond it."""
        return max(self.cases, key=lambda case: (not case.holds, case.tightness))

    @property
    def typical(self) -> float:
        """The median tightness of the cases."""
        return statistics.median(case.tightness for case in self.cases)

    @property
    def power(self) -> float:
        """The smallest factor on its constant that a law notices, by its most sensitive case."""
        return min(case.power for case in self.cases)

    def strengthened(self, factor: float) -> Check:
        """The same evidence against constants wrong by ``factor``: what the verdict must notice."""
        return replace(self, cases=tuple(case.strengthened(factor) for case in self.cases))

    def record(self) -> dict[str, Any]:
        """Plain values, rounded, verdict included."""
        case = self.deciding
        return {
            "id": self.id,
            "item": self.item,
            "claim": self.claim,
            "kind": self.kind,
            "statement": self.statement,
            "assumptions": self.assumptions,
            "relation": case.relation,
            "predicted": significant(case.predicted),
            "measured": significant(case.measured),
            "tightness": significant(case.tightness),
            "typical_tightness": significant(self.typical),
            "power": None if self.kind == "claim" else significant(self.power),
            "deciding_case": case.name,
            "held": self.held,
            "cases": len(self.cases),
            "verdict": self.verdict,
        }


ITEMS = {
    1: "Column gates alone",
    2: "Row gates alone",
    3: "Row and column gates together",
    4: "Clipping to [0, 1]",
    5: "Gaussian relaxation",
    6: "Convergence with stochastic gates",
    7: "Low-rank adapters",
    8: "Conditioning: gates against low-rank adapters",
    9: "Penalties",
    10: "From toy to network",
}

CLAIMS = {
    "pl": "the gated objective satisfies the Polyak–Łojasiewicz condition",
    "conditioning": "its landscape is simpler and better conditioned than LoRA's",
    "convergence": "training with stochastic gates converges",
    "bilinear": "it avoids the bilinear degeneracy of LoRA",
    "binary": "gates converge to 0/1",
}
"""Claims of the paper that checks bear on, in its words."""


def significant(value: float) -> float:
    """A number rounded to the digits that are written; infinities and NaN as they are."""
    return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else value


def rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with every float rounded to the digits that are written."""
    return frame.assign(
        **{
            str(name): column.map(significant)
            for name, column in frame.items()
            if pd.api.types.is_float_dtype(column)
        }
    )


def judge_claims(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The verdict on each claim of the paper, from the checks of kind ``"claim"`` that bear on it.

    Supported where all those checks are, contradicted where all are, else partly.
    """
    verdicts: dict[str, dict[str, str]] = {}
    for record in records:
        if record["claim"] and record["kind"] == "claim":
            verdicts.setdefault(record["claim"], {})[record["id"]] = record["verdict"]
    return {
        claim: {
            "statement": CLAIMS[claim],
            "verdict": next(iter(found)) if len(found := set(checks.values())) == 1 else "partly",
            "checks": checks,
        }
        for claim, checks in verdicts.items()
    }


def check_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each check."""
    return pd.DataFrame(list(records))


def case_frame(checks: Sequence[Check]) -> pd.DataFrame:
    """One row for each case of each check."""
    return pd.DataFrame(
        [
            {
                "check": check.id,
                "case": case.name,
                "relation": case.relation,
                "predicted": significant(case.predicted),
                "measured": significant(case.measured),
                "tolerance": significant(case.tolerance),
                "holds": case.holds,
            }
            for check in checks
            for case in check.cases
        ]
    )


def check_markdown(records: Sequence[Mapping[str, Any]], setting: str) -> str:
    """The checks as one Markdown table for each item, and the verdicts on the paper's claims.

    Args:
        records: of :meth:`Check.record`, or read back from JSON.
        setting: one sentence: how many problems, which network.
    """
    lines = [setting, ""]
    for item, title in ITEMS.items():
        found = [record for record in records if record["item"] == item]
        if not found:
            continue
        lines += [f"#### {item}. {title}", ""]
        lines += [
            "| statement | assumptions | predicted | measured | tightness | notices | holds "
            "| verdict |"
        ]
        lines += ["|---|---|---:|---:|---:|---:|---:|---|"]
        lines += [_row(record) for record in found]
        lines.append("")
    claims = judge_claims(records)
    if claims:
        lines += ["#### Verdicts on the paper's claims", ""]
        lines += ["| claim | verdict | from the checks |", "|---|---|---|"]
        for claim, facts in claims.items():
            checks = ", ".join(f"`{name}` {verdict}" for name, verdict in facts["checks"].items())
            lines.append(f"| {claim}: {facts['statement']} | **{facts['verdict']}** | {checks} |")
        lines.append("")
    return "\n".join(lines)


def comparison_markdown(
    conditioning: pd.DataFrame, speed: pd.DataFrame, reach: pd.DataFrame
) -> str:
    """Medians with intervals of what item 8 compares, as Markdown tables.

    Args:
        conditioning, speed, reach: tables of :mod:`theory.checks.comparison`.
    """
    hessian = conditioning[conditioning["matrix"] == "hessian"]
    moments = list(dict.fromkeys(hessian["moment"]))
    blocks = [
        *(
            (
                f"condition number of the Hessian, {moment.replace('step 0', 'start')}",
                "family",
                hessian[hessian["moment"] == moment],
            )
            for moment in moments
        ),
        ("iterations to a relative gap of 10⁻⁴", "family", speed),
        ("unexplained share, by teacher", "teacher", reach),
    ]
    methods = list(dict.fromkeys(speed["method"]))
    lines = [
        "#### 8, in numbers",
        "",
        "Medians with 95 % bootstrap intervals over problems. Condition numbers are on the "
        f"non-zero spectrum; iterations stop at {int(speed['limit'].iloc[0]):,}. The unexplained "
        "share is what of a free weight's gain is out of reach.",
        "",
        f"| | {' | '.join(methods)} |",
        f"|---|{'---:|' * len(methods)}",
    ]
    for title, key, frame in blocks:
        lines.append(f"| **{title}** |{' |' * len(methods)}")
        for name, rows in frame.groupby(key, sort=False):
            found = rows.set_index("method")
            cells = [
                f"{printed(found.loc[method, 'median'])} "
                f"[{printed(found.loc[method, 'low'])}, {printed(found.loc[method, 'high'])}]"
                for method in methods
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _row(record: Mapping[str, Any]) -> str:
    sign = {"equal": "= ", "at least": "≥ ", "at most": "≤ "}[record["relation"]]
    cells = [
        f"`{record['id']}` {record['statement']}",
        record["assumptions"],
        f"{sign}{printed(record['predicted'])}",
        printed(record["measured"]),
        printed(record["typical_tightness"]),
        _noticed(record),
        f"{record['held']} of {record['cases']}",
        f"**{record['verdict']}**",
    ]
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"


def _noticed(record: Mapping[str, Any]) -> str:
    """The factor on a law's constant that its cases notice, rounded up to three digits."""
    power = record.get("power")
    if power is None:
        return ""  # a claim has no constant
    if not math.isfinite(power):
        return "none"
    digits = 10.0 ** (2 - math.floor(math.log10(power)))
    return f"× {printed(math.ceil(round(power * digits, 6)) / digits)}"


def printed(value: float) -> str:
    """Three significant digits, as a reader writes them."""
    if not math.isfinite(value):
        return "∞" if value == math.inf else str(value)
    text = f"{value:.3g}"
    if "e" not in text:
        return text
    digits, power = text.split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"
