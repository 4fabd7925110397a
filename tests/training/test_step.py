"""A step's gradient is that of its whole batch, for any split into micro-batches."""

from __future__ import annotations

import copy
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback

from finegates.gates.detachment import detach
from finegates.training.label_use import label_use
from finegates.training.micro_batches import StepCut, count_items
from finegates.training.step import WeighedStep
from finegates.training.trainer import GateTrainer, NonFiniteLossError
from support.tolerance import gamma
from support.training_rows import (
    COMBINATIONS,
    collate,
    expected,
    mean_loss,
    model_for,
    rows_for,
    trained,
)

CUTS = [(16, 1), (8, 2), (4, 4)]
FAST = {
    *((head, "bert") for head in ("regression", "two classes", "many labels", "tokens")),
    ("three classes", "deberta-v2"),
    ("causal", "gpt2"),
    ("causal", "llama"),
    ("masked", "roberta"),
    ("seq2seq", "t5"),
    ("question", "bert"),
}
# The sums of a step have some hundred terms, in float32 if a model computes its loss in it.
ROUNDING = gamma(1 << 10, torch.float32)


def differs(found, wanted) -> float:
    """The largest difference of two gradients, relative to the largest entry."""
    assert set(found) >= {name for name, value in wanted.items() if value.any()}
    scale = max(float(value.abs().max()) for value in wanted.values())
    zero = torch.zeros(())
    return (
        max(
            float((found.get(n, zero) - wanted.get(n, zero)).abs().max()) for n in {*found, *wanted}
        )
        / scale
    )


def check(model, head, rows, tmp_path, cuts=CUTS, smoothing=0.0, task=None, **kwargs):
    task = task or partial(mean_loss, head, smoothing=smoothing)
    weight = model.finegates_config.penalty_weight
    size = cuts[0][0] * cuts[0][1]
    wanted = [
        expected(model, collate(rows[at : at + size]), task, weight)
        for at in range(0, len(rows), size)
    ]
    for cut in cuts:
        found, trainer = trained(copy.deepcopy(model), rows, tmp_path, *cut, **kwargs)
        assert len(found) == len(wanted)
        logs = [log for log in trainer.state.log_history if "loss" in log]
        for ours, (gradient, loss, penalty), log in zip(found, wanted, logs, strict=True):
            assert differs(ours, gradient) <= ROUNDING, cut
            assert log["task_loss"] == pytest.approx(loss, rel=ROUNDING)
            assert log["penalty"] == pytest.approx(penalty, rel=ROUNDING)
            assert log["loss"] == pytest.approx(loss + weight * penalty, rel=ROUNDING)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("head", "architecture"),
    [
        pytest.param(*one, marks=() if one in FAST else pytest.mark.slow, id="-".join(one))
        for one in COMBINATIONS
    ],
)
def test_a_step_has_the_gradient_of_its_whole_batch_however_it_is_cut(head, architecture, tmp_path):
    model = model_for(head, architecture, penalty_weight=2.0)
    check(model, head, rows_for(head, 16), tmp_path)


@pytest.mark.parametrize(
    ("head", "architecture"), [("tokens", "bert"), ("causal", "gpt2"), ("two classes", "roberta")]
)
@pytest.mark.parametrize(
    "preset", [pytest.param("reference", marks=pytest.mark.slow), "structured"]
)
def test_so_it_is_with_every_preset(head, architecture, preset, tmp_path):
    model = model_for(head, architecture, preset, penalty_weight=2.0)
    check(model, head, rows_for(head, 16), tmp_path)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("accepts", "scaled", "averages"),
    [
        (False, True, True),
        (True, False, False),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in product([True, False], [None, True, False], [True, False])
        ),
    ],
)
@pytest.mark.parametrize(("head", "architecture"), [("tokens", "bert"), ("causal", "llama")])
def test_so_it_is_under_every_convention_of_trainer(
    head, architecture, accepts, scaled, averages, tmp_path
):
    def prepare(trainer):
        trainer.model_accepts_loss_kwargs = accepts
        trainer.loss_is_scaled_for_ga = scaled

    check(
        model_for(head, architecture),
        head,
        rows_for(head, 16),
        tmp_path,
        cuts=[(16, 1), (4, 4)],
        prepare=prepare,
        arguments={"average_tokens_across_devices": averages},
    )


@pytest.mark.parametrize("head", ["two classes", "tokens"])
def test_the_last_window_may_hold_fewer_and_smaller_micro_batches(head, tmp_path):
    # Steps of 8, 8 and 6 rows; the last 6 are split into 4 and 2, or 2, 2 and 2.
    check(
        model_for(head, "bert"),
        head,
        rows_for(head, 22),
        tmp_path,
        cuts=[(8, 1), (4, 2), (2, 4)],
    )


@pytest.mark.parametrize(("head", "architecture"), [("tokens", "bert"), ("causal", "gpt2")])
def test_a_micro_batch_without_any_label_adds_nothing(head, architecture, tmp_path):
    rows = rows_for(head, 16)
    for row in rows[4:8]:
        row["labels"] = [-100] * len(row["labels"])
    check(model_for(head, architecture), head, rows, tmp_path)


def test_a_step_without_any_label_is_refused(tmp_path):
    rows = rows_for("tokens", 8)
    for row in rows:
        row["labels"] = [-100] * len(row["labels"])
    with pytest.raises(NonFiniteLossError, match="nan at step 0"):
        trained(model_for("tokens", "bert"), rows, tmp_path, 4, 2)


@pytest.mark.parametrize(
    ("head", "architecture"), [("three classes", "bert"), ("tokens", "bert"), ("causal", "llama")]
)
def test_label_smoothing_keeps_the_balance(head, architecture, tmp_path):
    check(
        model_for(head, architecture),
        head,
        rows_for(head, 16),
        tmp_path,
        smoothing=0.2,
        arguments={"label_smoothing_factor": 0.2},
    )


def _divides(outputs, labels, num_items_in_batch):
    logits = outputs["logits"]
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return total / num_items_in_batch


def _ignores(outputs, labels, num_items_in_batch):
    return F.cross_entropy(outputs["logits"].flatten(0, -2), labels.flatten())


@pytest.mark.parametrize("function", [_divides, _ignores])
@pytest.mark.parametrize("accepts", [True, False])
def test_a_loss_function_of_the_user_keeps_the_balance(function, accepts, tmp_path):
    def prepare(trainer):
        trainer.model_accepts_loss_kwargs = accepts

    check(
        model_for("tokens", "bert"),
        "tokens",
        rows_for("tokens", 16),
        tmp_path,
        prepare=prepare,
        compute_loss_func=function,
    )


def test_a_penalty_that_each_micro_batch_carries_whole_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("finegates.training.micro_batches.StepCut.even_share", 1.0)
    with pytest.raises(AssertionError):
        check(model_for("tokens", "bert"), "tokens", rows_for("tokens", 16), tmp_path, [(4, 4)])


def test_a_mean_of_means_is_noticed(tmp_path, monkeypatch):
    even = (torch.tensor(0.25), torch.tensor(0.25))
    monkeypatch.setattr(
        "finegates.training.micro_batches.StepCut.weights", lambda self, *given: even
    )
    with pytest.raises(AssertionError):
        check(model_for("tokens", "bert"), "tokens", rows_for("tokens", 16), tmp_path, [(4, 4)])


def test_a_step_made_by_hand_carries_what_its_caller_says(tmp_path):
    """As in ``Trainer``: the number of micro-batches, and the items of the whole step."""
    rows, model = rows_for("tokens", 16), model_for("tokens", "bert")
    weight = model.finegates_config.penalty_weight
    wanted, *_ = expected(model, collate(rows), partial(mean_loss, "tokens"), weight)
    _, trainer = trained(model, rows, tmp_path, 4, 4)
    items = torch.tensor(sum(n != -100 for row in rows for n in row["labels"]))
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = 4
    for at in range(0, 16, 4):
        trainer.training_step(model, collate(rows[at : at + 4]), items)
    assert trainer.current_gradient_accumulation_steps == 4
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert differs(found, wanted) <= ROUNDING


class _Wide(nn.Module):
    """Like ``nn.DataParallel``: one loss for each of two devices."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        outputs = self.model(**inputs)
        return {**outputs, "loss": outputs["loss"].repeat(2)}


class _OnTwo(GateTrainer):
    def compute_loss(self, model, *args, **kwargs):
        return super().compute_loss(_Wide(model), *args, **kwargs)


def test_gates_are_refused_on_several_gpus_of_one_process(tmp_path, monkeypatch):
    rows = rows_for("two classes", 8)

    def on_two(model, **kwargs):
        return trained(
            model,
            rows,
            tmp_path,
            4,
            1,
            trainer_class=_OnTwo,
            prepare=lambda trainer: setattr(trainer.args, "_n_gpu", 2),
            **kwargs,
        )

    gated = model_for("two classes", "bert")
    with pytest.raises(ValueError, match="2 GPUs with nn.DataParallel.*torchrun"):
        on_two(gated)
    plain = model_for("two classes", "bert")
    assert len(on_two(detach(plain))[0]) == 2
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", 2)
    with pytest.raises(ValueError, match=r"torchrun.*CUDA_VISIBLE_DEVICES"):
        trained(gated, rows, tmp_path, 4, 1)


def test_the_loss_is_looked_at_once_a_step_and_before_any_weight_moves(tmp_path, monkeypatch):
    rows, model = rows_for("regression", 16), model_for("regression", "bert")
    looks = []
    item = torch.Tensor.item
    finite = WeighedStep._check_finite

    def watch(self, loss):
        with monkeypatch.context() as inner:
            inner.setattr(torch.Tensor, "item", lambda t: looks.append(t) or item(t))
            finite(self, loss)

    monkeypatch.setattr(WeighedStep, "_check_finite", watch)
    trained(model, rows, tmp_path, 2, 4)
    assert len(looks) == 2
    rows[9]["labels"] = float("nan")  # in the first micro-batch of the second step
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_, model, **kwargs):
            seen.append({n: p.detach().clone() for n, p in model.named_parameters()})

    with pytest.raises(NonFiniteLossError, match=r"nan at step 1 \(epoch 0.5\)"):
        trained(
            model,
            rows,
            tmp_path,
            2,
            4,
            prepare=lambda trainer: trainer.add_callback(Watch()),
            arguments={"learning_rate": 1e-2},
        )
    assert len(seen) == 1
    assert all(torch.equal(p, seen[0][n]) for n, p in model.named_parameters())


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_weights_of_all_micro_batches_add_up_to_one(items):
    """``items[p][m]`` counts the labels of a micro-batch of a process; gradients are averaged."""
    counts = torch.tensor([[[labels, 2] for labels in process] for process in items])
    cut = StepCut(3, counts.sum((0, 1)), len(items))
    weights = [cut.weights(one, torch.float64) for process in counts for one in process]
    of_items, of_rows = (sum(one) / len(items) for one in zip(*weights, strict=True))
    assert of_rows.item() == pytest.approx(1.0)
    assert of_items.item() == pytest.approx(1.0) or not counts[..., 0].any()
    assert sum(cut.even_share for _ in range(3)) == pytest.approx(1.0)


@pytest.mark.sampled(10)
@pytest.mark.parametrize(("head", "architecture"), COMBINATIONS)
def test_labels_are_those_that_the_loss_of_the_model_counts(head, architecture):
    batch = collate(rows_for(head, 5))
    items, rows = count_items(batch, label_use(model_for(head, architecture))).tolist()
    assert rows == 5
    if head == "causal":
        assert items == int((batch["labels"][:, 1:] != -100).sum())
    elif head == "question":
        places = (batch["start_positions"], batch["end_positions"])
        assert items == sum(int((place < 7).sum()) for place in places)
    elif head == "many labels":
        assert items == 15
    elif head in ("tokens", "masked", "seq2seq"):
        assert items == int((batch["labels"] != -100).sum())
    else:
        assert items == 5
