"""Compaction apart from architectures: single layers, refusals, and faults that must be noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

import tiny
from finegates.adapters import adapter_for, unwrap
from finegates.attachment import GateConfig, attach, attach_fixed
from finegates.compaction import CompactLinear, compact, load, plan_compaction, save
from finegates.compaction.rules import activation_at_zero
from finegates.gates import FixedGate, StochasticGate
from finegates.layers import GatedLinear, dense_weight, gated_layers
from tolerance import gamma, linear_bound, model_bound


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
    remedy = r".*name.* layers .*with GateConfig\(modules=\.\.\.\)"
    with pytest.raises(ValueError, match=r"no config.model_type.*bert.*roberta" + remedy):
        adapter_for(nn.Linear(1, 1))
    model = tiny.tiny_model("bert")
    model.config.model_type = "mamba"
    with pytest.raises(ValueError, match=r"'mamba'.*\['bert', .*'t5'\]" + remedy):
        adapter_for(model)


def test_unknown_architecture_is_compacted_layer_by_layer() -> None:
    model = attach(tiny.tiny_model("bert"), GateConfig())
    tiny.scatter_gates(model)
    paired = tiny.output(compact(model), tiny.tokens())
    model.config.model_type = "mamba"
    plan = plan_compaction(model.eval())
    assert "layer by layer" in str(plan)
    assert all(kept.output_width is None for kept in plan.layers.values())
    bound = model_bound(model, lambda m: tiny.output(m, tiny.tokens()))
    wide = tiny.output(compact(model), tiny.tokens())
    # Either differs from the gated model by at most the bound.
    assert ((wide - paired).abs() <= 2 * bound).all()


def distilbert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = DistilBertConfig(
        vocab_size=tiny.VOCABULARY, dim=12, hidden_dim=20, n_layers=2, n_heads=3, num_labels=2
    )
    return DistilBertForSequenceClassification(config), tiny.tokens()


def vit() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return ViTForImageClassification(config), {"pixel_values": pixels.double()}


@pytest.mark.parametrize("make", [distilbert, vit])
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
    assert "layer by layer only: no adapter for model type" in str(plan)
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
    assert activation_at_zero("gelu") == 0.0
    assert activation_at_zero("sigmoid") == 0.5
    assert activation_at_zero("prelu") is None, "it has parameters"
    assert activation_at_zero("no such") is None
    for name in set(ACT2FN) - {"prelu", "xielu"}:
        value = activation_at_zero(name)
        assert value is not None
        assert value == float(ACT2FN[name](torch.zeros((), dtype=torch.float64)))


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


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_low_rank_embeddings_are_refused_before_anything_changes() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["word_embeddings", "query"])
    model = attach(
        peft.get_peft_model(tiny.tiny_model("bert"), config), GateConfig(modules=("*.query",))
    )
    before = tiny.output(model.eval(), tiny.tokens())
    with pytest.raises(ValueError, match=r"word_embeddings: Embedding of peft .*merge_and_unload"):
        compact(model, inplace=True)
    assert torch.equal(tiny.output(model, tiny.tokens()), before)


TARGETS: dict[str, Any] = {"target_modules": ["query", "value", "intermediate.dense"]}
# What peft.LoraConfig and its like are called, their options, and what the refusal calls them.
NOT_PLAIN_LORA = {
    "ia3": ("IA3Config", {"feedforward_modules": ["intermediate.dense"]}, "ia3"),
    "loha": ("LoHaConfig", {"r": 2}, "loha"),
    "lokr": ("LoKrConfig", {"r": 2}, "lokr"),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False}, "oft"),
    "vera": ("VeraConfig", {"r": 2}, "vera"),
    "dora": ("LoraConfig", {"r": 2, "use_dora": True}, "DoRA"),
    "kasa": ("LoraConfig", {"r": 2, "kasa_config": "KasaConfig"}, "Kasa"),
    "bias": ("LoraConfig", {"r": 2, "lora_bias": True}, "bias of its own"),
}


def peft_model(config: Any) -> nn.Module:
    """A classifier in peft's wrapper, with random numbers in all that is trained."""
    peft = pytest.importorskip("peft")
    model: nn.Module = peft.get_peft_model(tiny.tiny_model("bert"), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.5, 0.3, generator=generator)
    return model.double().eval()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("gated", ["*.query", "*.key"], ids=["inside gates", "beside gates"])
@pytest.mark.parametrize("kind", NOT_PLAIN_LORA)
def test_what_is_not_plain_lora_is_refused_before_anything_changes(kind: str, gated: str) -> None:
    peft = pytest.importorskip("peft")
    name, options, called = NOT_PLAIN_LORA[kind]
    if "kasa_config" in options:
        if not hasattr(peft.tuners.lora.config, "KasaConfig"):
            pytest.skip("this peft has no KaSA")
        options = {**options, "kasa_config": peft.tuners.lora.config.KasaConfig()}
    model = attach(
        peft_model(getattr(peft, name)(**options, **TARGETS)), GateConfig(modules=(gated,))
    )
    tiny.scatter_gates(model)
    before = tiny.output(model.eval(), tiny.tokens())
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=rf"layer\.0\..*: .*{called}.*merge_and_unload"):
        compact(model, inplace=True)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(tiny.output(model, tiny.tokens()), before)

    # The remedy leaves the gates where they are.
    merged = model.merge_and_unload()  # type: ignore[operator]
    assert gated_layers(merged)
    torch.testing.assert_close(tiny.output(merged, tiny.tokens()), before)
    small = compact(merged)
    others = set(adapter_for(merged).gated(merged)) - set(gated_layers(merged))
    # The bound speaks of gated layers: the others get wrappers without gates.
    attach_fixed(merged, dict.fromkeys(others, (None, None)))
    bound = model_bound(merged, lambda m: tiny.output(m, tiny.tokens()))
    difference = tiny.output(small, tiny.tokens()) - tiny.output(merged, tiny.tokens())
    assert (difference.abs() <= bound).all()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_what_peft_has_merged_is_taken_whatever_it_was() -> None:
    peft = pytest.importorskip("peft")
    model = attach(
        peft_model(peft.IA3Config(feedforward_modules=["intermediate.dense"], **TARGETS)),
        GateConfig(modules=("*.query",)),
    )
    tiny.scatter_gates(model)
    before = tiny.output(model.eval(), tiny.tokens())
    model.merge_adapter()  # type: ignore[operator]
    torch.testing.assert_close(tiny.output(compact(model), tiny.tokens()), before)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_what_peft_has_merged_and_switched_off_is_refused() -> None:
    """The next call would take it out of the weight again."""
    peft = pytest.importorskip("peft")
    model = attach(peft_model(peft.LoraConfig(r=2, **TARGETS)), GateConfig(modules=("*.query",)))
    model.merge_adapter()  # type: ignore[operator]
    with (
        model.disable_adapter(),  # type: ignore[operator]
        pytest.raises(ValueError, match="switched off"),
    ):
        compact(model)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["AdaLoraConfig", "LoraConfig"])
def test_other_ways_to_plain_low_rank_terms_are_merged(name: str) -> None:
    peft = pytest.importorskip("peft")
    if name == "AdaLoraConfig":
        config = peft.AdaLoraConfig(init_r=2, target_r=2, total_step=10, **TARGETS)
    else:
        config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["query.weight"])
    model = attach(peft_model(config), GateConfig(modules=("*.query", "*.key")))
    tiny.scatter_gates(model)
    before = tiny.output(model.eval(), tiny.tokens())
    torch.testing.assert_close(tiny.output(compact(model), tiny.tokens()), before)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_of_other_layers_changes_nothing_here() -> None:
    peft = pytest.importorskip("peft")
    model = peft_model(peft.LoraConfig(r=2, target_modules=["query"]))
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["value"]))  # type: ignore
    model.base_model.set_adapter(["default", "other"])  # type: ignore[operator, union-attr]
    attach(model, GateConfig(modules=("*.query", "*.value")))
    tiny.scatter_gates(model)
    before = tiny.output(model.eval(), tiny.tokens())
    torch.testing.assert_close(tiny.output(compact(model), tiny.tokens()), before)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_one_adapter_layer_inside_another_is_refused() -> None:
    peft = pytest.importorskip("peft")
    from peft import PeftMixedModel

    model = PeftMixedModel(
        tiny.tiny_model("bert"), peft.LoHaConfig(r=2, target_modules=["query"]), "first"
    )
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["query"]))
    model.set_adapter(["first", "second"])
    plain = model.double().eval().base_model.model
    outer = plain.bert.encoder.layer[0].attention.self.query
    assert hasattr(outer, "lora_A")
    attach(plain, GateConfig(modules=("*.query",)))
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"0\.attention\.self\.query.*another one inside.*merge"
        ):
            compact(plain)
        outer.merge()  # the one inside is not


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_prompt_learning_is_refused() -> None:
    model = tiny.tiny_model("bert")
    peft = pytest.importorskip("peft")
    prompted = peft.get_peft_model(
        copy.deepcopy(model), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="prompts"):
        unwrap(prompted)


HALVES = [torch.bfloat16, torch.float16]
# Roundings of an entry of s (W + t B A) r c in float32, with B A of rank 2: two products and their
# sum, t, the addition, the gates r and c, and the scale s.
MERGED = 2 + 1 + 1 + 2 + 1


def low_rank_model(dtype: torch.dtype, factors: torch.dtype) -> nn.Module:
    """LoRA on every linear layer, inside gates of eighths in the first block, beside them in the
    second; the numbers are those of ``dtype`` and ``factors``."""
    peft = pytest.importorskip("peft")
    base = tiny.tiny_model("bert")
    names = adapter_for(base).gated(base)
    config = peft.LoraConfig(r=2, lora_alpha=1, target_modules=names)
    model: nn.Module = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
                parameter.copy_(parameter.to(factors))
            else:
                parameter.copy_(parameter.to(dtype))
    gates = {}
    for name, layer in ((n, base.get_submodule(n)) for n in names if ".layer.0." in n):
        rows = torch.randint(0, 9, (layer.out_features,), generator=generator) / 8
        cols = torch.randint(0, 9, (layer.in_features,), generator=generator) / 8
        gates[name] = (rows, cols)
    attach_fixed(model, gates)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(factors if ".lora_" in name else dtype)
    return model.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("factors", [*HALVES, torch.float32])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_merged_and_folded_in_float32_and_rounded_once(
    dtype: torch.dtype, factors: torch.dtype, inplace: bool
) -> None:
    model = low_rank_model(dtype, factors)
    exact = compact(copy.deepcopy(model).double()).state_dict()
    absolute = copy.deepcopy(model).double()
    for parameter in absolute.parameters():
        parameter.data.abs_()
    sizes = compact(absolute).state_dict()  # |s| (|W| + |t| |B| |A|) |r| |c|: nothing cancels
    found = compact(model, inplace=inplace).state_dict()
    assert found.keys() == exact.keys()
    once = torch.finfo(dtype).eps / 2
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, exact[name])
            continue
        assert tensor.dtype == dtype
        bound = once * exact[name].abs() + (1 + once) * gamma(MERGED, torch.float32) * sizes[name]
        # Below the smallest normal number half precision has absolute steps.
        bound = bound.clamp_min(torch.finfo(dtype).tiny * torch.finfo(dtype).eps)
        assert ((tensor.double() - exact[name]).abs() <= bound).all(), name


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_numbers_are_merged_as_peft_merges_them(dtype: torch.dtype) -> None:
    model = low_rank_model(dtype, dtype)
    merged = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    assert gated_layers(merged)
    expected, found = compact(merged).state_dict(), compact(model).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_layer_with_lora_keeps_to_the_bound(dtype: torch.dtype) -> None:
    for name, gated in gated_layers(low_rank_model(dtype, dtype)).items():
        x = torch.randn(3, gated.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
        difference = compact(gated)(x).double() - gated(x).double()
        assert (difference.abs() <= linear_bound(gated, x)).all(), name


@pytest.mark.parametrize("dtype", HALVES)
def test_a_merged_weight_has_the_precision_of_the_layer_unless_asked_otherwise(
    dtype: torch.dtype,
) -> None:
    gated = next(iter(gated_layers(low_rank_model(dtype, dtype)).values()))
    wide, bias = dense_weight(gated.base, rounded=False)
    assert wide.dtype == torch.float32
    assert bias is not None
    assert bias.dtype == dtype
    assert torch.equal(dense_weight(gated.base)[0], wide.to(dtype))
    assert dense_weight(gated.base.base_layer, rounded=False)[0].dtype == dtype
