"""Two processes (gloo, on the CPU) take the same step as one process on the same rows."""

from __future__ import annotations

import json

import pytest
import torch

from finegates.training.distillation import Distillation, with_teacher
from support.paths import ROOT
from support.processes import run_two
from support.tolerance import gamma
from support.training_rows import collate, expected, mean_loss, model_for, rows_for, trained

ROUNDING = gamma(1 << 10, torch.float32)


def both(folder, *arguments, **options):
    """The output of each of two processes."""
    program = ROOT / "tests/support/two_processes.py"
    run_two(program, folder, *arguments, json.dumps(options))
    return [folder / f"found{rank}.pt" for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize(
    ("head", "architecture", "preset"),
    [
        ("tokens", "bert", "paper_v1"),  # accepts the item count and ignores it
        ("causal", "llama", "paper_v1"),  # divides by the item count
        ("causal", "gpt2", "structured"),
        ("seq2seq", "t5", "structured"),
        ("two classes", "deberta-v2", "structured"),
    ],
)
def test_two_processes_have_the_gradient_and_the_log_of_one(
    head, architecture, preset, micro_batch, tmp_path
):
    model, rows = model_for(head, architecture, preset, penalty_weight=2.0), rows_for(head, 16)
    wanted, task, penalty = expected(
        model, collate(rows), lambda found, batch: mean_loss(head, found, batch), 2.0
    )
    scale = max(float(value.abs().max()) for value in wanted.values())
    for path in both(tmp_path, head, architecture, preset, micro_batch=micro_batch):
        found = torch.load(path)
        (gradient,) = found["gradients"]
        worst = max(float((gradient[n] - v).abs().max()) for n, v in wanted.items() if v.any())
        assert worst <= ROUNDING * scale
        log = found["logs"][0]
        assert log["task_loss"] == pytest.approx(task, rel=ROUNDING)
        assert log["penalty"] == pytest.approx(penalty, rel=ROUNDING)
        assert log["loss"] == pytest.approx(task + 2.0 * penalty, rel=ROUNDING)


@pytest.mark.slow
def test_two_processes_follow_a_teacher_as_one_does(tmp_path):
    teacher = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    model = model_for("three classes", "bert", penalty_weight=2.0)
    rows = with_teacher(rows_for("three classes", 16), teacher)
    (one,), whole = trained(model, rows, tmp_path, 16, 1, distillation=Distillation(weight=0.3))
    scale = max(float(value.abs().max()) for value in one.values())
    for path in both(tmp_path, "three classes", "bert", "paper_v1", micro_batch=4, teacher=True):
        found = torch.load(path)
        (two,) = found["gradients"]
        assert max(float((two[n] - v).abs().max()) for n, v in one.items()) <= ROUNDING * scale
        for term in ("loss", "task_loss", "teacher_distance", "penalty"):
            assert found["logs"][0][term] == pytest.approx(
                whole.state.log_history[0][term], rel=ROUNDING
            )


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both_before_the_step(tmp_path):
    both(tmp_path, "regression", "bert", "paper_v1", micro_batch=2, nan=True)
    for rank in range(2):
        assert "nan at step 0" in (tmp_path / f"error{rank}").read_text()
