"""Models pruned to a time are timed next to the dense one, and the table says what was met."""

import pandas as pd
import pytest

from finegates.suite.config.benchmarks import TimeBudgetBenchmark
from finegates.suite.tables.time_budgets import time_budgets_text
from finegates.suite.timing.inference import random_model
from finegates.suite.timing.time_budgets import COLUMNS, measure_budgets, time_budgets
from support.tier import tiny_tier

BENCHMARK = {
    "batch_size": 2,
    "length": 8,
    "repeats": 2,
    "wanted": [0.99],
    "dimensions": ["inner"],
    "shapes": [
        {
            "name": "wide",
            "model_type": "bert",
            "sizes": {
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "intermediate_size": 512,
                "vocab_size": 50,
            },
        }
    ],
}
MACHINE = {"cpu": "a CPU", "threads": 1, "load": [0.5, 1.0]}


@pytest.fixture(scope="module")
def tier(tmp_path_factory):
    return tiny_tier(tmp_path_factory.mktemp("tier"), time_budget_benchmark=BENCHMARK)


@pytest.mark.filterwarnings("ignore:.* of the predicted time are kept")
@pytest.mark.filterwarnings("ignore:no gate of")
@pytest.mark.filterwarnings("ignore:.*takes as long with fewer dimensions")
@pytest.mark.filterwarnings("ignore:the costs miss the measured times")
def test_every_model_is_timed_dense_pruned_and_dense_again(tier):
    frame = time_budgets(tier, threads=1)
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["model"].unique()) == ["tiny", "wide, random weights"]
    for _, rows in frame.groupby("model"):
        assert rows["contender"].tolist() == ["dense", "99% of the time, inner", "control"]
        assert rows["wanted"].tolist() == [1.0, 0.99, 1.0]
        assert rows["measured"].iloc[0] == 1.0
        assert (rows["median_ms"] > 0).all()
        assert 0.5 < rows["predicted"].iloc[1] <= 1.0


def row(contender, wanted, measured):
    return {
        "model": "m", "contender": contender, "wanted": wanted, "predicted": wanted,
        "measured": measured, "off": measured / wanted - 1, "median_ms": 1.0, "q25_ms": 1.0,
        "q75_ms": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("control", "noisy"), [(1.01, False), (0.9, True)])
def test_the_table_counts_what_was_met_and_names_a_noisy_control(tier, control, noisy):
    rows = [row("dense", 1.0, 1.0), row("a", 0.5, 0.52), row("b", 0.5, 0.56)]
    text = time_budgets_text(pd.DataFrame([*rows, row("control", 1.0, control)]), tier, MACHINE)
    assert "1 of 2 are within 5 % of the wanted time" in text
    assert "| m | b | 0.50 | 0.500 | 0.560 | +12.0 |" in text
    assert ("Noisy: the control of m is off" in text) == noisy


@pytest.mark.filterwarnings("ignore:.* of the predicted time are kept")
@pytest.mark.filterwarnings("ignore:no gate of")
@pytest.mark.filterwarnings("ignore:.*takes as long with fewer dimensions")
@pytest.mark.filterwarnings("ignore:the costs miss the measured times")
def test_a_time_out_of_reach_has_a_row_with_the_least_one(tier):
    settings = TimeBudgetBenchmark(**{**BENCHMARK, "wanted": [0.99, 1e-4]})
    frame = measure_budgets("m", random_model(settings.shapes[0]), settings)
    assert frame["contender"].tolist()[1:3] == ["99% of the time, inner", "0% of the time, inner"]
    blank = frame.iloc[2]
    assert 1e-4 < blank["predicted"] < 1.0
    assert blank[["measured", "off", "median_ms"]].isna().all()
    text = time_budgets_text(frame, tier, MACHINE)
    assert "of 1 are within 5 %" in text
    assert f"| 0.00 | {blank['predicted']:.3f} | – | – | – | – |" in text


def test_a_tier_without_the_benchmark_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no time_budget_benchmark"):
        time_budgets(tiny_tier(tmp_path), threads=1)
