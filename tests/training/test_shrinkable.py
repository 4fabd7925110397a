"""Trainings and models that cannot lose dimensions are refused before anything changes."""

from __future__ import annotations

import peft
import pytest
import transformers

import finegates as fg
from finegates.adapters import adapter_for
from support.shrinking import CONFIG, fresh, train
from support.tiny import tiny_model


@pytest.mark.parametrize("preset", ["reference", "paper_v1"])
@pytest.mark.parametrize("options", [{"shrink": True}, {"final_at": (0.5,)}])
def test_gates_that_can_open_again_are_refused(preset, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} .*preset {preset!r}"):
        fg.GateConfig(preset=preset, **options)


def test_experts_are_refused_by_path():
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=16, num_local_experts=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"layers.0.mlp.experts .*stacked experts"):
        fg.attach(model, CONFIG)
    assert list(model.state_dict()) == before


def test_adapters_other_than_plain_lora_are_refused_by_path():
    model = tiny_model("bert")
    names = list(adapter_for(model).gated(model))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=names, use_dora=True))
    with pytest.raises(ValueError, match=r"attention.self.key: .*DoRA"):
        fg.attach(wrapped, CONFIG)


def test_a_weight_of_two_layers_is_refused_by_name():
    model = tiny_model("bert")
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    with pytest.raises(ValueError, match=r"layer.0.intermediate.dense.weight is also"):
        fg.attach(model, CONFIG)


def test_final_at_increases():
    with pytest.raises(ValueError, match="final_at"):
        fg.GateConfig(final_at=(0.5, 0.2))


def test_an_optimizer_that_cannot_be_cut_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="Adafactor"):
        train(fresh("bert", CONFIG), tmp_path, optim="adafactor")


def test_a_compiled_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="torch_compile=True"):
        train(fresh("bert", CONFIG), tmp_path, torch_compile=True)
