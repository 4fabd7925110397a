"""The command that verifies a tier's results: it passes complete results and names faults."""

import json
import os
import time

import pytest

from finegates.suite.jobs.seals import seal
from finegates.suite.runs.record import write_record
from finegates.suite.verify import main, verify
from support.records import make_record
from support.tier import tiny_tier


@pytest.fixture
def results(tmp_path):
    record = tmp_path / "runs" / "cola" / "full" / "seed0.json"
    write_record(make_record(), record)
    (tmp_path / "glue.csv").write_text("41.5")
    for path in (record, tmp_path / "glue.csv"):
        seal(path)
    return tmp_path


def test_whole_results_pass_and_records_without_a_digest_are_told_apart(results):
    told, messages = verify(results)
    assert told == "2 sealed files and folders, 1 records with a digest of their own"
    assert messages == []
    old = results / "runs" / "cola" / "lora" / "seed0.json"
    old.parent.mkdir()
    old.write_text(json.dumps(make_record(format_version=1).model_dump()))
    told, messages = verify(results)
    assert "and 1 from before records had one" in told
    assert messages == []


@pytest.mark.parametrize("name", ["glue.csv", "runs/cola/full/seed0.json"])
def test_what_is_damaged_is_named_with_a_remedy(results, name):
    path = results / name
    path.write_text(path.read_text().replace("41.5", "47.5").replace("60.0", "68.0"))
    _, messages = verify(results)
    assert messages
    assert all(str(path) in message and "run again" in message for message in messages)


def test_a_record_that_was_copied_without_its_seal_is_still_known(results):
    path = results / "runs" / "cola" / "full" / "seed0.json"
    (path.parent / ".seed0.json.sha256").unlink()
    path.write_text(path.read_text().replace("60.0", "68.0"))
    assert len(verify(results)[1]) == 1


def test_a_checkpoint_is_left_to_the_run_that_continues(results):
    checkpoint = results / "llama" / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").touch()
    seal(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    assert verify(results)[1] == []


def test_results_from_the_future_are_named_with_a_remedy(results):
    path = results / "glue.csv"
    later = time.time() + 3600
    os.utime(path, (later, later))
    (message,) = verify(results)[1]
    assert message.startswith(f"{path} is dated")
    assert f"find {results} -exec touch {{}} +" in message
    os.utime(path, (later - 3590, later - 3590))
    assert verify(results)[1] == []


def test_the_command_takes_a_tier_and_fails_on_damage(tmp_path, capsys, monkeypatch):
    tier = tiny_tier(tmp_path, results=str(tmp_path))
    monkeypatch.setattr("finegates.suite.verify.configured_tier", lambda config: tier)
    (tmp_path / "glue.csv").write_text("41.5")
    seal(tmp_path / "glue.csv")
    assert main([]) == 0
    assert "is as its jobs wrote it: 1 sealed" in capsys.readouterr().out
    (tmp_path / "glue.csv").write_text("47.5")
    assert main([]) == 1
    assert "error: " in capsys.readouterr().out


def test_an_unknown_tier_is_an_error_and_no_traceback(capsys):
    assert main(["smok"]) == 1
    assert "error: " in capsys.readouterr().out


def test_results_that_are_not_there_yet_are_no_damage(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["smoke"]) == 0
    assert capsys.readouterr().out == "results/smoke is not there yet: nothing to check\n"
