"""Trainings that remove dimensions: resumed, saved, and continued with a smaller model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import finegates as fg
from finegates.formats.gated import GatedFormatError
from finegates.gates.gated_linear import leaf_gates
from support.shrinking import CONFIG, fresh, saved_compact, train
from support.tiny import output, tokens


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stop", [5, 9, 17])
def test_a_training_that_is_killed_and_resumed_ends_as_the_other(stop, tmp_path):
    def make():
        return fresh("bert", dataclasses.replace(CONFIG, train_weights=True))

    options = {"save_strategy": "steps", "save_steps": 1}
    whole = train(make(), tmp_path / "whole", **options)
    resumed = train(
        make(), tmp_path / "resumed", resume=tmp_path / f"whole/checkpoint-{stop}", **options
    )
    assert whole[2][stop:] == resumed[2]
    states = [training[0].state_dict() for training in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    parameters = [list(training[0].parameters()) for training in (whole, resumed)]
    for one, other in zip(*parameters, strict=True):
        pair = (whole[1].optimizer.state[one], resumed[1].optimizer.state[other])
        assert pair[0].keys() == pair[1].keys()
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])
    assert whole[1].history.entries == resumed[1].history.entries


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_checkpoint_knows_its_shape(architecture, tmp_path):
    model, trainer, _ = train(fresh(architecture, CONFIG), tmp_path / "run")
    trainer.save_model(str(tmp_path / "saved"))
    inputs = tokens()
    for folder in ("saved", "again"):
        loaded = fg.load(tmp_path / folder) if folder == "saved" else None
        if loaded is None:
            fg.save(model, tmp_path / folder)
            loaded = fg.load(tmp_path / folder)
        assert torch.equal(output(loaded, inputs), output(model.eval(), inputs))
        assert sum(p.numel() for p in loaded.parameters()) == sum(
            p.numel() for p in model.parameters()
        )
        small = [fg.compact(each).state_dict() for each in (loaded, model)]
        assert all(torch.equal(small[0][name], small[1][name]) for name in small[1])


def test_a_model_that_shrank_trains_on(tmp_path):
    # No more gates close, and the budget is kept.
    model, _, _ = train(fresh("bert", CONFIG), tmp_path / "one")
    sizes = [gate.size for gate in leaf_gates(model)]
    loaded_from = tmp_path / "saved"
    fg.save(model, loaded_from)
    again, trainer, _ = train(fg.load(loaded_from), tmp_path / "two")
    assert [gate.size for gate in leaf_gates(again)] == sizes
    assert trainer.penalty.realised() == pytest.approx(0.5, abs=0.01)


def test_an_earlier_checkpoint_is_refused_by_a_smaller_model(tmp_path):
    _, trainer, _ = train(fresh("bert", CONFIG), tmp_path, save_strategy="steps", save_steps=2)
    for step in (2, 6):
        with pytest.raises(GatedFormatError, match=r"removed .*cannot come back"):
            trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))


def test_a_training_of_a_compact_model_is_killed_and_resumed(tmp_path):
    folder = saved_compact(tmp_path)

    def make():
        small = fg.load(folder)
        return fg.attach(small, dataclasses.replace(CONFIG, target=0.3)).to(torch.float64)

    options = {"save_strategy": "steps", "save_steps": 9}
    whole = train(make(), tmp_path / "whole", **options)
    resumed = train(make(), tmp_path / "resumed", resume=tmp_path / "whole/checkpoint-9", **options)
    assert whole[2][9:] == resumed[2]
    states = [training[0].state_dict() for training in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
