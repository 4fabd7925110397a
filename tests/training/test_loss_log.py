"""The training log: the task's progress separate from the penalty's."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import TrainerCallback

from finegates.gates.detachment import detach
from finegates.gates.monitor import summarise_gates
from finegates.gates.penalty import sparsity_penalty
from finegates.training.distillation import Distillation, with_teacher
from support.tolerance import gamma
from support.training_rows import collate, model_for, rows_for, trained

ROUNDING = gamma(1 << 10, torch.float32)
TERMS = ("loss", "task_loss", "penalty", "gates_closed")


def logs(model, rows, tmp_path, micro_batch, micro_batches, **arguments):
    _, trainer = trained(
        copy.deepcopy(model), rows, tmp_path, micro_batch, micro_batches, arguments=arguments
    )
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("preset", ["paper_v1", "structured"])
def test_the_same_is_logged_however_batches_are_cut(preset, tmp_path):
    model, rows = model_for("tokens", "bert", preset), rows_for("tokens", 24)
    settings = {"logging_steps": 2, "learning_rate": 1e-2}
    whole = logs(model, rows, tmp_path, 4, 1, **settings)
    cut = logs(model, rows, tmp_path, 1, 4, **settings)
    names = (*TERMS, "macs_kept") if preset == "structured" else TERMS
    assert len(whole) == len(cut) == 3
    for ours, theirs in zip(cut, whole, strict=True):
        assert {name: ours[name] for name in names} == pytest.approx(
            {name: theirs[name] for name in names}, rel=1e-4
        )


def test_the_loss_is_the_sum_of_its_terms(tmp_path):
    model, rows = model_for("tokens", "bert", penalty_weight=3.0), rows_for("tokens", 24)
    found = logs(model, rows, tmp_path, 2, 2, logging_steps=4, learning_rate=1e-2)
    assert [log["step"] for log in found] == [4, 6], "the last steps, too"
    for log in found:
        total = log["task_loss"] + 3.0 * log["penalty"]
        assert log["loss"] == pytest.approx(total, rel=ROUNDING)
    last = found[-1]
    assert last["gates_closed"] == pytest.approx(summarise_gates(model)["closed"], abs=0.2)


def test_a_task_that_improves_is_seen_to_while_the_penalty_rises(tmp_path):
    """The target of shared gates changes during training, so their penalty rises at first."""
    model = model_for("two classes", "bert", "structured", schedule=(0.0, 0.9, 0.95, 1.0))
    rows = [{**row, "labels": 0} for row in rows_for("two classes", 64)]
    found = logs(
        model, rows, tmp_path, 8, 1, learning_rate=1e-2, num_train_epochs=2, logging_steps=4
    )
    assert found[-1]["task_loss"] < found[0]["task_loss"]
    assert all(0.0 < log["macs_kept"] <= 1.0 for log in found)


def test_macs_and_closed_gates_are_those_of_the_moment(tmp_path):
    model, rows = model_for("tokens", "bert", "structured"), rows_for("tokens", 16)
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            if "loss" in logs:
                trained_model = kwargs["model"]
                kept = sparsity_penalty(trained_model).realised()
                closed = summarise_gates(trained_model)["closed"]
                seen.append((logs["macs_kept"] - kept, logs["gates_closed"] - closed))

    trained(
        model,
        rows,
        tmp_path,
        4,
        1,
        prepare=lambda trainer: trainer.add_callback(Watch()),
        arguments={"learning_rate": 0.1},
    )
    assert seen == [(0.0, pytest.approx(0.0))] * 4


def test_a_second_training_counts_from_its_beginning(tmp_path):
    model, rows = model_for("tokens", "bert"), rows_for("tokens", 12)
    _, trainer = trained(model, rows, tmp_path, 4, 1, arguments={"logging_strategy": "no"})
    trainer.args.logging_strategy = "steps"
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if log.get("step") == 1 and "loss" in log]
    total = log["task_loss"] + trainer.penalty_weight * log["penalty"]
    assert log["loss"] == pytest.approx(total, rel=ROUNDING)


def test_distillation_is_a_term_of_its_own(tmp_path):
    model = model_for("three classes", "bert", penalty_weight=3.0)
    batch = collate(rows_for("three classes", 8))
    with torch.no_grad():
        teacher = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    rows = with_teacher(rows_for("three classes", 8), teacher)
    _, trainer = trained(model, rows, tmp_path, 2, 4, distillation=Distillation(weight=0.3))
    log = trainer.state.log_history[0]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    far = Distillation().distance(model.train()(**inputs).logits, teacher)
    assert log["teacher_distance"] == pytest.approx(far.item(), rel=ROUNDING)
    total = 0.7 * log["task_loss"] + 0.3 * log["teacher_distance"] + 3.0 * log["penalty"]
    assert log["loss"] == pytest.approx(total, rel=ROUNDING)


def test_without_gates_what_trainer_logs_is_logged(tmp_path):
    model = detach(model_for("tokens", "bert"))
    (log,) = logs(model, rows_for("tokens", 4), tmp_path, 4, 1)
    assert not {"task_loss", "penalty", "macs_kept", "gates_closed"} & set(log)
