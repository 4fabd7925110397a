"""The table of rates shows every trial, and the one that decided."""

import pytest

from finegates.suite.runs.chosen_rates import RateTrial
from finegates.suite.tables.rates import rates_table


def trial(contender: str, task: str, factor: float, score: float, chosen: bool) -> RateTrial:
    return RateTrial(contender, task, factor, 1e-4 * factor, score, (0,), 800, chosen)


TRIALS = [
    trial("full", "mrpc", 0.3333, 80.04, False),
    trial("full", "mrpc", 1.0, 82.0, True),
    trial("full", "mrpc", 3.0, 79.0, False),
    trial("full", "rte", 1.0, 60.0, False),
    trial("full", "rte", 3.0, 61.0, True),
    trial("lora", "mrpc", 1.0, 70.0, True),
]


def table():
    titles = {"full": "Full fine-tuning", "lora": "LoRA", "short": "Three layers"}
    return rates_table(TRIALS, titles, "t", {"short": "full"})


def test_a_row_a_contender_and_task_with_the_chosen_score_in_bold():
    assert table().header == (
        "Contender", "Task", "Rates × 0.333", "Rates × 1", "Rates × 3", "Rate"
    )  # fmt: skip
    assert table().cells == (
        ("Full fine-tuning", "MRPC", "80.0", "**82.0**", "79.0", "0.0001"),
        ("Full fine-tuning", "RTE", "–", "60.0", "**61.0**", "0.0003"),
        ("LoRA", "MRPC", "–", "**70.0**", "–", "0.0001"),
    )
    assert table().rule_before == (2,)


def test_the_caption_says_on_what_rates_were_chosen_and_who_has_those_of_another():
    assert "800 rows held out of the training rows" in table().caption
    assert "seed 0" in table().caption
    assert "Three layers: Full fine-tuning." in table().caption


def test_every_trial_is_in_the_numbers():
    numbers = table().numbers
    assert len(numbers) == len(TRIALS)
    assert list(numbers[numbers["chosen"]]["factor"]) == [1.0, 3.0, 1.0]


def test_no_trials_make_no_table():
    with pytest.raises(ValueError, match="no trials"):
        rates_table([], {}, "t", {})
