"""Layers and models that cannot be gated are refused by name before anything changes."""

import pytest
import torch
from torch import nn

from finegates.compaction import compact
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear, gated_layers
from support.tiny import output, scatter_gates, tiny_model, tokens


def test_a_model_spread_over_devices_is_refused_before_anything_changes():
    model = tiny_model("roberta")
    model.roberta.encoder.layer[1].to("meta")
    with pytest.raises(ValueError, match=r"spread over cpu, meta.*without device_map"):
        attach(model, GateConfig(preset="reference"))
    assert not gated_layers(model)


class Quantised(nn.Linear):
    """Like the layers of quantisation libraries: an nn.Linear whose weight contains codes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        codes = torch.zeros(outputs, inputs, dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)


class Scaled(nn.Linear):
    """An nn.Linear by class, but with another function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3.0 * super().forward(x)


class FalconLinear(nn.Linear):
    """Like Falcon's: the matmul and the bias in two operations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


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
