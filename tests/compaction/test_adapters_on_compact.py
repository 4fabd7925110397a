"""peft's adapters on compact models: found by the dense layers' names, with the kept sizes."""

import copy
import re

import peft
import pytest
import torch
from torch import nn

import finegates as fg
from finegates.compaction import CompactLinear, compact
from finegates.compaction.peft_targets import product_paths
from finegates.formats.compact import load, save
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support.tiny import ARCHITECTURES, is_causal, output, scatter_gates, tiny_model, tokens

# By hand: the number of matmuls in a compact block for the layers that peft targets by default.
DEFAULTS = {
    "bert": 1,  # query and value are part of one matmul
    "roberta": 1,
    "deberta-v2": 2,  # one matmul each
    "t5-gated": None,  # encoder and decoder differ: at least one each
    "llama": 1,
    "mistral": 1,
    "qwen2": 1,
    "qwen3": 1,
    "gpt2": 1,
}


def small_model(architecture, variant="classifier", preset="structured", dtype=torch.float32):
    model = tiny_model(architecture, variant, dtype=dtype)
    attach(model, GateConfig(preset=preset, sequence_length=7))
    scatter_gates(model)
    return compact(model)


def lora_layers(model):
    return {n: m for n, m in model.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}


@torch.no_grad()
def adapt(model, seed=0):
    """Gives the factors non-zero values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "ia3_" in name:
            parameter.normal_(0.5, 0.3, generator=generator)
    return model.eval()


@torch.no_grad()
def logits(model):
    return output(model, tokens())


@pytest.mark.parametrize("architecture", DEFAULTS)
def test_the_defaults_of_lora_put_factors_into_every_block(architecture):
    small = small_model(architecture)
    there = logits(small)
    wrapped = peft.get_peft_model(small, peft.LoraConfig(task_type="SEQ_CLS")).eval()
    layers = lora_layers(wrapped)
    blocks = [b.path for b in fg.adapters.adapter_for(wrapped).blocks(wrapped)]
    for block in blocks:
        inside = [name for name in layers if f"{block}." in name]
        assert len(inside) == (DEFAULTS[architecture] or len(inside)) > 0
    assert torch.equal(logits(wrapped), there)  # factors are zero at the start


@pytest.mark.sampled
@pytest.mark.parametrize("architecture", DEFAULTS)
@pytest.mark.parametrize("way", ["add_lora", "all-linear", "regex"])
def test_factors_have_the_sizes_of_what_is_kept(architecture, way):
    small = small_model(architecture)
    products = {
        f"{name}.linear": module.kept
        for name, module in small.named_modules()
        if isinstance(module, CompactLinear)
    }
    if way == "add_lora":
        wrapped = fg.add_lora(small)
    else:
        names = fg.adapters.adapter_for(small).gated(small)
        target = way if way == "all-linear" else "|".join(map(re.escape, names))
        wrapped = peft.get_peft_model(small, peft.LoraConfig(target_modules=target))
    found = {
        name.removeprefix("base_model.model."): (
            module.lora_B.default.out_features,
            module.lora_A.default.in_features,
        )
        for name, module in lora_layers(wrapped).items()
    }
    assert len(found) > 4
    assert all(found[name] == kept for name, kept in products.items() if name in found)
    assert products.keys() <= found.keys()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("architecture", DEFAULTS)
def test_merging_gives_a_compact_model_that_saves(architecture, tmp_path):
    wrapped = adapt(fg.add_lora(small_model(architecture, dtype=torch.float64)))
    there = logits(wrapped)
    with pytest.raises(ValueError, match="merge adapters first"):
        save(wrapped.get_base_model(), tmp_path / "unmerged")
    with pytest.raises(ValueError, match="merge adapters first"):
        uniform(wrapped)
    again = compact(copy.deepcopy(wrapped))
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits(merged), there)
    torch.testing.assert_close(logits(again), there)
    for number, model in enumerate((merged, again)):
        assert any(isinstance(module, CompactLinear) for module in model.modules())
        save(model, tmp_path / str(number))
        assert torch.equal(logits(load(tmp_path / str(number))), logits(model))
        torch.testing.assert_close(logits(uniform(model)), there)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_a_saved_adapter_comes_back_on_another_copy(architecture, tmp_path):
    first, second = small_model(architecture), small_model(architecture)
    wrapped = adapt(peft.get_peft_model(first, peft.LoraConfig(task_type="SEQ_CLS")))
    wrapped.save_pretrained(tmp_path)
    assert torch.equal(
        logits(peft.PeftModel.from_pretrained(second, tmp_path).eval()), logits(wrapped)
    )


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "llama", "gpt2", "t5-gated"])
def test_ia3_scales_products_and_merges(architecture):
    small = small_model(architecture, dtype=torch.float64)
    wrapped = adapt(peft.get_peft_model(small, peft.IA3Config(task_type="SEQ_CLS")))
    scaled = {n: m for n, m in wrapped.named_modules() if hasattr(m, "ia3_l") and len(m.ia3_l)}
    downs = [name for name, module in scaled.items() if module.is_feedforward]
    assert len(scaled) > len(downs) >= 2
    there = logits(wrapped)
    torch.testing.assert_close(logits(wrapped.merge_and_unload()), there)


def test_ranks_by_pattern_reach_the_products():
    config = peft.LoraConfig(
        r=2, target_modules=["query", "intermediate.dense"], rank_pattern={"intermediate.dense": 3}
    )
    wrapped = peft.get_peft_model(small_model("bert"), config)
    ranks = {
        name.rsplit(".", 2)[-2]: module.r["default"]
        for name, module in lora_layers(wrapped).items()
    }
    assert ranks == {"qkv": 2, "dense": 3}


def test_layers_to_transform_and_exclusions_hold_for_products():
    config = peft.LoraConfig(
        target_modules=["query_proj", "value_proj"],
        layers_to_transform=[1],
        exclude_modules=["value_proj"],
    )
    wrapped = peft.get_peft_model(small_model("deberta-v2"), config)
    assert [name.partition("encoder.")[2] for name in lora_layers(wrapped)] == [
        "layer.1.attention.self.query_proj.linear"
    ]


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_dense_models_are_adapted_as_before(architecture):
    small_model("bert")  # registers the compact layers with peft
    dense = tiny_model(architecture, dtype=torch.float32)
    assert product_paths(dense) == {}
    wrapped = peft.get_peft_model(dense, peft.LoraConfig(task_type="SEQ_CLS"))
    names = {name.rpartition(".")[2] for name in lora_layers(wrapped)}
    assert names == {
        "bert": {"query", "value"}, "llama": {"q_proj", "v_proj"}, "gpt2": {"c_attn"},
    }[architecture]  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_products_of_a_compact_model_are_linear_layers(architecture):
    small = small_model(architecture, "language" if is_causal(architecture) else "classifier")
    products = product_paths(small)
    dense = tiny_model(architecture, "language" if is_causal(architecture) else "classifier")
    assert products.keys() >= set(fg.adapters.adapter_for(dense).gated(dense))
    assert all(type(small.get_submodule(path)) is nn.Linear for path in products.values())


def test_state_dicts_keep_the_names_of_layers_and_read_either():
    layer = CompactLinear(torch.randn(3, 4), torch.randn(3))
    state = layer.state_dict(prefix="layer.")
    assert state.keys() == {"layer.weight", "layer.bias"}
    other = nn.ModuleDict({"layer": CompactLinear(torch.zeros(3, 4), torch.zeros(3))})
    other.load_state_dict(state)
    assert torch.equal(other["layer"].weight, layer.weight)
    inner = {name.replace("layer.", "layer.linear."): value for name, value in state.items()}
    other.load_state_dict(inner)
    assert torch.equal(other["layer"].bias, layer.bias)


def test_a_weight_set_from_outside_is_the_products():
    layer = CompactLinear(torch.randn(3, 4))
    embeddings = nn.Embedding(3, 4)
    layer.weight = embeddings.weight
    assert layer.linear.weight is embeddings.weight
    assert dict(layer.named_parameters()).keys() == {"linear.weight"}


def test_hooks_on_the_product_see_its_call():
    layer = CompactLinear(torch.randn(3, 4), rows=torch.tensor([0, 2, 4]), out_features=6)
    seen = []
    layer.linear.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    with torch.no_grad():
        layer(torch.randn(5, 4))
    assert seen == [(5, 3)]
