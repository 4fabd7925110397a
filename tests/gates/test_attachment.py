"""Attaching and detaching gates: wrapped layers, trained parameters, and the restored model."""

import pytest
import torch
from torch import nn
from transformers import BeitConfig, BeitModel
from transformers.pytorch_utils import Conv1D

from finegates.compaction import compact
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach, attach_fixed, head_parameters
from finegates.gates.config import GateConfig
from finegates.gates.detachment import detach
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.gates.monitor import closed_counts, summarise_gates
from finegates.gates.parts import gate_config
from finegates.gates.penalty import MacsPenalty, sparsity_penalty
from finegates.lora import add_lora
from finegates.modules.linear import dense_weight
from finegates.one_shot import magnitude_gates
from finegates.training.trainer import parameter_groups
from support.tiny import output, scatter_gates, tiny_model, tokens

REFERENCE = GateConfig(preset="reference")


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def set_latents(model: nn.Module, value: float) -> None:
    for layer in gated_layers(model).values():
        for _, gate in layer.gates():
            gate.latent.data.fill_(value)


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


def test_detach_restores_the_outputs_from_before():
    base, inputs = tiny_model("bert"), tokens()
    before, names = output(base, inputs), [n for n, _ in base.named_parameters()]
    set_latents(attach(base, REFERENCE), 0.1)
    detach(base)
    assert torch.equal(output(base, inputs), before)
    assert [n for n, _ in base.named_parameters()] == names
    assert gate_config(base) is None


def test_detach_with_fold_keeps_what_the_gated_model_computed():
    model, inputs = attach(tiny_model("roberta"), REFERENCE), tokens()
    set_latents(model, -0.1)
    gated = output(model, inputs)
    folded = detach(model, fold=True)
    assert not gated_layers(folded)
    torch.testing.assert_close(output(folded, inputs), gated, rtol=1e-10, atol=1e-12)


def test_detach_refuses_to_fold_an_unmerged_adapter():
    with pytest.raises(ValueError, match="unmerged low-rank adapter"):
        detach(attach(add_lora(tiny_model("bert")), REFERENCE), fold=True)


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


def test_a_model_spread_over_devices_is_refused_before_anything_changes():
    model = tiny_model("roberta")
    model.roberta.encoder.layer[1].to("meta")
    with pytest.raises(ValueError, match=r"spread over cpu, meta.*without device_map"):
        attach(model, GateConfig(preset="reference"))
    assert not gated_layers(model)


def encoder_layer() -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True).double()


@pytest.mark.parametrize(
    ("make", "pattern", "layer", "reader"),
    [
        (lambda: nn.MultiheadAttention(8, 2), "*", "out_proj", "MultiheadAttention"),
        (encoder_layer, "linear1", "linear1", "TransformerEncoderLayer"),
        (encoder_layer, "linear2", "linear2", "TransformerEncoderLayer"),
        (encoder_layer, "self_attn.*", "self_attn.out_proj", "MultiheadAttention"),
    ],
)
@pytest.mark.parametrize("how", ["pattern", "fixed"])
def test_layers_whose_weight_the_module_around_reads_itself_are_refused(
    make, pattern, layer, reader, how
):
    model = nn.Sequential(nn.Linear(8, 8), make())
    width = model.get_submodule(f"1.{layer}").out_features
    call, gates = {
        "pattern": (attach, GateConfig(modules=("0", f"1.{pattern}"))),
        "fixed": (
            attach_fixed,
            {"0": (torch.zeros(8), None), f"1.{layer}": (torch.zeros(width), None)},
        ),
    }[how]
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=rf"1\.{layer}: {reader} reads .*pattern.*other layers"):
        call(model, gates)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_the_encoder_layer_does_pass_over_its_linear_layers():
    """The reason for the refusal: in evaluation mode the layer ignores the gates."""
    layer, x = encoder_layer().eval(), torch.randn(2, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        before = layer(x)
        layer.linear1 = GatedLinear(layer.linear1, FixedGate(torch.zeros(12))).eval()
        assert torch.equal(layer(x), before)


def test_other_layers_of_a_model_with_multi_head_attention_take_gates():
    model = nn.TransformerDecoderLayer(8, 2, 12)
    attach(model, GateConfig(modules=("linear*",), train_head=False))
    assert list(gated_layers(model)) == ["linear1", "linear2"]


class Quantised(nn.Linear):
    """Like the layers of quantisation libraries: an nn.Linear whose weight contains codes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        codes = torch.zeros(outputs, inputs, dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)


def test_quantised_layers_are_refused_by_name_and_stand_in_nobodys_way():
    model = nn.Sequential(nn.Linear(3, 4), Quantised(4, 4), nn.Linear(4, 2))
    for refused in (("*",), ("1",), ("0", "1")):
        with pytest.raises(TypeError, match=r"^1: .*Quantised is torch\.int8"):
            attach(model, GateConfig(modules=refused))
    with pytest.raises(TypeError, match=r"^1: .*Quantised is torch\.int8"):
        attach_fixed(model, {"0": (torch.ones(4), None), "1": (torch.ones(4), None)})
    assert not gated_layers(model)
    attach(model, GateConfig(modules=("[02]",), train_head=False))
    assert list(gated_layers(model)) == ["0", "2"]


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_independent_gates_refuse_a_compact_model_with_remedies_that_work(architecture):
    model = attach(tiny_model(architecture, "language"), GateConfig(preset="structured"))
    scatter_gates(model)
    small = compact(model)
    with pytest.raises(ValueError, match=r"is compact already, .* finegates\.uniform\(model\)"):
        attach(small, GateConfig(preset="reference"))
    again = attach(uniform(small), GateConfig(preset="reference")).eval()
    assert output(compact(again), tokens()).isfinite().all()


def test_a_part_that_is_compact_in_part_keeps_the_rest_of_its_layers():
    model = tiny_model("t5-gated", "language")
    attach(model, GateConfig(modules=("*wi_?",), rows=False))
    scatter_gates(model)
    for module in model.modules():  # both read the same inputs
        if hasattr(module, "wi_0"):
            module.wi_1.cols = module.wi_0.cols
    small = compact(model)
    attach(small, GateConfig(modules=("*wo",)))
    scatter_gates(small)
    assert torch.allclose(output(compact(small), tokens()), output(small.eval(), tokens()))


class Scaled(nn.Linear):
    """An nn.Linear by class, but with another function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3.0 * super().forward(x)


class FalconLinear(nn.Linear):
    """Like Falcon's: the matmul and the bias in two operations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


def test_layers_that_compute_in_a_way_of_their_own_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 4), Scaled(4, 4), FalconLinear(4, 2))
    for refused in (("*",), ("1",)):
        with pytest.raises(
            TypeError, match=r"^1: Scaled is a subclass of nn\.Linear with its own forward"
        ):
            attach(model, GateConfig(modules=refused))
    attach(model, GateConfig(modules=("[02]",), train_head=False))
    small, x = compact(model.eval()), torch.randn(5, 3)
    assert torch.allclose(small(x), model(x), atol=1e-6)


@pytest.mark.parametrize("preset", ["reference", "structured"])
def test_quantised_layers_of_an_architecture_are_refused_by_name(preset):
    model = tiny_model("roberta")
    path = "roberta.encoder.layer.1.attention.self.key"
    model.roberta.encoder.layer[1].attention.self.key = Quantised(12, 12)
    with pytest.raises(TypeError, match=rf"^{path}: .*torch\.int8"):
        attach(model, GateConfig(preset=preset))
    assert not gated_layers(model)


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
