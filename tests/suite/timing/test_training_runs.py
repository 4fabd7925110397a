"""Whole training runs are timed in turn, and the table says what they end with."""

import pytest

from finegates.suite.tables.training_runs import training_runs_text
from finegates.suite.timing.training_runs import time_training_runs
from support.tier import tiny_tier

BENCHMARK = {
    "batch_size": 4,
    "length": 8,
    "steps": 12,
    "repeats": 1,
    "kept": [0.6],
    "rank": 2,
    "shapes": [
        {
            "name": "wide",
            "model_type": "bert",
            "sizes": {
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "intermediate_size": 128,
                "vocab_size": 50,
            },
        }
    ],
}
GATES = "gates, 60% of MACs"
MACHINE = {"cpu": "a CPU", "threads": 1, "load": [0.5, 1.0]}


@pytest.fixture(scope="module")
def tier(tmp_path_factory):
    return tiny_tier(tmp_path_factory.mktemp("tier"), training_benchmark=BENCHMARK)


@pytest.fixture(scope="module")
def frame(tier):
    return time_training_runs(tier, threads=1)


def test_every_model_is_trained_in_every_way(frame):
    ways = [
        "full fine-tuning",
        "LoRA",
        f"{GATES}, compact at the end",
        f"{GATES}, removed while training",
        "control",
    ]
    assert list(frame["model"].unique()) == ["tiny", "wide"]
    for _, rows in frame.groupby("model"):
        assert rows["contender"].tolist() == ways
    assert (frame["seconds"] > 0).all()
    assert frame.set_index("contender").loc["LoRA", "ratio_to_lora"].tolist() == [1.0, 1.0]


def test_gates_end_at_their_budget_and_removal_holds_less_memory(frame):
    wide = frame[frame["model"] == "wide"].set_index("contender")
    kept, removed = (f"{GATES}, {way}" for way in ("compact at the end", "removed while training"))
    for way in (kept, removed):
        assert wide.loc[way, "macs_kept"] == pytest.approx(0.6, abs=0.03)
    assert wide.loc[removed, "end_mib"] < 0.95 * wide.loc[kept, "end_mib"]
    assert wide.loc["LoRA", "macs_kept"] == 1.0
    assert wide.loc["LoRA", "trainable"] < wide.loc["full fine-tuning", "trainable"]


def test_the_text_says_what_was_timed_and_whose_control_is_off(frame, tier):
    frame = frame.copy()
    control = frame["contender"] == "control"
    frame.loc[control, "ratio_to_lora"] = [1.02, 1.06]
    text = training_runs_text(frame, tier, MACHINE)
    assert "12 steps, batch 4 x 8" in text
    assert "Noisy: the control of wide is off" in text
    assert "tiny is off" not in text
    assert len(text.splitlines()) == 2 + 2 + len(frame)


def test_a_tier_without_the_benchmark_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no training_benchmark"):
        time_training_runs(tiny_tier(tmp_path), threads=1)
