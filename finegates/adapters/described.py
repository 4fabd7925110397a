"""The parts of any model, found by the classes of its modules.

What a module is follows from its own class, not from the type of the model around it, so that
encoder-decoders, two towers and models with a text model inside need nothing of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from finegates.adapters.base import Adapter, unwrap
from finegates.adapters.descriptions import ATTENTIONS, FEED_FORWARDS, MIXERS, REPEATS, STREAMS
from finegates.adapters.names import class_name, names_of
from finegates.adapters.parts import (
    attention_part,
    experts_part,
    feed_forward_part,
    mixer_part,
    resolved,
)
from finegates.adapters.registered import REGISTERED, check_activation
from finegates.adapters.stream_parts import find_stream
from finegates.adapters.undescribed import with_undescribed
from finegates.blocks import Attention, Block, Experts, FeedForward, HeadSizes, Mixer, Stream
from finegates.modules.attention import RotaryAttention
from finegates.modules.experts import is_experts
from finegates.modules.joint import join_gate
from finegates.modules.likeness import is_alike, unlikeness
from finegates.modules.narrowed import fit_norms, narrow_stock, removed_parameters, set_sizes
from finegates.specs import AttentionSpec, FeedForwardSpec, MixerSpec, NormSpec, StreamSpec


class DescribedAdapter(Adapter):
    """All architectures whose attention and feed-forward modules have a spec.

    Args:
        specs: further ones, which this adapter alone knows.
    """

    def __init__(self, *specs: _Spec) -> None:
        self._further = specs

    def _tables(self) -> _Tables:
        tables: _Tables = {
            AttentionSpec: _attention_specs(),
            FeedForwardSpec: _feed_specs(),
            MixerSpec: _mixer_specs(),
            StreamSpec: _stream_specs(),
        }
        for spec in self._further:
            tables[type(spec)] = {**tables[type(spec)], **dict.fromkeys(spec.classes, spec)}
        return tables

    def knows(self, module: nn.Module) -> bool:
        """Whether a module has a spec, or holds stacked experts."""
        tables = self._tables()
        del tables[StreamSpec]  # of no use without parts that it goes with
        return is_experts(module) or any(_spec(module, table) for table in tables.values())

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """The layers that hold described parts, in the order of the model's modules."""
        plain, tables = unwrap(model), self._tables()
        described = set().union(*tables.values())
        found: dict[str, list[_Part]] = {}
        # A layer that is used in two places counts twice.
        for path, module in plain.named_modules(remove_duplicate=False):
            kind: Any = type(module)
            if described.isdisjoint(names_of(kind)) and not is_experts(module):
                continue
            parts = _parts(plain, path, module, tables)
            layer = _layer_of(plain, path) if parts else None
            if layer is not None:
                found.setdefault(layer, []).extend(parts)
        uses = _uses(plain)
        blocks = [block for layer, parts in found.items() for block in _blocks(layer, parts)]
        apart = [
            resolved(part.path, name)
            for block in blocks
            for part in block.attentions
            for name in self._attention_spec(plain.get_submodule(part.path)).apart
        ]
        return tuple(
            block.used(next((uses[p] for p in uses if f"{block.path}.".startswith(f"{p}.")), 1))
            for block in with_undescribed(plain, blocks, apart)
        )

    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        """The lists that hold the layers, or the modules around them, unless these are models."""
        plain = unwrap(model)
        paths: dict[str, None] = {}
        for block in self.blocks(plain):
            layers = block.path.rpartition(".")[0]
            around = layers.rpartition(".")[0]
            is_model = not around or hasattr(type(plain.get_submodule(around)), "config_class")
            paths[layers if is_model else around] = None
        return tuple(paths)

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """The same module with other sizes (:func:`finegates.modules.narrowed.narrow_stock`).

        Or, if the spec says so, a :class:`finegates.modules.attention.RotaryAttention`.
        """
        spec = self._attention_spec(module)
        if spec.executor is None:
            return narrow_stock(module, spec, part, sizes)
        if spec.norm is not None:
            fit_norms(module, spec.norm, part, sizes)
        return RotaryAttention(module, sizes, (spec.q, spec.k, spec.v))

    def join(self, module: nn.Module) -> nn.Module:
        """The same module (:func:`finegates.modules.joint.join_gate`)."""
        spec: FeedForwardSpec | None = _spec(module, self._tables()[FeedForwardSpec])
        if spec is None or spec.gate is None:
            raise ValueError(
                f"{type(module).__name__} has no description with a gate, so gate and up cannot be "
                "joined"
            )
        return join_gate(module, spec.gate, spec.up)

    def query_scale(self, module: nn.Module, sizes: HeadSizes) -> float:
        """By which the module's forward would scale scores otherwise than the dense one does."""
        scaled = self._attention_spec(module).scaled_by_width
        if callable(scaled):
            return scaled(module, sizes)
        return float((sizes.width / sizes.head_dim) ** 0.5) if scaled else 1.0

    def obstacle(self, model: nn.Module, part: Attention) -> str | None:
        """Says why an attention keeps its sizes: its forward, its options, or its weights."""
        if part.narrows:
            return None
        module = model.get_submodule(part.path)
        spec = self._attention_spec(module)
        reason = _why_whole(module, spec) or _own_surroundings(model, part.path, spec)
        return reason or f"the weights of {type(module).__name__} are not heads of its sizes"

    def with_sizes(self, module: nn.Module, part: Attention) -> Attention:
        """Sets those that the module's spec names, apart from its configuration."""
        spec = self._attention_spec(module)
        if spec.executor is None:
            set_sizes(module, spec, part.heads, part.kv_heads, part.head_dim)
        if spec.rotary is None or part.rotary is None:
            return part
        rotary = dataclasses.replace(part.rotary, rotated=spec.rotary.dimensions(module))
        return dataclasses.replace(part, rotary=rotary)

    def per_head(self, module: nn.Module) -> Mapping[str, int]:
        """Those of the module's spec."""
        return self._attention_spec(module).per_head

    def norm_of(self, module: nn.Module) -> NormSpec | None:
        """That of the module's spec."""
        return self._attention_spec(module).norm

    def stream(self, model: nn.Module) -> Stream:
        """The residual stream, where every tensor of its size is described."""
        plain, tables = unwrap(model), self._tables()
        blocks = self.blocks(plain)
        _check_own_forwards(plain, blocks, tables)
        further = [
            f"{part.path}.{name}"
            for block in blocks
            for part in block.attentions
            if (norm := self.norm_of(plain.get_submodule(part.path))) is not None
            for name in norm.names
        ]
        return find_stream(
            plain,
            blocks,
            lambda module: _spec(module, tables[StreamSpec]),
            lambda module, spec: _own_forward(module, spec.classes),
            further,
        )

    def removed_parameters(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> int:
        """Those of norms, and of tensors with entries for every head."""
        return removed_parameters(module, self._attention_spec(module), part, sizes)

    def _attention_spec(self, module: nn.Module) -> AttentionSpec:
        spec: AttentionSpec | None = _spec(module, self._tables()[AttentionSpec])
        if spec is None:
            raise ValueError(
                f"{type(module).__name__} has no description, so it cannot be narrowed"
            )
        return spec


_Part = Attention | FeedForward | Experts | Mixer
_Spec = AttentionSpec | FeedForwardSpec | MixerSpec | StreamSpec
_Tables = dict[type, dict[str, Any]]


def _parts(model: nn.Module, path: str, module: nn.Module, tables: _Tables) -> list[_Part]:
    """What a module is; a layer that holds its feed-forward part itself has no other."""
    found: list[_Part | None] = []
    attention: AttentionSpec | None = _spec(module, tables[AttentionSpec])
    feed: FeedForwardSpec | None = _spec(module, tables[FeedForwardSpec])
    mixer: MixerSpec | None = _spec(module, tables[MixerSpec])
    if attention is not None:
        reason = _why_whole(module, attention) or _own_surroundings(model, path, attention)
        narrows = reason is None
        found.append(attention_part(model, path, module, attention, narrows=narrows))
    if mixer is not None:
        found.append(mixer_part(model, path, module, mixer))
    if feed is not None:
        narrows = _own_forward(module, feed.classes) is None
        found.append(feed_forward_part(model, path, feed, narrows=narrows))
    if is_experts(module):
        # Behind gates, the module inside them.
        found.append(experts_part(path.removesuffix(".base"), module))
    return [part for part in found if part is not None]


def _why_whole(module: nn.Module, spec: AttentionSpec) -> str | None:
    """Why the heads of a module keep their sizes with any weights; None if they need not.

    Code is compared, because similar attentions also cap scores, leave positions out, or add sinks.
    """
    reason = _own_forward(module, spec.classes)
    if reason is None and spec.unsupported is not None:
        reason = spec.unsupported(module)
    if reason is None and spec.executor is not None and not isinstance(module, RotaryAttention):
        reason = unlikeness(module, RotaryAttention.classes)
        if reason is None and (spec.norm is None) == hasattr(module, "q_norm"):
            reason = f"{type(module).__name__} does not normalise queries and keys as its spec says"
    return reason


def _own_forward(module: nn.Module, classes: tuple[str, ...]) -> str | None:
    """Why a module does not compute what a spec of its class describes; None if it does."""
    name = type(module).__name__
    if "forward" in vars(module):
        return f"the forward of this {name} has been replaced"
    known = _described_class(module, classes)
    kind: Any = type(module)
    if isinstance(module, RotaryAttention) or _is_alike(kind, known):
        return None
    return f"the forward of {name} is not that of {known.__name__}"


def _check_own_forwards(model: nn.Module, blocks: tuple[Block, ...], tables: _Tables) -> None:
    """Raises ValueError if a described part may read the residual stream in further places."""
    for block in blocks:
        for part in block.attentions:
            module = model.get_submodule(part.path)
            spec: AttentionSpec = _spec(module, tables[AttentionSpec])
            reason = _own_forward(module, spec.classes)
            if reason is not None:
                raise ValueError(f"hidden dimensions cannot be closed: {part.path}: {reason}")
        feed = block.feed_forward
        if feed is not None and not feed.narrows:
            raise ValueError(
                f"hidden dimensions cannot be closed: the forward around {feed.up} is not the "
                "described one"
            )


def _described_class(module: nn.Module, classes: tuple[str, ...]) -> Any:
    """The class of a module, or the one that it is derived from, which a spec names."""
    return next(each for each in type(module).__mro__ if class_name(each) in classes)


@functools.cache
def _is_alike(one: Any, other: Any) -> bool:
    return is_alike(one, other)


def _own_surroundings(model: nn.Module, path: str, spec: AttentionSpec) -> str | None:
    """Why what happens around a module is unknown; None if the spec needs nothing there.

    A spec of a class of transformers with an output projection outside of the module (``^`` in its
    path) says what the class of transformers around it does, and nothing about others.
    """
    if not any(name.startswith("^") for name in (spec.q, spec.k, spec.v, spec.o)):
        return None
    known = _described_class(model.get_submodule(path), spec.classes)
    around = type(model.get_submodule(path.rpartition(".")[0]))
    if _is_stock(around) or not _is_stock(known):
        return None
    return f"what {around.__name__} does with its result is not known"


def _is_stock(kind: type) -> bool:
    return kind.__module__.startswith("transformers.")


def _uses(model: nn.Module) -> dict[str, int]:
    """How often layers that share their weights are used, by path."""
    specs = {name: spec for spec in REPEATS for name in spec.classes}
    return {
        f"{path}.{inner}".lstrip("."): count
        for path, module in model.named_modules()
        if (spec := _spec(module, specs)) is not None
        for inner, count in spec.uses(module).items()
    }


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


@functools.cache
def _stream_specs() -> dict[str, StreamSpec]:
    return {name: spec for spec in STREAMS for name in spec.classes}


def register(*specs: _Spec) -> None:
    """Adds descriptions of further modules, for this process.

    Args:
        specs: a class that was described before gets the new spec. Classes outside of
            ``transformers.models`` have their full name, ``"package.module.Class"``.

    Raises:
        TypeError: what is given is not a spec.
        ValueError: a spec names an activation that transformers does not have.
    """
    for spec in specs:
        tables: dict[type, Any] = {
            AttentionSpec: _attention_specs(),
            FeedForwardSpec: _feed_specs(),
            MixerSpec: _mixer_specs(),
            StreamSpec: _stream_specs(),
        }
        if type(spec) not in tables:
            raise TypeError(
                "register takes AttentionSpec, FeedForwardSpec, MixerSpec and StreamSpec, got "
                f"{spec!r}"
            )
        check_activation(spec)
        tables[type(spec)].update(dict.fromkeys(spec.classes, spec))
        REGISTERED.update({(type(spec), name): spec for name in spec.classes})


def _spec(module: nn.Module, specs: dict[str, Any]) -> Any:
    """The spec of a module, by its class or the nearest class that it is derived from."""
    kind: Any = type(module)
    return next((specs[name] for name in names_of(kind) if name in specs), None)


def _layer_of(model: nn.Module, path: str) -> str | None:
    """The transformer layer that a module is in, or is; None outside of layers."""
    names = path.split(".")
    outer = [".".join(names[:count]) for count in range(len(names), 0, -1)]
    for prefix in outer:
        if isinstance(model.get_submodule(prefix), GradientCheckpointingLayer):
            return prefix
    return next((prefix for prefix in outer if prefix.rpartition(".")[2].isdigit()), None)
