"""BERT, and sentence encoders such as MiniLM that are BERT by configuration."""

from __future__ import annotations

from torch import nn

from finegates.adapters.base import (
    Adapter,
    Attention,
    Block,
    FeedForward,
    base_prefix,
    unwrap,
)


class BertAdapter(Adapter):
    """Encoder layers after BERT: attention with biases, no rotary embeddings, no gate projection.

    Of a classifier, the head is ``bert.pooler`` and ``classifier``.
    """

    model_types = ("bert",)

    def encoder(self, model: nn.Module) -> str:
        """``bert.encoder``, or ``encoder`` in the base model."""
        return f"{base_prefix(unwrap(model))}encoder"

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """As many as ``config.num_hidden_layers``."""
        plain = unwrap(model)
        config = plain.config
        stack = f"{self.encoder(plain)}.layer"
        return tuple(
            Block(
                path=f"{stack}.{index}",
                attention=Attention(
                    q=f"{stack}.{index}.attention.self.query",
                    k=f"{stack}.{index}.attention.self.key",
                    v=f"{stack}.{index}.attention.self.value",
                    o=f"{stack}.{index}.attention.output.dense",
                    heads=config.num_attention_heads,  # type: ignore[union-attr, arg-type]
                    kv_heads=config.num_attention_heads,  # type: ignore[union-attr, arg-type]
                    head_dim=config.hidden_size // config.num_attention_heads,  # type: ignore
                ),
                feed_forward=FeedForward(
                    up=f"{stack}.{index}.intermediate.dense",
                    down=f"{stack}.{index}.output.dense",
                    gate=None,
                    activation=config.hidden_act,  # type: ignore[union-attr, arg-type]
                ),
            )
            for index in range(config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        )
