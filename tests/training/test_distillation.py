"""A student follows its teacher's logits with the requested weight."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import TrainingArguments

from finegates.training.distillation import Distillation, logits_of, with_teacher
from finegates.training.trainer import GateTrainer
from support.strategies import gaussians
from support.tiny import ARCHITECTURES
from support.tolerance import gamma
from support.training_rows import collate, expected, mean_loss, model_for, rows_for, trained

OTHERS = set(ARCHITECTURES) - {"bert", "deberta-v2"}


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


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
    [({"weight": 1.5}, r"weight must be in \[0, 1\]"), ({"temperature": 0.0}, "above 0")],
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


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["regression", "three classes", "many labels"])
@pytest.mark.parametrize(
    "architecture", ["bert", "deberta-v2", *(slow(name) for name in sorted(OTHERS))]
)
def test_a_teacher_of_any_kind_weighs_the_same_however_a_batch_is_cut(kind, architecture, tmp_path):
    model, rows = model_for(kind, architecture, penalty_weight=2.0), rows_for(kind, 16)
    outputs = 1 if kind == "regression" else 3
    teacher = torch.randn(16, outputs, generator=torch.Generator().manual_seed(1))
    distillation = Distillation(weight=0.3)

    def task(found, batch):
        logits = found["logits"].reshape(16, outputs).float()
        if kind == "regression":
            far = (logits - teacher).square().mean()
        elif kind == "many labels":
            p, q = (teacher / 2).sigmoid(), (logits / 2).sigmoid()
            far = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
        else:
            p, q = (teacher / 2).softmax(-1), (logits / 2).softmax(-1)
            far = 4 * (p * (p / q).log()).sum(-1).mean()
        return 0.7 * mean_loss(kind, found, batch) + 0.3 * far

    wanted, *_ = expected(model, collate(rows), task, 2.0)
    for cut in ((16, 1), (8, 2), (4, 4)):
        (found,), _ = trained(
            copy.deepcopy(model),
            with_teacher(rows, teacher),
            tmp_path,
            *cut,
            distillation=distillation,
        )
        scale = max(float(value.abs().max()) for value in wanted.values())
        worst = max(float((found[n] - value).abs().max()) for n, value in wanted.items())
        assert worst <= gamma(1 << 10, torch.float32) * scale


def test_a_row_of_one_output_may_lack_its_dimension():
    distance = Distillation().distance
    flat, column = torch.tensor([1.0, 3.0]), torch.tensor([[0.0], [1.0]])
    assert float(distance(flat, column)) == float(distance(column, flat)) == 2.5
    assert float(distance(torch.tensor(2.0), torch.tensor([[0.0]]))) == 4.0  # a batch of one
    rows = with_teacher([{}, {}], flat)
    assert [row["teacher_logits"] for row in rows] == [1.0, 3.0]


def test_outputs_of_several_numbers_are_what_their_configuration_says():
    distance = Distillation().distance
    logits, teacher = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    assert float(distance(logits, teacher, "regression")) == 2.0
    p = 1 / (1 + math.exp(-1.0))
    expected = 4 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)) / 2
    found = distance(logits, teacher, "multi_label_classification")
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(distance(teacher, teacher, "multi_label_classification")) == 0.0


def test_logits_of_tokens_are_refused():
    tokens = torch.zeros(2, 7, 3)
    with pytest.raises(ValueError, match=r"\(2, 7, 3\).*one vector of outputs per row"):
        Distillation().distance(tokens, tokens)
    with pytest.raises(ValueError, match=r"\(2, 7, 3\).*one vector per row"):
        with_teacher([{}, {}], tokens)


@pytest.mark.parametrize("labels", [True, False])
def test_logits_are_found_in_tuples_and_missing_ones_are_named(labels):
    loss, logits = torch.tensor(1.0), torch.zeros(2, 3)
    outputs = (loss, logits) if labels else (logits,)
    assert logits_of(outputs, behind_loss=labels) is logits
    assert logits_of({"loss": loss, "logits": logits}, behind_loss=labels) is logits
    with pytest.raises(ValueError, match="only loss, start_logits"):
        logits_of({"loss": loss, "start_logits": logits}, behind_loss=labels)
    with pytest.raises(ValueError, match="a tuple of 1"):
        logits_of((loss,), behind_loss=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_model_that_returns_tuples_has_the_same_gradient(tmp_path, smoothing):
    rows = with_teacher(rows_for("three classes", 8), torch.eye(3)[torch.arange(8) % 3])
    found = []
    for names in (True, False):
        model = model_for("three classes", "bert")
        model.config.return_dict = names
        assert isinstance(model(torch.ones(1, 4, dtype=torch.int64)), tuple) != names
        (gradient,), _ = trained(
            model,
            rows,
            tmp_path,
            4,
            2,
            distillation=Distillation(),
            arguments={"label_smoothing_factor": smoothing},
        )
        found.append(gradient)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
