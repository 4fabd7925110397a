"""Compaction of peft layers: low-rank terms are merged, all other adapters are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from finegates.adapters import adapter_for, unwrap
from finegates.compaction import compact
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import gated_layers
from finegates.modules.linear import dense_weight
from support import tiny
from support.tolerance import gamma, linear_bound, model_bound


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
# Names of peft.LoraConfig and similar classes, their options, and their names in the refusal.
NOT_PLAIN_LORA = {
    "ia3": ("IA3Config", {"feedforward_modules": ["intermediate.dense"]}, "ia3"),
    "loha": ("LoHaConfig", {"r": 2}, "loha"),
    "lokr": ("LoKrConfig", {"r": 2}, "lokr"),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False}, "oft"),
    "vera": ("VeraConfig", {"r": 2}, "vera"),
    "dora": ("LoraConfig", {"r": 2, "use_dora": True}, "DoRA"),
    "kasa": ("LoraConfig", {"r": 2, "kasa_config": "KasaConfig"}, "Kasa"),
    "bias": ("LoraConfig", {"r": 2, "lora_bias": True}, "its own bias"),
}


def peft_model(config: Any) -> nn.Module:
    """A classifier in peft's wrapper, with random values in all trainable parameters."""
    peft = pytest.importorskip("peft")
    model: nn.Module = peft.get_peft_model(tiny.tiny_model("bert"), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.5, 0.3, generator=generator)
    return model.double().eval()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("gated", ["*.query", "*.key"], ids=["inside gates", "next to gates"])
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

    # Merging, the suggested remedy, keeps the gates.
    merged = model.merge_and_unload()  # type: ignore[operator]
    assert gated_layers(merged)
    torch.testing.assert_close(tiny.output(merged, tiny.tokens()), before)
    small = compact(merged)
    others = set(adapter_for(merged).gated(merged)) - set(gated_layers(merged))
    # The bound is defined for gated layers: the others get wrappers without gates.
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
    """The next call would unmerge it."""
    peft = pytest.importorskip("peft")
    model = attach(peft_model(peft.LoraConfig(r=2, **TARGETS)), GateConfig(modules=("*.query",)))
    model.merge_adapter()  # type: ignore[operator]
    with (
        model.disable_adapter(),  # type: ignore[operator]
        pytest.raises(ValueError, match="disabled"),
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
    assert_merges(attach(peft_model(config), GateConfig(modules=("*.query", "*.key"))))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_of_other_layers_changes_nothing_here() -> None:
    peft = pytest.importorskip("peft")
    model = peft_model(peft.LoraConfig(r=2, target_modules=["query"]))
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["value"]))  # type: ignore
    model.base_model.set_adapter(["default", "other"])  # type: ignore[operator, union-attr]
    assert_merges(attach(model, GateConfig(modules=("*.query", "*.value"))))


def assert_merges(model: nn.Module) -> None:
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
        outer.merge()  # does not merge the inner one


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
    """LoRA on every linear layer, with gates in the first block only.

    The gates are multiples of 1/8. ``dtype`` and ``factors`` are the dtypes of weights and factors.
    """
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
    sizes = compact(absolute).state_dict()  # |s| (|W| + |t| |B| |A|) |r| |c|: no cancellation
    found = compact(model, inplace=inplace).state_dict()
    assert found.keys() == exact.keys()
    once = torch.finfo(dtype).eps / 2
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, exact[name])
            continue
        assert tensor.dtype == dtype
        bound = once * exact[name].abs() + (1 + once) * gamma(MERGED, torch.float32) * sizes[name]
        # Below the smallest normal number, half precision has absolute steps.
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
