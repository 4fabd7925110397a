"""The parts of one transformer layer: attention and feed-forward, and the sizes of heads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Attention:
    """The linear layers of one attention and what happens between them.

    Attributes:
        path: the module that splits its projections into heads.
        q: path of the query projection, output size ``heads * head_dim``.
        k: path of the key projection, output size ``kv_heads * head_dim``.
        v: path of the value projection, output size ``kv_heads * head_dim``. The same path three
            times is one layer whose outputs are those of q, k and v one after another.
        o: path of the output projection, input size ``heads * head_dim``.
        heads: number of query heads.
        kv_heads: number of key and value heads; below ``heads`` with grouped queries.
        head_dim: width of a head.
        rotary: whether rotary embeddings mix dimension i with i + head_dim / 2 of queries and keys.
        qk_norm: whether queries and keys are normalised over dimensions before the dot product.
        fixed_heads: whether something outside counts the heads, so that none may go whole.
        cross: whether keys and values are of another sequence than queries.
        narrows: whether :meth:`Adapter.narrow` can make its heads narrower.
        joint: the letters of those of q, k and v that :meth:`Adapter.narrow` can make one product
            of, which is then the submodule of that name ("qkv", "kv"); empty where it can not.
        projected: output sizes of q, k and v in a model where they are not those of heads of one
            width; None where they are. Such an attention does not narrow.
    """

    path: str
    q: str
    k: str
    v: str
    o: str
    heads: int
    kv_heads: int
    head_dim: int
    rotary: bool = False
    qk_norm: bool = False
    fixed_heads: bool = False
    cross: bool = False
    narrows: bool = True
    joint: str = ""
    projected: tuple[int, int, int] | None = None

    @property
    def is_fused(self) -> bool:
        """Whether q, k and v are one layer already."""
        return self.q == self.k

    @property
    def products(self) -> int:
        """Multiply-accumulates of a token and a token that it attends to, nothing removed."""
        if self.projected is not None:
            return self.projected[0] + self.projected[2]
        return 2 * self.heads * self.head_dim

    @property
    def joint_path(self) -> str:
        """Path of the product that ``joint`` names, in a model that has it."""
        return f"{self.path}.{self.joint}"

    def joint_linears(self) -> tuple[str, ...]:
        """Paths of the layers that can become that product, in its order."""
        return tuple(getattr(self, letter) for letter in self.joint)

    def linears(self) -> tuple[str, ...]:
        """Paths in order of use: q, k, v, o, without repeats."""
        return tuple(dict.fromkeys((self.q, self.k, self.v, self.o)))


def _increase(numbers: tuple[int, ...]) -> bool:
    """Whether they are increasing numbers from 0 on, at least one."""
    return bool(numbers) and numbers[0] >= 0 and all(a < b for a, b in pairwise(numbers))


@dataclass(frozen=True)
class HeadSizes:
    """The heads that a narrowed attention keeps, all padded to one width.

    Attributes:
        heads: the kept query heads, by their number in the dense model.
        groups: for each of them, the position of its key-value head among the kept ones.
        kv_heads: the kept key-value heads, by their number in the dense model.
        head_dim: width of a head in the dense model; scores keep its scale.
        width: width of every kept head, unused dimensions being zero.
        pairs: with rotary embeddings, for each kept key-value head the ``width / 2`` rotated pairs
            that it keeps (pair i holds dimensions i and i + head_dim / 2); None if every head keeps
            all of them, or without such embeddings.
        fused: whether the projections that can (``Attention.joint``) are one product.

    Raises:
        ValueError: the numbers do not fit together.
    """

    heads: tuple[int, ...]
    groups: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_dim: int
    width: int
    pairs: tuple[tuple[int, ...], ...] | None = None
    fused: bool = False

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
        if not fits:
            raise ValueError(f"head sizes do not fit together: {self}")

    def check(self, part: Attention) -> None:
        """Raises ValueError unless the sizes can be those of a narrowed ``part``."""
        each = part.heads // part.kv_heads
        of_group = [self.kv_heads[group] for group in self.groups]
        if (
            self.head_dim != part.head_dim
            or self.heads[-1] >= part.heads
            or self.kv_heads[-1] >= part.kv_heads
            or of_group != [head // each for head in self.heads]
            or (self.fused and not part.joint)
            or not part.narrows
        ):
            raise ValueError(f"{part.path}: {self} are no sizes of {part.heads} heads")

    @property
    def repeats(self) -> int | None:
        """Query heads per key-value head where that is one number in order, else None."""
        each, rest = divmod(len(self.heads), len(self.kv_heads))
        regular = tuple(index // each for index in range(len(self.heads))) if each else ()
        return each if not rest and self.groups == regular else None


@dataclass(frozen=True)
class FeedForward:
    """``down(phi(up(x)))``, or ``down(phi(gate(x)) * up(x))`` where there is a gate projection.

    Attributes:
        up: path of the layer that widens.
        down: path of the layer that narrows; it alone reads the intermediate values.
        gate: path of the gate projection, or None.
        activation: the name of phi in transformers' ``ACT2FN``; it acts on each number alone.
        path: the module that :meth:`Adapter.join` can replace by one with a single product for gate
            and up; None where it can not.
        phi: path of the attribute that is called for phi, which decides what phi is; None where
            only the name is known.
    """

    up: str
    down: str
    gate: str | None
    activation: str
    path: str | None = None
    phi: str | None = None

    def linears(self) -> tuple[str, ...]:
        """Paths in order of use: up, (gate,) down."""
        return (self.up, self.down) if self.gate is None else (self.up, self.gate, self.down)


@dataclass(frozen=True)
class Block:
    """One transformer layer.

    Attributes:
        path: the layer's own module path.
        attentions: self-attention, then cross-attention; empty where the layer has neither.
        feed_forward: None where the layer has none.
    """

    path: str
    attentions: tuple[Attention, ...]
    feed_forward: FeedForward | None

    def linears(self) -> tuple[str, ...]:
        """Paths of all linear layers described, in order of use."""
        parts = (*self.attentions, self.feed_forward)
        return tuple(path for part in parts if part is not None for path in part.linears())
