"""What a check leaves behind: cases of predicted against measured, and a verdict computed from
them.

A *case* compares one predicted constant with one measured value. A *check* is a statement, the
assumptions that it needs, and its cases, of one of three kinds:

- ``law``: exact and universal. One case that does not hold contradicts it, and so does a constant
  that is wrong by ``EXACT``: a law has cases in which its constant is attained.
- ``bound``: universal, but only an inequality is claimed. It says how loose it is.
- ``claim``: what somebody said of the method, put to the test in several settings. Supported where
  all of them bear it out, partly where some do, contradicted where none does. A setting in which a
  theorem decides has no vote: the claim is said to be proved or disproved there.

The *power* of a check is the smallest factor on its constant that it notices.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

Relation = Literal["equal", "at least", "at most"]
Kind = Literal["law", "bound", "claim"]
Proof = Literal["", "holds", "fails"]
Verdict = Literal[
    "supported",
    "partly",
    "contradicted",
    "inconclusive",
    "proved",
    "disproved",
    "proved in part",
]

DIGITS = 4
"""Significant digits of every number that is written: fewer than rounding errors reach."""

EXACT = 1.25
"""The factor on its constant that every law must notice."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: the setting, for example ``"well-conditioned 3"``.
        relation: what ``measured`` should be to ``predicted``.
        predicted: the constant of the statement; positive and finite.
        measured: what was found.
        tolerance: relative; from rounding errors, or from an interval where draws are random.
        constant: which of the statement's constants it tests, where there are several. Each must
            be noticed on its own.
        built: made so that the constant is attained. Such a case gives the check its power; it is
            not counted among those that hold.
        proof: of a claim, whether a theorem decides this setting, and how. It has no vote then.
        undecided: of a claim, whether the interval of what was measured contains the constant. It
            has no vote then.
    """

    name: str
    relation: Relation
    predicted: float
    measured: float
    tolerance: float = 0.0
    constant: str = ""
    built: bool = False
    proof: Proof = ""
    undecided: bool = False

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
    def votes(self) -> bool:
        """Whether it counts in the verdict on a claim: neither proved nor undecided."""
        return not self.proof and not self.undecided

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
        """The smallest factor on the constant at which the case breaks, 1 where it is broken.

        The constant is made wrong in the direction that claims more; of an equality in both, and
        the larger factor counts. Infinite where no factor breaks the case.
        """
        if not self.holds:
            return 1.0
        # Up: |measured - f predicted| <= tolerance f predicted; down: the same with 1/f.
        ratio = self.measured / self.predicted
        up = ratio / (1 - self.tolerance) if self.tolerance < 1 else math.inf
        down = (1 + self.tolerance) / ratio if ratio > 0 else math.inf
        factors = {"equal": max(up, down), "at least": up, "at most": down}
        return max(1.0, factors[self.relation])

    @property
    def margin(self) -> float:
        """The smallest factor on the constant, up or down, at which the case changes sides."""
        if self.holds:
            return self.power
        # It comes to hold where the constant is weakened as far as what was measured.
        weak = self.tightness / (1 + self.tolerance)
        return max(1.0, weak) if weak == weak else math.inf

    def strengthened(self, factor: float) -> Case:
        """The same case with a constant wrong by ``factor`` in the direction that claims more."""
        scale = 1 / factor if self.relation == "at most" else factor
        return replace(self, predicted=self.predicted * scale)


@dataclass(frozen=True)
class Check:
    """A statement and the evidence for or against it.

    Attributes:
        id: short name.
        item: the question it belongs to, a key of ``theory.tables.ITEMS``.
        kind: ``"law"``, ``"bound"`` or ``"claim"``, see the module's text.
        statement: one sentence, with the constant.
        assumptions: under which it is said to hold.
        cases: at least one.
        claim: the claim of the paper that it bears on, or "".
        frames: tables behind figures, by file name.
    """

    id: str
    item: int
    kind: Kind
    statement: str
    assumptions: str
    cases: tuple[Case, ...]
    claim: str = ""
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cases:
            raise ValueError(f"check {self.id!r} has no cases: nothing was measured")
        if self.kind != "claim":
            unfit = [case.name for case in self.cases if not case.votes]
            if unfit:
                raise ValueError(
                    f"check {self.id!r}: only the cases of a claim are proved or undecided, got "
                    f"{unfit}"
                )

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the statement's constants, "" where there is one."""
        return tuple(dict.fromkeys(case.constant for case in self.cases))

    @property
    def counted(self) -> tuple[Case, ...]:
        """The cases that the table counts.

        Of a claim those with a vote; of a law those not built to attain the constant, or all.
        """
        if self.kind == "claim":
            return tuple(case for case in self.cases if case.votes)
        return tuple(case for case in self.cases if not case.built) or self.cases

    @property
    def held(self) -> int:
        """The number of counted cases that hold."""
        return sum(case.holds for case in self.counted)

    @property
    def proofs(self) -> tuple[int, int]:
        """Of a claim, in how many settings it is proved to hold and to fail."""
        found = [case.proof for case in self.cases]
        return found.count("holds"), found.count("fails")

    @property
    def verdict(self) -> Verdict:
        """Computed from the cases; see the module's text.

        Of a claim whose every setting is decided by a theorem, "proved", "disproved" or "proved in
        part"; "inconclusive" where there is neither a vote nor a theorem. "contradicted" where a
        measurement denies a proof.
        """
        if self.kind != "claim":
            return "supported" if all(case.holds for case in self.cases) else "contradicted"
        if any(case.proof and case.holds != (case.proof == "holds") for case in self.cases):
            return "contradicted"
        true, false = self.proofs
        if not self.counted:
            if not true and not false:
                return "inconclusive"
            return "proved in part" if true and false else "proved" if true else "disproved"
        if self.held == len(self.counted):
            return "supported"
        return "partly" if self.held else "contradicted"

    @property
    def power(self) -> float:
        """The power: the smallest factor on any of its constants at which the verdict changes.

        A law or a bound breaks as soon as one case does; of several constants the one that is
        tested worst counts. A claim's bar is moved up or down until another verdict follows.
        """
        if self.kind != "claim":
            groups = [[c for c in self.cases if c.constant == name] for name in self.constants]
            return max(min(case.power for case in group) for group in groups)
        up = [case.margin for case in self.counted if case.holds]
        down = [case.margin for case in self.counted if not case.holds]
        if not up and not down:
            return math.inf
        # Of those that hold all must fall, and of the others all must rise, to leave "partly".
        return min(max(up), max(down)) if up and down else min(up or down)

    @property
    def deciding(self) -> Case:
        """The counted case nearest to breaking its relation, or furthest beyond it."""
        chosen = self.counted or self.cases
        return max(chosen, key=lambda case: (not case.holds, case.tightness))

    @property
    def typical(self) -> float:
        """The median tightness of the counted cases that test the same constant as ``deciding``."""
        alike = self.deciding.constant
        chosen = [c for c in self.counted or self.cases if c.constant == alike]
        return statistics.median(case.tightness for case in chosen)

    def strengthened(self, factor: float, constant: str | None = None) -> Check:
        """The same evidence against constants wrong by ``factor``: what the verdict must notice.

        Args:
            factor: above 1 it claims more.
            constant: only this one is wrong; all are where None.
        """
        return replace(
            self,
            cases=tuple(
                case.strengthened(factor) if constant in (None, case.constant) else case
                for case in self.cases
            ),
        )

    def record(self) -> dict[str, Any]:
        """Plain values, rounded, verdict included."""
        case = self.deciding
        true, false = self.proofs
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
            "power": significant(self.power),
            "deciding_case": case.name,
            "held": self.held,
            "cases": len(self.counted),
            "proved": true,
            "disproved": false,
            "undecided": sum(case.undecided for case in self.cases),
            "verdict": self.verdict,
        }


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
