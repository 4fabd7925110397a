"""Statistics over seeds: no interval from one value, none that depends on order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finegates.stats import (
    bootstrap_interval,
    mean,
    paired_differences,
    summarise,
    summarise_differences,
)

SCORES = st.lists(st.floats(0, 100), min_size=2, max_size=6)


@given(SCORES)
def test_the_mean_lies_in_the_range_and_does_not_depend_on_order(values):
    assert min(values) <= mean(values) <= max(values)
    assert mean(values) == mean(sorted(values))


@given(st.lists(st.floats(0, 100), min_size=3, max_size=5))
def test_the_interval_does_not_depend_on_order_and_holds_only_values_between_the_extremes(values):
    found = bootstrap_interval(values, "a")
    assert found == bootstrap_interval(sorted(values), "a")
    assert min(values) <= found.low <= found.high <= max(values)


def test_one_seed_has_no_interval():
    assert bootstrap_interval([70.0]) is None
    found = summarise([70.0])
    assert (found.count, found.mean, found.interval) == (1, 70.0, None)


def test_a_wider_spread_gives_a_wider_interval():
    narrow, wide = bootstrap_interval([70, 71, 72]), bootstrap_interval([60, 71, 82])
    assert wide.high - wide.low > narrow.high - narrow.low > 0


def test_differences_pair_what_both_have():
    first, second = {0: 71.0, 1: 73.0, 2: 75.0}, {0: 70.0, 1: 70.0, 5: 9.0}
    assert paired_differences(first, second) == {0: 1.0, 1: 3.0}
    assert paired_differences(second, first) == {0: -1.0, 1: -3.0}
    assert summarise_differences(first, second).mean == 2.0
    assert summarise_differences({0: 1.0}, {1: 1.0}) is None


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        mean([])
