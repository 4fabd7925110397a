"""The description of a transformer that attaching, budgeting and compaction work from.

A :class:`Block` names the linear layers of one transformer layer by module path and gives the sizes
and properties that decide which removals are exact. Paths are relative to the plain transformers
model, without any ``peft`` wrapper (:func:`unwrap`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn


@dataclass(frozen=True)
class Attention:
    """The linear layers of one self-attention and what happens between them.

    Attributes:
        q: path of the query projection, output size ``heads * head_dim``.
        k: path of the key projection, output size ``kv_heads * head_dim``.
        v: path of the value projection, output size ``kv_heads * head_dim``.
        o: path of the output projection, input size ``heads * head_dim``.
        heads: number of query heads.
        kv_heads: number of key and value heads; below ``heads`` with grouped queries.
        head_dim: width of a head.
        rotary: whether rotary embeddings mix pairs of query and key dimensions.
        qk_norm: whether queries and keys are normalised over dimensions before the dot product.
    """

    q: str
    k: str
    v: str
    o: str
    heads: int
    kv_heads: int
    head_dim: int
    rotary: bool = False
    qk_norm: bool = False

    def linears(self) -> tuple[str, ...]:
        """Paths in order of use: q, k, v, o."""
        return self.q, self.k, self.v, self.o


@dataclass(frozen=True)
class FeedForward:
    """``down(phi(up(x)))``, or ``down(phi(gate(x)) * up(x))`` where there is a gate projection.

    Attributes:
        up: path of the layer that widens.
        down: path of the layer that narrows; it alone reads the intermediate values.
        gate: path of the gate projection, or None.
        activation: the name of phi in transformers' ``ACT2FN``; it acts on each number alone.
    """

    up: str
    down: str
    gate: str | None
    activation: str

    def linears(self) -> tuple[str, ...]:
        """Paths in order of use: up, (gate,) down."""
        return (self.up, self.down) if self.gate is None else (self.up, self.gate, self.down)


@dataclass(frozen=True)
class Block:
    """One transformer layer.

    Attributes:
        path: the layer's own module path.
        attention: None where the layer has none.
        feed_forward: None where the layer has none.
    """

    path: str
    attention: Attention | None
    feed_forward: FeedForward | None

    def linears(self) -> tuple[str, ...]:
        """Paths of all linear layers described, in order of use."""
        parts = (self.attention, self.feed_forward)
        return tuple(path for part in parts if part is not None for path in part.linears())


class Adapter(ABC):
    """Describes one architecture. Every method takes the plain or the ``peft``-wrapped model.

    To add an architecture, implement :meth:`blocks` and :meth:`encoder`; override the others where
    the defaults do not hold.

    Attributes:
        model_types: the values of ``config.model_type`` that it serves.
    """

    model_types: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """The transformer layers, from the first to the last."""

    @abstractmethod
    def encoder(self, model: nn.Module) -> str:
        """The module path of the layer stack; the parameters below it count as the encoder's."""

    def gated(self, model: nn.Module) -> list[str]:
        """The paths that get gates by the released protocol: every linear layer of every block."""
        return [path for block in self.blocks(model) for path in block.linears()]

    def head(self, model: nn.Module) -> list[str]:
        """Module paths of the task head.

        That is whatever stands beside the base model (``classifier``, ``lm_head``, ``cls``), and
        the base model's pooler, which nothing but a head reads. Empty for a model without either.
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


def unwrap(model: nn.Module) -> nn.Module:
    """The plain transformers model inside a ``peft.PeftModel``; any other model as it is.

    LoRA layers stay where peft put them, at the paths of the layers that they replaced.

    Raises:
        ValueError: the peft method adds prompts, which no plain model can express.
    """
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
    return plain


def base_prefix(plain: nn.Module) -> str:
    """``"bert."`` for a model with a head around ``model.bert``; empty for the base model."""
    prefix = getattr(plain, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(plain, prefix) else ""


def _has_parameters(model: nn.Module, path: str) -> bool:
    try:
        module = model.get_submodule(path)
    except AttributeError:  # a pooler that was left out is None or absent
        return False
    return next(module.parameters(), None) is not None
