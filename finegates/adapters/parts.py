"""The parts that modules are, by their specs and the sizes of their weights."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import nn

from finegates.adapters.base import has_module
from finegates.blocks import Attention, Experts, FeedForward, HeadSizes, Layout, Mixer, Rotary
from finegates.modules.dense_shapes import dense_shape
from finegates.modules.experts import expert_shape
from finegates.specs import AttentionSpec, FeedForwardSpec, MixerSpec, derived_size


def attention_part(
    model: nn.Module, path: str, module: nn.Module, spec: AttentionSpec, *, narrows: bool = True
) -> Attention | None:
    """The attention at a path, with the sizes that its weights have.

    Pruning tools and users change modules without changing the configuration, so that sizes are
    those of the weights. If these are not heads of one width, or not those that the module's own
    attributes say, heads keep their sizes (``narrows=False``).

    Args:
        model: plain; dense, gated or compact.
        path: of the module.
        module: the one at the path.
        spec: its description.
        narrows: False if its heads have to keep their sizes.

    Returns:
        None if the layers of the attention are gone, or the spec does not hold for the module.
    """
    if spec.when is not None and not spec.when(module):
        return None
    q, k, v, o = (resolved(path, name) for name in (spec.q, spec.k, spec.v, spec.o))
    cross = spec.cross
    if callable(cross):
        cross = cross(module, path)
    joint = "" if not spec.joint or q == k else "kv" if cross else "qkv"
    if cross and "key_value_states" not in inspect.signature(type(module).forward).parameters:
        joint = ""  # its encoder's states have another name
    present = (q, k, v, o, f"{path}.{joint}" if joint else q)
    if not any(has_module(model, each) for each in present):
        return None
    narrowed: HeadSizes | None = getattr(module, "finegates_heads", None)
    width = _width(path, module, spec) if narrowed is None else narrowed.head_dim
    rotary, norm = spec.rotary, "" if spec.norm is None else spec.norm.over
    rotation = None
    if rotary is not None and (rotary.when is None or rotary.when(module)):
        rotated = rotary.dimensions(module) if narrowed is None else None
        rotation = Rotary(rotary.pairs, rotated, shared=spec.executor is None)
    layout: Layout = _of(spec.layout, module)
    sizes = _projected(model, (q, k, v, o), f"{path}.{joint}" if joint else "", layout)
    heads, kv_heads = 1, 1
    fits = False
    if sizes is not None:
        queries, keys, values, contexts = sizes
        heads, kv_heads = max(contexts // width, 1), max(values // width, 1)
        fits = (
            queries == contexts == heads * width
            and keys == values == kv_heads * width
            and heads % kv_heads == 0
            and (narrowed is not None or _as_attributes(module, spec, heads, kv_heads, width))
        )
        if not fits:
            heads = kv_heads = max(1, math.gcd(contexts, values) // width)
    return Attention(
        path=path,
        q=q,
        k=k,
        v=v,
        o=o,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        rotary=rotation,
        norm=norm,
        fixed_scores=bool(_of(spec.fixed_scores, module)),
        even=kv_heads < heads and spec.executor is None,
        layout=layout,
        fixed_heads=bool(_of(spec.fixed_heads, module)),
        value_bias=spec.value_bias,
        cross=cross,
        narrows=narrows and fits and (spec.unsupported is None or spec.unsupported(module) is None),
        joint=joint if fits else "",
        projected=None if fits or sizes is None else sizes[:3],
    )


def _width(path: str, module: nn.Module, spec: AttentionSpec) -> int:
    """The width of a head, from the module."""
    if not isinstance(spec.width, str):
        return int(spec.width(module))
    if not hasattr(module, spec.width):
        raise ValueError(
            f"AttentionSpec of {', '.join(spec.classes)}: width={spec.width!r}, but it is not an "
            f"attribute of {path} ({type(module).__name__})"
        )
    return int(getattr(module, spec.width))


def _projected(
    model: nn.Module, paths: tuple[str, str, str, str], joint: str, layout: str
) -> tuple[int, int, int, int] | None:
    """Dense output sizes of q, k and v and the input size of o; None where they are unknown."""
    q, k, v, o = (dense_shape(model, path) for path in paths)
    if o is None:
        return None
    contexts = o[0]
    product = dense_shape(model, joint) if joint else None
    if paths[0] == paths[1] or (product is not None and joint.endswith("qkv")):
        whole = q or product
        if whole is None:
            return None
        gates = contexts if layout == "gated_queries" else 0
        keys = (whole[1] - gates - contexts) // 2
        return whole[1] - gates - 2 * keys, keys, keys, contexts
    if q is None:
        return None
    queries = q[1] // 2 if layout == "gated_queries" else q[1]
    if product is not None:
        return queries, product[1] // 2, product[1] // 2, contexts
    if k is None or v is None:
        return None
    return queries, k[1], v[1], contexts


def _as_attributes(
    module: nn.Module, spec: AttentionSpec, heads: int, kv_heads: int, width: int
) -> bool:
    """Whether the sizes that forward reads are those of the weights."""
    known = {"heads": heads, "kv_heads": kv_heads, "each": heads // kv_heads, "width": width}
    return all(
        getattr(module, name, None) in (None, derived_size(text, known))
        for name, text in spec.sizes.items()
    )


def mixer_part(model: nn.Module, path: str, module: nn.Module, spec: MixerSpec) -> Mixer:
    """The part that mixes tokens without heads that could go, with the layers that it has."""

    def there(names: tuple[str, ...]) -> tuple[str, ...]:
        paths = (resolved(path, name) for name in names)
        return tuple(each for each in paths if dense_shape(model, each) is not None)

    reads, inner, writes = (there(names) for names in (spec.reads, spec.inner, spec.writes))
    return Mixer(path, reads, inner, writes, spec.products(module))


def experts_part(path: str, module: nn.Module) -> Experts:
    """The stacked experts of a module, dense or narrowed."""
    count, hidden, width = expert_shape(module)
    known = getattr(module, "finegates_width", None)
    config: Any = module.config
    active = next(
        getattr(config, name) for name in _ACTIVE if getattr(config, name, None) is not None
    )
    matrices = 3 if module.has_gate else 2
    return Experts(path, count, int(active), hidden, known[1] if known else width, matrices)


_ACTIVE = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k", "num_selected_experts")
"""Names that configurations have for the number of experts that a token goes to."""


def feed_forward_part(
    model: nn.Module, path: str, spec: FeedForwardSpec, *, narrows: bool = True
) -> FeedForward | None:
    """The feed-forward part of the module at a path; None if its layers are gone."""
    if spec.when is not None and not spec.when(model.get_submodule(path)):
        return None
    up, down = resolved(path, spec.up), resolved(path, spec.down)
    gate = None if spec.gate is None else resolved(path, spec.gate)
    joins = spec.joint and gate is not None and gate != up
    present = [up, down, f"{path}.gate_up"] if joins else [up, down]
    if not any(has_module(model, each) for each in present):
        return None
    return FeedForward(
        up=up,
        down=down,
        gate=gate,
        activation=spec.activation or "phi",
        path=path if joins else None,
        phi=_activation(model, path, spec.phi),
        layout=spec.layout,
        narrows=narrows,
    )


def _activation(model: nn.Module, path: str, names: str | None) -> str | None:
    """The path of the attribute that is called for phi, the first that there is."""
    if names is None:
        return None
    paths = [resolved(path, name) for name in names.split("|")]
    for each in paths:
        owner, _, name = each.rpartition(".")
        if has_module(model, owner) and hasattr(model.get_submodule(owner), name):
            return each
    return paths[0]


def resolved(path: str, name: str) -> str:
    """A name of a spec as a path of the model."""
    if name.startswith("^"):
        path, name = path.rpartition(".")[0], name[1:]
    return f"{path}.{name}" if path else name


def _of(fact: Any, module: nn.Module) -> Any:
    return fact(module) if callable(fact) else fact
