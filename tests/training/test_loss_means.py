"""A loss that sums several means is trained in one micro-batch, and refused in several."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.penalty import penalty_of
from finegates.training.step import WeighedStep
from finegates.training.trainer import GateTrainer, GateTrainerMixin
from support.tiny import ARCHITECTURES, VOCABULARY, scatter_gates
from support.tolerance import gamma
from support.training_rows import Row, rows_for, trained

# Gates are float32, and the sums of a step have some hundred terms.
ROUNDING = gamma(1 << 10, torch.float32)
SENTENCES = "next_sentence_label"


def gated(kind: str, architecture: str) -> nn.Module:
    settings = ARCHITECTURES[architecture]()
    settings.num_labels = 2
    for name in vars(settings):
        if "dropout" in name or "pdrop" in name:
            setattr(settings, name, 0.0)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(settings).double()
    attach(model, GateConfig(preset="reference", target=0.4, noise_std=0.0))
    scatter_gates(model, mean=1.0)
    return model


def pretraining_rows(count: int = 8) -> list[Row]:
    rows = rows_for("masked", count)
    for number, row in enumerate(rows):
        row["input_ids"] = (row["input_ids"] * 2)[:7]
        row["labels"] = (row["labels"] * 2)[:7]
        row[SENTENCES] = number % 2
    return rows


def two_headed_rows(count: int = 8) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, 2, 6), generator=generator).tolist()
    return [
        {"input_ids": one, "labels": [one[0], [-100] * 6], "mc_labels": number % 2}
        for number, one in enumerate(ids)
    ]


def answers(count: int = 8, ends_outside: int = 2) -> list[Row]:
    rows = rows_for("question", count)
    for row in rows:
        row["start_positions"], row["end_positions"] = 1, 3
    for row in rows[:ends_outside]:
        row["end_positions"] = 9
    return rows


def stacked(rows: list[Row]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def step(model: nn.Module, rows: list[Row], folder: Any, *cut: int, **kwargs: Any) -> Any:
    def collated_by_rows(trainer: GateTrainer) -> None:
        trainer.data_collator = stacked

    return trained(copy.deepcopy(model), rows, folder, *cut, prepare=collated_by_rows, **kwargs)


def check_alike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert wanted
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= ROUNDING * scale, name


CASES = {
    "pretraining": ("BertForPreTraining", "bert", pretraining_rows, ("labels", SENTENCES)),
    "two heads": ("GPT2DoubleHeadsModel", "gpt2", two_headed_rows, ("labels", "mc_labels")),
    "answers": ("BertForQuestionAnswering", "bert", answers, ("start_positions", "end_positions")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sum_of_means_has_its_own_gradient_in_one_micro_batch(case, tmp_path):
    kind, architecture, rows_of, _ = CASES[case]
    model, rows = gated(kind, architecture), rows_of()
    (found,), _ = step(model, rows, tmp_path, 8, 1)
    config = model.finegates_config
    loss = model(**stacked(rows)).loss + config.penalty_weight * penalty_of(model, config)()
    loss.backward()
    check_alike(found, {n: p.grad for n, p in model.named_parameters() if n in found})


@pytest.mark.parametrize("case", CASES)
def test_a_sum_of_means_is_refused_in_several_before_the_first_step(case, tmp_path):
    kind, architecture, rows_of, labels = CASES[case]
    model = gated(kind, architecture)
    steps = []

    def optimizer_steps(trainer: GateTrainer) -> None:
        trainer.data_collator = stacked
        create = trainer.create_optimizer

        def watched(*args: Any) -> Any:
            optimizer = create(*args)
            optimizer.register_step_pre_hook(lambda *_: steps.append(1))
            return optimizer

        trainer.create_optimizer = watched  # type: ignore[method-assign]

    wanted = rf"{kind} for {labels[0]} and {labels[1]} .*gradient_accumulation_steps=1, one proc"
    with pytest.raises(ValueError, match=wanted):
        trained(model, rows_of(), tmp_path, 4, 2, prepare=optimizer_steps)
    assert not steps


@pytest.mark.parametrize("outside", [0, 8])
def test_answers_wholly_inside_or_outside_are_one_mean(outside, tmp_path):
    model, rows = gated("BertForQuestionAnswering", "bert"), answers(12, ends_outside=0)
    for row in rows[:outside]:
        row["start_positions"] = row["end_positions"] = 9
    (found,), _ = step(model, rows, tmp_path, 3, 4)
    (wanted,), _ = step(model, rows, tmp_path, 12, 1)
    check_alike(found, wanted)


def test_a_loss_of_ones_own_is_one_mean(tmp_path):
    def of_tokens(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return nn.functional.cross_entropy(
            outputs["prediction_logits"].flatten(0, 1), labels.flatten()
        )

    class OfTokens(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(input_ids=inputs["input_ids"])
            loss = of_tokens(outputs, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    class Trained(GateTrainerMixin, OfTokens):
        pass

    model, rows = gated("BertForPreTraining", "bert"), pretraining_rows()
    for kwargs in ({"compute_loss_func": of_tokens}, {"trainer_class": Trained}):
        (found,), _ = step(model, rows, tmp_path, 2, 4, **kwargs)
        (wanted,), _ = step(model, rows, tmp_path, 8, 1, **kwargs)
        check_alike(found, wanted)


def test_a_column_that_the_model_does_not_read_is_not_a_label(tmp_path):
    model, rows = gated("BertForMaskedLM", "bert"), pretraining_rows()
    step(model, rows, tmp_path, 4, 2)


def test_what_a_model_hands_on_by_keyword_is_a_label(tmp_path):
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    model = Outer(gated("BertForPreTraining", "bert"))
    with pytest.raises(ValueError, match=f"Outer for labels and {SENTENCES}"):
        step(model, pretraining_rows(), tmp_path, 4, 2)


def test_uneven_answers_of_one_process_are_refused_by_all(tmp_path, monkeypatch):
    # The other of two processes has a micro-batch with unequal counts, this one does not.
    monkeypatch.setattr(WeighedStep, "_averaging_processes", lambda self: 2)
    other = torch.tensor([15, 8, 1])
    model, rows = gated("BertForQuestionAnswering", "bert"), answers(ends_outside=0)

    def of_two(trainer: GateTrainer) -> None:
        trainer.data_collator = stacked
        trainer.accelerator.reduce = lambda ours, reduction: ours + other

    with pytest.raises(ValueError, match="put both inside, or both outside"):
        trained(model, rows, tmp_path, 8, 1, prepare=of_two)
