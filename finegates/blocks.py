"""Descriptions of a transformer layer: attention, feed-forward, head sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

Layout = Literal["qkv", "heads", "groups", "multi_query", "gated_queries"]
"""Order of the rows of queries, keys and values (:func:`finegates.head_rows.head_rows`)."""


@dataclass(frozen=True)
class Rotary:
    """Pairs of dimensions that rotary embeddings mix.

    Attributes:
        pairs: ``half``: dimensions i and i + rotated / 2; ``next``: dimensions 2 i and 2 i + 1.
        rotated: number of rotated dimensions of a head, the first ones; None: all.
        shared: whether all heads of the module must keep the same pairs, because they use one
            table of angles.
    """

    pairs: Literal["half", "next"] = "half"
    rotated: int | None = None
    shared: bool = False


@dataclass(frozen=True)
class Attention:
    """Linear layers of one attention and the operations between them.

    Attributes:
        path: the module that splits its projections into heads.
        q: path of the query projection, output size ``heads * head_dim``.
        k: path of the key projection, output size ``kv_heads * head_dim``.
        v: path of the value projection, output size ``kv_heads * head_dim``. If all three paths are
            equal, they are one layer; ``layout`` is the order of its rows.
        o: path of the output projection, input size ``heads * head_dim``.
        heads: number of query heads.
        kv_heads: number of key and value heads; below ``heads`` with grouped queries.
        head_dim: width of a head.
        rotary: rotary embeddings of queries and keys, or None.
        norm: RMS norm of queries and keys that can be narrowed, over the dimensions of each head
            (``head``) or of all heads together (``all``); empty without one.
        fixed_scores: whether queries and keys keep all dimensions.
        even: whether every key-value head must keep the same number of query heads.
        layout: order of the rows of q, k and v in their layers.
        fixed_heads: whether other modules depend on the number of heads, so that no head may be
            removed.
        value_bias: whether a bias is added to values after their projection, so that a closed row
            does not make a value zero.
        cross: whether keys and values come from another sequence than queries.
        narrows: whether :meth:`Adapter.narrow` can make its heads narrower.
        joint: the projections among q, k and v that :meth:`Adapter.narrow` can fuse into one
            matmul, which is then the submodule of that name ("qkv", "kv"); empty if it cannot.
        projected: output sizes of q, k and v in a model whose heads do not have one width; None if
            they have. Such an attention does not narrow.
        uses: how often a forward pass uses it, in layers that share their weights.
    """

    path: str
    q: str
    k: str
    v: str
    o: str
    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary | None = None
    norm: Literal["", "head", "all"] = ""
    fixed_scores: bool = False
    even: bool = False
    layout: Layout = "qkv"
    fixed_heads: bool = False
    value_bias: bool = False
    cross: bool = False
    narrows: bool = True
    joint: str = ""
    projected: tuple[int, int, int] | None = None
    uses: int = 1

    @property
    def is_fused(self) -> bool:
        """Whether q, k and v are one layer already."""
        return self.q == self.k

    @property
    def shares_scores(self) -> bool:
        """Whether all heads keep the same dimensions of queries and keys."""
        return bool(self.norm) or (self.rotary is not None and self.rotary.shared)

    @property
    def rotated(self) -> int:
        """Number of dimensions of a head that rotary embeddings mix, the first ones."""
        if self.rotary is None:
            return 0
        return self.head_dim if self.rotary.rotated is None else self.rotary.rotated

    @property
    def rotates_some(self) -> bool:
        """Whether rotary embeddings leave other dimensions of a head as they are."""
        return 0 < self.rotated < self.head_dim

    @property
    def products(self) -> int:
        """Dense multiply-accumulates per pair of a token and a token it attends to."""
        if self.projected is not None:
            return self.projected[0] + self.projected[2]
        return 2 * self.heads * self.head_dim

    @property
    def joint_path(self) -> str:
        """Path of the fused projection that ``joint`` names."""
        return f"{self.path}.{self.joint}"

    def joint_linears(self) -> tuple[str, ...]:
        """Paths of the layers that can be fused, in order."""
        return tuple(getattr(self, letter) for letter in self.joint)

    def linears(self) -> tuple[str, ...]:
        """Paths in order of use: q, k, v, o, without repeats."""
        return tuple(dict.fromkeys((self.q, self.k, self.v, self.o)))


def _increase(numbers: tuple[int, ...]) -> bool:
    """Whether the numbers are increasing, non-negative and at least one."""
    return bool(numbers) and numbers[0] >= 0 and all(a < b for a, b in pairwise(numbers))


@dataclass(frozen=True)
class HeadSizes:
    """Heads that a narrowed attention keeps, all padded to one width.

    Attributes:
        heads: indices of the kept query heads in the dense model.
        groups: for each of them, the position of its key-value head among the kept ones.
        kv_heads: indices of the kept key-value heads in the dense model.
        head_dim: width of a head in the dense model; scores keep its scale.
        width: width of every kept head; unused dimensions are zero.
        pairs: with rotary embeddings, the ``width / 2`` rotated pairs that each kept key-value head
            keeps (pair i consists of dimensions i and i + head_dim / 2); None if every head keeps
            all pairs, if all heads share them, or without rotary embeddings.
        dimensions: dense dimension of queries and keys at each of the ``width`` positions, -1 for
            zeros, if all heads share them (``Attention.shares_scores``); None otherwise, or if all
            are kept.
        fused: whether the projections of ``Attention.joint`` are one matmul.

    Raises:
        ValueError: the numbers are inconsistent.
    """

    heads: tuple[int, ...]
    groups: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_dim: int
    width: int
    pairs: tuple[tuple[int, ...], ...] | None = None
    fused: bool = False
    dimensions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        fits = (
            0 < self.width <= self.head_dim
            and _increase(self.heads)
            and _increase(self.kv_heads)
            and len(self.groups) == len(self.heads)
            and set(self.groups) == set(range(len(self.kv_heads)))
            and list(self.groups) == sorted(self.groups)
        )
        if self.pairs is not None:
            half = self.head_dim // 2
            fits = fits and len(self.pairs) == len(self.kv_heads)
            fits = fits and all(2 * len(kept) == self.width for kept in self.pairs)
            fits = fits and all(0 <= pair < half for kept in self.pairs for pair in kept)
        if self.dimensions is not None:
            known = [dimension for dimension in self.dimensions if dimension >= 0]
            fits = fits and self.pairs is None and len(self.dimensions) == self.width
            fits = fits and len(set(known)) == len(known) and max(known, default=0) < self.head_dim
        if not fits:
            raise ValueError(f"head sizes are inconsistent: {self}")

    def check(self, part: Attention) -> None:
        """Raises ValueError unless the sizes fit a narrowed ``part``."""
        each = part.heads // part.kv_heads
        of_group = [self.kv_heads[group] for group in self.groups]
        if (
            self.head_dim != part.head_dim
            or self.heads[-1] >= part.heads
            or self.kv_heads[-1] >= part.kv_heads
            or of_group != [head // each for head in self.heads]
            or (self.fused and not part.joint)
            or (self.dimensions is not None and not part.shares_scores)
            or (part.even and self.repeats is None)
            or not part.narrows
        ):
            raise ValueError(f"{part.path}: {self} do not fit its {part.heads} heads")

    @property
    def repeats(self) -> int | None:
        """Query heads per key-value head if uniform and in order, else None."""
        each, rest = divmod(len(self.heads), len(self.kv_heads))
        regular = tuple(index // each for index in range(len(self.heads))) if each else ()
        return each if not rest and self.groups == regular else None


@dataclass(frozen=True)
class FeedForward:
    """``down(phi(up(x)))``, or ``down(phi(gate(x)) * up(x))`` with a gate.

    Attributes:
        up: path of the layer that widens.
        down: path of the layer that narrows, the only reader of the intermediate values.
        gate: path of the gate projection, or None. If it equals ``up``, both are one layer;
            ``layout`` is the order of its rows.
        activation: the name of phi in transformers' ``ACT2FN``; it acts elementwise.
        path: the module that :meth:`Adapter.join` can replace by one with a single matmul for gate
            and up; None if it cannot.
        phi: path of the attribute that computes phi; None if only the name is known.
        layout: of one layer for gate and up: all rows of gate, then all of up (``halves``), or
            alternating rows (``turns``).
        narrows: whether its forward is known to read the intermediate values in ``down`` alone.
        uses: how often a forward pass uses it, in layers that share their weights.
    """

    up: str
    down: str
    gate: str | None
    activation: str
    path: str | None = None
    phi: str | None = None
    layout: Literal["halves", "turns"] = "halves"
    narrows: bool = True
    uses: int = 1

    @property
    def is_fused(self) -> bool:
        """Whether gate and up are one layer already."""
        return self.gate == self.up

    def linears(self) -> tuple[str, ...]:
        """Paths in order of use: up, (gate,) down, without repeats."""
        paths = (self.up, self.gate, self.down)
        return tuple(dict.fromkeys(path for path in paths if path is not None))


@dataclass(frozen=True)
class Mixer:
    """A part that mixes tokens in a way that gates leave alone, such as attention over latents.

    Attributes:
        path: its module.
        reads: paths of the layers that read the residual stream.
        inner: paths of linear layers between these and ``writes``.
        writes: paths of the layers that write to the residual stream.
        products: multiply-accumulates per pair of a token and a token that it attends to.
        uses: how often a forward pass uses it, in layers that share their weights.
    """

    path: str
    reads: tuple[str, ...]
    inner: tuple[str, ...]
    writes: tuple[str, ...]
    products: int
    uses: int = 1

    def linears(self) -> tuple[str, ...]:
        """Paths of all layers, in order of use."""
        return (*self.reads, *self.inner, *self.writes)


@dataclass(frozen=True)
class Experts:
    """Stacked experts of a mixture-of-experts layer, of which every token goes to a few.

    Attributes:
        path: the module that holds them.
        count: number of experts E.
        active: number of experts that a token goes to.
        hidden: inputs and outputs H of an expert.
        width: intermediate dimensions I of a dense expert.
        matrices: weight matrices of H by I of an expert: 3 with a gate projection, otherwise 2.
        uses: how often a forward pass uses it, in layers that share their weights.
    """

    path: str
    count: int
    active: int
    hidden: int
    width: int
    matrices: int
    uses: int = 1

    def aligned(self, width: int) -> int:
        """The width that experts get which need one: the next multiple of 8, at most the dense one.

        torch's grouped product takes rows of whole 16 bytes only, which are 8 numbers of 16 bits.
        """
        return min(self.width, -(-max(width, 1) // 8) * 8)

    def macs(self, width: int) -> int:
        """Multiply-accumulates of one token if every expert has a width."""
        return self.active * self.matrices * self.hidden * width


@dataclass(frozen=True)
class Undescribed:
    """What no description of a layer's modules covers: it has no gates and keeps its sizes.

    Attributes:
        path: the transformer layer.
        layers: paths of its linear layers that no other part has; their MACs count.
        classes: names of the module classes that hold what is not described. Their other products,
            as those of an attention, a convolution or a recurrence, are unknown and do not count.
        uses: how often a forward pass uses it, in layers that share their weights.
    """

    path: str
    layers: tuple[str, ...]
    classes: tuple[str, ...]
    uses: int = 1

    def linears(self) -> tuple[str, ...]:
        """Paths of the linear layers."""
        return self.layers


@dataclass(frozen=True)
class Block:
    """One transformer layer.

    Attributes:
        path: the layer's own module path.
        attentions: self-attention, then cross-attention; empty if the layer has neither.
        feed_forward: None if the layer has none.
        experts: None if the layer has none.
        mixers: parts that mix tokens without being described attentions; usually none.
        undescribed: the rest of its linear layers, and of its modules; None if all are described.
    """

    path: str
    attentions: tuple[Attention, ...]
    feed_forward: FeedForward | None
    experts: Experts | None = None
    mixers: tuple[Mixer, ...] = ()
    undescribed: Undescribed | None = None

    @property
    def uses(self) -> int:
        """How often a forward pass uses its parts."""
        parts = (*self.attentions, *self.mixers, self.feed_forward, self.experts, self.undescribed)
        return max((part.uses for part in parts if part is not None), default=1)

    def used(self, times: int) -> Block:
        """The same layer, used several times by a forward pass."""
        return replace(
            self,
            attentions=tuple(replace(part, uses=times) for part in self.attentions),
            feed_forward=self.feed_forward and replace(self.feed_forward, uses=times),
            experts=self.experts and replace(self.experts, uses=times),
            mixers=tuple(replace(part, uses=times) for part in self.mixers),
            undescribed=self.undescribed and replace(self.undescribed, uses=times),
        )

    def linears(self) -> tuple[str, ...]:
        """Paths of all linear layers described, in order of use."""
        parts = (*self.attentions, *self.mixers, self.feed_forward)
        return tuple(path for part in parts if part is not None for path in part.linears())


@dataclass(frozen=True)
class Stream:
    """The residual stream of a model: the layers that read, write and normalise its dimensions.

    The linear layers of blocks that read it (q, k, v, up, gate) or write to it (o, down) are not
    repeated here.

    Attributes:
        size: its number of dimensions d.
        gated: paths of the modules whose output a gate on the stream multiplies, so that a closed
            dimension is zero there: embeddings, layer norms, and the layers of ``writes``.
        tables: names of the parameters with columns (axis 1) for the dimensions.
        layer_norms: paths of the norms that subtract a mean, over the stream.
        rms_norms: paths of the norms that do not, and what they add to their weight.
        reads: paths of the linear layers outside of blocks that read it.
        writes: paths of those that write to it.
    """

    size: int
    gated: tuple[str, ...]
    tables: tuple[str, ...]
    layer_norms: tuple[str, ...]
    rms_norms: tuple[tuple[str, float], ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
