"""MPNet: BERT's layers with relative position scores shared by all layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from finegates.adapters.stack import LayerStackAdapter
from finegates.blocks import Attention, Block, FeedForward, HeadSizes
from finegates.modules.joint import multiply_states, take_apart
from finegates.modules.likeness import check_like


class MpnetAdapter(LayerStackAdapter):
    """MPNet's encoder layers.

    The encoder computes the position scores of all heads once and passes them to every layer. A
    layer without some heads selects the scores of its kept heads.

    Of a classifier, the head is ``classifier`` (it has no pooler).
    """

    model_types = ("mpnet",)
    stack = "encoder.layer"
    attention_classes = ("mpnet.MPNetSelfAttention",)
    head_width = "attention_head_size"

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """The same module: it takes its sizes from attributes."""
        check_like(module, self.attention_classes)
        module.num_attention_heads = len(sizes.heads)  # type: ignore[assignment]
        module.attention_head_size = sizes.width  # type: ignore[assignment]
        module.all_head_size = len(sizes.heads) * sizes.width  # type: ignore[assignment]
        module.finegates_heads = sizes  # type: ignore[assignment]
        if sizes.fused:
            take_apart(module, part.joint, part.joint)  # names of one letter: q, k, v
            module.register_forward_pre_hook(multiply_states, with_kwargs=True)
        if len(sizes.heads) < part.heads:
            module.register_buffer("kept_heads", _index(sizes.heads, module), persistent=False)
            module.register_forward_pre_hook(_keep_biases, with_kwargs=True)
        return module

    def query_scale(self, module: nn.Module, sizes: HeadSizes) -> float:
        """sqrt(width / head_dim): the module divides scores by the root of the width it finds."""
        return math.sqrt(sizes.width) / math.sqrt(sizes.head_dim)

    def block(self, path: str, config: Any) -> Block:
        """Attention and feed-forward part of one layer."""
        module = f"{path}.attention.attn"
        heads: int = config.num_attention_heads
        attention = Attention(
            path=module,
            q=f"{module}.q",
            k=f"{module}.k",
            v=f"{module}.v",
            o=f"{module}.o",
            heads=heads,
            kv_heads=heads,
            head_dim=config.hidden_size // heads,
            joint="qkv",
        )
        feed_forward = FeedForward(
            up=f"{path}.intermediate.dense",
            down=f"{path}.output.dense",
            gate=None,
            activation=config.hidden_act,
            phi=f"{path}.intermediate.intermediate_act_fn",
        )
        return Block(path, (attention,), feed_forward)


def _index(heads: tuple[int, ...], module: nn.Module) -> torch.Tensor:
    """The kept heads as int64, on the module's device; on the CPU if that is meta."""
    device = next(module.parameters()).device
    return torch.tensor(heads, dtype=torch.int64, device="cpu" if device.type == "meta" else device)


def _keep_biases(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replaces the position scores (B, all heads, L, L) by those of the kept heads."""

    def kept(bias: Any) -> Any:
        return None if bias is None else bias.index_select(1, module.kept_heads)

    if len(args) > _POSITION_BIAS:
        before, after = args[:_POSITION_BIAS], args[_POSITION_BIAS + 1 :]
        return (*before, kept(args[_POSITION_BIAS]), *after), kwargs
    return args, {**kwargs, "position_bias": kept(kwargs.get("position_bias"))}


_POSITION_BIAS = 2
"""Position of the scores among the module's arguments, after states and mask."""
