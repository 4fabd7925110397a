"""Layers of one class that hold different modules: every module is tried where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from finegates.spec_search.description import Description, describe
from finegates.spec_search.replay import OnlyAdapter
from finegates.specs import is_named_cross
from support.closed_by_description import pruned
from support.described import described_outputs, relative_difference

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "pad_token_id": 0,
}
ORDERS = [
    ("conv", "full_attention", "conv"),
    ("full_attention", "conv", "conv"),
    ("conv", "conv", "full_attention", "conv"),
]


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(4, 48, (2, 9), generator=generator)}


def described(model: nn.Module) -> Description:
    return describe(model, inputs(), known=OnlyAdapter())


def classes(description: Description) -> set[str]:
    return {name.partition(".")[2] for spec in description.specs for name in spec.classes}


def lfm2(order: tuple[str, ...]) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Lfm2Config(
        **SIZES, num_hidden_layers=len(order), layer_types=list(order), block_multiple_of=8
    )
    return transformers.Lfm2Model(config).double().eval()


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_an_attention_in_some_layers_is_found_wherever_they_are(order: tuple[str, ...]) -> None:
    model = lfm2(order)
    description = described(model)
    assert classes(description) == {"Lfm2Attention", "Lfm2MLP"}
    assert [note.partition(":")[0] for note in description.notes] == ["lfm2.Lfm2ShortConv"]
    gated, small = pruned(model, description, 0)
    before, after = (described_outputs(each, inputs()) for each in (gated, small))
    assert relative_difference(before, after) < 1e-11


def test_the_order_of_layers_changes_nothing_of_a_description() -> None:
    one, *others = [sorted(map(str, described(lfm2(order)).specs)) for order in ORDERS]
    assert all(other == one for other in others)


def test_a_feed_forward_part_in_some_layers_is_found_once_and_not_noted() -> None:
    """Every second layer of Jamba has experts instead."""
    torch.manual_seed(0)
    config = transformers.JambaConfig(
        **SIZES,
        num_hidden_layers=4,
        attn_layer_period=4,
        attn_layer_offset=2,
        num_experts=2,
        use_mamba_kernels=False,
        mamba_d_state=4,
    )
    model = transformers.JambaModel(config).eval()
    description = described(model)
    assert classes(description) == {"JambaAttention", "JambaMLP"}
    assert any("JambaMambaMixer" in note for note in description.notes)
    assert not any("JambaMLP" in note or "DecoderLayer" in note for note in description.notes)


@pytest.mark.parametrize(
    "path", ["decoder.layers.0.cross_attention", "layers.1.encoder_decoder_attention.attention"]
)
def test_names_of_attentions_to_an_encoder_are_known(path: str) -> None:
    assert is_named_cross(nn.Linear(1, 1), path)
    assert not is_named_cross(nn.Linear(1, 1), "decoder.layers.0.self_attention")
