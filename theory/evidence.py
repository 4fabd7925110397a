"""Evidence of a check: predicted against measured cases, and the verdict that follows.

A *case* compares one predicted constant with one measured value. A *check* is a statement, its
assumptions, and its cases, of one of three kinds:

- ``law``: exact and universal. One case that does not hold contradicts it, and so does a constant
  that is wrong by ``EXACT``: a law has cases in which its constant is attained.
- ``bound``: universal, but only an inequality is claimed. The check reports how loose it is.
- ``claim``: a statement about the method, tested in several settings. Each setting is judged on its
  own, by an interval over random draws. The claim is supported if all decided settings bear it out,
  and contradicted if none does. Otherwise it *depends*, on the factors of which a change of level
  changes the outcome. Settings are not counted, so that the verdict does not follow from how many
  of a kind are listed. A setting that a theorem decides does not enter: the claim is reported as
  proved or disproved there.

The *power* of a check is the smallest factor on its constant that it notices.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from theory.cases import Case

Kind = Literal["law", "bound", "claim"]
Verdict = Literal[
    "supported",
    "depends",
    "contradicted",
    "inconclusive",
    "proved",
    "disproved",
    "proved in part",
]

DIGITS = 4
"""Significant digits of every written number: few enough to exclude rounding errors."""

EXACT = 1.25
"""The factor on its constant that every law must notice."""

BEYOND = 1e-9
"""Relative distance to either side of a turning point at which a verdict is computed."""


@dataclass(frozen=True)
class Check:
    """A statement and the evidence for or against it.

    Attributes:
        id: short name.
        item: the question that it belongs to, a key of ``theory.tables.ITEMS``.
        kind: ``"law"``, ``"bound"`` or ``"claim"``, see the module's docstring.
        statement: one sentence, with the constant.
        assumptions: of the statement.
        cases: at least one.
        claim: the claim of the paper that it concerns, or "".
        frames: tables for figures, by file name.
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
        if self.kind == "claim":
            self._check_settings()
        else:
            unfit = [case.name for case in self.cases if not case.votes]
            if unfit:
                raise ValueError(
                    f"check {self.id!r}: only the cases of a claim are proved or undecided, got "
                    f"{unfit}"
                )

    def _check_settings(self) -> None:
        """Raises ValueError unless measured settings are distinct levels of the same factors."""
        measured = [case for case in self.cases if not case.proof]
        if len(measured) < 2:
            return
        factors = {tuple(case.levels) for case in measured}
        if len(factors) > 1 or () in factors:
            raise ValueError(
                f"check {self.id!r}: every setting of a claim needs a level of the same factors, "
                f"got {sorted(factors)}"
            )
        settings = [tuple(case.levels.values()) for case in measured]
        twice = sorted({setting for setting in settings if settings.count(setting) > 1})
        if twice:
            raise ValueError(
                f"check {self.id!r}: {twice} is listed more than once; join its draws in one case"
            )

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Factors on which the outcome of a claim depends.

        Those of which another level, with the other factors as they are, changes the outcome. If no
        two settings differ in one factor only: all factors with several levels.
        """
        if self.verdict != "depends":
            return ()
        found = []
        for factor in self.counted[0].levels:
            alike: dict[tuple[tuple[str, str], ...], set[bool]] = {}
            for case in self.counted:
                others = tuple(item for item in case.levels.items() if item[0] != factor)
                alike.setdefault(others, set()).add(case.holds)
            if any(len(outcomes) > 1 for outcomes in alike.values()):
                found.append(factor)
        return tuple(found) or tuple(
            factor
            for factor in self.counted[0].levels
            if len({case.levels[factor] for case in self.counted}) > 1
        )

    def by_level(self) -> dict[str, dict[str, str]]:
        """Verdicts on the settings of each level, by factor and level.

        One of ``"supported"``, ``"depends"``, ``"contradicted"`` and, if no setting of the level is
        decided, ``"undecided"``.
        """
        found: dict[str, dict[str, set[bool]]] = {}
        for case in self.cases:
            for factor, level in case.levels.items():
                outcomes = found.setdefault(factor, {}).setdefault(level, set())
                if case.votes:
                    outcomes.add(case.holds)
        return {
            factor: {level: _outcome(outcomes) for level, outcomes in levels.items()}
            for factor, levels in found.items()
        }

    def level_counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        """How many settings of each level hold, of those that are decided.

        No verdict follows from these counts. They say where a claim holds at a level at which the
        other factors matter, too.
        """
        found: dict[str, dict[str, list[bool]]] = {}
        for case in self.cases:
            for factor, level in case.levels.items():
                held = found.setdefault(factor, {}).setdefault(level, [])
                held += [case.holds] * case.votes
        return {
            factor: {level: (sum(held), len(held)) for level, held in levels.items()}
            for factor, levels in found.items()
        }

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the statement's constants, "" if there is only one."""
        return tuple(dict.fromkeys(case.constant for case in self.cases))

    @property
    def counted(self) -> tuple[Case, ...]:
        """The cases that the table counts.

        For a claim, those with a vote. For a law, those that are not built to attain the constant,
        or all if there are no others.
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
        """Number of settings in which a claim is proved to hold, and to fail."""
        found = [case.proof for case in self.cases]
        return found.count("holds"), found.count("fails")

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from the cases; see the module's docstring.

        If theorems decide every setting of a claim: "proved", "disproved" or "proved in part".
        Without votes or theorems: "inconclusive". If a measurement contradicts a proof:
        "contradicted".
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
        return "depends" if self.held else "contradicted"

    @property
    def power(self) -> float:
        """The power: the smallest factor on any constant at which the verdict changes.

        A law or a bound breaks as soon as one case does. With several constants, the one with the
        weakest test counts. A claim's bar is moved up or down until the verdict changes, with each
        setting judged again by its interval. Infinite if the bar does not matter.
        """
        if self.kind != "claim":
            groups = [[c for c in self.cases if c.constant == name] for name in self.constants]
            return max(min(case.power for case in group) for group in groups)
        turns = {turn for case in self.cases if not case.proof for turn in case.turns}
        for turn in sorted(turns, key=lambda turn: max(turn, 1 / turn)):
            for beyond in (1 - BEYOND, 1 + BEYOND):
                if self.strengthened(turn * beyond).verdict != self.verdict:
                    return max(turn, 1 / turn)
        return math.inf

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
        """The same evidence against constants wrong by ``factor``, which the verdict must notice.

        Settings that a theorem decides keep their constant.

        Args:
            factor: above 1 it claims more.
            constant: the only one that is wrong; all of them if None.
        """
        return replace(
            self,
            cases=tuple(
                case.strengthened(factor)
                if constant in (None, case.constant) and not case.proof
                else case
                for case in self.cases
            ),
        )

    def record(self) -> dict[str, Any]:
        """Plain values, rounded, with the verdict."""
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
            "depends_on": ", ".join(self.depends_on),
            "by_level": self.by_level() if self.kind == "claim" else {},
            "level_counts": self.level_counts() if self.kind == "claim" else {},
        }


def _outcome(outcomes: set[bool]) -> str:
    if not outcomes:
        return "undecided"
    if len(outcomes) > 1:
        return "depends"
    return "supported" if True in outcomes else "contradicted"


def significant(value: float) -> float:
    """Rounds a number to the written digits; infinities and NaN are unchanged."""
    return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else value


def rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with every float rounded to the written digits."""
    return frame.assign(
        **{
            str(name): column.map(significant)
            for name, column in frame.items()
            if pd.api.types.is_float_dtype(column)
        }
    )
