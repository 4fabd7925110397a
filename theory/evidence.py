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

import numpy as np
import pandas as pd

from theory.intervals import median_interval
from theory.problems import Array

Relation = Literal["equal", "at least", "at most"]
Kind = Literal["law", "bound", "claim"]
Proof = Literal["", "holds", "fails"]
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
class Case:
    """Compares one predicted constant with one measured value.

    Attributes:
        name: the setting, for example ``"well-conditioned 3"``.
        relation: the required relation of ``measured`` to ``predicted``.
        predicted: the constant of the statement; positive and finite.
        measured: the measured value.
        tolerance: relative; from rounding errors, or from an interval if draws are random.
        constant: the constant of the statement that the case tests, if there are several. A wrong
            value of each must be noticed on its own.
        built: constructed to attain the constant. Such a case gives the check its power and is not
            counted among those that hold.
        proof: of a claim, whether a theorem decides this setting, and how. Such a case has no vote.
        levels: of a claim, the setting as a level of each factor, for example
            ``{"family": "ill-conditioned", "rank": "2"}``.
        low: of a claim that is measured over draws, the lower end of the interval. The case has no
            vote if the interval contains the constant. NaN without an interval.
        high: its upper end.
    """

    name: str
    relation: Relation
    predicted: float
    measured: float
    tolerance: float = 0.0
    constant: str = ""
    built: bool = False
    proof: Proof = ""
    levels: Mapping[str, str] = field(default_factory=dict)
    low: float = math.nan
    high: float = math.nan

    def __post_init__(self) -> None:
        if not (math.isfinite(self.predicted) and self.predicted > 0):
            raise ValueError(
                f"case {self.name!r}: the predicted constant must be positive and finite, got "
                f"{self.predicted}; state the claim so that it names such a constant"
            )
        if not self.tolerance >= 0:
            raise ValueError(f"case {self.name!r}: negative tolerance {self.tolerance}")

    @classmethod
    def of_draws(
        cls,
        levels: Mapping[str, str],
        relation: Relation,
        predicted: float,
        draws: Array,
        constant: str = "",
    ) -> Case:
        """A setting of a claim, measured by the median of random draws.

        It is undecided if the interval of the median (:func:`theory.intervals.median_interval`)
        contains the constant, ends included. A single draw decides nothing: it has no ends.

        Args:
            levels: the setting.
            relation: see the class.
            predicted: see the class.
            draws: shape (count,).
            constant: see the class.
        """
        low, high = -math.inf, math.inf
        if len(draws) > 1:
            low, high = median_interval(draws, *levels.values(), constant)
        return cls(
            ", ".join(levels.values()),
            relation,
            predicted,
            float(np.median(draws)),
            constant=constant,
            levels=levels,
            low=low,
            high=high,
        )

    @property
    def holds(self) -> bool:
        """Whether the relation holds within the tolerance; false if there is no measurement."""
        slack = self.tolerance * self.predicted
        if self.relation == "equal":
            return bool(abs(self.measured - self.predicted) <= slack)
        if self.relation == "at least":
            return bool(self.measured >= self.predicted - slack)
        return bool(self.measured <= self.predicted + slack)

    @property
    def undecided(self) -> bool:
        """Whether the interval of the measurement contains the constant, ends included."""
        return bool(self.low <= self.predicted <= self.high)

    @property
    def votes(self) -> bool:
        """Whether the case counts in the verdict on a claim: neither proved nor undecided."""
        return not self.proof and not self.undecided

    @property
    def tightness(self) -> float:
        """1 if the constant is attained, smaller if a bound is loose, larger if it is broken.

        For equalities, the larger of measured/predicted and its inverse.
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
        """The smallest factor on the constant that breaks the case; 1 if it is already broken.

        The constant is changed in the direction that claims more. For an equality it is changed in
        both directions, and the larger factor counts. Infinite if no factor breaks the case. A case
        with an interval breaks as soon as the interval contains the constant.
        """
        if not self.holds or self.undecided:
            return 1.0
        # Up: |measured - f predicted| <= tolerance f predicted; down: the same with 1/f.
        ratio = (self.measured if math.isnan(self.low) else self._near) / self.predicted
        up = ratio / (1 - self.tolerance) if self.tolerance < 1 else math.inf
        down = (1 + self.tolerance) / ratio if ratio > 0 else math.inf
        factors = {"equal": max(up, down), "at least": up, "at most": down}
        return max(1.0, factors[self.relation])

    @property
    def _near(self) -> float:
        """The end of the interval that a constant which claims more meets first."""
        return self.high if self.relation == "at most" else self.low

    @property
    def turns(self) -> tuple[float, ...]:
        """Factors for :meth:`strengthened` at which the vote of the case changes."""
        ends: tuple[float, ...] = (self.low, self.high)
        if math.isnan(self.low):
            ends = (self.measured / (1 + self.tolerance), self.measured / (1 - self.tolerance))
        found = {end / self.predicted for end in ends if 0 < end < math.inf}
        return tuple(1 / turn if self.relation == "at most" else turn for turn in found)

    def strengthened(self, factor: float) -> Case:
        """The same case with a constant wrong by ``factor``, in the direction that claims more."""
        scale = 1 / factor if self.relation == "at most" else factor
        return replace(self, predicted=self.predicted * scale)


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
