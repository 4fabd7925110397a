"""Arguments that are not models or configurations are refused with the remedy."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

import finegates as fg
from finegates.adapters import unwrap
from finegates.budget import planned_macs
from finegates.formats.description import STRUCTURE
from finegates.gates.attachment import head_parameters
from finegates.gates.detachment import hold_gates
from finegates.gates.penalty import sparsity_penalty
from finegates.training.trainer import parameter_groups
from support.tiny import tiny_model

TAKE_A_MODEL = {
    "attach": fg.attach,
    "attach_fixed": lambda m: fg.attach_fixed(m, {"0": (torch.ones(2), None)}),
    "attach_from_peft": lambda m: fg.attach_from_peft(m, {}),
    "detach": fg.detach,
    "add_lora": fg.add_lora,
    "magnitude_gates": lambda m: fg.magnitude_gates(m, {"0": {"rows": 1, "cols": 1}}),
    "measure_budget": fg.measure_budget,
    "macs": lambda m: fg.macs(m, 1, 7),
    "planned_macs": lambda m: planned_macs(m, 1, 7),
    "compact": fg.compact,
    "plan_compaction": fg.plan_compaction,
    "use_products": lambda m: fg.use_products(m, fg.CostModel()),
    "gated_layers": fg.gated_layers,
    "summarise_gates": fg.summarise_gates,
    "uniform": fg.uniform,
    "unwrap": unwrap,
    "hold_gates": hold_gates,
    "sparsity_penalty": sparsity_penalty,
    "head_parameters": head_parameters,
    "parameter_groups": parameter_groups,
}


@pytest.mark.parametrize("name", sorted(TAKE_A_MODEL))
def test_what_is_not_a_model_is_refused_with_the_remedy(name):
    call = TAKE_A_MODEL[name]
    with pytest.raises(TypeError, match=r"got the string 'roberta-base'; .*from_pretrained\('rob"):
        call("roberta-base")
    with pytest.raises(TypeError, match=r"a model \(torch\.nn\.Module\) is needed, got None; give"):
        call(None)
    with pytest.raises(TypeError, match=r"got a BertConfig; give the model"):
        call(BertConfig())
    with pytest.raises(TypeError, match=r"got the class BertModel; make one"):
        call(BertModel)


@pytest.mark.parametrize("given", ["roberta-base", None, BertConfig()])
def test_what_is_not_a_model_is_not_written(given, tmp_path):
    for way in (
        lambda: fg.save(given, tmp_path / "saved"),
        lambda: fg.save_task(given, tmp_path / "task.safetensors"),
        lambda: fg.load_task(given, tmp_path / "task.safetensors"),
        lambda: fg.export_onnx(given, tmp_path / "model.onnx", {"input_ids": torch.ones(1, 2)}),
    ):
        with pytest.raises(TypeError, match=r"a model \(torch\.nn\.Module\) is needed, got "):
            way()
    assert list(tmp_path.iterdir()) == []
    assert STRUCTURE.endswith(".json")


@pytest.mark.parametrize("way", [fg.GateTrainer, lambda given: fg.GateTrainer(model=given)])
def test_a_trainer_answers_what_is_not_a_model_as_attach_does(way):
    with pytest.raises(TypeError, match=r"string 'bert'; load the model first"):
        way("bert")


def test_a_trainer_in_place_of_its_model_is_answered_with_the_model():
    class Holder:
        model = torch.nn.Linear(2, 2)

    with pytest.raises(TypeError, match=r"got a Holder; give its attribute 'model'"):
        fg.attach(Holder())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("structured", r"got the string 'structured'; write GateConfig\(preset='structured'\)"),
        ({"target": 0.3}, r"got a dict; write GateConfig\(\*\*config\)"),
        (0.4, r"got a float; make one: GateConfig\(...\)"),
        (fg.GateConfig, r"got the class GateConfig; write GateConfig\(\)"),
        (BertConfig(), r"got a BertConfig; make one"),
    ],
)
def test_what_is_not_a_configuration_is_refused_with_the_remedy(config, message):
    model = tiny_model("bert")
    with pytest.raises(TypeError, match=rf"a GateConfig is needed, {message}"):
        fg.attach(model, config)
    assert not fg.gated_layers(model)


def test_advice_on_unknown_architectures_works():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for preset in (None, "structured", "reference"):
        with pytest.raises(ValueError, match=r"GateConfig\(preset='reference', modules=\.\.\.\)"):
            fg.attach(model, fg.GateConfig(preset=preset))
    fg.attach(model, fg.GateConfig(preset="reference", modules=("*",)))
    assert fg.gated_layers(model)
