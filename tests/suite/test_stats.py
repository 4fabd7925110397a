"""Statistics over seeds: no interval from one value, and none that depends on order."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from finegates.suite.stats import (
    LEVEL,
    POWER,
    Interval,
    Variance,
    combined_interval,
    detectable_by_rows,
    detectable_by_seeds,
    mean,
    paired_differences,
    sampling_error,
    summarise,
    summarise_differences,
    t_interval,
)

SCORES = st.lists(st.floats(0, 100), min_size=2, max_size=6)


@given(SCORES)
def test_the_mean_lies_in_the_range_and_does_not_depend_on_order(values):
    assert min(values) <= mean(values) <= max(values)
    assert mean(values) == mean(sorted(values))


@given(SCORES)
def test_the_interval_does_not_depend_on_order_and_holds_the_mean(values):
    found = t_interval(values)
    assert found == t_interval(sorted(values))
    assert found.low <= mean(values) <= found.high


def test_one_seed_has_no_interval():
    assert t_interval([70.0]) is None
    found = summarise([70.0])
    assert (found.count, found.mean, found.interval) == (1, 70.0, None)


def test_the_interval_of_three_seeds_is_students():
    """t_.975 with 2 degrees of freedom is 4.3027; the standard deviation of 70, 71, 72 is 1."""
    found = t_interval([70.0, 71.0, 72.0])
    assert found.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert t_interval([1e9 + 1, 1e9 + 2, 1e9 + 3]).half_width == pytest.approx(found.half_width)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(seeds):
    rng, draws = numpy.random.default_rng(2), 4000
    found = [t_interval(values.tolist()) for values in rng.normal(3.0, 2.0, (draws, seeds))]
    covered = numpy.mean([interval.low <= 3.0 <= interval.high for interval in found])
    assert covered == pytest.approx(LEVEL, abs=4 * (LEVEL * (1 - LEVEL) / draws) ** 0.5)


def test_variances_of_seeds_and_rows_add():
    """Known variances give a normal interval; two equal ones of f degrees of freedom act as 2f."""
    known = combined_interval(5.0, [Variance(3.0), Variance(1.0)])
    assert known.half_width == pytest.approx(1.959964 * 2, rel=1e-6)
    both = combined_interval(5.0, [Variance(1.0, 4), Variance(1.0, 4)])
    assert both.half_width == pytest.approx(stats.t.ppf(0.975, 8) * 2**0.5)
    assert combined_interval(5.0, [Variance(0.0, 2)]) == Interval(5.0, 5.0)
    with pytest.raises(ValueError, match="at least one variance"):
        combined_interval(5.0, [])
    with pytest.raises(ValueError, match="the level must be in"):
        combined_interval(5.0, [Variance(1.0)], level=1.0)


def test_differences_pair_what_both_have():
    first, second = {0: 71.0, 1: 73.0, 2: 75.0}, {0: 70.0, 1: 70.0, 5: 9.0}
    assert paired_differences(first, second) == {0: 1.0, 1: 3.0}
    assert paired_differences(second, first) == {0: -1.0, 1: -3.0}
    assert summarise_differences(first, second).mean == 2.0
    assert summarise_differences({0: 1.0}, {1: 1.0}) is None


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        mean([])


@pytest.mark.parametrize(("score", "correlation"), [(80.0, False), (60.0, True)])
def test_a_sampling_error_is_the_spread_over_draws_of_rows(score, correlation):
    rng, rows, draws = numpy.random.default_rng(0), 400, 3000
    if correlation:
        r = score / 100
        pairs = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], (draws, rows))
        found = [100 * numpy.corrcoef(pair.T)[0, 1] for pair in pairs]
    else:
        found = 100 * rng.binomial(rows, score / 100, draws) / rows
    expected = sampling_error(score, rows, correlation=correlation)
    assert numpy.std(found) == pytest.approx(expected, rel=0.05)


def test_a_detectable_difference_is_found_as_often_as_promised():
    rng, error, spread, seeds = numpy.random.default_rng(1), 1.5, 2.0, 6
    difference = detectable_by_rows(error)
    found = rng.normal(difference, error * 2**0.5, 20000) / (error * 2**0.5)
    assert numpy.mean(abs(found) > 1.96) == pytest.approx(POWER, abs=0.01)
    # Over seeds the formula uses a central t: close to the true power, and not much above it.
    base = numpy.array([-1, 1] * (seeds // 2)) * spread * ((seeds - 1) / seeds) ** 0.5
    shift = detectable_by_seeds(base)
    draws = rng.normal(shift, spread, (20000, seeds))
    t = draws.mean(1) / (draws.std(1, ddof=1) / seeds**0.5)
    assert numpy.mean(abs(t) > 2.5706) == pytest.approx(POWER, abs=0.06)


def test_one_seed_shows_nothing_about_seeds():
    assert detectable_by_seeds([1.0]) is None
    assert detectable_by_seeds([1.0, 1.0]) == 0.0


@pytest.mark.parametrize(("score", "rows"), [(101.0, 10), (-1.0, 10), (50.0, 1)])
def test_an_impossible_score_has_no_sampling_error(score, rows):
    with pytest.raises(ValueError, match=r"out of range|two rows"):
        sampling_error(score, rows)


def test_a_perfect_score_has_a_sampling_error():
    assert sampling_error(100.0, 600) > 0.1
