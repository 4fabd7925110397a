"""A training under a budget on predicted time: its end, removal while training, and resuming."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import finegates as fg
from finegates.compaction.predicted_time import predicted_time
from finegates.formats.gated import GatedFormatError
from support.shrinking import differences, fresh, train

LENGTH = 6
COST = fg.CostModel(
    product=1.0, gather=3.0, scatter=2.0, head_multiple=2, output=0.7, attention=1.3, score=5.0,
    activation=11.0, rest=500.0, length=LENGTH,
)  # fmt: skip


def gated(cost: fg.CostModel = COST, **settings: Any) -> nn.Module:
    config = fg.GateConfig(target_time=0.6, cost=cost, sequence_length=LENGTH, **settings)
    return fresh("bert", config)


class Stop(TrainerCallback):
    """Ends the training after a step, as a kill does after its checkpoint."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self._step


@pytest.mark.parametrize("options", [{}, {"parts": True}, {"shrink": True}], ids=str)
def test_a_training_ends_at_the_wanted_time(options: dict[str, Any], tmp_path: Path) -> None:
    model = gated(**options)
    dense = predicted_time(fg.detach(gated()), COST, LENGTH)
    trained, trainer, _ = train(model, tmp_path, logging_steps=5)
    kept = predicted_time(trained, COST, LENGTH) / dense
    assert kept == pytest.approx(0.6, abs=0.03)  # tiny dimensions are coarse
    assert trainer.penalty.realised() == pytest.approx(kept, rel=1e-9)  # type: ignore[union-attr]
    logged = [entry["time_kept"] for entry in trainer.state.log_history if "time_kept" in entry]
    assert logged
    assert not any("macs_kept" in entry for entry in trainer.state.log_history)


def test_removal_while_training_changes_nothing(tmp_path: Path) -> None:
    config = gated(shrink=True).finegates_config
    plain = dataclasses.replace(config, shrink=False, final_at=config.finals())
    results = [train(fresh("bert", c), tmp_path / str(n)) for n, c in enumerate((plain, config))]
    assert max(differences(*results).values()) < 1e-9


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("stop", [6, 8, 13])
def test_a_resumed_training_keeps_the_costs_that_it_began_with(
    stop: int, shrink: bool, tmp_path: Path
) -> None:
    whole, _, _ = train(gated(shrink=shrink), tmp_path / "whole")
    train(
        gated(shrink=shrink), tmp_path / "stopped", Stop(stop), save_strategy="steps",
        save_steps=stop,
    )  # fmt: skip
    # On another machine, where matmuls are cheap.
    elsewhere = dataclasses.replace(COST, product=0.01, rest=900.0)
    again = gated(elsewhere, shrink=shrink)
    resume = tmp_path / "stopped" / f"checkpoint-{stop}"
    resumed, trainer, _ = train(again, tmp_path / "resumed", resume=resume)
    assert resumed.finegates_config.cost == COST
    assert trainer.penalty.prices.product == 1.0  # type: ignore[union-attr]
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    different = [
        n
        for n, t in expected.items()
        if isinstance(t, torch.Tensor) and not torch.equal(t, found[n])
    ]
    assert different == []
    fg.save(resumed, tmp_path / "saved")
    assert fg.load(tmp_path / "saved").finegates_config == resumed.finegates_config


@pytest.mark.parametrize("shrink", [False, True])
def test_a_training_is_resumed_where_its_time_is_out_of_reach(shrink: bool, tmp_path: Path) -> None:
    """With the configuration of its checkpoint, as the refusal says."""
    whole, _, _ = train(gated(shrink=shrink), tmp_path / "run", save_strategy="steps", save_steps=8)
    checkpoint = tmp_path / "run" / "checkpoint-8"
    slow = dataclasses.replace(COST, rest=1e6)
    with pytest.raises(ValueError, match=r"finegates\.load\(checkpoint\)\.finegates_config"):
        gated(slow, shrink=shrink)
    again = fresh("bert", fg.load(checkpoint).finegates_config)  # type: ignore[arg-type]
    resumed, _, _ = train(again, tmp_path / "resumed", resume=checkpoint)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    tensors = [n for n, value in expected.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(expected[n], found[n]) for n in tensors)


def test_a_checkpoint_of_another_kind_of_budget_is_refused(tmp_path: Path) -> None:
    train(gated(), tmp_path / "timed", Stop(4), save_strategy="steps", save_steps=4)
    config = fg.GateConfig(target=0.4, sequence_length=LENGTH)
    with pytest.raises(GatedFormatError, match="budget is on predicted time, and this model's on"):
        train(fresh("bert", config), tmp_path / "macs", resume=tmp_path / "timed" / "checkpoint-4")
