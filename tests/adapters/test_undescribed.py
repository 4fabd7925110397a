"""Linear layers of a block that no description covers count, and what cannot count is named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

import finegates as fg
from finegates.adapters import adapter_for
from finegates.adapters.described import DescribedAdapter
from finegates.budget import planned_macs
from finegates.cli import main
from finegates.gates.penalty import penalty_of
from finegates.specs import FeedForwardSpec
from support import tiny
from support.described import described_model
from support.described_types import CONFIGURATIONS

LENGTH = 9
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 64,
}


def codegen() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.CodeGenConfig(
        n_embd=16, n_layer=2, n_head=4, rotary_dim=4, vocab_size=48, n_positions=64
    )
    return transformers.CodeGenForCausalLM(config).eval()


def hybrid() -> nn.Module:
    torch.manual_seed(0)
    kinds = ["conv", "full_attention", "conv"]
    config = transformers.Lfm2Config(**_SIZES, layer_types=kinds, block_multiple_of=8)
    return transformers.Lfm2ForCausalLM(config).eval()


def mixture() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(
        **_SIZES,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model: nn.Module = transformers.Qwen2MoeForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    return model


@pytest.fixture(autouse=True)
def _descriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feed-forward parts alone have a description."""
    further = (
        FeedForwardSpec(("codegen.CodeGenMLP",), up="fc_in", down="fc_out", phi="act"),
        FeedForwardSpec(
            ("lfm2.Lfm2MLP",), up="w3", gate="w1", down="w2", phi=None, activation="silu"
        ),
    )
    known = DescribedAdapter(*further)._tables()[FeedForwardSpec]
    monkeypatch.setattr("finegates.adapters.described._feed_specs", lambda: known)


def linear_weights(model: nn.Module) -> int:
    """Of linear layers in blocks, without the routers of experts."""
    return sum(
        module.weight.numel()
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not path.endswith(("lm_head", "mlp.gate"))
    )


def closed(model: nn.Module, target: float) -> nn.Module:
    """The model with the gates closed that structured training would close."""
    fg.attach(model, fg.GateConfig(target=target, sequence_length=LENGTH))
    penalty = penalty_of(model, model.finegates_config)
    penalty.progress = 1.0
    generator = torch.Generator().manual_seed(0)
    for gate in penalty.gates():
        gate.importance.copy_(torch.rand(gate.size, generator=generator))
    penalty.close_least()
    return model.eval()


@pytest.mark.parametrize("make", [codegen, hybrid, mixture])
def test_macs_count_linear_layers_without_a_description(make: Callable[[], nn.Module]) -> None:
    model = make()
    experts = sum(
        block.experts.macs(block.experts.width)
        for block in adapter_for(model).blocks(model)
        if block.experts is not None
    )
    assert fg.macs(model, 2, LENGTH).linear == 2 * LENGTH * (linear_weights(model) + experts)


@pytest.mark.parametrize("make", [codegen, hybrid])
def test_pruning_to_a_target_removes_it_of_all_linear_layers(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = linear_weights(model)
    fg.prune(model, criterion="magnitude", target=0.2, sequence_length=LENGTH)
    planned = planned_macs(model, 1, LENGTH)
    small = fg.compact(model)
    assert fg.macs(small, 1, LENGTH) == planned
    assert linear_weights(small) / before == pytest.approx(0.8, abs=0.02)


def test_training_to_a_target_removes_it_of_all_linear_layers() -> None:
    model = codegen()
    before = linear_weights(model)
    small = fg.compact(closed(model, 0.2))
    kept = fg.macs(small, 1, LENGTH).linear / LENGTH
    assert kept == linear_weights(small)
    assert kept / before == pytest.approx(0.8, abs=0.02)


def test_targets_end_where_undescribed_layers_begin() -> None:
    with pytest.raises(ValueError, match=r"targets end at .*h\.0\.attn.*CodeGenAttention"):
        fg.attach(codegen(), fg.GateConfig(target=0.7, sequence_length=LENGTH))


def test_low_rank_factors_and_gates_around_undescribed_layers_do_not_count() -> None:
    model = codegen()
    dense = fg.macs(model, 1, LENGTH)
    config = peft.LoraConfig(r=2, target_modules=["qkv_proj", "fc_in"])
    model = peft.get_peft_model(model, config)
    assert fg.macs(model, 1, LENGTH) == dense
    fg.attach(model, fg.GateConfig(preset="reference", modules=["*.qkv_proj"]))
    assert fg.macs(model, 1, LENGTH) == dense


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_described_types_have_nothing_without_a_description(name: str) -> None:
    model = described_model(name)
    blocks = adapter_for(model).blocks(model)
    assert [block.undescribed for block in blocks] == [None] * len(blocks)


@pytest.mark.parametrize("name", sorted(tiny.ARCHITECTURES))
def test_own_architectures_have_nothing_without_a_description(name: str) -> None:
    model = tiny.tiny_model(name)
    blocks = adapter_for(model).blocks(model)
    assert [block.undescribed for block in blocks] == [None] * len(blocks)


def attached(model: nn.Module) -> None:
    fg.attach(model, fg.GateConfig(target=0.1, sequence_length=LENGTH))


def attached_one_by_one(model: nn.Module) -> None:
    fg.attach(model, fg.GateConfig(preset="reference"))


def pruned(model: nn.Module) -> None:
    fg.prune(model, criterion="magnitude", target=0.05, sequence_length=LENGTH)


@pytest.mark.parametrize("call", [attached, attached_one_by_one, pruned])
@pytest.mark.parametrize(
    ("make", "classes"),
    [
        (codegen, "CodeGenAttention"),
        (hybrid, "Lfm2ShortConv, Lfm2Attention"),
        (mixture, "Qwen2MoeAttention, Qwen2MoeMLP"),
    ],
)
def test_attaching_and_pruning_name_the_classes_without_a_description(
    make: Callable[[], nn.Module],
    classes: str,
    call: Callable[[nn.Module], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if make is mixture and call is pruned:
        pytest.skip("one-shot pruning leaves experts whole")
    with caplog.at_level(logging.WARNING, "finegates"):
        call(make())
    (line,) = (m for m in caplog.messages if "description" in m)
    assert f"{classes}: " in line
    assert "finegates.describe(model, inputs)" in line


def test_plan_names_the_classes_without_a_description(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    mixture().save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--target", "0.1"]) == 0
    text = capsys.readouterr().out
    assert text.count("Qwen2MoeAttention, Qwen2MoeMLP: ") == 1
    assert text.count("finegates.describe(model, inputs)") == 1
    assert "description" not in caplog.text


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)


class Chosen(nn.Module):
    """Every token goes to some of the experts, which are not stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(4))


class Described(nn.Module):
    def __init__(self, further: nn.Module) -> None:
        super().__init__()
        self.norm, self.feed, self.further = nn.LayerNorm(8), Feed(), further


class Stacked(nn.Module):
    """A layer that occurs twice, and one without any description."""

    def __init__(self, further: nn.Module) -> None:
        super().__init__()
        layer = Described(further)
        self.blocks = nn.ModuleList([layer, layer, further])
        self.head = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("further", "weights", "classes"),
    [
        (nn.Linear(8, 8), 3 * 64, ()),
        (nn.Sequential(nn.Linear(8, 8)), 3 * 64, ("Sequential",)),
        (nn.LayerNorm(8), 0, ()),
        (nn.Conv1d(8, 8, 3), 0, ("Conv1d",)),
        (Chosen(), 0, ("Chosen",)),
    ],
    ids=["a layer", "layers", "a norm", "a convolution", "experts"],
)
def test_what_counts_and_what_is_named(
    further: nn.Module, weights: int, classes: tuple[str, ...]
) -> None:
    spec = FeedForwardSpec((f"{__name__}.Feed",), up="up", down="down", phi="act")
    adapter = DescribedAdapter(spec)
    model = Stacked(further)
    assert fg.macs(model, 1, 1, adapter=adapter).linear == 2 * 2 * 8 * 24 + weights
    parts = [block.undescribed for block in adapter.blocks(model)]
    assert {name for part in parts if part is not None for name in part.classes} == set(classes)
