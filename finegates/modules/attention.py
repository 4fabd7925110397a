"""Rotary attention with any groups of heads, each with rotated pairs of its own.

The module of transformers, made narrower (:mod:`finegates.modules.narrowed`), has the same number
of query heads for every key-value head, and the same angles for all heads.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finegates.blocks import HeadSizes
from finegates.modules.caches import fit_cache, fitted_paged
from finegates.modules.joint import fuse
from finegates.modules.likeness import check_like


class RotaryAttention(nn.Module):
    """Causal self-attention with rotary embeddings and grouped queries.

    It takes the place of a module of transformers, with the same call, and hands the products to
    the attention function that the model's configuration names (eager, sdpa, flash, ...). Masks and
    caches are the model's own. An instance is one of the replaced module's class, too: transformers
    finds by class where it records attention weights.

    Args:
        module: the attention of transformers; its projections, norms, dropout, scale and
            configuration are taken over.
        sizes: the kept heads.
        names: of the projections to queries, keys and values in the module. With ``sizes.fused``
            they become one layer, ``qkv``.

    Attributes:
        classes: of transformers, whose attention this is.

    Raises:
        ValueError: the module's class computes something else.
    """

    classes: ClassVar[tuple[str, ...]] = (
        "llama.LlamaAttention",
        "mistral.MistralAttention",
        "qwen2.Qwen2Attention",
        "qwen3.Qwen3Attention",
    )

    def __init__(
        self,
        module: nn.Module,
        sizes: HeadSizes,
        names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj"),
    ) -> None:
        check_like(module, self.classes)
        super().__init__()
        self.finegates_heads = sizes
        self.names = names
        projections = [module.get_submodule(name) for name in names]
        if sizes.fused:
            self.qkv = fuse(projections)
        else:
            for name, projection in zip(names, projections, strict=True):
                self.add_module(name, projection)
        self.scaling: float = module.scaling  # type: ignore[assignment]
        self.config: Any = module.config
        self.layer_idx: Any = module.layer_idx
        self.is_causal = bool(module.is_causal)
        # Of the module's own file: some architectures take the softmax in float32.
        self._eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        # The attention function repeats keys and values itself where that is regular.
        self.num_key_value_groups = sizes.repeats or 1
        self.groups: Tensor | None
        irregular = None if sizes.repeats else sizes.groups
        self._register_index("groups", irregular, projections[0])
        self.o_proj: nn.Module = module.o_proj  # type: ignore[assignment]
        self.attention_dropout: float = module.attention_dropout  # type: ignore[assignment]
        self.q_norm: nn.Module | None = getattr(module, "q_norm", None)
        self.k_norm: nn.Module | None = getattr(module, "k_norm", None)
        missing = object()
        window = getattr(module, "sliding_window", missing)
        if window is missing:
            window = getattr(self.config, "sliding_window", missing)
        self._window = {} if window is missing else {"sliding_window": window}
        # Where in a head's (cosines, sines) the kept dimensions lie: one row if all heads agree.
        half = sizes.head_dim // 2
        rows = None
        if sizes.pairs is not None:
            agree = len(set(sizes.pairs)) == 1
            kept = sizes.pairs[:1] if agree else sizes.pairs
            rows = [[*pairs, *(pair + half for pair in pairs)] for pairs in kept]
        elif sizes.dimensions is not None:  # zeros turn by any angle
            rows = [[max(dimension, 0) for dimension in sizes.dimensions]]
        self.dimensions: Tensor | None
        self._register_index("dimensions", rows, self.o_proj)
        self.of_head: Tensor | None
        several = rows is not None and len(rows) > 1
        self._register_index("of_head", sizes.groups if several else None, self.o_proj)
        self.__class__ = _of_both(type(self), type(module))  # type: ignore[assignment]

    def _register_index(self, name: str, values: Any, layer: nn.Module) -> None:
        """An int64 buffer of these values, or None, which is not saved: sizes give it.

        It is on the layer's device, or on the CPU if that is meta.
        """
        if values is None:
            setattr(self, name, None)  # no buffer: tools that move buffers expect tensors
            return
        device = next(layer.parameters()).device
        index = torch.tensor(
            values, dtype=torch.int64, device="cpu" if device.type == "meta" else device
        )
        self.register_buffer(name, index, persistent=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, L, heads, width), keys and values (B, L, kv_heads, width) of x (B, L, in)."""
        width = self.finegates_heads.width
        queries = len(self.finegates_heads.heads) * width
        keys = len(self.finegates_heads.kv_heads) * width
        if self.finegates_heads.fused:
            q, k, v = self.qkv(x).split((queries, keys, keys), dim=-1)
        else:
            q, k, v = (self.get_submodule(name)(x) for name in self.names)
        shape = (*x.shape[:-1], -1, width)
        return q.view(shape), k.view(shape), v.view(shape)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        dropout: float,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """softmax(scaling * q k^T + mask) v.

        Args:
            q: (B, heads, L, width).
            k: (B, kv_heads, S, width).
            v: (B, kv_heads, S, width).
            mask: as the attention function takes it.
            dropout: on the attention weights; used in training mode only.

        Returns:
            context (B, L, heads * width), and the weights where the function gives them.
        """
        if kwargs.get("cache") is not None:  # paged: the function itself updates it
            kwargs["cache"] = fitted_paged(
                kwargs["cache"], self.config, self.finegates_heads, self.groups
            )
        elif self.groups is not None:
            k, v = k.index_select(1, self.groups), v.index_select(1, self.groups)
        name = self.config._attn_implementation
        function = ALL_ATTENTION_FUNCTIONS.get_interface(name, self._eager)
        context, weights = function(
            self,
            q,
            k,
            v,
            mask,
            dropout=dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return context.reshape(*context.shape[:2], -1).contiguous(), weights

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        sizes = self.finegates_heads
        return (
            f"heads={len(sizes.heads)}, kv_heads={len(sizes.kv_heads)}, "
            f"width={sizes.width} of {sizes.head_dim}"
        )

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, hidden) to (B, L, hidden)."""
        q, k, v = self.project(hidden_states)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        q, k = self._rotate(q, k, *position_embeddings)
        if past_key_values is not None:
            fit_cache(past_key_values, self.layer_idx, self.finegates_heads)
            k, v = past_key_values.update(k, v, self.layer_idx)
        context, weights = self.attend(
            q, k, v, attention_mask, self.attention_dropout, **self._window, **kwargs
        )
        return self.o_proj(context), weights

    def _rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotates every kept pair by its angle; ``cos`` and ``sin`` are (B, L, head_dim)."""
        if self.dimensions is None:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
            return q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        # (B, L, rows * width) to (B, rows, L, width)
        shape = (*cos.shape[:2], *self.dimensions.shape)
        index = self.dimensions.flatten()
        cos, sin = (
            angles.index_select(-1, index).view(shape).transpose(1, 2) for angles in (cos, sin)
        )
        rotated = k * cos + _turned(k) * sin
        if self.of_head is not None:
            cos, sin = cos.index_select(1, self.of_head), sin.index_select(1, self.of_head)
        return q * cos + _turned(q) * sin, rotated


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


_MADE: dict[tuple[type, type], type[nn.Module]] = {}


def _of_both(narrow: type[nn.Module], stock: type[nn.Module]) -> type[nn.Module]:
    """The narrow class, which is now one of the stock's, too; always the same one."""

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # pickle looks classes up by name, and this one is made as it is needed.
        return _unfilled, (narrow, stock), self.__dict__

    names = {"__module__": narrow.__module__, "__doc__": narrow.__doc__, "__reduce_ex__": reduce}
    if (narrow, stock) not in _MADE:
        _MADE[narrow, stock] = type(narrow.__name__, (narrow, stock), names)
    return _MADE[narrow, stock]


def _unfilled(narrow: type[nn.Module], stock: type[nn.Module]) -> nn.Module:
    both = _of_both(narrow, stock)
    return both.__new__(both)
