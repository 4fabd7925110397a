"""Configuration of the search for learning rates."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from finegates.suite.config.methods import Method
from finegates.suite.config.section import Count, Section
from finegates.suite.config.suggest import nearest


class RateSearch(Section):
    """A grid search over learning rates, scored on held-out training rows.

    A trial is a run of a contender's method with one ``rate_factor``. All contenders have the same
    factors. On each task a contender gets the factor with the highest held-out score. Methods that
    name the contender in ``rates_of`` get the same factor.

    Attributes:
        factors: factors of a method's learning rates, including 1.
        contenders: labels of methods, in the order of the tables.
        held_out: number of last training rows that are scored and not trained on.
        train_rows: number of first training rows that are trained on; None takes the tier's number.
        seed: seed of all trials.
    """

    factors: list[Annotated[float, Field(gt=0)]] = Field(min_length=2)
    contenders: list[str] = Field(min_length=1)
    held_out: int = Field(gt=0)
    train_rows: int | None = Field(default=None, gt=0)
    seed: Count = 0

    @model_validator(mode="after")
    def _distinct(self) -> RateSearch:
        for name, given in (("factors", self.factors), ("contenders", self.contenders)):
            if len(set(given)) < len(given):
                raise ValueError(f"{name} must not repeat")
        if 1.0 not in self.factors:
            raise ValueError("factors: 1 is missing, the rates that methods are configured with")
        return self

    def check(self, methods: dict[str, Method]) -> None:
        """Checks the search against the methods of the tier.

        Raises:
            ValueError: a contender is not a method, takes the rates of another one, matches or
                continues another run, or starts from a method that is not a contender.
        """
        for label in self.contenders:
            if label not in methods:
                raise ValueError(
                    f"rate_search.contenders: no method {label!r}{nearest(label, methods)}"
                )
            method = methods[label]
            if method.rates_of is not None:
                raise ValueError(
                    f"methods.{label}.rates_of: {label!r} is a contender of the rate search, which "
                    "has rates of its own; leave one of the two out"
                )
            if method.matched is not None or method.continues is not None:
                raise ValueError(
                    f"rate_search.contenders: {label!r} goes on from another run of the tier, "
                    "which has been scored; give it a target of its own or leave it out"
                )
            if method.start is not None and method.start not in self.contenders:
                raise ValueError(
                    f"rate_search.contenders: {label!r} starts from {method.start!r}, which must "
                    "be a contender too"
                )


def check_shared_rates(methods: dict[str, Method], search: RateSearch | None) -> None:
    """Raises ValueError if ``rates_of`` of a method does not name a contender."""
    contenders = [] if search is None else search.contenders
    for label, method in methods.items():
        if method.rates_of is not None and method.rates_of not in contenders:
            raise ValueError(
                f"methods.{label}.rates_of: {method.rates_of!r} is not among "
                f"rate_search.contenders{nearest(method.rates_of, contenders)}"
            )
