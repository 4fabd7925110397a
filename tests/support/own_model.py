"""A classifier of text whose classes are not of transformers, with and without its layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

import finegates as fg
from finegates.adapters import AttentionSpec, FeedForwardSpec
from support.tiny import scatter_gates

VOCABULARY = 40


class OwnConfig(PretrainedConfig):
    model_type = "own_of_the_tests"

    def __init__(self, width: int = 24, heads: int = 4, **values: Any) -> None:
        self.width = width
        self.heads = heads
        super().__init__(**values)


class OwnAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.size = width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        q, k, v = (
            layer(hidden).view(batch, length, self.heads, self.size).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o(mixed.reshape(batch, length, self.heads * self.size))


class OwnFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.act(self.up(hidden)))


class OwnBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = OwnAttention(width, heads)
        self.feed = OwnFeedForward(width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden)
        return hidden + self.feed(hidden)


class OwnNet(nn.Module):
    """A plain module."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(OwnBlock(width, heads) for _ in range(2))
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return {"logits": self.head(hidden.mean(1))}


class OwnModel(PreTrainedModel):
    """The same in the layout of transformers."""

    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.net = OwnNet(config.width, config.heads)
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> dict[str, Tensor]:
        return self.net(input_ids)


SPECS = (
    AttentionSpec(
        classes=("support.own_model.OwnAttention",),
        q="q",
        k="k",
        v="v",
        o="o",
        width="size",
        sizes={"heads": "heads"},
    ),
    FeedForwardSpec(classes=("support.own_model.OwnFeedForward",), up="up", down="down", phi="act"),
)


def gated(model: nn.Module) -> Any:
    """The model with gates of which some are closed; the descriptions must be registered."""
    fg.attach(model, fg.GateConfig(sequence_length=8))
    scatter_gates(model, mean=0.7)
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(16).view(2, 8))["logits"]
    return found
