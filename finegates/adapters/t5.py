"""T5: an encoder and a decoder without biases, relative positions shared by all layers of each."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from finegates.adapters.base import (
    Adapter,
    Attention,
    Block,
    FeedForward,
    HeadSizes,
    base_prefix,
    unwrap,
)


class T5Adapter(Adapter):
    """T5's encoder and, where the model has one, its decoder.

    The position scores of the first layer serve all layers, head by head: heads become narrower but
    none goes whole.
    """

    model_types = ("t5",)
    uniform: ClassVar[dict[str, str]] = {"intermediate": "d_ff", "width": "d_kv"}

    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        """``encoder.block`` and ``decoder.block``, in a classifier below ``transformer``."""
        plain = unwrap(model)
        prefix = base_prefix(plain)
        names = [f"{prefix}{stack}" for stack in ("encoder", "decoder")]
        modules = dict(plain.named_modules())
        return tuple(f"{name}.block" for name in names if name in modules)

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """The encoder's, then the decoder's."""
        plain = unwrap(model)
        config: Any = plain.config
        found = []
        for stack in self.encoder(plain):
            layers = plain.get_submodule(stack)
            assert isinstance(layers, nn.ModuleList)
            for index in range(len(layers)):
                found.append(_block(f"{stack}.{index}", config, "decoder" in stack))
        return tuple(found)

    def head(self, model: nn.Module) -> list[str]:
        """``lm_head`` or ``classification_head`` or ``classifier``; none in the base models."""
        names = ("lm_head", "classification_head", "classifier")
        return [name for name, _ in unwrap(model).named_children() if name in names]

    def narrow(self, module: nn.Module, sizes: HeadSizes) -> nn.Module:
        """The same module: it takes its sizes from attributes."""
        module.key_value_proj_dim = sizes.width  # type: ignore[assignment]
        module.inner_dim = len(sizes.heads) * sizes.width  # type: ignore[assignment]
        module.finegates_heads = sizes  # type: ignore[assignment]
        return module


def _block(path: str, config: Any, is_decoder: bool) -> Block:
    def attention(module: str) -> Attention:
        return Attention(
            path=module,
            q=f"{module}.q",
            k=f"{module}.k",
            v=f"{module}.v",
            o=f"{module}.o",
            heads=config.num_heads,
            kv_heads=config.num_heads,
            head_dim=config.d_kv,
            fixed_heads=True,
            cross=module.endswith("EncDecAttention"),
        )

    attentions = [attention(f"{path}.layer.0.SelfAttention")]
    if is_decoder:
        attentions.append(attention(f"{path}.layer.1.EncDecAttention"))
    dense = f"{path}.layer.{len(attentions)}.DenseReluDense"
    feed_forward = FeedForward(
        up=f"{dense}.wi_1" if config.is_gated_act else f"{dense}.wi",
        down=f"{dense}.wo",
        gate=f"{dense}.wi_0" if config.is_gated_act else None,
        activation=config.dense_act_fn,
    )
    return Block(path, tuple(attentions), feed_forward)
