"""BERT, and sentence encoders such as MiniLM that are BERT by configuration."""

from __future__ import annotations

from torch import nn

from finegates.adapters.attention import EncoderAttention
from finegates.adapters.base import (
    Adapter,
    Attention,
    Block,
    FeedForward,
    HeadSizes,
    base_prefix,
    unwrap,
)


class BertAdapter(Adapter):
    """Encoder layers after BERT: attention with biases, no rotary embeddings, no gate projection.

    Of a classifier, the head is ``bert.pooler`` and ``classifier``.
    """

    model_types = ("bert",)

    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        """``bert.encoder``, or ``encoder`` in the base model."""
        return (f"{base_prefix(unwrap(model))}encoder",)

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """As many as ``config.num_hidden_layers``."""
        plain = unwrap(model)
        (stack,) = self.encoder(plain)
        config = plain.config
        return tuple(
            _block(f"{stack}.layer.{index}", config)
            for index in range(config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        )

    def narrow(self, module: nn.Module, sizes: HeadSizes) -> nn.Module:
        """An :class:`EncoderAttention`."""
        return EncoderAttention(module, sizes, ("query", "key", "value"))


def _block(path: str, config: object) -> Block:
    heads: int = config.num_attention_heads  # type: ignore[attr-defined]
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
                head_dim=config.hidden_size // heads,  # type: ignore[attr-defined]
                fuses=True,
            ),
        ),
        feed_forward=FeedForward(
            up=f"{path}.intermediate.dense",
            down=f"{path}.output.dense",
            gate=None,
            activation=config.hidden_act,  # type: ignore[attr-defined]
        ),
    )
