"""Means over seeds, their bootstrap intervals, and paired differences between methods.

An interval says how far the mean over *seeds* would move, not over data sets or test rows. With the
few seeds that fine-tuning studies use, a percentile bootstrap is narrower than its level promises
(with two seeds it can only return their range); with one seed there is nothing to resample, and no
interval is given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from finegates.seeds import derive_seed

LEVEL = 0.95
"""Nominal coverage of every interval."""

RESAMPLES = 9999
"""Bootstrap resamples: enough for the Monte-Carlo error of a 2.5 % quantile to be invisible."""

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A two-sided interval; ``low <= high``."""

    low: float
    high: float
    level: float = LEVEL

    @property
    def half_width(self) -> float:
        """Half the interval's width; the interval need not be centred on the mean."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Summary:
    """Values over seeds: number, mean, range, and the mean's interval (None for one value)."""

    count: int
    mean: float
    minimum: float
    maximum: float
    interval: Interval | None


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean, correctly rounded, so that it does not depend on the order of values.

    Raises:
        ValueError: no values.
    """
    values = list(values)
    if not values:
        raise ValueError("the mean of no values is undefined")
    # In exact fractions: a rounded sum, divided and rounded again, can leave the values' range.
    return float(statistics.mean(map(float, values)))


def bootstrap_interval(
    values: Iterable[float], *names: object, level: float = LEVEL
) -> Interval | None:
    """Percentile bootstrap interval of the mean over seeds.

    Args:
        values: one per seed, in any order: the result does not depend on it.
        names: what the values are (table, method, task); the resampling seed derives from them.
        level: nominal coverage in (0, 1).

    Returns:
        the interval, within the range of the values; None for a single value.

    Raises:
        ValueError: no values, a value that is not finite, or a level outside (0, 1).
    """
    import numpy
    from scipy.stats import bootstrap

    ordered = sorted(values)
    if not ordered:
        raise ValueError("an interval needs at least one value")
    if not all(math.isfinite(value) for value in ordered):
        raise ValueError(f"an interval needs finite values, got {ordered}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if len(ordered) == 1:
        return None
    low, high = bootstrap(
        (numpy.asarray(ordered, dtype=float),),
        numpy.mean,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=numpy.random.default_rng(derive_seed("bootstrap", *names)),
    ).confidence_interval
    # A resample's mean can leave the range of the values, but by rounding only.
    low, high = numpy.clip([low, high], ordered[0], ordered[-1])
    return Interval(float(low), float(high), level)


def summarise(values: Iterable[float], *names: object, level: float = LEVEL) -> Summary:
    """Number, mean, range and interval of values over seeds; see :func:`bootstrap_interval`."""
    values = list(values)
    return Summary(
        count=len(values),
        mean=mean(values),
        minimum=min(values),
        maximum=max(values),
        interval=bootstrap_interval(values, *names, level=level),
    )


def paired_differences(
    first: Mapping[_Key, float], second: Mapping[_Key, float]
) -> dict[_Key, float]:
    """``first[key] - second[key]`` for the keys (seeds, or task and seed) that both have.

    Pairing removes what the two share: the seed's data order and head initialisation.
    ``paired_differences(a, b)[k] == -paired_differences(b, a)[k]``.
    """
    return {key: value - second[key] for key, value in first.items() if key in second}


def summarise_differences(
    first: Mapping[_Key, float],
    second: Mapping[_Key, float],
    *names: object,
    level: float = LEVEL,
) -> Summary | None:
    """Summary of the paired differences; None if no key is common. See :func:`summarise`."""
    differences = paired_differences(first, second)
    return summarise(differences.values(), *names, level=level) if differences else None


def sampling_error(score: float, rows: int, *, correlation: bool = False) -> float:
    """Standard error of a score that comes from drawing its rows at random, to first order.

    For a share p of n rows sqrt(p (1 - p) / n), p with two rows of either kind added, so that a
    score of 100 has an error, too (Agresti and Coull 1998); for a correlation r,
    (1 - r^2) / sqrt(n - 1), the delta method for two normal variables, which is rough for
    Matthews' coefficient.

    Args:
        score: times 100, in [0, 100], or [-100, 100] for a correlation.
        rows: n, at least 2.
        correlation: whether the score is a correlation.

    Returns:
        the standard error, times 100.

    Raises:
        ValueError: a score out of range, or fewer than two rows.
    """
    fraction = score / 100
    if rows < 2:
        raise ValueError(f"a sampling error needs at least two rows, got {rows}")
    if not (-1 if correlation else 0) <= fraction <= 1:
        raise ValueError(f"score {score} is out of range")
    if correlation:
        return 100 * (1 - fraction**2) / math.sqrt(rows - 1)
    added = (fraction * rows + 2) / (rows + 4)
    return 100 * math.sqrt(added * (1 - added) / (rows + 4))


POWER = 0.8
"""Probability with which a detectable difference is found."""


def detectable_by_rows(standard_error: float) -> float:
    """Smallest true difference of two scores on *different* draws of rows that a two-sided test at
    ``LEVEL`` finds with probability ``POWER``: (z_.975 + z_.8) sqrt(2) standard errors.

    Two models that are scored on the same rows differ less by chance, so this is an upper bound.
    """
    from scipy.stats import norm

    quantiles = norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER)
    return float(quantiles * math.sqrt(2) * standard_error)


def detectable_by_seeds(differences: Iterable[float]) -> float | None:
    """Smallest true mean difference that a paired t test over these seeds would find, at ``LEVEL``
    with probability ``POWER``: (t_.975 + t_.8) s / sqrt(n), s their standard deviation.

    Returns:
        None for fewer than two differences.
    """
    from scipy.stats import t

    values = list(differences)
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    quantiles = t.ppf((1 + LEVEL) / 2, freedom) + t.ppf(POWER, freedom)
    return float(quantiles * statistics.stdev(values) / math.sqrt(len(values)))
