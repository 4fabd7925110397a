"""BERT, and sentence encoders such as MiniLM that are BERT by configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from finegates.adapters.stack import LayerStackAdapter
from finegates.blocks import Attention, Block, FeedForward, HeadSizes
from finegates.modules.attention import EncoderAttention


class BertAdapter(LayerStackAdapter):
    """Encoder layers after BERT: attention with biases, no rotary embeddings, no gate projection.

    Of a classifier, the head is ``bert.pooler`` and ``classifier``. ELECTRA has the same
    layers, and a head without a pooler.
    """

    model_types = ("bert", "electra")
    stack = "encoder.layer"
    attention_classes = EncoderAttention.classes
    head_width = "attention_head_size"

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """An :class:`EncoderAttention`."""
        return EncoderAttention(module, sizes, ("query", "key", "value"))

    def block(self, path: str, config: Any) -> Block:
        """Attention and feed-forward part of one layer."""
        heads: int = config.num_attention_heads
        return Block(
            path=path,
            attentions=(
                Attention(
                    path=f"{path}.attention.self",
                    q=f"{path}.attention.self.query",
                    k=f"{path}.attention.self.key",
                    v=f"{path}.attention.self.value",
                    o=f"{path}.attention.output.dense",
                    heads=heads,
                    kv_heads=heads,
                    head_dim=config.hidden_size // heads,
                    joint="qkv",
                ),
            ),
            feed_forward=FeedForward(
                up=f"{path}.intermediate.dense",
                down=f"{path}.output.dense",
                gate=None,
                activation=config.hidden_act,
                phi=f"{path}.intermediate.intermediate_act_fn",
            ),
        )
