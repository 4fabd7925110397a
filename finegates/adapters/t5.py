"""T5: encoder and decoder without biases, each sharing relative positions."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from finegates.adapters.base import Adapter, base_prefix, unwrap
from finegates.adapters.fit import fitted
from finegates.blocks import Attention, Block, FeedForward, HeadSizes
from finegates.modules.caches import fit_calls
from finegates.modules.joint import multiply_states, take_apart
from finegates.modules.likeness import check_like


class T5Adapter(Adapter):
    """T5's encoder and, where the model has one, its decoder.

    All layers use the position scores of the first, head by head: heads can become narrower, but
    none can be removed.
    """

    model_types = ("t5", "mt5")
    attention_classes = ("t5.T5Attention",)
    feed_forward_classes = ("t5.T5DenseGatedActDense",)
    uniform: ClassVar[dict[str, str]] = {"intermediate": "d_ff", "width": "d_kv"}
    head_width = "key_value_proj_dim"

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
                block = _block(f"{stack}.{index}", config, "decoder" in stack)
                found.append(fitted(plain, block, self.head_width))
        return tuple(block for block in found if block is not None)

    def head(self, model: nn.Module) -> list[str]:
        """``lm_head`` or ``classification_head`` or ``classifier``; none in the base models."""
        names = ("lm_head", "classification_head", "classifier")
        return [name for name, _ in unwrap(model).named_children() if name in names]

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """The same module: it takes its sizes from attributes."""
        check_like(module, self.attention_classes)
        module.key_value_proj_dim = sizes.width  # type: ignore[assignment]
        module.inner_dim = len(sizes.heads) * sizes.width  # type: ignore[assignment]
        module.finegates_heads = sizes  # type: ignore[assignment]
        fit_calls(module, part.cross)
        if sizes.fused:
            take_apart(module, part.joint, part.joint)  # names of one letter: q, k, v
            hook = _multiply_encoded if part.cross else multiply_states
            module.register_forward_pre_hook(hook, with_kwargs=True)
        return module

    def join(self, module: nn.Module) -> nn.Module:
        """The same module, with gate and up fused."""
        check_like(module, self.feed_forward_classes)
        take_apart(module, ("wi_0", "wi_1"), "gate_up")
        module.finegates_joined = True  # type: ignore[assignment]
        module.register_forward_pre_hook(_widen)
        return module


def _multiply_encoded(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    """Replaces the encoder's states by keys and values, unless a cache has them."""
    updated = getattr(kwargs.get("past_key_values"), "is_updated", {})
    if updated.get(module.layer_idx):
        return None
    return args, {**kwargs, "key_value_states": module.kv(kwargs["key_value_states"])}


def _widen(module: Any, args: Any) -> Any:
    """Replaces the input states of the feed-forward part by gate and up."""
    return module.gate_up(args[0])


def _block(path: str, config: Any, is_decoder: bool) -> Block:
    def attention(module: str, cross: bool = False) -> Attention:
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
            cross=cross,
            joint="kv" if cross else "qkv",
        )

    attentions = [attention(f"{path}.layer.0.SelfAttention")]
    if is_decoder:
        attentions.append(attention(f"{path}.layer.1.EncDecAttention", cross=True))
    dense = f"{path}.layer.{len(attentions)}.DenseReluDense"
    feed_forward = FeedForward(
        up=f"{dense}.wi_1" if config.is_gated_act else f"{dense}.wi",
        down=f"{dense}.wo",
        gate=f"{dense}.wi_0" if config.is_gated_act else None,
        activation=config.dense_act_fn,
        path=dense if config.is_gated_act else None,
        phi=f"{dense}.act",
    )
    return Block(path, tuple(attentions), feed_forward)
