"""Fits key-value caches of dense size to attentions with fewer or narrower heads.

transformers allocates some caches before it has seen any key: static caches for compiled prefill
and for export, paged caches for continuous batching, and learned prefixes. All have the heads and
the width of the dense model. A narrowed attention fills its part, pads the rest with zeros, and
reads back its part; the values do not change.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from finegates.blocks import HeadSizes


def fit_cache(cache: Any, layer_idx: int, sizes: HeadSizes) -> None:
    """Makes a cache of transformers accept a narrowed attention's keys, in place.

    Args:
        cache: of one kind of attention; None, or a cache whose layer is not allocated, needs no
            change.
        layer_idx: of the attention.
        sizes: its heads.

    Raises:
        ValueError: the cache has fewer or narrower heads than the attention.
    """
    layers = getattr(cache, "layers", ())
    layer = layers[layer_idx] if layer_idx < len(layers) else None
    keys = getattr(layer, "keys", None)
    if not isinstance(keys, Tensor) or keys.ndim != 4 or "update" in vars(layer):
        return
    heads, width = len(sizes.kv_heads), sizes.width
    if (keys.shape[1], keys.shape[3]) == (heads, width):
        return
    _check_room(keys.shape[1], keys.shape[3], sizes)
    layer.update = partial(_update, layer, heads, width)  # type: ignore[union-attr]


def _update(
    layer: Any, heads: int, width: int, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Wraps the update of a layer's class for keys and values of other sizes."""
    key, value = (
        _padded(states, held.shape[1], held.shape[3])
        for states, held in ((key, layer.keys), (value, layer.values))
    )
    keys, values = type(layer).update(layer, key, value, *args, **kwargs)
    return keys[:, :heads, :, :width], values[:, :heads, :, :width]


def _padded(states: Tensor, heads: int, width: int) -> Tensor:
    """Pads (B, fewer heads, L, narrower) with zeros to (B, heads, L, width)."""
    missing = (0, width - states.shape[3], 0, 0, 0, heads - states.shape[1])
    return functional.pad(states, missing)


def _check_room(heads: int, width: int, sizes: HeadSizes) -> None:
    if heads < len(sizes.kv_heads) or width < sizes.width:
        raise ValueError(
            f"the cache has {heads} heads of width {width}, this attention has "
            f"{len(sizes.kv_heads)} of width {sizes.width}: it belongs to another model; make a "
            "cache for this one"
        )


def fitted_paged(cache: Any, config: Any, sizes: HeadSizes, groups: Tensor | None) -> Any:
    """A paged cache of continuous batching that a narrowed attention can update.

    Args:
        cache: of transformers; shared by all layers.
        config: of the model, which determines the cache's sizes.
        sizes: the attention's heads.
        groups: int64 (heads,), the key-value head of each query head if groups are irregular.
            Updates then return keys and values once for each query head.

    Returns:
        an instance of the cache's own class with the same pages.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    own = type(cache)
    if (own, _Paged) not in _PAGED:
        _PAGED[own, _Paged] = type(own.__name__, (_Paged, own), {})
    fitted: Any = object.__new__(_PAGED[own, _Paged])
    vars(fitted).update(vars(cache))
    vars(fitted).update(_of=cache, _room=(heads, width), _sizes=sizes, _groups=groups)
    return fitted


class _Paged:
    """Overrides of a fitted paged cache, which shares the attributes of the original."""

    _of: Any
    _room: tuple[int, int]
    _sizes: HeadSizes
    _groups: Tensor | None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, **where: Any
    ) -> tuple[Tensor, Tensor]:
        """Updates the cache with keys and values (1, kv_heads, L, width).

        Args:
            where: the cache's own arguments: a dictionary ``kwargs`` in newer transformers; indices
                in older ones, whose caches return (L, kv_heads, width).
        """
        if where.get("kwargs", where).get("block_table") is not None:
            raise ValueError(
                "this attention reads its pages through a block table with the heads of the dense "
                "model's; use finegates.uniform(model) for continuous batching with it, or "
                "another attention implementation (sdpa)"
            )
        found: list[Tensor] = self._of.update(
            key_states=_padded(key_states, *self._room),
            value_states=_padded(value_states, *self._room),
            layer_idx=layer_idx,
            **where,
        )
        heads, width = len(self._sizes.kv_heads), self._sizes.width
        keys, values = (states[:, :heads, ..., :width] for states in found)
        if self._groups is None:
            return keys, values
        return keys.index_select(1, self._groups), values.index_select(1, self._groups)


_PAGED: dict[tuple[type, type], type] = {}


def fit_calls(module: nn.Module, cross: bool = False) -> None:
    """Makes a narrowed attention of transformers fit its caches, in place.

    Args:
        module: with ``finegates_heads`` and ``layer_idx``; gets caches by keyword.
        cross: whether it attends to an encoder's states.
    """
    module.register_forward_pre_hook(partial(_fit_call, cross=cross), with_kwargs=True)


def _fit_call(module: Any, args: Any, kwargs: Any, *, cross: bool) -> Any:
    cache = kwargs.get("past_key_values")
    if cache is not None:
        kind = "cross_attention_cache" if cross else "self_attention_cache"
        fit_cache(getattr(cache, kind, cache), module.layer_idx, module.finegates_heads)
    paged = kwargs.get("cache")
    if paged is None:
        return None
    return args, {
        **kwargs,
        "cache": fitted_paged(paged, module.config, module.finegates_heads, None),
    }
