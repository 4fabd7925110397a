"""GPT-2: one Conv1D for queries, keys and values, no gate projection."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from finegates.adapters.stack import LayerStackAdapter
from finegates.blocks import Attention, Block, FeedForward, HeadSizes
from finegates.modules.caches import fit_calls
from finegates.modules.likeness import check_like


class Gpt2Adapter(LayerStackAdapter):
    """GPT-2's self-attention and feed-forward layers; cross-attention, if any, stays dense."""

    model_types = ("gpt2",)
    stack = "h"
    attention_classes = ("gpt2.GPT2Attention",)
    uniform: ClassVar[dict[str, str]] = {"intermediate": "n_inner"}

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """The same module: it takes its sizes from attributes."""
        check_like(module, self.attention_classes)
        module.num_heads = len(sizes.heads)  # type: ignore[assignment]
        module.head_dim = sizes.width  # type: ignore[assignment]
        module.split_size = len(sizes.heads) * sizes.width  # type: ignore[assignment]
        module.finegates_heads = sizes  # type: ignore[assignment]
        fit_calls(module)
        return module

    def block(self, path: str, config: Any) -> Block:
        """Attention and feed-forward part of one layer."""
        joint = f"{path}.attn.c_attn"
        attention = Attention(
            path=f"{path}.attn",
            q=joint,
            k=joint,
            v=joint,
            o=f"{path}.attn.c_proj",
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
        )
        feed_forward = FeedForward(
            up=f"{path}.mlp.c_fc",
            down=f"{path}.mlp.c_proj",
            gate=None,
            activation=config.activation_function,
            phi=f"{path}.mlp.act",
        )
        return Block(path, (attention,), feed_forward)
