"""A case of a check: one predicted constant against one measured value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from theory.intervals import median_interval
from theory.problems import Array

Relation = Literal["equal", "at least", "at most"]
Proof = Literal["", "holds", "fails"]


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
        """Whether the relation holds within the tolerance; false without a measurement."""
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
