"""peft saves the parameters that add_lora trains: factors and the task head."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import finegates as fg
from finegates.gates.attachment import head_parameters
from support.described import (
    described_inputs,
    described_model,
    described_outputs,
    relative_difference,
)
from support.described_types import CONFIGURATIONS
from support.tiny import VOCABULARY, output, scatter_gates, tiny_model, tokens

ENCODERS = ("bert", "roberta", "deberta-v2", "t5")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


def moved(model: nn.Module) -> nn.Module:
    """The model with changed values of all trainable parameters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.3, generator=generator)
    return model.eval()


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
def test_a_saved_adapter_brings_factors_and_head_to_the_same_base(architecture, tmp_path):
    base = tiny_model(architecture)
    model = moved(fg.add_lora(copy.deepcopy(base), rank=2))
    wanted = output(model, tokens())
    assert not torch.allclose(output(base, tokens()), wanted)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()  # type: ignore[arg-type]
    assert torch.equal(output(again, tokens()), wanted)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_head_is_trained_as_before_and_nothing_else_of_the_model(architecture):
    plain = tiny_model(architecture)
    head = {tuple(p.shape) for p in head_parameters(plain).values()}
    model = fg.add_lora(plain, rank=2)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    own = {n: p for n, p in trained.items() if ".lora_" not in n}
    assert {tuple(p.shape) for p in own.values()} == head
    assert [p for p in head_parameters(model).values()] == [*own.values()]
    assert not any(".original_module." in name for name in trained)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_what_of_a_tied_head_peft_would_leave_out_is_said(architecture, tmp_path):
    model = tiny_model(architecture, "language")
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"bias.*share.*merge_and_unload"):
        wrapped = fg.add_lora(model, rank=2)
    assert not table.requires_grad
    outputs = wrapped.get_base_model().get_output_embeddings()  # type: ignore[operator]
    assert outputs.weight is table


def test_an_untied_head_and_one_without_parameters_are_no_case_for_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fg.add_lora(tiny_model("llama", "language"), rank=2)
        fg.add_lora(tiny_model("gpt2", "language"), rank=2)
        fg.add_lora(tiny_model("roberta"), rank=2)


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (16, 6), generator=generator)
    return [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]


@pytest.mark.parametrize("kind", [Trainer, fg.GateTrainer])
@pytest.mark.parametrize("architecture", ["roberta", "llama"])
def test_a_resumed_training_ends_with_the_tensors_of_an_uninterrupted_one(
    kind, architecture, tmp_path: Path
):
    def trainer(folder: Path, **settings: Any) -> Trainer:
        torch.manual_seed(0)
        model = fg.add_lora(tiny_model(architecture, dtype=torch.float32), rank=2)
        arguments = TrainingArguments(
            str(folder),
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="steps",
            **{"save_steps": 2, **settings},
        )
        baseline = {"expect_gates": False} if kind is fg.GateTrainer else {}
        return kind(model, arguments, train_dataset=rows(), **baseline)

    whole = trainer(tmp_path)
    whole.train()
    wanted = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    start = dict(trainer(tmp_path).model.named_parameters())
    for name, parameter in head_parameters(whole.model).items():
        assert not torch.equal(parameter, start[f"base_model.model.{name}"]), name
    again = trainer(tmp_path / "again", save_steps=100)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = dict(again.model.named_parameters())
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []


def reads_its_own_factors_back(base: nn.Module, folder: Path) -> bool:
    """Whether peft reads back what it wrote itself, for a mixture of experts.

    With peft 0.19 and its contemporary transformers it does not: it renames keys by a class of
    transformers whose arguments have changed.
    """
    stock = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "q_b_proj"]))
    stock.save_pretrained(folder)
    try:
        peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)
    except TypeError as error:
        if peft.__version__.startswith("0.19.") and "WeightConverter" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize(
    ("name", "left_out"), [("mixtral", 0), ("gpt_oss", 0), ("deepseek_v3", 6), ("qwen3_moe", 3)]
)
def test_factors_next_to_stacked_experts_are_gated_and_compacted(
    name: str, left_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense feed-forward layers have the names that peft takes for those of experts."""
    if name == "qwen3_moe":
        dense_first = {**CONFIGURATIONS[name], "mlp_only_layers": [0]}
        monkeypatch.setitem(CONFIGURATIONS, name, dense_first)
    base = described_model(name, "causal")
    inputs = described_inputs(name, "causal")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = fg.add_lora(base, rank=2)
    text = " ".join(str(each.message) for each in said)
    assert (f"({left_out} such layers) gets no LoRA" in text) == bool(left_out)
    moved(model)
    before = described_outputs(model, inputs)
    if reads_its_own_factors_back(described_model(name, "causal"), tmp_path / "stock"):
        model.save_pretrained(tmp_path / "own")  # type: ignore[operator]
        again = peft.PeftModel.from_pretrained(described_model(name, "causal"), tmp_path / "own")
        assert relative_difference(before, described_outputs(again.double().eval(), inputs)) < 1e-6
    fg.attach(model, fg.GateConfig(sequence_length=9))
    scatter_gates(model, mean=0.7)
    gated = described_outputs(model.eval(), inputs)
    assert relative_difference(before, gated) > 1e-2
    assert relative_difference(gated, described_outputs(fg.compact(model), inputs)) < 1e-11


def test_adapters_inside_gates_are_refused_with_the_order_that_works():
    model = fg.attach(tiny_model("bert"), fg.GateConfig())
    with pytest.raises(ValueError, match="has gates already.*call add_lora before attach"):
        fg.add_lora(model)
