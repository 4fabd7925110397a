"""Llama: causal layers with rotary embeddings, grouped queries and a gate projection."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from finegates.adapters.stack import LayerStackAdapter
from finegates.blocks import Attention, Block, FeedForward, HeadSizes, Rotary
from finegates.modules.attention import RotaryAttention
from finegates.modules.feed_forward import JoinedFeedForward


class LlamaAdapter(LayerStackAdapter):
    """Llama and what shares its layers; the language-model head is never gated.

    Attributes:
        qk_norm: whether the architecture normalises queries and keys.
    """

    model_types = ("llama",)
    stack = "layers"
    attention_classes = RotaryAttention.classes
    feed_forward_classes = JoinedFeedForward.classes
    uniform: ClassVar[dict[str, str]] = {
        "intermediate": "intermediate_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
    }
    qk_norm: ClassVar[bool] = False

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """A :class:`RotaryAttention`."""
        return RotaryAttention(module, sizes)

    def join(self, module: nn.Module) -> nn.Module:
        """A :class:`JoinedFeedForward`."""
        return JoinedFeedForward(module)

    def block(self, path: str, config: Any) -> Block:
        """Attention and feed-forward part of one layer."""
        heads = config.num_attention_heads
        attention = Attention(
            path=f"{path}.self_attn",
            q=f"{path}.self_attn.q_proj",
            k=f"{path}.self_attn.k_proj",
            v=f"{path}.self_attn.v_proj",
            o=f"{path}.self_attn.o_proj",
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            rotary=Rotary(),
            fixed_scores=self.qk_norm,
            joint="qkv",
        )
        feed_forward = FeedForward(
            up=f"{path}.mlp.up_proj",
            down=f"{path}.mlp.down_proj",
            gate=f"{path}.mlp.gate_proj",
            activation=config.hidden_act,
            path=f"{path}.mlp",
            phi=f"{path}.mlp.act_fn",
        )
        return Block(path, (attention,), feed_forward)
