"""Every module with matrices in the layers is described, or noted with what is known of why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from finegates.adapters.described import class_name
from finegates.modules.linear import is_linear
from finegates.spec_search.description import describe
from finegates.spec_search.layers import find_layers
from finegates.spec_search.replay import OnlyAdapter
from support.described import described_inputs, described_model


def notes(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[str, ...]:
    return describe(model.eval(), inputs, known=OnlyAdapter()).notes


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", ["esm", "deberta", "bloom", "swin", "gpt_oss", "deepseek_v3", "qwen3_5_text", "t5"]
)
def test_every_linear_layer_that_no_spec_has_is_in_a_module_with_a_note(name: str) -> None:
    model = described_model(name)
    description = describe(model, described_inputs(name), known=OnlyAdapter())
    adapter = OnlyAdapter(*description.specs)
    described = tuple(
        [
            *adapter.gated(model),
            *(f"{each.path}." for block in adapter.blocks(model) for each in block.attentions),
        ]
    )
    for layer in find_layers(model):
        for path, module in model.get_submodule(layer).named_modules(prefix=layer):
            if is_linear(module) and not path.startswith(described):
                around = path
                names = []
                while around != layer:
                    around = around.rpartition(".")[0]
                    names.append(class_name(type(model.get_submodule(around))))
                assert any(note.startswith(each) for note in description.notes for each in names), (
                    path
                )


def xlnet() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.XLNetConfig(
        d_model=24, n_layer=2, n_head=4, d_inner=40, vocab_size=48, pad_token_id=0
    )
    return transformers.XLNetModel(config), {"input_ids": torch.arange(9)[None]}


def levit() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.LevitConfig(
        image_size=32,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    )
    return transformers.LevitModel(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


class Around(nn.Module):
    """A model of torch's own modules."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states)
        return states


class Wrapped(nn.Module):
    """A layer with an attention of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.norm = nn.LayerNorm(24)

    def forward(self, states: Tensor) -> Tensor:
        inner = self.norm(states)
        out: Tensor = states + self.attention(inner, inner, inner, need_weights=False)[0]
        return out


def of_torch() -> tuple[nn.Module, dict[str, Tensor]]:
    return Around([Wrapped(), Wrapped()]), {"states": torch.randn(2, 5, 24)}


def encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    layers: list[nn.Module] = [
        nn.TransformerEncoderLayer(24, 4, 40, batch_first=True) for _ in range(2)
    ]
    return Around(layers), {"states": torch.randn(2, 5, 24)}


@pytest.mark.parametrize(
    ("made", "texts"),
    [
        (xlnet, ["XLNetRelativeAttention: its matrices are parameters (q, k, v, o, r,"]),
        (
            levit,
            ["LevitAttention", "LevitAttentionSubsample: its names suggest no description ("],
        ),
        (of_torch, ["MultiheadAttention: nn.MultiheadAttention multiplies by weights of its"]),
        (encoder, ["TransformerEncoderLayer: nn.TransformerEncoderLayer multiplies by weights"]),
    ],
)
def test_what_cannot_be_described_is_noted_with_the_reason(
    made: Callable[[], tuple[nn.Module, dict[str, Tensor]]], texts: list[str]
) -> None:
    torch.manual_seed(0)
    found = notes(*made())
    for text in texts:
        assert any(text in note for note in found), found


class Skipping(Around):
    """A model that leaves out its last layer."""

    def __init__(self) -> None:
        super().__init__([nn.Sequential(nn.Linear(24, 24), nn.Tanh()) for _ in range(2)])
        self.layers.append(Wrapped())

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.layers[1](self.layers[0](states))
        return out


def test_a_layer_that_the_inputs_do_not_reach_is_noted() -> None:
    found = notes(Skipping(), {"states": torch.randn(2, 5, 24)})
    assert any("Wrapped: it is not called on these inputs, so it stays whole" in n for n in found)
    assert any("Sequential: 0 alone is not described" in note for note in found)
