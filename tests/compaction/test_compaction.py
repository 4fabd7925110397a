"""Compaction of single layers, independent of architectures: results, refusals, planted faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    RemBertConfig,
    RemBertForSequenceClassification,
)
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from finegates.adapters import adapter_for
from finegates.compaction import CompactLinear, compact, plan_compaction
from finegates.compaction.activations import activation_at_zero, acts_on_numbers
from finegates.formats.compact import load, save
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from support import tiny
from support.tolerance import linear_bound, model_bound


def layer(outputs: int = 5, columns: int = 4, **gates: list[float]) -> GatedLinear:
    torch.manual_seed(0)
    fixed = {side: FixedGate(torch.tensor(values)) for side, values in gates.items()}
    return GatedLinear(nn.Linear(columns, outputs), **fixed)


def test_conv1d() -> None:
    torch.manual_seed(0)
    base = Conv1D(5, 4)
    nn.init.normal_(base.bias)
    rows, cols = (
        FixedGate(torch.tensor([1.0, 0, 0.5, 0, 1])),
        FixedGate(torch.tensor([0.5, 1, 0, 1])),
    )
    gated = GatedLinear(base, rows, cols)
    x = torch.randn(2, 3, 4)
    small = compact(gated)
    assert small.weight.shape == (3, 3)
    assert small.weight.is_contiguous()
    assert ((small(x) - gated(x)).abs() <= linear_bound(gated, x)).all()


def test_all_columns_closed_leaves_the_gated_bias() -> None:
    gated = layer(cols=[0.0] * 4, rows=[1.0, 0.5, 0, 1, 1])
    small = compact(gated)
    assert small.weight.shape == (4, 0)
    assert torch.equal(small(torch.randn(3, 4)), gated(torch.randn(3, 4)))


def test_all_rows_closed_gives_zeros() -> None:
    small = compact(layer(rows=[0.0] * 5))
    assert small.weight.shape == (0, 4)
    assert torch.equal(small(torch.randn(3, 4)), torch.zeros(3, 5))


def test_gates_outside_the_unit_interval() -> None:
    gated = layer(rows=[2.0, -1.0, 0.0, 4.0, 0.5])
    x = torch.randn(3, 4)
    assert ((compact(gated)(x) - gated(x)).abs() <= linear_bound(gated, x)).all()


def test_a_gate_that_underflows_in_the_layers_precision_is_closed() -> None:
    gated = layer(rows=[1e-12, 1.0, 1.0, 1.0, 1.0]).half()
    gated.rows = FixedGate(torch.tensor([1e-12, 1.0, 1.0, 1.0, 1.0]))
    small = compact(gated)
    assert small.weight.shape == (4, 4)
    assert small.weight.dtype == torch.float16
    x = torch.randn(3, 4).half()
    assert ((small(x) - gated(x)).abs() <= linear_bound(gated, x)).all()


def test_nothing_to_gather_or_scatter_when_nothing_is_closed() -> None:
    small = compact(layer(rows=[1.0, 0.5, 1, 1, 1], cols=[1.0, 0.5, 1, 1]))
    assert small.rows is None
    assert small.cols is None


def test_torch_compile_takes_the_layer_whole() -> None:
    small = compact(layer(rows=[1.0, 0, 1, 0, 1], cols=[1.0, 0.5, 0, 1]))
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    x = torch.randn(3, 4)
    assert torch.equal(compiled(x), small(x))


def test_gradients_flow() -> None:
    small = compact(layer(rows=[1.0, 0, 1, 0, 1], cols=[1.0, 0.5, 0, 1]))
    x = torch.randn(3, 4, requires_grad=True)
    small(x).sum().backward()
    assert small.weight.grad is not None
    assert x.grad is not None
    assert torch.equal(x.grad[:, 2], torch.zeros(3))


@pytest.mark.parametrize("side", ["rows", "cols"])
def test_a_wrong_index_is_noticed(side: str) -> None:
    gated = layer(rows=[1.0, 0, 1, 0, 1], cols=[1.0, 0.5, 0, 1])
    x = torch.randn(3, 4)
    small = compact(gated)
    assert ((small(x) - gated(x)).abs() <= linear_bound(gated, x)).all()
    index = getattr(small, side)
    index[1] = next(i for i in range(4) if i not in index.tolist())
    small.place_outputs()
    assert not ((small(x) - gated(x)).abs() <= linear_bound(gated, x)).all()


@pytest.mark.parametrize("wrong", [[1, 0, 2], [0, 0, 1], [-1, 0, 1], [0, 1, 5]])
def test_indices_are_checked(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="rows index"):
        CompactLinear(torch.zeros(3, 4), rows=torch.tensor(wrong), out_features=5)
    small = CompactLinear(torch.zeros(3, 4), rows=torch.arange(3), out_features=5)
    assert small.rows is not None
    small.rows.copy_(torch.tensor(wrong))
    with pytest.raises(ValueError, match="rows index"):
        small.place_outputs()


def test_loaded_indices_take_effect() -> None:
    x, weight = torch.randn(2, 4), torch.randn(2, 4)
    first = CompactLinear(weight, rows=torch.tensor([0, 1]), out_features=3)
    other = CompactLinear(weight, rows=torch.tensor([1, 2]), out_features=3)
    assert not torch.equal(first(x), other(x))
    first.load_state_dict(other.state_dict())
    assert torch.equal(first(x), other(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.zeros(3)}, "two dimensions"),
        ({"weight": torch.zeros(3, 4), "out_features": 5}, "rows: 3 are kept of 5"),
        (
            {"weight": torch.zeros(3, 4), "cols": torch.tensor([0, 1]), "in_features": 6},
            "cols: the index must be int64",
        ),
        ({"weight": torch.zeros(3, 4), "bias": torch.zeros(4)}, "bias must have shape"),
        (
            {"weight": torch.zeros(3, 4), "rows": torch.arange(3), "out_features": 2},
            "only 2",
        ),
    ],
)
def test_sizes_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompactLinear(**arguments)  # type: ignore[arg-type]


def test_a_model_without_gates_is_refused() -> None:
    with pytest.raises(ValueError, match="no gates"):
        compact(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no gates"):
        compact(tiny.tiny_model("bert"))


def test_a_weight_that_is_computed_is_folded() -> None:
    gated = layer(rows=[1.0, 0, 0.5, 0, 1])
    nn.utils.parametrizations.weight_norm(gated.base)
    x = torch.randn(3, 4)
    assert ((compact(gated)(x) - gated(x)).abs() <= linear_bound(gated, x)).all()


def test_gates_without_values_are_refused() -> None:
    gated = GatedLinear(nn.Linear(3, 3), StochasticGate(3, device="meta"))
    with pytest.raises(ValueError, match="meta device"):
        compact(gated)


def test_unknown_architectures_are_named() -> None:
    remedy = (
        r"has a description: register one with finegates\.adapters\.register.*finegates\.describe"
        r".*name the layers with GateConfig\(preset='reference', modules=\.\.\.\)"
    )
    with pytest.raises(ValueError, match=r"no module of this Linear .*" + remedy):
        adapter_for(nn.Linear(1, 1))
    model, _ = rembert()
    with pytest.raises(ValueError, match=r"'rembert'\) " + remedy):
        adapter_for(model)


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_what_a_module_is_does_not_depend_on_the_model_around_it(architecture: str) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = tiny.tiny_model(architecture, "base")

        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            return tiny.output(self.backbone, inputs)

    inner = tiny.tiny_model(architecture, "base")
    model = Around()
    blocks = adapter_for(model).blocks(model)
    assert [f"backbone.{b.path}" for b in adapter_for(inner).blocks(inner)] == [
        block.path for block in blocks
    ]
    attach(model, GateConfig(train_head=False, sequence_length=7))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    assert sum(hasattr(m, "finegates_heads") for m in small.modules()) > 0
    expected, found = (m(**tiny.tokens()) for m in (model, small))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def rembert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = RemBertConfig(
        vocab_size=tiny.VOCABULARY,
        input_embedding_size=12,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        classifier_dropout_prob=0.0,
        num_labels=2,
    )
    return RemBertForSequenceClassification(config), tiny.tokens()


def beit() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = BeitConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return BeitForImageClassification(config), {"pixel_values": pixels.double()}


@pytest.mark.parametrize("make", [rembert, beit])
def test_models_without_an_adapter_by_pattern(
    make: Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    model, inputs = make()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    model = model.double().eval()

    def logits(m: nn.Module) -> torch.Tensor:
        found: torch.Tensor = m(**inputs).logits
        return found

    before = logits(model)
    attach(model, GateConfig(modules=("*layer*",)))
    assert len(gated_layers(model)) == 2 * 6
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert "classifier" in trained
    tiny.scatter_gates(model)
    assert ((logits(model.eval()) - before).abs() > 1e-3).any()

    plan = plan_compaction(model)
    assert not plan.heads
    assert "layer by layer only: no module of this" in str(plan)
    small = compact(model)
    bound = model_bound(model, logits)
    assert ((logits(small) - logits(model)).abs() <= bound).all()
    assert float(bound.max()) < 1e-9
    compacted = [m for m in small.modules() if isinstance(m, CompactLinear)]
    assert len(compacted) == 2 * 6
    assert all(m.weight.numel() < m.dense_shape[0] * m.dense_shape[1] for m in compacted)

    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert type(again) is type(small)
    assert torch.equal(logits(again), logits(small))


def test_activation_at_zero() -> None:
    assert activation_at_zero(ACT2FN["gelu"]) == 0.0
    assert activation_at_zero(torch.sigmoid) == 0.5
    assert activation_at_zero(ACT2FN["prelu"]) is None, "it has parameters"
    assert activation_at_zero(None) is None
    for name in set(ACT2FN) - {"prelu", "xielu"}:
        assert acts_on_numbers(ACT2FN[name])
        value = activation_at_zero(ACT2FN[name])
        assert value is not None
        assert value == float(ACT2FN[name](torch.zeros((), dtype=torch.float64)))


PHI = {
    "bert": "bert.encoder.layer.0.intermediate.intermediate_act_fn",
    "roberta": "roberta.encoder.layer.0.intermediate.intermediate_act_fn",
    "deberta-v2": "deberta.encoder.layer.0.intermediate.intermediate_act_fn",
    "mpnet": "mpnet.encoder.layer.0.intermediate.intermediate_act_fn",
    "gpt2": "transformer.h.0.mlp.act",
    "t5": "transformer.encoder.block.0.layer.1.DenseReluDense.act",
    "t5-gated": "transformer.encoder.block.0.layer.1.DenseReluDense.act",
    "llama": "model.layers.0.mlp.act_fn",
    "mistral": "model.layers.0.mlp.act_fn",
    "qwen2": "model.layers.0.mlp.act_fn",
    "qwen3": "model.layers.0.mlp.act_fn",
}


def with_activation(architecture: str, phi: object) -> nn.Module:
    """A gated classifier whose first layer has a different activation than its configuration."""
    model = tiny.tiny_model(architecture, "classifier")
    path, _, name = PHI[architecture].rpartition(".")
    owner = model.get_submodule(path)
    delattr(owner, name)
    setattr(owner, name, phi)
    attach(model, GateConfig(preset="reference"))
    tiny.scatter_gates(model, 1)
    return model.eval()


@pytest.mark.parametrize("architecture", sorted(PHI))
def test_an_activation_that_was_changed_in_the_module_is_the_one_that_is_folded(
    architecture: str,
) -> None:
    """sigmoid(0) = 1/2, where the configured activation has 0."""
    gated = with_activation(architecture, nn.Sigmoid())
    found, expected = (tiny.output(m, tiny.tokens()) for m in (compact(gated), gated))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("phi", [nn.Softmax(-1), lambda x: x.flip(-1), nn.GLU(-1)])
def test_a_pair_keeps_its_width_around_what_may_mix_its_numbers(phi: object) -> None:
    gated = attach(tiny.tiny_model("bert"), GateConfig(preset="reference")).eval()
    tiny.scatter_gates(gated, 1)
    layer = gated.bert.encoder.layer[0]  # type: ignore[union-attr, index]
    del layer.intermediate.intermediate_act_fn
    layer.intermediate.intermediate_act_fn = phi
    plan = plan_compaction(gated)
    assert plan.layers["bert.encoder.layer.0.intermediate.dense"].output_width is None
    assert plan.layers["bert.encoder.layer.1.intermediate.dense"].output_width is not None
    assert any("is not known to act elementwise" in note for note in plan.notes)
    if not isinstance(phi, nn.GLU):
        found, expected = (tiny.output(m, tiny.tokens()) for m in (compact(gated), gated))
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_activation_unknown_at_zero_still_frees_unread_rows() -> None:
    up = GatedLinear(nn.Linear(3, 4), FixedGate(torch.tensor([0.0, 1, 1, 1])))
    down = GatedLinear(nn.Linear(4, 2), None, FixedGate(torch.tensor([1.0, 1, 0, 1])))
    for base in (up.base, down.base):  # integers, which the slope of 1/4 keeps exact
        base.weight.data = torch.randint(-3, 4, base.weight.shape).float()
        base.bias.data = torch.randint(-3, 4, base.bias.shape).float()
    pair = tiny.Pair(up, down, "prelu").eval()
    small = compact(pair, adapter=tiny.PairAdapter("prelu"))
    assert small.up.weight.shape == (3, 3), "the closed row stays, as zeros: phi(0) is not known"
    assert not small.up.weight[0].any()
    x = torch.randint(-3, 4, (5, 3)).float()
    assert torch.equal(small(x), pair(x))


@pytest.mark.parametrize(
    ("architecture", "variant", "head"),
    [
        ("bert", "classifier", ["bert.pooler", "classifier"]),
        ("bert", "language", ["cls"]),
        ("bert", "base", ["pooler"]),
        ("roberta", "classifier", ["classifier"]),
        ("roberta", "language", ["lm_head"]),
        ("roberta", "base", ["pooler"]),
    ],
)
def test_heads(architecture: str, variant: str, head: list[str]) -> None:
    model = tiny.tiny_model(architecture, variant)
    assert adapter_for(model).head(model) == head


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_are_called_on_what_takes_the_place_of_their_module(inplace: bool) -> None:
    model = attach(tiny.tiny_model("llama"), GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    called: list[str] = []
    paths = [f"model.layers.0.{name}" for name in ("self_attn", "mlp")]
    for path in paths:
        module = model.get_submodule(path)
        module.register_forward_hook(
            lambda *_, path=path, **__: called.append(path), with_kwargs=True
        )
    gradients: list[str] = []
    module.register_full_backward_hook(lambda *_: gradients.append(path))
    small = compact(model.eval(), inplace=inplace)
    tiny.output(small, tiny.tokens()).sum().backward()
    assert sorted(called) == sorted(paths)
    assert gradients == [path]
    assert small.get_submodule(path)._is_full_backward_hook, "not called in the old way"


def test_what_training_listens_with_goes_with_the_gates() -> None:
    model = attach(tiny.tiny_model("bert"), GateConfig(kurtosis=True))
    penalty = sparsity_penalty(model)
    assert any(module._forward_pre_hooks for module in model.modules())
    tiny.scatter_gates(model)
    small = compact(model.eval())
    assert penalty is not None  # its hooks would be lost
    assert not any(
        module._forward_pre_hooks
        for module in small.modules()
        if not hasattr(module, "finegates_heads")
    )
