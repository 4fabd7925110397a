"""2:4 masks keep two weights of every four, start from magnitude, and learn the choice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainingArguments

from finegates.suite.baselines.two_of_four import (
    PATTERNS,
    MaskedLinear,
    MaskSchedule,
    attach_masks,
    masked_layers,
)
from finegates.training.trainer import GateTrainer, parameter_groups
from support.tiny import ARCHITECTURES, LENGTH, VOCABULARY


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_evaluation_keeps_the_two_largest_of_every_four_at_the_start(outputs, groups, seed):
    torch.manual_seed(seed)
    layer = MaskedLinear(nn.Linear(4 * groups, outputs)).eval()
    mask = layer.mask()
    assert mask.unflatten(1, (-1, 4)).sum(-1).eq(2).all()
    weights = layer.base.weight.abs().unflatten(1, (-1, 4))
    expected = torch.zeros_like(weights).scatter(-1, weights.topk(2).indices, 1.0)
    assert torch.equal(mask, expected.flatten(1))


@given(st.integers(0, 2**31), st.floats(0.05, 4))
def test_a_training_mask_is_a_mixture_that_keeps_half(seed, temperature):
    torch.manual_seed(seed)
    layer = MaskedLinear(nn.Linear(8, 3)).train()
    layer.temperature = temperature
    mask = layer.mask()
    assert ((mask >= -1e-6) & (mask <= 1 + 1e-6)).all()
    assert torch.allclose(mask.unflatten(1, (-1, 4)).sum(-1), torch.tensor(2.0), atol=1e-5)


def test_there_are_six_patterns():
    assert len({tuple(row.tolist()) for row in PATTERNS}) == 6
    assert PATTERNS.sum(-1).eq(2).all()


def test_a_mask_learns_which_weights_matter():
    torch.manual_seed(0)
    base = nn.Linear(4, 1, bias=False)
    base.weight.data = torch.tensor([[1.0, 0.9, 0.8, 0.7]])
    layer = MaskedLinear(base, scale=1.0).train()
    x = torch.randn(512, 4)
    wanted = x @ torch.tensor([[0.0, 0.0, 0.8, 0.7]]).T  # the two smaller ones
    optimizer = torch.optim.Adam([layer.logits], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (layer(x) - wanted).square().mean().backward()
        optimizer.step()
    assert layer.eval().mask().tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_masks_and_head_are_trained_and_nothing_else(tmp_path):
    model = attach_masks(AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"]()))
    masks = list(masked_layers(model))
    assert len(masks) == 12
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(
        name.endswith("logits") or "classifier" in name or "pooler" in name for name in trained
    )
    weights = sum(m.base.weight.numel() for m in masks)
    assert sum(m.logits.numel() for m in masks) == weights * 6 // 4
    assert len(parameter_groups(model)["weights"]) == 12
    rows = [{"input_ids": [i % VOCABULARY] * LENGTH, "labels": i % 2} for i in range(16)]
    before = [m.logits.detach().clone() for m in masks]
    trainer = GateTrainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), max_steps=4, learning_rate=0.1, report_to="none", use_cpu=True,
            disable_tqdm=True, save_strategy="no",
        ),
        train_dataset=rows,
        callbacks=[MaskSchedule(model, 1.0, 0.25)],
    )  # fmt: skip
    trainer.train()
    assert all(not torch.equal(m.logits, b) for m, b in zip(masks, before, strict=True))
    assert masks[0].temperature == pytest.approx(0.25**0.75)


def test_what_cannot_be_masked_is_named():
    with pytest.raises(ValueError, match="inputs in fours, got 6"):
        MaskedLinear(nn.Linear(6, 2))
    gpt2 = AutoModelForSequenceClassification.from_config(ARCHITECTURES["gpt2"]())
    with pytest.raises(TypeError, match="Conv1D; masks go on nn.Linear"):
        attach_masks(gpt2)
    with pytest.raises(ValueError, match="must fall"):
        MaskSchedule(nn.Linear(4, 4), 0.1, 1.0)
