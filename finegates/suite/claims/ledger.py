"""The ledger of claims and tests: the schema of ``config/claims.yaml``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from finegates.suite.claims.measures import check_arguments
from finegates.suite.config.load import CONFIG, read_yaml, validated
from finegates.suite.config.tier import Section


class ClaimTest(Section):
    """A measure of the results, and the bound that it must satisfy.

    Exactly one of ``at_least``, ``at_most`` and ``within`` is given, or none for measures that
    return verdicts themselves.

    Attributes:
        label: the measured quantity, in a few words.
        measure: a key of ``finegates.suite.claims.measures.MEASURES``.
        of: arguments of the measure.
        at_least: lower bound.
        at_most: upper bound.
        within: margin of an equivalence test, fixed in advance: the whole interval must be within
            [-margin, margin].
        parameters: minimum number of parameters of the model. In a smaller model its width alone
            would determine the result.
        claimed: the claim in its own words; empty if it does not give a number.
        beside: print the test with the claim, but ignore it in the verdict. Used for a counterpart
            that the claim does not mention.
    """

    label: str
    measure: str
    of: dict[str, Any] = Field(default={})
    at_least: float | None = None
    at_most: float | None = None
    within: float | None = Field(default=None, gt=0)
    parameters: float | None = Field(default=None, gt=0)
    claimed: str = ""
    beside: bool = False

    @model_validator(mode="after")
    def _complete(self) -> ClaimTest:
        check_arguments(self.measure, self.of)
        given = [b for b in (self.at_least, self.at_most, self.within) if b is not None]
        judged = self.measure == "theory_claim"
        if len(given) != (0 if judged else 1):
            wanted = (
                "no bound: checks judge themselves"
                if judged
                else ("exactly one of at_least, at_most, within")
            )
            raise ValueError(f"test {self.label!r}: give {wanted}")
        return self

    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the whole interval."""
        if self.within is not None:
            return -self.within, self.within
        least = -math.inf if self.at_least is None else self.at_least
        return least, math.inf if self.at_most is None else self.at_most

    def bound(self) -> str:
        """The bound for print, empty for measures that return verdicts."""
        if self.within is not None:
            return f"± {self.within:g}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"


class Claim(Section):
    """A claim and its tests.

    Attributes:
        id: short name.
        statement: the claim in our words.
        source: where the claim is made.
        denominator: denominator of its fractions, or unit of its numbers.
        tests: see :class:`ClaimTest`; empty if the suite cannot test the claim.
        untested: why there are no tests.
        combine: ``all`` for a conjunction; ``any`` for a claim of "up to", which holds if one
            setting supports it.
        kind: whether the paper claims it or its digest proposes to try it; set by the ledger.
    """

    id: str
    statement: str
    source: str
    denominator: str
    tests: list[ClaimTest] = Field(default=[])
    untested: str = ""
    combine: Literal["all", "any"] = "all"
    kind: Literal["claim", "experiment"] = "claim"

    @model_validator(mode="after")
    def _says_why(self) -> Claim:
        if bool(self.untested) == any(not test.beside for test in self.tests):
            raise ValueError(
                f"claim {self.id!r}: give tests, or say in untested why there are none"
            )
        return self


class Ledger(Section):
    """All claims, in the order of the report.

    ``experiments`` are proposals of the paper's digest, written as falsifiable claims.
    """

    claims: list[Claim] = Field(min_length=1)
    experiments: list[Claim] = Field(default=[])

    @model_validator(mode="after")
    def _once(self) -> Ledger:
        ids = [claim.id for claim in (*self.claims, *self.experiments)]
        for name in ids:
            if ids.count(name) > 1:
                raise ValueError(f"the claim {name!r} appears twice")
        return self


def load_ledger(path: str | Path = CONFIG / "claims.yaml") -> list[Claim]:
    """Reads and checks a ledger: its claims, then its experiments.

    Raises:
        ConfigError: the file is missing, is not YAML or does not follow the schema. The message
            names the place.
    """
    path = Path(path)
    ledger = validated(Ledger, read_yaml(path), path)
    tried = [claim.model_copy(update={"kind": "experiment"}) for claim in ledger.experiments]
    return [*ledger.claims, *tried]
