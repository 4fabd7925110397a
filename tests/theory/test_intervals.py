"""Intervals of medians contain the median as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from theory.intervals import FEW, interval, median_interval


@pytest.mark.parametrize("count", [2, 3, 5, 6, FEW])
def test_the_range_of_few_draws_contains_the_median_with_the_stated_probability(count):
    """1 − 2^(1 − n): it misses only if all draws are on one side."""
    random = np.random.default_rng(count)
    trials = 4000
    found = [median_interval(random.standard_normal(count)) for _ in range(trials)]
    share = np.mean([low <= 0 <= high for low, high in found])
    stated = 1 - 2.0 ** (1 - count)
    assert share == pytest.approx(stated, abs=4 * np.sqrt(stated * (1 - stated) / trials))


def test_up_to_eight_draws_have_their_range_and_more_a_bootstrap():
    draws = np.arange(1.0, FEW + 1)
    assert median_interval(draws) == (1.0, FEW)
    more = np.arange(1.0, FEW + 2)
    assert median_interval(more, "x") == interval(more, "x")
    assert median_interval(more, "x") != (1.0, FEW + 1)
    with pytest.raises(ValueError, match="needs at least two values"):
        median_interval(np.ones(1))
