"""Rates are chosen on held-out training rows, by one rule, among runs that differ in rate alone."""

import json
from typing import Any

import pytest

from finegates.suite.config.methods import Method
from finegates.suite.runs.chosen_rates import choose_rates, main, rates_by_task
from finegates.suite.runs.finetune import TaskData, finetune, load_tokenizer
from finegates.suite.runs.record import Record, write_record
from support.records import make_record
from support.tier import tiny_tier


def trial(method: str, rate: float, score: float, *, held_out: bool = True, **more: Any) -> Record:
    config = {"lora": {"rank": more.pop("rank", 8)}} if method.startswith("lora") else {}
    record = make_record(method=method, target=None, scores=(99.0, score), **more)
    split = "held out" if held_out else "validation"
    found = record.model_dump(mode="json")
    found["config"] |= {**config, "learning_rate": rate}
    found["data"]["validation_split"] = split
    return Record.model_validate(found)


def test_the_rate_of_the_highest_mean_score_after_the_last_epoch_is_chosen_by_task():
    records = [
        trial("lora-a", 1e-4, 60.0), trial("lora-b", 1e-3, 65.0),
        trial("lora-a", 1e-4, 60.0, seed=1), trial("lora-b", 1e-3, 54.0, seed=1),
        trial("lora-a", 1e-4, 10.0, task="rte"), trial("lora-b", 1e-3, 11.0, task="rte"),
        trial("full-a", 5e-5, 70.0), trial("full-b", 1e-5, 70.0),
    ]  # fmt: skip
    trials = choose_rates(records)
    assert rates_by_task(trials) == {
        "lora-a": {"cola": 1e-4, "rte": 1e-3},
        "full-a": {"cola": 1e-5},  # of equal scores the lowest
    }
    assert [(t.rate, t.score, t.seeds) for t in trials[:2]] == [
        (1e-4, 60.0, (0, 1)),
        (1e-3, 59.5, (0, 1)),
    ]


def test_the_choices_are_printed_with_all_trials(tmp_path, capsys):
    records = [trial("lora-a", 1e-4, 60.0), trial("lora-b", 1e-3, 65.0)]
    paths = [str(tmp_path / f"{record.method}.json") for record in records]
    for record, path in zip(records, paths, strict=True):
        write_record(record, path)
    main(paths)
    printed = json.loads(capsys.readouterr().out)
    assert printed["chosen"] == {"lora-a": {"cola": 1e-3}}
    assert [(t["rate"], t["chosen"]) for t in printed["trials"]] == [(1e-4, False), (1e-3, True)]


def test_other_settings_make_another_contender():
    records = [trial("lora-8", 1e-4, 60.0), trial("lora-16", 1e-4, 65.0, rank=16)]
    assert set(rates_by_task(choose_rates(records))) == {"lora-8", "lora-16"}


def test_scores_that_tables_report_choose_nothing():
    with pytest.raises(ValueError, match=r"scored on 'validation', which tables report"):
        choose_rates([trial("lora-a", 1e-4, 60.0, held_out=False)])


def test_rates_tried_with_other_seeds_are_not_compared():
    records = [trial("lora-a", 1e-4, 60.0), trial("lora-b", 1e-3, 65.0, seed=1)]
    with pytest.raises(ValueError, match=r"lora-a on cola.*0.0001: \[0\], 0.001: \[1\]"):
        choose_rates(records)


def test_a_run_takes_the_rate_of_its_task_and_its_record_says_so(tmp_path):
    own = {"experiment": "full", "learning_rate": 1e-3, "learning_rate_by_task": {"stsb": 2e-3}}
    training = {"epochs": 1, "batch_size": 8, "max_length": 24}
    tier = tiny_tier(tmp_path, training=training, methods={"full": own})
    plain = tiny_tier(
        tmp_path, training=training, methods={"full": {"experiment": "full", "learning_rate": 2e-3}}
    )
    data = TaskData(tier, "stsb", load_tokenizer(tier))
    found, same = (finetune(t, data, "full", 0, progress=False) for t in (tier, plain))
    assert found.config.model_dump()["learning_rate"] == 2e-3
    assert found.last == same.last
    assert Method(title="x", **{k: v for k, v in own.items() if k != "experiment"}).rate_of(
        "cola"
    ) == pytest.approx(1e-3)


def test_a_rate_of_no_task_is_refused_by_its_key(tmp_path):
    method = {"experiment": "full", "learning_rate_by_task": {"colla": 1e-3}}
    with pytest.raises(ValueError, match=r"methods\.full\.learning_rate_by_task.*'colla'"):
        tiny_tier(tmp_path, methods={"full": method})
