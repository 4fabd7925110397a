"""Timing: contenders take turns, and the ratio is of medians."""

import numpy as np
import pytest

from finegates.clock import WARMUP, interleaved
from finegates.suite.timing.clock import ratios


def test_contenders_take_turns_and_warm_up_does_not_count():
    order = []
    seconds = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3
    )
    assert "".join(order) == "ab" * (WARMUP + 3)
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3,), "b": (3,)}
    assert all((values > 0).all() for values in seconds.values())


def test_ratios_are_of_medians():
    seconds = {"lora": np.array([0.1, 0.2, 9.0]), "gates": np.array([0.3, 0.3, 0.1])}
    table = ratios(seconds, to="lora").set_index("contender")
    assert table.loc["gates", "ratio_to_lora"] == pytest.approx(1.5)
    assert table.loc["lora", "median_ms"] == pytest.approx(200)
