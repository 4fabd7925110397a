"""DistilBERT: BERT's layers with the output projection inside the attention module."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from finegates.adapters.stack import LayerStackAdapter
from finegates.blocks import Attention, Block, FeedForward, HeadSizes
from finegates.modules.joint import multiply_states, take_apart
from finegates.modules.likeness import check_like

_PROJECTIONS = ("q_lin", "k_lin", "v_lin")


class DistilbertAdapter(LayerStackAdapter):
    """DistilBERT's transformer layers.

    Of a classifier, the head is ``pre_classifier`` and ``classifier``.
    """

    model_types = ("distilbert",)
    stack = "transformer.layer"
    attention_classes = ("distilbert.DistilBertSelfAttention",)
    uniform: ClassVar[dict[str, str]] = {"intermediate": "hidden_dim"}
    head_width = "attention_head_size"

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """The same module: it takes its sizes from attributes and keeps its scale."""
        check_like(module, self.attention_classes)
        module.n_heads = len(sizes.heads)  # type: ignore[assignment]
        module.attention_head_size = sizes.width  # type: ignore[assignment]
        module.dim = len(sizes.heads) * sizes.width  # type: ignore[assignment]
        module.finegates_heads = sizes  # type: ignore[assignment]
        if sizes.fused:
            take_apart(module, _PROJECTIONS, part.joint)
            module.register_forward_pre_hook(multiply_states, with_kwargs=True)
        return module

    def block(self, path: str, config: Any) -> Block:
        """Attention and feed-forward part of one layer."""
        module = f"{path}.attention"
        q, k, v = (f"{module}.{name}" for name in _PROJECTIONS)
        attention = Attention(
            path=module,
            q=q,
            k=k,
            v=v,
            o=f"{module}.out_lin",
            heads=config.n_heads,
            kv_heads=config.n_heads,
            head_dim=config.dim // config.n_heads,
            joint="qkv",
        )
        feed_forward = FeedForward(
            up=f"{path}.ffn.lin1",
            down=f"{path}.ffn.lin2",
            gate=None,
            activation=config.activation,
            phi=f"{path}.ffn.activation",
        )
        return Block(path, (attention,), feed_forward)
