"""Splinter, a type without descriptions of the library, and its descriptions."""

from __future__ import annotations

import torch
from torch import nn
from transformers import SplinterConfig, SplinterModel

import finegates as fg
from finegates.adapters import AttentionSpec, FeedForwardSpec, described
from finegates.adapters.registered import REGISTERED
from support.tiny import scatter_gates

SPECS = (
    AttentionSpec(
        classes=("splinter.SplinterSelfAttention",),
        q="query",
        k="key",
        v="value",
        o="^output.dense",
        width="attention_head_size",
        sizes={"num_attention_heads": "heads", "all_head_size": "heads*width"},
        joint=True,
    ),
    FeedForwardSpec(
        classes=("splinter.SplinterLayer",),
        up="intermediate.dense",
        down="output.dense",
        phi="intermediate.intermediate_act_fn",
    ),
)


def forget() -> None:
    """As in a process that registered nothing."""
    for _, name in REGISTERED:
        described._attention_specs().pop(name, None)
        described._feed_specs().pop(name, None)
    REGISTERED.clear()


def splinter() -> SplinterModel:
    """A tiny dense model."""
    torch.manual_seed(0)
    config = SplinterConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
    )
    return SplinterModel(config).eval()


def gated_splinter() -> nn.Module:
    """A tiny model with gates; the descriptions must be registered."""
    model = fg.attach(splinter(), fg.GateConfig(sequence_length=16))
    scatter_gates(model, mean=0.7)
    return model.eval()
