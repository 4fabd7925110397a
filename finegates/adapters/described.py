"""The parts of any model, found by the classes of its modules.

What a module is follows from its own class, not from the type of the model around it, so that
encoder-decoders, two towers and models with a text model inside need nothing of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from finegates.adapters.base import Adapter, has_module, unwrap
from finegates.adapters.descriptions import ATTENTIONS, FEED_FORWARDS, MIXERS
from finegates.blocks import Attention, Block, Experts, FeedForward, HeadSizes, Mixer, Rotary
from finegates.modules.dense_shapes import dense_shape
from finegates.modules.experts import expert_shape, is_experts
from finegates.modules.narrowed import narrow_stock
from finegates.specs import AttentionSpec, FeedForwardSpec, MixerSpec


class DescribedAdapter(Adapter):
    """All architectures whose attention and feed-forward modules have a spec.

    Args:
        specs: further ones, which this adapter alone knows.
    """

    def __init__(self, *specs: AttentionSpec | FeedForwardSpec | MixerSpec) -> None:
        self._further = specs

    def _tables(self) -> dict[type, dict[str, Any]]:
        tables: dict[type, dict[str, Any]] = {
            AttentionSpec: _attention_specs(),
            FeedForwardSpec: _feed_specs(),
            MixerSpec: _mixer_specs(),
        }
        for spec in self._further:
            tables[type(spec)] = {**tables[type(spec)], **dict.fromkeys(spec.classes, spec)}
        return tables

    def knows(self, module: nn.Module) -> bool:
        """Whether a module has a spec, or holds stacked experts."""
        return is_experts(module) or any(_spec(module, t) for t in self._tables().values())

    def _spec_of(self, module: nn.Module) -> AttentionSpec:
        spec: AttentionSpec | None = _spec(module, self._tables()[AttentionSpec])
        if spec is None:
            raise ValueError(
                f"{type(module).__name__} has no description, so it cannot be narrowed"
            )
        return spec

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """The layers that hold described parts, in the order of the model's modules."""
        plain, tables = unwrap(model), self._tables()
        found: dict[str, list[_Part]] = {}
        for path, module in plain.named_modules():
            parts = _parts(plain, path, module, tables)
            layer = _layer_of(plain, path) if parts else None
            if layer is not None:
                found.setdefault(layer, []).extend(parts)
        return tuple(block for layer, parts in found.items() for block in _blocks(layer, parts))

    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        """The lists that hold the layers."""
        lists = (block.path.rpartition(".")[0] for block in self.blocks(model))
        return tuple(dict.fromkeys(lists))

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """The same module with other sizes (:func:`finegates.modules.narrowed.narrow_stock`)."""
        return narrow_stock(module, self._spec_of(module), part, sizes)

    def query_scale(self, module: nn.Module, sizes: HeadSizes) -> float:
        """By which the module's forward would scale scores otherwise than the dense one does."""
        scaled = self._spec_of(module).scaled_by_width
        if callable(scaled):
            return scaled(module, sizes)
        return float((sizes.width / sizes.head_dim) ** 0.5) if scaled else 1.0


_Part = Attention | FeedForward | Experts | Mixer


def _parts(
    model: nn.Module, path: str, module: nn.Module, tables: dict[type, dict[str, Any]]
) -> list[_Part]:
    """What a module is; a layer that holds its feed-forward part itself has no other."""
    found: list[_Part | None] = []
    attention: AttentionSpec | None = _spec(module, tables[AttentionSpec])
    feed: FeedForwardSpec | None = _spec(module, tables[FeedForwardSpec])
    mixer: MixerSpec | None = _spec(module, tables[MixerSpec])
    if attention is not None:
        found.append(_attention(model, path, module, attention))
    if mixer is not None:
        found.append(_mixer(model, path, module, mixer))
    if feed is not None:
        found.append(_feed_forward(model, path, feed))
    if is_experts(module):
        # Behind gates, the module inside them.
        found.append(_experts(path.removesuffix(".base"), module))
    return [part for part in found if part is not None]


def _blocks(layer: str, parts: list[_Part]) -> Iterator[Block]:
    """One block of a layer, and one more for each feed-forward part beyond the first."""
    feeds = [part for part in parts if isinstance(part, FeedForward)]
    yield Block(
        layer,
        tuple(part for part in parts if isinstance(part, Attention)),
        feeds[0] if feeds else None,
        next((part for part in parts if isinstance(part, Experts)), None),
        tuple(part for part in parts if isinstance(part, Mixer)),
    )
    for feed in feeds[1:]:
        yield Block(layer, (), feed)


@functools.cache
def _attention_specs() -> dict[str, AttentionSpec]:
    return {name: spec for spec in ATTENTIONS for name in spec.classes}


@functools.cache
def _feed_specs() -> dict[str, FeedForwardSpec]:
    return {name: spec for spec in FEED_FORWARDS for name in spec.classes}


@functools.cache
def _mixer_specs() -> dict[str, MixerSpec]:
    return {name: spec for spec in MIXERS for name in spec.classes}


def register(*specs: AttentionSpec | FeedForwardSpec | MixerSpec) -> None:
    """Adds descriptions of further modules, for this process.

    Args:
        specs: a class that was described before gets the new spec. Classes outside of
            ``transformers.models`` have their full name, ``"package.module.Class"``.

    Raises:
        TypeError: what is given is not a spec.
    """
    for spec in specs:
        tables: dict[type, Any] = {
            AttentionSpec: _attention_specs(),
            FeedForwardSpec: _feed_specs(),
            MixerSpec: _mixer_specs(),
        }
        if type(spec) not in tables:
            raise TypeError(
                f"register takes AttentionSpec, FeedForwardSpec and MixerSpec, got {spec!r}"
            )
        tables[type(spec)].update(dict.fromkeys(spec.classes, spec))


def _spec(module: nn.Module, specs: dict[str, Any]) -> Any:
    """The spec of a module, by its class; a subclass with a forward of its own has none."""
    for known in type(module).__mro__:
        name = class_name(known)
        if name in specs and type(module).forward is known.forward:  # type: ignore[attr-defined]
            return specs[name]
    return None


def class_name(known: type) -> str:
    """The name of a class in specs."""
    package = known.__module__.rpartition(".")[0]
    if package.startswith("transformers.models."):
        return f"{package.removeprefix('transformers.models.')}.{known.__name__}"
    return f"{known.__module__}.{known.__qualname__}"


def _layer_of(model: nn.Module, path: str) -> str | None:
    """The transformer layer that a module is in, or is; None outside of layers."""
    names = path.split(".")
    outer = [".".join(names[:count]) for count in range(len(names), 0, -1)]
    for prefix in outer:
        if isinstance(model.get_submodule(prefix), GradientCheckpointingLayer):
            return prefix
    return next((prefix for prefix in outer if prefix.rpartition(".")[2].isdigit()), None)


def _resolved(path: str, name: str) -> str:
    if name.startswith("^"):
        path, name = path.rpartition(".")[0], name[1:]
    return f"{path}.{name}" if path else name


def _of(fact: Any, module: nn.Module) -> Any:
    return fact(module) if callable(fact) else fact


def _attention(
    model: nn.Module, path: str, module: nn.Module, spec: AttentionSpec
) -> Attention | None:
    """The attention at a path, with the sizes that its weights have; None where they are gone."""
    q, k, v, o = (_resolved(path, name) for name in (spec.q, spec.k, spec.v, spec.o))
    shapes = {"q": dense_shape(model, q), "k": dense_shape(model, k), "o": dense_shape(model, o)}
    if shapes["q"] is None or shapes["k"] is None or shapes["o"] is None:
        return None
    narrowed: HeadSizes | None = getattr(module, "finegates_heads", None)
    if narrowed is not None:
        width = narrowed.head_dim
    else:
        width = getattr(module, spec.width) if isinstance(spec.width, str) else spec.width(module)
    contexts = shapes["o"][0]
    layout = _of(spec.layout, module)
    heads, rest = divmod(contexts, width)
    if layout in ("heads",):
        kv_heads = heads
    elif layout == "multi_query":
        kv_heads = 1
    elif q == k:
        kv_heads = (shapes["q"][1] // width - heads) // 2
    else:
        kv_heads = shapes["k"][1] // width
    if rest or kv_heads < 1 or heads % kv_heads:
        return None
    reason = None if spec.unsupported is None else spec.unsupported(module)
    rotary = spec.rotary
    if rotary is not None and rotary.when is not None and not rotary.when(module):
        rotary = None
    rotation = None
    if rotary is not None:
        rotated = rotary.dimensions(module) if narrowed is None else None
        rotation = Rotary(rotary.pairs, rotated, shared=True)
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
        norm="" if spec.norm is None else spec.norm.over,
        fixed_scores=bool(_of(spec.fixed_scores, module)),
        even=kv_heads < heads,
        layout=layout,
        fixed_heads=bool(_of(spec.fixed_heads, module)),
        value_bias=spec.value_bias,
        cross=_is_cross(spec, module, path),
        narrows=reason is None,
    )


def _is_cross(spec: AttentionSpec, module: nn.Module, path: str) -> bool:
    if callable(spec.cross):
        return spec.cross(module, path.rpartition(".")[2])
    return spec.cross


def _mixer(model: nn.Module, path: str, module: nn.Module, spec: MixerSpec) -> Mixer:
    def there(names: tuple[str, ...]) -> tuple[str, ...]:
        paths = (_resolved(path, name) for name in names)
        return tuple(each for each in paths if dense_shape(model, each) is not None)

    reads, inner, writes = (there(names) for names in (spec.reads, spec.inner, spec.writes))
    return Mixer(path, reads, inner, writes, spec.products(module))


def _experts(path: str, module: nn.Module) -> Experts:
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


def _activation(model: nn.Module, path: str, names: str | None) -> str | None:
    """The path of the attribute that is called for phi, the first that there is."""
    if names is None:
        return None
    paths = [_resolved(path, name) for name in names.split("|")]
    for each in paths:
        owner, _, name = each.rpartition(".")
        if has_module(model, owner) and hasattr(model.get_submodule(owner), name):
            return each
    return paths[0]


def _feed_forward(model: nn.Module, path: str, spec: FeedForwardSpec) -> FeedForward | None:
    up, down = _resolved(path, spec.up), _resolved(path, spec.down)
    gate = None if spec.gate is None else _resolved(path, spec.gate)
    if not has_module(model, up) or not has_module(model, down):
        return None
    return FeedForward(
        up=up,
        down=down,
        gate=gate,
        activation=spec.activation or "phi",
        phi=_activation(model, path, spec.phi),
        layout=spec.layout,
    )
