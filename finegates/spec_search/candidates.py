"""Forms of modules that the names of their layers and attributes suggest."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from finegates.adapters import AttentionSpec, FeedForwardSpec, NormSpec, RotarySpec
from finegates.adapters.names import class_name
from finegates.compaction.activations import acts_on_numbers
from finegates.modules.linear import is_linear, linear_shape
from finegates.specs import is_named_cross

_QUERIES = ("q_proj", "query", "q", "q_lin", "query_proj", "to_q", "wq", "linear_q")
_KEYS = ("k_proj", "key", "k", "k_lin", "key_proj", "to_k", "wk", "linear_k")
_VALUES = ("v_proj", "value", "v", "v_lin", "value_proj", "to_v", "wv", "linear_v")
_FUSED = ("qkv_proj", "Wqkv", "c_attn", "query_key_value", "qkv", "in_proj")
_OUTPUTS = (
    *("o_proj", "out_proj", "o", "dense", "out_lin", "c_proj", "Wo", "proj", "to_out", "wo"),
    *("^output.dense", "^o_proj", "^out_proj", "^dense"),
)
_WIDTHS = (
    *("head_dim", "attention_head_size", "head_size", "d_k", "dim_head", "key_value_proj_dim"),
    *("d_head", "hd"),
)
_TABLES = ("position_embeddings", "sinusoidal_pos", "rotary_pos_emb", "freqs_cis")
_ROTATED = ("rotary_ndims", "rotary_dim", "rotary_emb_dim")
_NORMS = (("q_norm", "k_norm"), ("query_norm", "key_norm"), ("q_layernorm", "k_layernorm"))
# Attributes that hold sizes, by what they are called.
_SIZES = {
    "heads": (
        *("num_heads", "num_attention_heads", "n_heads", "n_head", "nheads", "n_local_heads"),
        "h",
    ),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_local_kv_heads"),
    "each": ("num_key_value_groups", "n_rep"),
    "heads*width": ("all_head_size", "inner_dim", "split_size"),
}
RECOGNISED: dict[str, tuple[str, ...]] = {
    "layer: queries": _QUERIES,
    "layer: keys": _KEYS,
    "layer: values": _VALUES,
    "layer: all three": _FUSED,
    "layer: output projection": _OUTPUTS,
    "norms of queries and keys": tuple(name for pair in _NORMS for name in pair),
    "attribute: width of a head, required": _WIDTHS,
    "attribute: heads": _SIZES["heads"],
    "attribute: key-value heads": _SIZES["kv_heads"],
    "attribute: query heads per key-value head": _SIZES["each"],
    "attribute: heads times width": _SIZES["heads*width"],
    "attribute: rotated dimensions": _ROTATED,
    "argument of forward: rotary angles": _TABLES,
}
"""The names that suggest a description of an attention; docs/add-an-architecture.md lists them."""


def attention_candidates(
    layer: nn.Module, path: str, module: nn.Module, cross: set[type]
) -> Iterator[AttentionSpec]:
    """Forms that the names in a module suggest, the likeliest first."""
    width = _width(module)
    outputs = [name for name in _OUTPUTS if _linear(layer, path, name) is not None]
    if width is None or not outputs:
        return
    projections: list[dict[str, Any]] = []
    split = [_first(layer, path, names) for names in (_QUERIES, _KEYS, _VALUES)]
    fused = _first(layer, path, _FUSED)
    if all(split):
        projections.append(dict(zip("qkv", split, strict=True)))
    elif fused is not None:
        for layout in ("qkv", "heads", "groups", "multi_query"):
            projections.append({**dict.fromkeys("qkv", fused), "layout": layout})
    for names, o in itertools.product(projections, outputs):
        shape = _linear(layer, path, o)
        assert shape is not None
        heads, rest = divmod(shape[0], getattr(module, width))
        if rest:
            continue
        sizes = {
            attribute: text
            for text, attributes in _SIZES.items()
            for attribute in attributes
            if isinstance(getattr(module, attribute, None), int)
        }
        plain = AttentionSpec((class_name(type(module)),), **names, o=o, width=width, sizes=sizes)
        if type(module) in cross:
            plain = dataclasses.replace(plain, cross=is_named_cross)
        for rotary, norm, scaled in itertools.product(
            _rotary_candidates(module), _norm_candidates(module, heads), (False, True)
        ):
            yield dataclasses.replace(plain, rotary=rotary, norm=norm, scaled_by_width=scaled)


def _rotary_candidates(module: nn.Module) -> list[RotarySpec | None]:
    parameters = inspect.signature(type(module).forward).parameters
    table = next((name for name in _TABLES if name in parameters), None)
    if table is None:
        return [None]
    rotated = next((n for n in _ROTATED if isinstance(getattr(module, n, None), int)), None)
    shapes: tuple[tuple[Any, Any], ...] = (
        *(("half", "twice"), ("next", "repeated"), ("next", "twice"), ("half", "once")),
        *(("next", "sines"), ("next", "once")),
    )
    return [
        *(RotarySpec(pairs, table=table, order=order, rotated=rotated) for pairs, order in shapes),
        None,
    ]


def _norm_candidates(module: nn.Module, heads: int) -> list[NormSpec | None]:
    for names in _NORMS:
        norms = [getattr(module, name, None) for name in names]
        if all(isinstance(getattr(norm, "weight", None), Tensor) for norm in norms):
            over = ("head", "all") if heads > 1 else ("head",)
            return [
                NormSpec(names, kind, offset)  # type: ignore[arg-type]
                for kind, offset in itertools.product(over, (0.0, 1.0))
            ]
    return [None]


def feed_candidates(
    layer: nn.Module, path: str, module: nn.Module, claimed: set[str]
) -> Iterator[FeedForwardSpec]:
    """Pairs of layers of a module of which one reads what the other writes, the wider first.

    Experts may have fewer dimensions inside than outside.
    """
    inside = {
        name: linear_shape(child)
        for name, child in module.named_modules()
        if name and name.count(".") < 2 and is_linear(child)
        if path_in(path, name) not in claimed
    }
    calls = [
        name
        for name, value in _attributes(module)
        if callable(value) and not isinstance(value, type) and acts_on_numbers(value)
    ]
    functions = [
        name
        for name in inspect.unwrap(type(module).forward).__code__.co_names
        if name in ACT2FN and acts_on_numbers(ACT2FN[name])
    ]
    activations: list[dict[str, Any]] = [{"phi": name} for name in calls]
    activations += [{"phi": None, "activation": name} for name in functions]
    name = class_name(type(module))
    pairs = sorted(
        itertools.permutations(inside, 2),
        key=lambda pair: ("gate" in pair[0], inside[pair[0]][1] < inside[pair[0]][0]),
    )
    for up, down in pairs:
        (hidden, wide), (narrow, back) = inside[up], inside[down]
        if hidden != back or narrow == hidden or any("attention" in n for n in (up, down)):
            continue
        gates = [
            g for g, shape in inside.items() if g not in (up, down) and shape == (hidden, wide)
        ]
        gates.sort(key=lambda g: "gate" not in g)
        for phi in activations:
            if wide == narrow:
                for gate in (*gates, None):
                    yield FeedForwardSpec((name,), up=up, down=down, gate=gate, **phi)
            elif wide == 2 * narrow:
                for layout in ("halves", "turns"):
                    yield FeedForwardSpec(
                        (name,),
                        up=up,
                        down=down,
                        gate=up,
                        layout=layout,
                        **phi,
                    )


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes and submodules of a module, and of its children."""
    for prefix, owner in (("", module), *((f"{n}.", c) for n, c in module.named_children())):
        for name, value in (*owner.named_children(), *vars(owner).items()):
            if not name.startswith("_"):
                yield f"{prefix}{name}", value


def why_no_attention(layer: nn.Module, path: str, module: nn.Module) -> str:
    """What a module lacks that has layers named as those of an attention; empty if it has none."""
    split = [_first(layer, path, names) for names in (_QUERIES, _KEYS, _VALUES)]
    names = split if all(split) else [_first(layer, path, _FUSED)]
    if not all(names):
        return ""
    layers = ", ".join(name for name in names if name)
    lacks = "no layer is named as its output projection"
    if _width(module) is None:
        lacks = "no attribute is named as the width of a head, such as head_dim"
    return f": its names suggest no description ({layers} may be an attention's, but {lacks})"


def path_in(path: str, name: str) -> str:
    """The path of what has a name in the module at a path."""
    return f"{path}.{name}" if path else name


def linears_below(layer: nn.Module, path: str) -> set[str]:
    """Paths of the linear layers of the module at a path, in the layer."""
    below = layer.get_submodule(path).named_modules()
    return {
        f"{path}.{name}" if path and name else path or name for name, m in below if is_linear(m)
    }


def _width(module: nn.Module) -> str | None:
    """The attribute that holds the width of a head."""
    return next((name for name in _WIDTHS if isinstance(getattr(module, name, None), int)), None)


def _first(layer: nn.Module, path: str, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _linear(layer, path, name) is not None), None)


def _linear(layer: nn.Module, path: str, name: str) -> tuple[int, int] | None:
    """(in, out) of a linear layer that a spec would name so, or None."""
    if name.startswith("^"):
        path, name = path.rpartition(".")[0], name[1:]
    try:
        child = layer.get_submodule(path_in(path, name))
    except AttributeError:
        return None
    return linear_shape(child) if is_linear(child) else None
