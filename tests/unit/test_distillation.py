"""A student follows its teacher's logits as far as it is asked to."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import TrainingArguments

from finegates.distillation import Distillation, with_teacher
from finegates.train import GateTrainer
from strategies import gaussians


@given(st.integers(1, 5).flatmap(lambda n: gaussians((4, n), torch.float64)), st.floats(0.5, 8))
def test_the_distance_is_zero_at_the_teacher_and_positive_elsewhere(logits, temperature):
    distance = Distillation(temperature=temperature).distance
    assert float(distance(logits, logits)) == pytest.approx(0.0, abs=1e-6)
    moved = logits.clone()
    moved[:, 0] += 1.0
    assert float(distance(moved, logits)) > 1e-6


def test_the_distance_of_two_classes_is_the_divergence_written_out():
    teacher, logits = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p = 1 / (1 + math.exp(-1.0))  # at temperature 2
    q = 1 / (1 + math.exp(0.5))
    expected = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert float(Distillation().distance(logits, teacher)) == pytest.approx(expected, rel=1e-5)


def test_regression_is_by_the_squared_difference():
    distance = Distillation().distance(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]]))
    assert float(distance) == 2.5


class Scores(nn.Module):
    """Logits that do not depend on the input, with a cross-entropy loss."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, input_ids, labels=None):
        logits = self.logits.expand(len(input_ids), -1)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [0.0, 1.0]), (1.0, [0.9, 0.1])])
def test_the_weight_chooses_between_labels_and_teacher(tmp_path, weight, expected):
    teacher = torch.tensor([0.9, 0.1]).log().repeat(8, 1)
    rows = with_teacher([{"input_ids": [1], "labels": 1}] * 8, teacher)
    trainer = GateTrainer(
        model=Scores(),
        args=TrainingArguments(
            str(tmp_path), num_train_epochs=300, learning_rate=0.1, report_to="none", use_cpu=True,
            disable_tqdm=True, remove_unused_columns=False, save_strategy="no", weight_decay=0.0,
        ),
        train_dataset=rows,
        distillation=Distillation(weight=weight),
    )  # fmt: skip
    trainer.train()
    learnt = trainer.model.logits.detach().softmax(-1).tolist()
    assert learnt == pytest.approx(expected, abs=0.03)


def test_rows_without_a_teacher_are_named_as_such(tmp_path):
    trainer = GateTrainer(
        model=Scores(),
        args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True),
        train_dataset=[{"input_ids": [1], "labels": 1}],
        distillation=Distillation(),
    )
    with pytest.raises(KeyError, match="teacher_logits.*with_teacher.*remove_unused_columns"):
        trainer.train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"weight": 1.5}, r"weight must lie in \[0, 1\]"), ({"temperature": 0.0}, "above 0")],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**arguments)


def test_logits_must_fit_rows_and_task():
    with pytest.raises(ValueError, match="2 rows, but logits of 3"):
        with_teacher([{}, {}], torch.zeros(3, 2))
    with pytest.raises(ValueError, match="not finite"):
        with_teacher([{}], torch.full((1, 2), math.nan))
    with pytest.raises(ValueError, match="another task"):
        Distillation().distance(torch.zeros(2, 2), torch.zeros(2, 3))
