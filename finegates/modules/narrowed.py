"""Attention modules of transformers with fewer and narrower heads.

It is the stock module itself with other sizes.

Its forward stays as it is, so that nothing of it can be forgotten. What has to follow the heads are
attributes that hold sizes, angles of rotary embeddings, tensors with one entry per head, and norms
over dimensions.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from finegates.blocks import Attention, HeadSizes
from finegates.modules.caches import fit_calls
from finegates.modules.joint import join_attention
from finegates.specs import AttentionSpec, NormSpec, RotarySpec, derived_size

_CACHES = ("past_key_values", "past_key_value", "layer_past")


def narrow_stock(
    module: nn.Module, spec: AttentionSpec, part: Attention, sizes: HeadSizes
) -> nn.Module:
    """Gives an attention module of transformers other heads, in place; returns it.

    Its projections are replaced elsewhere. With or without storage (meta device).

    Args:
        module: of one of the spec's classes, not narrowed yet.
        spec: its description.
        part: the dense attention.
        sizes: the heads to keep.
    """
    module.finegates_heads = sizes  # type: ignore[assignment]
    if not isinstance(spec.width, str) or hasattr(module, spec.width):
        _set_sizes(module, spec, sizes)
    kept = torch.tensor(sizes.heads, dtype=torch.int64, device="cpu")
    if len(sizes.heads) < part.heads:
        for path, axis in spec.per_head.items():
            _select_heads(module, path, axis, kept, part.heads)
    if spec.norm is not None:
        fit_norms(module, spec.norm, part, sizes)
    _fit_rotary(module, spec.rotary, part, sizes)
    if spec.head_arguments and len(sizes.heads) < part.heads:
        _register(module, "finegates_kept", kept)
        places = _places(module, spec.head_arguments)
        module.register_forward_pre_hook(_HeadArguments(places, part.heads), with_kwargs=True)
    if sizes.fused:
        queries = 2 if part.layout == "gated_queries" else 1
        heads = {"q": queries * len(sizes.heads), **dict.fromkeys("kv", len(sizes.kv_heads))}
        shares = {getattr(spec, letter): heads[letter] for letter in part.joint}
        join_attention(module, shares, part.joint)
    caches = _places(module, dict.fromkeys(_CACHES))
    if caches and hasattr(module, "layer_idx"):
        fit_calls(module, part.cross)
    return module


def removed_parameters(
    module: nn.Module, spec: AttentionSpec, part: Attention, sizes: HeadSizes
) -> int:
    """Counts the parameters apart from projections that :func:`narrow_stock` removes."""
    removed = 0
    for path, axis in spec.per_head.items():
        owner, name = _owner(module, path)
        tensor = getattr(owner, name, None)
        if isinstance(tensor, nn.Parameter):
            each = tensor.numel() // tensor.shape[axis] * (tensor.shape[axis] // part.heads)
            removed += (part.heads - len(sizes.heads)) * each
    if spec.norm is None:
        return removed
    of_all = spec.norm.over == "all"
    for name, heads in zip(spec.norm.names, (sizes.heads, sizes.kv_heads), strict=True):
        weight: Tensor = module.get_submodule(name).weight  # type: ignore[assignment]
        removed += weight.numel() - (len(heads) if of_all else 1) * sizes.width
    return removed


def _set_sizes(module: nn.Module, spec: AttentionSpec, sizes: HeadSizes) -> None:
    known = set_sizes(module, spec, len(sizes.heads), len(sizes.kv_heads), sizes.width)
    if spec.config_sizes:
        changed = {name: derived_size(text, known) for name, text in spec.config_sizes.items()}
        module.config = ConfigView(module.config, changed)  # type: ignore[assignment]


def set_sizes(
    module: nn.Module, spec: AttentionSpec, heads: int, kv_heads: int, width: int
) -> dict[str, int]:
    """Sets the attributes of an attention module that hold its sizes, in place.

    Args:
        module: of one of the spec's classes.
        spec: its description.
        heads: number of query heads.
        kv_heads: number of key-value heads.
        width: of a head.

    Returns:
        the factors of the sizes, by the names that specs have for them.
    """
    known = {"heads": heads, "kv_heads": kv_heads, "each": heads // kv_heads, "width": width}
    if isinstance(spec.width, str):
        setattr(module, spec.width, width)
    for name, text in spec.sizes.items():
        if hasattr(module, name):  # not in every version of transformers
            setattr(module, name, derived_size(text, known))
    return known


class ConfigView:
    """A configuration with a few other values; all else is the configuration's, also later.

    Args:
        config: of the model.
        values: those that differ.
    """

    def __init__(self, config: Any, values: dict[str, Any]) -> None:
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_values", values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_config", "_values"):
            raise AttributeError(name)
        return self._values[name] if name in self._values else getattr(self._config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)

    def __reduce__(self) -> Any:
        return ConfigView, (self._config, self._values)


def _select_heads(module: nn.Module, path: str, axis: int, kept: Tensor, heads: int) -> None:
    """Keeps the entries of some heads in a parameter or buffer, which may have several of each."""
    owner, name = _owner(module, path)
    tensor = getattr(owner, name, None)
    if owner is None or tensor is None:
        return  # an option that this model does not use
    each = tensor.shape[axis] // heads
    index = (kept[:, None] * each + torch.arange(each, device="cpu")).flatten()
    with torch.no_grad():
        chosen = _selected(tensor.detach(), axis, index)
    if isinstance(tensor, nn.Parameter):
        setattr(owner, name, nn.Parameter(chosen, requires_grad=tensor.requires_grad))
    else:
        setattr(owner, name, chosen)
    if isinstance(owner, nn.Linear) and axis == 0:
        owner.out_features = chosen.shape[0]


def _owner(module: nn.Module, path: str) -> tuple[nn.Module | None, str]:
    """The module that holds a tensor, if there is one, and the tensor's name in it."""
    owner, _, name = path.rpartition(".")
    found: Any = module
    for child in filter(None, owner.split(".")):
        found = getattr(found, child, None)
    return found if isinstance(found, nn.Module) else None, name


def _selected(tensor: Tensor, axis: int, index: Tensor) -> Tensor:
    return tensor.index_select(axis, index.to(tensor.device)).contiguous()


def fit_norms(module: nn.Module, spec: NormSpec, part: Attention, sizes: HeadSizes) -> None:
    """Lets RMS norms over W dimensions of which w are left give what they gave.

    The dimensions that went were zero, so the mean of squares over w is that over W times W / w:
    ``x / sqrt(mean_W + eps) = sqrt(W / w) x / sqrt(mean_w + eps W / w)``.
    """
    fewer = spec.over == "all" and len(sizes.heads) < part.heads
    if not fewer and sizes.dimensions is None:
        return
    dimensions = sizes.dimensions or tuple(range(sizes.width))
    for name, heads in zip(spec.names, (sizes.heads, sizes.kv_heads), strict=True):
        norm = module.get_submodule(name)
        weight: Tensor = norm.weight  # type: ignore[assignment]
        before = weight.numel()
        starts = heads if spec.over == "all" else (0,)
        index = torch.tensor(
            [
                start * sizes.head_dim + dimension if dimension >= 0 else -1
                for start in starts
                for dimension in dimensions
            ],
            dtype=torch.int64,
            device="cpu",
        )
        after = index.numel()
        with torch.no_grad():
            factors = weight.detach().to(torch.float64) + spec.offset
            chosen = factors.index_select(0, index.clamp(min=0).to(weight.device))
            chosen = torch.where((index >= 0).to(weight.device), chosen, torch.zeros_like(chosen))
            chosen = math.sqrt(before / after) * chosen - spec.offset
        norm.weight = nn.Parameter(chosen.to(weight.dtype), requires_grad=weight.requires_grad)
        for attribute in ("variance_epsilon", "eps"):
            if attribute in vars(norm):
                setattr(norm, attribute, getattr(norm, attribute) * before / after)


def _fit_rotary(
    module: nn.Module, spec: RotarySpec | None, part: Attention, sizes: HeadSizes
) -> None:
    """Gives a module the angles of the pairs that it keeps."""
    if spec is None or part.rotary is None or sizes.dimensions is None:
        return
    rotated = part.head_dim if part.rotary.rotated is None else part.rotary.rotated
    half = rotated // 2
    count = sum(0 <= dimension < rotated for dimension in sizes.dimensions)
    if rotated == part.head_dim:
        count = sizes.width  # zeros are pairs, too
    elif not count and sizes.dimensions[:2] == (-1, -1):
        count = 2  # one pair of zeros
    turned = sizes.dimensions[:count]
    first = turned[: count // 2] if part.rotary.pairs == "half" else turned[::2]
    step = 1 if part.rotary.pairs == "half" else 2
    pairs = [max(dimension, 0) // step for dimension in first]
    if isinstance(spec.rotated, str):
        setattr(module, spec.rotated, count)
    orders = {
        "twice": [*pairs, *(pair + half for pair in pairs)],
        "sines": [*pairs, *(pair + half for pair in pairs)],
        "repeated": [place for pair in pairs for place in (2 * pair, 2 * pair + 1)],
        "once": pairs,
    }
    index = torch.tensor(orders[spec.order], dtype=torch.int64, device="cpu")
    if spec.buffer is not None:
        table: Tensor = getattr(module, spec.buffer)
        setattr(module, spec.buffer, _selected(table, -1, index))
    if spec.table is not None:
        _register(module, "finegates_angles", index)
        place = _places(module, {spec.table: None})
        hook = _Angles(spec.table, place.get(spec.table, (None, None))[0])
        module.register_forward_pre_hook(hook, with_kwargs=True)


def _register(module: nn.Module, name: str, index: Tensor) -> None:
    """An index that follows from sizes, on the module's device, on the CPU if it has no storage."""
    device = next(module.parameters()).device
    index = index if device.type == "meta" else index.to(device)
    module.register_buffer(name, index, persistent=False)


def _places(module: nn.Module, names: Any) -> dict[str, tuple[int | None, Any]]:
    """Where each of some arguments comes in the module's forward, those that it has by name."""
    parameters = inspect.signature(type(module).forward).parameters
    positions = {name: number - 1 for number, name in enumerate(parameters)}  # after self
    variable = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        name: (positions.get(name), names[name]) for name in names if name in positions or variable
    }


def _replaced(args: Any, kwargs: Any, name: str, place: int | None, change: Any) -> tuple[Any, Any]:
    """A call with one argument changed, wherever it is."""
    if name in kwargs:
        return args, {**kwargs, name: change(kwargs[name])}
    if place is not None and place < len(args):
        return (*args[:place], change(args[place]), *args[place + 1 :]), kwargs
    return args, kwargs


class _Angles:
    """Before a narrowed module's forward: the angles of the pairs that it keeps."""

    def __init__(self, name: str, place: int | None) -> None:
        self.name, self.place = name, place

    def __call__(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        index = module.finegates_angles

        def kept(angles: Any) -> Any:
            if angles is None:
                return None
            if isinstance(angles, tuple | list):
                return tuple(each.index_select(-1, index) for each in angles)
            return angles.index_select(-1, index)

        return _replaced(args, kwargs, self.name, self.place, kept)


class _HeadArguments:
    """Before a narrowed module's forward: the entries of the heads that it keeps."""

    def __init__(self, places: dict[str, tuple[int | None, int | None]], heads: int) -> None:
        self.places, self.heads = places, heads

    def __call__(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        for name, (place, axis) in self.places.items():

            def kept(value: Any, axis: int | None = axis) -> Any:
                if value is None:
                    return None
                if axis is None:  # (batch * heads, ...)
                    split = value.unflatten(0, (-1, self.heads))
                    return split.index_select(1, module.finegates_kept).flatten(0, 1)
                if value.shape[axis] != self.heads:
                    return value
                return value.index_select(axis, module.finegates_kept)

            args, kwargs = _replaced(args, kwargs, name, place, kept)
        return args, kwargs
