"""Runs on plain text that were killed continue from whole checkpoints of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finegates.suite.runs.llama_record import CausalRecord
from finegates.suite.runs.llama_trainer import CausalTrainer, CheckpointError, last_checkpoint
from finegates.suite.runs.train_llama import checkpoint_folder, train_run
from support.causal_runs import GATED, GATES, SHARED, trained
from support.causal_tier import causal_tier


def timeless(record: CausalRecord) -> dict:
    """The content of the record without times."""
    return record.model_copy(update={"timing": {}}).model_dump()


@pytest.fixture
def kill(monkeypatch):
    """Trains a run and kills it after some steps; returns the folder of its checkpoints."""
    step = CausalTrainer.training_step

    def killed(tier, run, after: int) -> Path:
        def mortal(self, *args, **kwargs):
            if self.state.global_step >= after:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(CausalTrainer, "training_step", mortal)
            with pytest.raises(KeyboardInterrupt):
                train_run(tier, run, progress=False)
        return checkpoint_folder(tier, run)

    return killed


@pytest.mark.sampled(1)
@pytest.mark.parametrize("run", [GATES, SHARED, GATED], ids=lambda run: run.label)
def test_a_run_that_was_killed_ends_with_the_same_record(folder, tmp_path, monkeypatch, kill, run):
    tier = causal_tier(folder, save_every=2)
    whole = trained(tier.model_copy(update={"results": str(tmp_path / "whole")}), run)
    tier = tier.model_copy(update={"results": str(tmp_path / "killed")})
    assert (kill(tier, run, after=7) / "checkpoint-6").is_dir()
    with monkeypatch.context() as patched:
        steps = []
        step = CausalTrainer.training_step
        patched.setattr(
            CausalTrainer,
            "training_step",
            lambda self, *a, **k: steps.append(self.state.global_step) or step(self, *a, **k),
        )
        assert timeless(trained(tier, run)) == timeless(whole)
    assert steps == [6, 7]


def test_a_checkpoint_that_was_cut_short_is_passed_over(folder, tmp_path, kill):
    tier = causal_tier(folder, save_every=2)
    whole = trained(tier.model_copy(update={"results": str(tmp_path / "whole")}), GATES)
    tier = tier.model_copy(update={"results": str(tmp_path / "cut")})
    place = kill(tier, GATES, after=7)
    for file in ("text_position.json", "optimizer.pt"):
        (place / "checkpoint-6" / file).unlink()
    assert timeless(trained(tier, GATES)) == timeless(whole)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "trainer_state.json", "text_position.json"]
)
def test_a_checkpoint_with_a_flipped_bit_is_passed_over(folder, tmp_path, kill, file):
    tier = causal_tier(folder, save_every=2).model_copy(update={"results": str(tmp_path)})
    place = kill(tier, GATES, after=7)
    identity = json.loads((place / "run.json").read_text())["identity"]
    assert last_checkpoint(place, identity) == place / "checkpoint-6"
    flipped = bytearray((place / "checkpoint-6" / file).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (place / "checkpoint-6" / file).write_bytes(flipped)
    assert last_checkpoint(place, identity) == place / "checkpoint-4"


@pytest.mark.parametrize("content", ["", "[]", '{"digest": '])
def test_checkpoints_whose_run_cannot_be_read_are_refused(tmp_path, content):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match="another run.*Delete the folder"):
        last_checkpoint(tmp_path, {"seed": 1})


def test_the_checkpoints_of_another_run_are_refused_and_left_alone(folder, tmp_path, kill):
    tier = causal_tier(folder, save_every=2).model_copy(update={"results": str(tmp_path)})
    place = kill(tier, GATES, after=5)
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    other = causal_tier(folder, save_every=2, learning_rate=0.01)
    other = other.model_copy(update={"results": str(tmp_path)})
    with pytest.raises(CheckpointError, match=r"another run \(they differ in training\).*Delete"):
        train_run(other, GATES, progress=False)
    assert before == {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    # The number of saves does not change the identity of a run.
    train_run(
        causal_tier(folder, save_every=4).model_copy(update={"results": str(tmp_path)}),
        GATES,
        progress=False,
    )


def test_checkpoints_of_no_known_run_are_refused(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(CheckpointError, match="another run; nothing was changed"):
        last_checkpoint(tmp_path, {"seed": 1})
    assert not (tmp_path / "run.json").exists()
