"""DeBERTa-v2 and -v3: scores of contents and of relative positions from the same projections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from finegates.adapters.stack import LayerStackAdapter
from finegates.blocks import Attention, Block, FeedForward, HeadSizes
from finegates.modules.likeness import check_like


class DebertaV2Adapter(LayerStackAdapter):
    """DeBERTa's encoder layers.

    Every term of a score is a product of one row of q with one of k, for tokens and for relative
    positions, as long as both share the projections (``config.share_att_key``, true for all
    released models). With separate projections for positions, heads keep their sizes.

    Queries, keys and values remain three matmuls: a fused one would also compute values of the
    relative positions, which are often as many as the tokens and have no values.
    """

    model_types = ("deberta-v2",)
    stack = "encoder.layer"
    attention_classes = ("deberta_v2.DisentangledSelfAttention",)
    head_width = "attention_head_size"

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """The same module: it takes its sizes from attributes."""
        check_like(module, self.attention_classes)
        module.num_attention_heads = len(sizes.heads)  # type: ignore[assignment]
        module.attention_head_size = sizes.width  # type: ignore[assignment]
        module.all_head_size = len(sizes.heads) * sizes.width  # type: ignore[assignment]
        module.finegates_heads = sizes  # type: ignore[assignment]
        return module

    def query_scale(self, module: nn.Module, sizes: HeadSizes) -> float:
        """sqrt(width / head_dim), in float32.

        The module divides scores by the root of the width that it finds, which it computes in
        float32.
        """
        terms = 1 + sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))  # type: ignore
        found, meant = (math.sqrt(size * terms) for size in (sizes.width, sizes.head_dim))
        return _float32(found) / _float32(meant)

    def block(self, path: str, config: Any) -> Block:
        """Attention and feed-forward part of one layer."""
        module = f"{path}.attention.self"
        heads = config.num_attention_heads
        own_positions = config.relative_attention and not getattr(config, "share_att_key", False)
        attention = Attention(
            path=module,
            q=f"{module}.query_proj",
            k=f"{module}.key_proj",
            v=f"{module}.value_proj",
            o=f"{path}.attention.output.dense",
            heads=heads,
            kv_heads=heads,
            head_dim=getattr(config, "attention_head_size", config.hidden_size // heads),
            narrows=not own_positions,
        )
        feed_forward = FeedForward(
            up=f"{path}.intermediate.dense",
            down=f"{path}.output.dense",
            gate=None,
            activation=config.hidden_act,
            phi=f"{path}.intermediate.intermediate_act_fn",
        )
        return Block(path, (attention,), feed_forward)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32, device="cpu"))
