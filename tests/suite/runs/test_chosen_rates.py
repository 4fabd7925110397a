"""Rates are chosen on held-out training rows, by one rule, among runs that differ only in rate."""

import json
from typing import Any

import pytest

from finegates.suite.runs.chosen_rates import choose_rates, read_choices, write_choices
from finegates.suite.runs.finetune import TaskData, finetune, load_tokenizer
from finegates.suite.runs.record import Record
from support.records import make_record
from support.tier import tiny_tier


def trial(contender: str, factor: float, score: float, **more: Any) -> Record:
    config = {"lora": {"rank": more.pop("rank", 8)}} if contender.startswith("lora") else {}
    split = more.pop("split", "held out")
    record = make_record(
        method=f"{contender}-x{factor:g}", target=None, scores=(99.0, score), **more
    )
    found = record.model_dump(mode="json")
    rates = {"rate_factor": factor, "rates_of": contender, "learning_rate": 1e-4 * factor}
    found["config"] |= {**config, **rates}
    found["data"]["validation_split"] = split
    return Record.model_validate(found)


def chosen(records: list[Record]) -> dict[tuple[str, str], float]:
    return {(t.contender, t.task): t.factor for t in choose_rates(records) if t.chosen}


def test_the_factor_of_the_highest_mean_score_after_the_last_epoch_is_chosen_by_task():
    records = [
        trial("lora", 1.0, 60.0), trial("lora", 3.0, 65.0),
        trial("lora", 1.0, 60.0, seed=1), trial("lora", 3.0, 54.0, seed=1),
        trial("lora", 1.0, 10.0, task="rte"), trial("lora", 3.0, 11.0, task="rte"),
        trial("full", 3.0, 70.0), trial("full", 1.0, 70.0),
    ]  # fmt: skip
    assert chosen(records) == {
        ("lora", "cola"): 1.0,
        ("lora", "rte"): 3.0,
        ("full", "cola"): 1.0,  # the lowest of equal scores
    }
    first, second = choose_rates(records)[:2]
    assert (first.factor, first.rate, first.score, first.seeds) == (1.0, 1e-4, 60.0, (0, 1))
    assert (second.factor, second.score) == (3.0, 59.5)


def test_the_choices_are_written_with_all_trials(tmp_path):
    path = tmp_path / "search" / "cola.json"
    write_choices(choose_rates([trial("lora", 1.0, 60.0), trial("lora", 3.0, 65.0)]), path)
    assert read_choices(path) == {"lora": 3.0}
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [(t["factor"], t["chosen"]) for t in written["trials"]] == [(1.0, False), (3.0, True)]


@pytest.mark.parametrize("text", ["[]", "{}", '{"factors": {"full": "1"}}'])
def test_a_file_of_another_layout_is_refused_by_its_name(tmp_path, text):
    path = tmp_path / "cola.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="cola.json must map contenders to numbers"):
        read_choices(path)


def test_trials_that_differ_in_more_than_their_rates_are_not_compared():
    with pytest.raises(ValueError, match="lora on cola: its trials differ in more than"):
        choose_rates([trial("lora", 1.0, 60.0), trial("lora", 3.0, 65.0, rank=16)])


def test_scores_that_tables_report_choose_nothing():
    with pytest.raises(ValueError, match=r"scored on 'validation', which tables report"):
        choose_rates([trial("lora", 1.0, 60.0, split="validation")])


def test_a_run_of_the_tuning_tier_is_no_trial():
    record = trial("lora", 1.0, 60.0)
    config = record.config.model_copy(update={"rates_of": None})
    with pytest.raises(ValueError, match="lora-x1 on cola is not a trial"):
        choose_rates([record.model_copy(update={"config": config})])


def test_rates_tried_with_other_seeds_are_not_compared():
    with pytest.raises(ValueError, match=r"lora on cola.*1: \[0\], 3: \[1\]"):
        choose_rates([trial("lora", 1.0, 60.0), trial("lora", 3.0, 65.0, seed=1)])


def test_a_run_takes_the_rates_times_the_factor_and_its_record_says_so(tmp_path):
    training = {"epochs": 1, "batch_size": 8, "max_length": 24}
    common = {"experiment": "structured", "gates": {"target": 0.4}, "head_learning_rate": 1e-3}
    factored = common | {"learning_rate": 1e-3, "gate_learning_rate": 1e-2, "rate_factor": 2.0}
    plain = common | {"learning_rate": 2e-3, "gate_learning_rate": 2e-2}
    tiers = [
        tiny_tier(tmp_path, training=training, methods={"gates": method})
        for method in (factored, plain)
    ]
    data = TaskData(tiers[0], "stsb", load_tokenizer(tiers[0]))
    found, same = (finetune(tier, data, "gates", 0, progress=False) for tier in tiers)
    config = found.config.model_dump()
    assert (config["learning_rate"], config["gate_learning_rate"]) == (2e-3, 2e-2)
    assert (config["rate_factor"], config["head_learning_rate"]) == (2.0, 1e-3)
    assert found.last == same.last
