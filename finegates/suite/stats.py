"""Student t intervals of means, for variation of seeds and of test rows.

Fine-tuning studies use few seeds, for which the bootstrap fails: a percentile bootstrap of three
values is their range, which covers the true mean three times out of four. A t interval is exact for
normal values. It covers variation over *seeds*. :func:`combined_interval` adds the variation over
test rows. A single value does not have an interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

LEVEL = 0.95
"""Nominal coverage of every interval."""

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A two-sided interval with ``low <= high``."""

    low: float
    high: float
    level: float = LEVEL

    @property
    def half_width(self) -> float:
        """Half the interval's width. The mean need not be its centre."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Summary:
    """Number, mean, range and interval of values over seeds.

    The interval is None for a single value.
    """

    count: int
    mean: float
    minimum: float
    maximum: float
    interval: Interval | None


def mean(values: Iterable[float]) -> float:
    """The correctly rounded mean, independent of the order of values.

    Raises:
        ValueError: there are no values.
    """
    values = list(values)
    if not values:
        raise ValueError("the mean of no values is undefined")
    # statistics.mean is exact. A rounded sum divided by n can leave the range of the values.
    return float(statistics.mean(map(float, values)))


@dataclass(frozen=True)
class Variance:
    """A variance of a mean, and its degrees of freedom (infinite if known)."""

    value: float
    freedom: float = math.inf


def t_interval(values: Iterable[float], level: float = LEVEL) -> Interval | None:
    """Student's t interval of the mean over seeds, ``m ± t s / sqrt(n)``.

    Args:
        values: one per seed, in any order.
        level: nominal coverage in (0, 1), exact for independent normal values.

    Returns:
        the interval, None for a single value.

    Raises:
        ValueError: there are no values, a value is not finite, or the level is outside (0, 1).
    """
    values = list(values)
    if not values:
        raise ValueError("an interval needs at least one value")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"an interval needs finite values, got {sorted(values)}")
    if len(values) == 1:
        return None
    return combined_interval(mean(values), [mean_variance(values)], level)


def mean_variance(values: Sequence[float]) -> Variance:
    """The variance s² / n of the mean of n independent values, at least two."""
    # fsum makes the result independent of the order of values.
    centre = mean(values)
    square = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    return Variance(square / len(values), len(values) - 1)


def combined_interval(
    centre: float, variances: Sequence[Variance], level: float = LEVEL
) -> Interval:
    """The t interval of a mean whose variance is a sum of independent parts.

    Its degrees of freedom are those of Welch and Satterthwaite,
    ``(sum v_i)² / sum(v_i² / f_i)``.

    Args:
        centre: the mean.
        variances: v_i with degrees of freedom f_i, for example of seeds and of test rows.
        level: nominal coverage in (0, 1).

    Raises:
        ValueError: there are no variances, or the level is outside (0, 1).
    """
    from scipy.stats import norm, t

    if not variances:
        raise ValueError("an interval needs at least one variance")
    if not 0 < level < 1:
        raise ValueError(f"the level must be in (0, 1), got {level}")
    total = math.fsum(part.value for part in variances)
    if total == 0:
        return Interval(centre, centre, level)
    uncertain = math.fsum(
        part.value**2 / part.freedom for part in variances if math.isfinite(part.freedom)
    )
    probability = (1 + level) / 2
    quantile = t.ppf(probability, total**2 / uncertain) if uncertain else norm.ppf(probability)
    half = float(quantile) * math.sqrt(total)
    return Interval(centre - half, centre + half, level)


def summarise(values: Iterable[float], level: float = LEVEL) -> Summary:
    """Number, mean, range and t interval of values over seeds."""
    values = list(values)
    return Summary(
        count=len(values),
        mean=mean(values),
        minimum=min(values),
        maximum=max(values),
        interval=t_interval(values, level),
    )


def paired_differences(
    first: Mapping[_Key, float], second: Mapping[_Key, float]
) -> dict[_Key, float]:
    """``first[key] - second[key]`` for all common keys, such as seeds.

    Pairing removes the common effects of a seed: data order and initial head.
    ``paired_differences(a, b)[k] == -paired_differences(b, a)[k]``.
    """
    return {key: value - second[key] for key, value in first.items() if key in second}


def summarise_differences(
    first: Mapping[_Key, float], second: Mapping[_Key, float], level: float = LEVEL
) -> Summary | None:
    """Summary of the paired differences, None without common keys."""
    differences = paired_differences(first, second)
    return summarise(differences.values(), level) if differences else None


def sampling_error(score: float, rows: int, *, correlation: bool = False) -> float:
    """Standard error of a score from sampling its test rows, to first order.

    For a fraction p of n rows it is sqrt(p (1 - p) / n). Two rows of each kind are added before, so
    that a score of 100 has an error, too (Agresti and Coull 1998). For a correlation r it is
    (1 - r^2) / sqrt(n - 1), the delta method for two normal variables, which is only rough for
    Matthews' coefficient.

    Args:
        score: score times 100, in [0, 100], or [-100, 100] for a correlation.
        rows: n, at least 2.
        correlation: whether the score is a correlation.

    Returns:
        the standard error, times 100.

    Raises:
        ValueError: the score is out of range, or there are fewer than two rows.
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
    """Smallest detectable difference with *independent* test rows.

    At ``LEVEL`` it detects a true difference of (z_.975 + z_.8) sqrt(2) standard errors with
    probability ``POWER``. Two models with the same test rows differ less by chance, so this is an
    upper bound.
    """
    from scipy.stats import norm

    quantiles = norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER)
    return float(quantiles * math.sqrt(2) * standard_error)


def detectable_by_seeds(differences: Iterable[float]) -> float | None:
    """Smallest mean difference that a paired t test over these seeds detects.

    At ``LEVEL`` it detects a true difference of (t_.975 + t_.8) s / sqrt(n) with probability
    ``POWER``, where s is the standard deviation of the differences.

    Returns:
        the difference, None for fewer than two differences.
    """
    from scipy.stats import t

    values = list(differences)
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    quantiles = t.ppf((1 + LEVEL) / 2, freedom) + t.ppf(POWER, freedom)
    return float(quantiles * statistics.stdev(values) / math.sqrt(len(values)))
