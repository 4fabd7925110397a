"""``finegates shrink`` continues a killed run, and refuses a folder of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import finegates as fg
from finegates.cli import main, outcome, resumption
from finegates.compaction.predicted_time import predicted_time
from support.cli_models import reviews, write_csv
from support.shrink_command import LENGTH, contents, shrink, summary


class Killed:
    """Stops a training at a step, as a kill would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        training_step = fg.GateTrainer.training_step

        def mortal(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step >= step:
                raise KeyboardInterrupt
            return training_step(trainer, *args, **kwargs)

        monkeypatch.setattr(fg.GateTrainer, "training_step", mortal)


@pytest.fixture(scope="module")
def uninterrupted(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("whole") / "small"
    assert shrink(places, out) == 0
    return contents(out)


# 72 rows make 9 steps an epoch: within an epoch, at an epoch's end, during the final repair.
@pytest.mark.sampled(1)
@pytest.mark.parametrize("step", [5, 9, 14, 25])
def test_a_killed_run_continues_and_ends_with_the_tensors_of_an_uninterrupted_one(
    places, uninterrupted, tmp_path, monkeypatch, capsys, step
):
    out = tmp_path / "small"
    with monkeypatch.context() as patched:
        Killed(patched, step)
        assert shrink(places, out, "--checkpoint-every", "4") == 130
    assert not out.exists()
    assert capsys.readouterr().err.endswith("finegates: interrupted\n")
    assert shrink(places, out, "--checkpoint-every", "4") == 0
    assert f"continuing after step {step // 4 * 4}\n" in capsys.readouterr().out
    assert contents(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.thorough
def test_a_killed_run_with_adapters_continues_as_well(places, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "small"
    assert shrink(places, whole, "--lora", "4") == 0
    with monkeypatch.context() as patched:
        Killed(patched, 14)
        assert shrink(places, out, "--lora", "4") == 130
    capsys.readouterr()
    assert shrink(places, out, "--lora", "4") == 0
    assert "continuing after step 9\n" in capsys.readouterr().out
    assert contents(out) == contents(whole)


def test_a_run_with_a_time_budget_continues_with_the_costs_that_it_measured_first(
    places, tmp_path, monkeypatch
):
    """Where each measurement gives other costs, as on a busy machine."""
    measured: list[fg.CostModel] = []

    def measure(model: Any, *, batch: int, length: int) -> fg.CostModel:
        assert (batch, length) == (8, LENGTH)
        found = fg.CostModel(product=(1 + 9 * len(measured)) * 1e-11, length=length)
        measured.append(found)
        return found

    monkeypatch.setattr(fg, "calibrate", measure)
    options = ["--target-time", "0.7", "--cost", "measured"]
    whole, out = tmp_path / "whole", tmp_path / "small"
    assert shrink(places, whole, *options) == 0
    measured.clear()
    with monkeypatch.context() as patched:
        Killed(patched, 14)
        assert shrink(places, out, *options) == 130
    assert shrink(places, out, *options) == 0
    assert len(measured) == 1
    assert contents(out) == contents(whole)
    assert summary(out)["settings"]["target_time"] == 0.7
    small = fg.load(out)
    dense = type(small)(small.config)
    first, tokens = measured[0], LENGTH
    kept = predicted_time(small, first, tokens) / predicted_time(dense, first, tokens)
    assert kept == pytest.approx(0.7, abs=0.06)


def test_a_run_that_was_killed_after_its_training_evaluates_and_writes(
    places, uninterrupted, tmp_path, monkeypatch
):
    out = tmp_path / "small"

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(outcome, "write", killed)
        assert shrink(places, out) == 130
    assert not out.exists()
    assert shrink(places, out) == 0
    assert contents(out) == uninterrupted


@pytest.mark.thorough
def test_a_checkpoint_that_was_cut_short_is_not_continued_from(
    places, uninterrupted, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "small"
    with monkeypatch.context() as patched:
        Killed(patched, 10)
        assert shrink(places, out, "--checkpoint-every", "4") == 130
    last = resumption.partial_folder(out) / "checkpoint-8"
    (last / resumption.WHOLE).unlink()
    (last / "model.safetensors").write_bytes(b"cut short")
    assert shrink(places, out, "--checkpoint-every", "4") == 0
    assert "continuing after step 4\n" in capsys.readouterr().out
    assert contents(out) == uninterrupted


def test_a_checkpoint_of_an_unfinished_run_is_compacted_with_its_tokenizer(
    places, tmp_path, monkeypatch
):
    out, early = tmp_path / "small", tmp_path / "early"
    with monkeypatch.context() as patched:
        Killed(patched, 20)
        assert shrink(places, out) == 130
    checkpoint = resumption.partial_folder(out) / "checkpoint-18"
    assert main(["compact", str(checkpoint), "--out", str(early)]) == 0
    assert fg.load(early).config.num_labels == 2
    assert len(AutoTokenizer.from_pretrained(early)) == 40


def test_an_unfinished_run_of_other_settings_is_refused_by_their_names(
    places, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "small"
    with monkeypatch.context() as patched:
        Killed(patched, 10)
        assert shrink(places, out) == 130
    partial = resumption.partial_folder(out)
    before = {path: path.stat().st_mtime_ns for path in partial.rglob("*")}
    capsys.readouterr()
    assert shrink(places, out, "--target", "0.3", "--seed", "1") == 1
    line = capsys.readouterr().err
    assert line.startswith(f"finegates: error: {partial} is of a run with other settings (")
    assert "target: 0.4 there, 0.3 here; seed: 0 there, 1 here)" in line
    assert "delete" in line
    assert line.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in partial.rglob("*")} == before


def test_a_changed_table_is_another_run(places, tmp_path, monkeypatch, capsys):
    out = tmp_path / "small"
    train = write_csv(tmp_path / "own.csv", reviews())
    own = {**places, "train": train}
    with monkeypatch.context() as patched:
        Killed(patched, 10)
        assert shrink(own, out) == 130
    write_csv(train, reviews(seed=1))
    assert shrink(own, out) == 1
    assert "(data: {" in capsys.readouterr().err


def test_a_finished_run_says_so_and_is_left_as_it_is(places, tmp_path, capsys):
    out = tmp_path / "small"
    assert shrink(places, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    resumption.partial_folder(out).mkdir()  # left by a kill between writing and cleaning up
    (resumption.partial_folder(out) / resumption.SETTINGS).write_text("{}")
    capsys.readouterr()
    assert shrink(places, out) == 0
    printed = capsys.readouterr().out
    assert f"{out} is finished" in printed
    assert "accuracy on 8 rows" in printed
    assert shrink(places, out, "--epochs", "2") == 1
    assert "epochs: 3 there, 2 here" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert not resumption.partial_folder(out).exists()


def test_two_processes_do_not_work_in_one_folder(places, tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "small"
    with monkeypatch.context() as patched:
        Killed(patched, 3)
        assert shrink(places, out) == 130
    with open(resumption.partial_folder(out) / resumption.LOCK, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert shrink(places, out) == 1
    assert "another process is using it; wait for it" in capsys.readouterr().err
    assert shrink(places, out) == 0
