"""Attaching gates: wrapped layers, trained parameters, the task head."""

import pytest
import torch
from torch import nn
from transformers import BeitConfig, BeitModel
from transformers.pytorch_utils import Conv1D

from finegates.gates.attachment import attach, attach_fixed, head_parameters
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.monitor import closed_counts, summarise_gates
from finegates.gates.parts import gate_config
from finegates.gates.penalty import sparsity_penalty
from finegates.lora import add_lora
from finegates.modules.linear import dense_weight
from finegates.one_shot import magnitude_gates
from finegates.training.trainer import parameter_groups
from support.tiny import output, set_latents, tiny_model, tokens

REFERENCE = GateConfig(preset="reference")


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_every_layer_of_the_protocol_is_wrapped_and_nothing_else():
    model = attach(tiny_model("roberta"), GateConfig(preset="reference"))
    ends = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
    names = list(gated_layers(model))
    assert len(names) == 2 * 6
    assert all(name.startswith("roberta.encoder.layer.") and name.endswith(ends) for name in names)


def test_the_reference_preset_trains_gates_biases_of_gated_layers_and_the_head_only():
    model = attach(tiny_model("roberta"), GateConfig(preset="reference"))
    groups = {kind: set(p) for kind, p in parameter_groups(model).items()}
    layers = gated_layers(model)
    assert groups["gates"] == {f"{n}.{s}.latent" for n in layers for s in ("rows", "cols")}
    assert groups["biases"] == {f"{name}.base.bias" for name in layers}
    assert groups["head"] == {n for n, _ in model.named_parameters() if n.startswith("classifier")}
    assert groups["low_rank"] == groups["weights"] == set()


def test_the_paper_v1_preset_leaves_biases_frozen():
    groups = parameter_groups(attach(tiny_model("roberta"), GateConfig(preset="paper_v1")))
    assert groups["gates"]
    assert groups["biases"] == {}


def test_gates_around_lora_train_its_factors_too():
    model = attach(add_lora(tiny_model("roberta"), rank=2), GateConfig(preset="paper_v1"))
    groups = parameter_groups(model)
    assert len(groups["low_rank"]) == 2 * len(gated_layers(model))
    assert groups["gates"]
    assert groups["weights"] == {}


def test_every_trainable_parameter_is_in_exactly_one_group():
    for model in (
        tiny_model("bert"),
        add_lora(tiny_model("bert")),
        attach(tiny_model("bert"), REFERENCE),
        attach(add_lora(tiny_model("bert")), REFERENCE),
    ):
        groups = parameter_groups(model)
        names = [name for group in groups.values() for name in group]
        assert sorted(names) == sorted(trained(model))


def test_open_gates_change_nothing_and_half_open_gates_do():
    base, inputs = tiny_model("roberta"), tokens()
    before = output(base, inputs)
    attach(base, REFERENCE)
    set_latents(base, 5.0)
    assert torch.equal(output(base, inputs), before)
    set_latents(base, 0.0)  # every gate is 1/2
    assert not torch.allclose(output(base, inputs), before)


def test_gates_on_a_model_in_evaluation_mode_do_not_sample():
    model = attach(tiny_model("roberta").eval(), REFERENCE)
    assert torch.equal(output(model, tokens()), output(model, tokens()))
    assert not any(
        gate.training for layer in gated_layers(model).values() for _, gate in layer.gates()
    )


def test_gates_attach_by_pattern_to_models_without_an_adapter():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Conv1D(2, 4))
    attach(model, GateConfig(modules=("*",), train_head=False))
    assert list(gated_layers(model)) == ["0", "2"]
    assert model(torch.randn(5, 3)).shape == (5, 2)


def test_initial_gates_depend_on_seed_and_name_not_on_order():
    def latents(seed, modules):
        model = attach(tiny_model("bert"), GateConfig(seed=seed, modules=modules))
        return {
            n: g.latent.tolist()
            for n, layer in gated_layers(model).items()
            for _, g in layer.gates()
        }

    query, key = "bert.encoder.layer.0.*.query", "bert.encoder.layer.0.*.key"
    assert latents(0, (query, key)) == latents(0, (key, query))
    assert latents(0, (query,)) != latents(1, (query,))


def test_misuse_is_refused_with_the_reason():
    model = attach(tiny_model("bert"), REFERENCE)
    with pytest.raises(ValueError, match="has gates already"):
        attach(model)
    with pytest.raises(ValueError, match="pattern 'nope\\*' matches no linear layer"):
        attach(tiny_model("bert"), GateConfig(modules=("nope*",)))
    with pytest.raises(ValueError, match="no module of this Linear"):
        attach(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="targets end at 0.841"):
        GateConfig(preset="reference", target=0.9)
    with pytest.raises(ValueError, match="no gates"):
        GateConfig(rows=False, cols=False)
    with pytest.raises(ValueError, match="unknown penalty"):
        GateConfig(penalty="l0")
    with pytest.raises(ValueError, match="penalty_weight"):
        GateConfig(penalty_weight=-1)
    with pytest.raises(TypeError, match="not linear-like"):
        GatedLinear(nn.ReLU())
    with pytest.raises(ValueError, match="rows gate has size"):
        attach_fixed(nn.Sequential(nn.Linear(2, 3)), {"0": (torch.ones(2), None)})


def test_gates_are_shared_unless_an_option_of_independent_ones_is_given():
    assert GateConfig().preset == GateConfig(target=0.3).preset == "structured"
    for given in (
        {"modules": ("*",)},
        {"kurtosis": True},
        {"penalty": "hinge"},
        {"rows": False},
        {"cols": False},
    ):
        assert GateConfig(**given).preset == "reference"
        with pytest.raises(ValueError, match=r"cannot be chosen.*preset='reference'"):
            GateConfig(preset="structured", **given)
    model = attach(tiny_model("bert"))
    assert gate_config(model) == GateConfig(preset="structured")
    assert isinstance(sparsity_penalty(model), MacsPenalty)


def test_a_model_without_gates_has_no_penalty():
    assert sparsity_penalty(tiny_model("bert")) is None


def test_magnitude_gates_close_the_rows_and_columns_of_least_norm():
    model = nn.Sequential(nn.Linear(3, 4))
    weight = torch.tensor([[1.0, 0, 9], [0, 0.1, 0], [5, 0, 5], [0.2, 0, 0]])
    model[0].weight.data = weight
    gates = magnitude_gates(model, {"0": {"rows": 2, "cols": 1}})
    attach_fixed(model, gates)
    assert gates["0"][0].tolist() == [1, 0, 1, 0]
    assert gates["0"][1].tolist() == [1, 0, 1]
    assert closed_counts(model) == {"0": {"rows": 2, "cols": 1}}


def test_magnitude_pruning_removes_exactly_what_the_gated_model_lost():
    torch.manual_seed(0)
    gated = attach(tiny_model("roberta"), REFERENCE)
    for layer in gated_layers(gated).values():
        for _, gate in layer.gates():
            gate.latent.data = torch.randn(gate.size) - 0.5
    model = tiny_model("roberta")
    attach_fixed(model, magnitude_gates(model, closed_counts(gated)))
    assert closed_counts(model) == closed_counts(gated)
    found, expected = summarise_gates(model), summarise_gates(gated)
    assert found["realised_sparsity"] == expected["realised_sparsity"] > 0


def test_summaries_count_each_gate_once():
    model = nn.Sequential(nn.Linear(4, 2))
    attach_fixed(model, {"0": (torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.0, 1.0, 1.0]))})
    summary = summarise_gates(model)
    assert summary["gates"] == sum(summary["histogram"]) == 6
    assert summary["closed"] == pytest.approx(2 / 6)
    assert summary["open"] == pytest.approx(3 / 6)
    assert summary["half_open"] == pytest.approx(1 / 6)
    assert summary["realised_sparsity"] == pytest.approx(1 - (1 * 3) / 8)


def test_lora_starts_as_the_base_model_and_a_trained_factor_changes_it():
    base, inputs = tiny_model("roberta"), tokens()
    before = output(base, inputs)
    model = add_lora(base, rank=2).eval()
    assert torch.equal(output(model, inputs), before)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.fill_(0.1)
    assert not torch.allclose(output(model, inputs), before)


@pytest.mark.parametrize("conv", [False, True])
def test_the_dense_weight_is_what_the_layer_applies(conv):
    torch.manual_seed(0)
    layer = Conv1D(5, 3) if conv else nn.Linear(3, 5)
    weight, bias = dense_weight(layer)
    x = torch.randn(4, 3)
    torch.testing.assert_close(x @ weight.T + bias, layer(x))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("variant", ["classifier", "language"])
def test_the_head_is_known_without_an_adapter(architecture, variant):
    model = tiny_model(architecture, variant)
    head = set(head_parameters(model))
    assert head
    model.config.model_type = "unknown"
    assert set(head_parameters(model)) == head
    pattern = "*mlp*" if architecture == "llama" else "*intermediate*"
    attach(model, GateConfig(modules=(pattern,)))
    assert head <= trained(model)
    assert set(parameter_groups(model)["head"]) == head


def test_a_model_without_a_head_trains_none():
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    base = BeitModel(
        BeitConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            image_size=4, patch_size=2,
        )
    )  # fmt: skip
    for model, pattern in ((plain, "0"), (base, "*layer*")):
        assert head_parameters(model) == {}
        attach(model, GateConfig(modules=(pattern,), train_biases=False))
        groups = parameter_groups(model)
        assert groups["gates"]
        assert groups["head"] == groups["weights"] == groups["biases"] == {}
