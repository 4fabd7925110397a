"""Descriptions of the attention and feed-forward modules of architectures, one or a few lines each.

A spec says where the projections of a module are, how their rows are laid out, and which attributes
hold sizes that change when heads or dimensions go. Nothing is computed here: from specs follow the
parts of a model (:mod:`finegates.adapters.described`) and narrower modules
(:mod:`finegates.modules.narrowed`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finegates.blocks import Layout

Of = Callable[[Any], Any]
"""A fact that depends on the module: called with it."""


_CROSS = (
    "encoder_attn",
    "EncDecAttention",
    "crossattention",
    "cross_attn",
    "cross_attention",
    "encoder_decoder_attention",
)


def is_named_cross(module: Any, path: str) -> bool:
    """Whether the name of an attention, or of the module around it, says that it attends to others.

    Args:
        module: the attention.
        path: its path in the model.
    """
    return any(name in _CROSS for name in path.split(".")[-2:])


def named(*classes: str) -> tuple[str, ...]:
    """Class names written as one: ``"bart.BartEncoderLayer BartDecoderLayer"``."""
    names = []
    for text in classes:
        package, _, rest = text.partition(".")
        names += [f"{package}.{name}" for name in rest.split()]
    return tuple(names)


def derived_size(text: str, known: Mapping[str, int]) -> int:
    """The product that a spec gives for an attribute, such as ``"heads*width"``."""
    return math.prod(known[factor] for factor in text.split("*"))


def _check_classes(spec: Any) -> None:
    """Raises TypeError unless the classes of a spec are several names."""
    if isinstance(spec.classes, str):
        raise TypeError(
            f"{type(spec).__name__} takes a tuple of class names, got the text {spec.classes!r}; "
            f"write classes=({spec.classes!r},)"
        )


_FACTORS = ("heads", "kv_heads", "each", "width")


def _check_sizes(spec: AttentionSpec) -> None:
    """Raises ValueError unless sizes are products of the numbers that there are."""
    for name in ("sizes", "config_sizes"):
        for attribute, text in getattr(spec, name).items():
            if not set(str(text).split("*")) <= set(_FACTORS):
                raise ValueError(
                    f"AttentionSpec of {', '.join(spec.classes)}: {name} says that {attribute!r} "
                    f"is {text!r}, which is not a product of {', '.join(_FACTORS)}"
                )


@dataclass(frozen=True)
class RotarySpec:
    """Rotary embeddings of queries and keys.

    Attributes:
        pairs: see :class:`finegates.blocks.Rotary`.
        table: the argument of the module's forward that holds the angles; None: the buffer
            ``buffer``.
        order: of a table: ``twice`` holds every angle at i and i + half, ``repeated`` at 2 i and
            2 i + 1, ``once`` once, ``sines`` first all sines and then all cosines.
        rotated: how many dimensions of a head are rotated, from the module; None: all. Where it is
            the name of an attribute, the attribute changes with the heads.
        buffer: a buffer of the module with the sines and then the cosines of all positions.
        when: whether the module rotates at all.
    """

    pairs: Literal["half", "next"] = "half"
    table: str | None = "position_embeddings"
    order: Literal["twice", "repeated", "once", "sines"] = "twice"
    rotated: str | Of | None = None
    buffer: str | None = None
    when: Of | None = None

    def dimensions(self, module: Any) -> int | None:
        """How many dimensions of a head a module rotates; None: all."""
        if self.rotated is None:
            return None
        if isinstance(self.rotated, str):
            return int(getattr(module, self.rotated))
        return int(self.rotated(module))


@dataclass(frozen=True)
class NormSpec:
    """RMS norms over the dimensions of queries and keys, before the dot product.

    Attributes:
        names: of the norms of queries and of keys, in the module.
        over: the dimensions of each head, or of all heads together.
        offset: the norm multiplies by ``offset + weight``.
    """

    names: tuple[str, str] = ("q_norm", "k_norm")
    over: Literal["head", "all"] = "head"
    offset: float = 0.0


@dataclass(frozen=True)
class AttentionSpec:
    """An attention module that takes its sizes from attributes.

    Paths are relative to the module; with ``^`` in front, to the module around it.

    Attributes:
        classes: that it describes: ``"bart.BartAttention"`` of ``transformers.models``, or
            ``"package.module.Class"`` of anything else. So in all specs.
        q: path of the query projection.
        k: path of the key projection.
        v: path of the value projection; the three may be one.
        o: path of the output projection.
        layout: of the rows of q, k and v; may depend on the module.
        width: the attribute that holds the width of a head; or from the module, where none does.
        sizes: further attributes that hold sizes: their names, and products of ``heads``,
            ``kv_heads``, ``each`` (query heads per key-value head) and ``width``, as
            ``{"num_heads": "heads", "inner_dim": "heads*width"}``.
        config_sizes: the same of the configuration, where forward reads it.
        rotary: None without.
        norm: of queries and keys; None without.
        scaled_by_width: whether forward divides scores by the root of the width that it finds,
            instead of by a number that was fixed when the module was made; or from the module and
            the new sizes what queries have to be multiplied by.
        per_head: parameters and buffers with one entry per query head: path and axis.
        head_arguments: arguments of forward with one entry per query head: name and axis; axis None
            for (batch * heads, ...).
        fixed_heads: whether no head may go as a whole; may depend on the module.
        fixed_scores: whether the dimensions of queries and keys stay; may depend on the module.
        value_bias: whether something is added to values behind their projection, so that a closed
            row of it is not a zero value.
        cross: whether it attends to an encoder's states; may depend on the module and its path.
        joint: whether forward reads the module's input in q, k and v alone, which can therefore be
            one matmul; with ``cross``, the encoder's states in k and v.
        executor: the module of the library that takes the place of a narrowed one
            (:mod:`finegates.modules.attention`), because it also takes groups of several sizes and
            other pairs for every head; None narrows the module itself.
        apart: linear layers of the module that do not multiply tokens, but relative positions or
            scores; they do not count among the MACs.
        when: whether a module of these classes is what is described; None: always.
        unsupported: why a module of these classes cannot be narrowed, or None; from the module.
    """

    classes: tuple[str, ...]
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    layout: Layout | Of = "qkv"
    width: str | Of = "head_dim"
    sizes: Mapping[str, str] = field(default_factory=dict)
    config_sizes: Mapping[str, str] = field(default_factory=dict)
    rotary: RotarySpec | None = None
    norm: NormSpec | None = None
    scaled_by_width: bool | Callable[[Any, Any], float] = False
    per_head: Mapping[str, int] = field(default_factory=dict)
    head_arguments: Mapping[str, int | None] = field(default_factory=dict)
    fixed_heads: bool | Of = False
    fixed_scores: bool | Of = False
    value_bias: bool = False
    cross: bool | Callable[[Any, str], bool] = False
    joint: bool = False
    executor: Literal["rotary"] | None = None
    apart: tuple[str, ...] = ()
    when: Of | None = None
    unsupported: Of | None = None

    def __post_init__(self) -> None:
        _check_classes(self)
        _check_sizes(self)


@dataclass(frozen=True)
class MixerSpec:
    """A module that mixes tokens and keeps its inner sizes.

    Paths are relative to the module; layers that a model does not use are left out.

    Attributes:
        classes: that it describes, as ``"deepseek_v3.DeepseekV3Attention"``.
        reads: paths of the layers that read what the module gets.
        writes: paths of the layers that give what it returns.
        inner: paths of linear layers between them.
        products: multiply-accumulates per pair of tokens, from the module.
    """

    classes: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inner: tuple[str, ...] = ()
    products: Callable[[Any], int] = lambda module: 0

    def __post_init__(self) -> None:
        _check_classes(self)


@dataclass(frozen=True)
class FeedForwardSpec:
    """A module with the layers of a feed-forward part.

    Attributes:
        classes: that it describes, as ``"bart.BartEncoderLayer"``.
        up: path of the layer that widens, relative to the module.
        down: path of the layer that narrows.
        gate: path of the gate projection; None without. The same as ``up`` is one layer for both.
        layout: of one layer for both, see :class:`finegates.blocks.FeedForward`.
        phi: path of the attribute that is called for the activation; several paths, separated by
            ``|``, if versions of transformers differ; None where forward calls a function.
        activation: the name of that function in transformers' ``ACT2FN``.
        joint: whether forward has one argument, which it reads in gate and up alone, so that the
            two can be one matmul.
        when: whether a module of these classes is what is described; None: always.
    """

    classes: tuple[str, ...]
    up: str = "up_proj"
    down: str = "down_proj"
    gate: str | None = None
    layout: Literal["halves", "turns"] = "halves"
    phi: str | None = "act_fn"
    activation: str = ""
    joint: bool = False
    when: Of | None = None

    def __post_init__(self) -> None:
        _check_classes(self)


@dataclass(frozen=True)
class RepeatSpec:
    """A module that uses its layers several times in a forward pass, with the same weights.

    Attributes:
        classes: that it describes, as ``"albert.AlbertTransformer"``.
        uses: from the module, how often it uses what is at a path relative to it.
    """

    classes: tuple[str, ...]
    uses: Callable[[Any], Mapping[str, int]]


@dataclass(frozen=True)
class StreamSpec:
    """Where a module meets the residual stream, apart from attention and feed-forward layers.

    Paths are relative to the module; those that a model does not have, and layers of other sizes
    than the stream, are left out.

    Attributes:
        classes: that it describes, as ``"bert.BertEmbeddings"``.
        tables: embeddings whose rows are added to the stream.
        norms: norms over the dimensions of the stream: ``nn.LayerNorm``, or RMS norms.
        offset: RMS norms multiply by ``offset + weight``.
        reads: linear layers that read the stream, such as the output layer.
        writes: linear layers that write to it. An activation behind them is zero at zero.
        phi: path of that activation; None without, or if forward calls a function.
        apart: modules that do not meet the stream, although they have its size.
    """

    classes: tuple[str, ...]
    tables: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    offset: float = 0.0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    phi: str | None = None
    apart: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_classes(self)
