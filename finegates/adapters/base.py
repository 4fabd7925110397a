"""The description of a transformer that attaching, budgeting and compaction work from.

A :class:`Block` names the linear layers of one transformer layer by module path and gives the sizes
and properties that decide which removals are exact. Paths are relative to the plain transformers
model, without any ``peft`` wrapper (:func:`unwrap`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import nn

from finegates.arguments import check_model
from finegates.wrappers import without_containers


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


class Adapter(ABC):
    """Describes one architecture. Every method takes the plain or the ``peft``-wrapped model.

    To add an architecture, implement :meth:`blocks` and :meth:`encoder`; override the others where
    the defaults do not hold. A description holds sizes of the weights that are there, not those of
    the configuration (:func:`finegates.adapters.fit.fitted`).

    Attributes:
        model_types: the values of ``config.model_type`` that it serves.
        attention_classes: of transformers (``"llama.LlamaAttention"``), whose code :meth:`narrow`
            stands for. The heads of any other class keep their sizes. Empty: any will do.
        feed_forward_classes: the same of the modules at ``FeedForward.path``.
        uniform: the configuration's keys for sizes that every layer shares: ``intermediate``, and
            where they can differ from the dense model's, ``heads`` with ``kv_heads``, or ``width``.
        head_width: the attribute of an attention module that holds the width of its heads.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    attention_classes: ClassVar[tuple[str, ...]] = ()
    feed_forward_classes: ClassVar[tuple[str, ...]] = ()
    uniform: ClassVar[dict[str, str]] = {"intermediate": "intermediate_size"}
    head_width: ClassVar[str] = "head_dim"

    @abstractmethod
    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """The transformer layers, from the first to the last."""

    @abstractmethod
    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        """Module paths of the layer stacks; the parameters below them count as the encoder's."""

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """The attention module (at ``Attention.path``) for heads of other sizes.

        Called by compaction and by loading, with or without storage (meta device).

        Args:
            module: as transformers makes it, its projections replaced by narrowed ones or not yet.
            part: the description of the module.
            sizes: see :class:`HeadSizes`.

        Returns:
            a module that takes its place; it may be the same one, changed.

        Raises:
            NotImplementedError: the architecture has no narrow form (``Attention.narrows`` is
                False).
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention with narrower heads")

    def join(self, module: nn.Module) -> nn.Module:
        """The feed-forward module (at ``FeedForward.path``) with one product for gate and up, in
        its submodule ``gate_up`` and an attribute ``finegates_joined`` of any value.

        Called by compaction and by loading, with or without storage (meta device).

        Args:
            module: as transformers makes it, its layers replaced by narrowed ones or not yet.

        Raises:
            NotImplementedError: the architecture has no such form (``FeedForward.path`` is None).
        """
        raise NotImplementedError(f"{type(self).__name__} has no joined feed-forward part")

    def query_scale(self, module: nn.Module, sizes: HeadSizes) -> float:
        """What the query projection is multiplied by, where the module's forward takes the scale of
        scores from the width that it finds. Called before :meth:`narrow`."""
        return 1.0

    def gated(self, model: nn.Module) -> list[str]:
        """The paths that get gates by the released protocol: every linear layer of every block."""
        return [path for block in self.blocks(model) for path in block.linears()]

    def head(self, model: nn.Module) -> list[str]:
        """Module paths of the task head; by default :func:`head_paths`."""
        return head_paths(model)


def attentions(adapter: Adapter, model: nn.Module) -> dict[str, Attention]:
    """All attentions of a model by their paths, from its first layer to its last."""
    return {part.path: part for block in adapter.blocks(model) for part in block.attentions}


class LayerStackAdapter(Adapter):
    """An architecture whose layers stand in one list, described alike from the configuration.

    Attributes:
        stack: path of the list, below the base model.
    """

    stack: ClassVar[str]

    @abstractmethod
    def block(self, path: str, config: Any) -> Block:
        """The layer at a path, from the model's configuration."""

    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        """The part of the base model that holds the list: ``encoder`` of ``encoder.layer``."""
        return (f"{base_prefix(unwrap(model))}{self.stack.partition('.')[0]}",)

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """Those in the list, however many the configuration names."""
        from finegates.adapters.fit import fitted

        plain = unwrap(model)
        config: Any = plain.config
        stack = f"{base_prefix(plain)}{self.stack}"
        names = list(plain.get_submodule(stack)._modules)  # with layers that are there twice
        blocks = (self.block(f"{stack}.{name}", config) for name in names)
        found = (fitted(plain, block, self.head_width) for block in blocks)
        return tuple(block for block in found if block is not None)


def unwrap(model: nn.Module) -> nn.Module:
    """The plain transformers model inside ``peft.PeftModel`` and the containers of trainers.

    Those containers are ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``; any
    other model is returned as it is. LoRA layers stay where peft put them, at the paths of the
    layers that they replaced.

    Raises:
        TypeError: it is not a model at all.
        ValueError: the peft method adds prompts, which no plain model can express.
    """
    check_model(model)
    model = without_containers(model)
    # By its attributes: importing peft is for those who use it.
    if not (hasattr(model, "get_base_model") and hasattr(model, "peft_config")):
        return model
    for name, config in model.peft_config.items():  # type: ignore[operator, union-attr]
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"peft adapter {name!r} ({config.peft_type}) learns prompts; a model without peft "
                "cannot express them"
            )
    plain = model.get_base_model()  # type: ignore[operator]
    assert isinstance(plain, nn.Module)
    return without_containers(plain)


def head_paths(model: nn.Module) -> list[str]:
    """Module paths of the task head of a transformers model, as their classes are usually laid out.

    That is whatever stands beside the base model (``classifier``, ``lm_head``, ``cls``), and the
    base model's pooler, which nothing but a head reads. Empty for a model without either.

    Args:
        model: plain or in a ``peft`` wrapper.
    """
    plain = unwrap(model)
    prefix = base_prefix(plain)
    paths = [f"{prefix}pooler"] if _has_parameters(plain, f"{prefix}pooler") else []
    if prefix:
        base = prefix.removesuffix(".")
        paths += [
            name
            for name, _ in plain.named_children()
            if name != base and _has_parameters(plain, name)
        ]
    return paths


def base_prefix(plain: nn.Module) -> str:
    """``"bert."`` for a model with a head around ``model.bert``; empty for the base model."""
    prefix = getattr(plain, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(plain, prefix) else ""


def has_module(model: nn.Module, path: str) -> bool:
    """Whether the model has a module of that path."""
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _has_parameters(model: nn.Module, path: str) -> bool:
    # A pooler that was left out is None or absent.
    return has_module(model, path) and any(True for _ in model.get_submodule(path).parameters())
