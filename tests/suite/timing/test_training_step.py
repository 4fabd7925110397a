"""Timing: contenders take turns, and the ratio is of medians."""

import numpy as np
import pytest

from finegates.clock import WARMUP, interleaved
from finegates.suite.timing.clock import ratios
from finegates.suite.timing.training_step import time_training_step
from support.tier import tiny_tier


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


def test_the_step_benchmark_times_every_kind_of_method_on_the_same_model(tmp_path):
    table = time_training_step(tiny_tier(tmp_path), threads=1)
    assert table["contender"].tolist() == ["full", "lora", "gates", "gates and lora", "control"]
    assert (table["median_ms"] > 0).all()


def test_a_tier_without_lora_has_no_step_benchmark(tmp_path):
    tier = tiny_tier(tmp_path, methods={"full": {"experiment": "full"}})
    with pytest.raises(ValueError, match="no LoRA method"):
        time_training_step(tier, threads=1)
