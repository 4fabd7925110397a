"""Descriptions of transformers, used by attaching, budgets and compaction.

A :class:`Block` names the linear layers of one transformer layer by module path and gives the sizes
and properties that decide which removals are exact. Paths are relative to the plain transformers
model, without any ``peft`` wrapper (:func:`unwrap`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import nn

from finegates.blocks import Attention, Block, HeadSizes, Stream
from finegates.model_argument import check_model
from finegates.specs import NormSpec
from finegates.wrappers import without_containers


class Adapter(ABC):
    """Describes one architecture. Every method takes the plain or the ``peft``-wrapped model.

    Architectures of transformers need a spec instead (:func:`register`). For anything else,
    implement :meth:`blocks` and :meth:`encoder`; override the other methods if their defaults do
    not fit. Descriptions contain the sizes of the actual weights, not those of the configuration.
    """

    @abstractmethod
    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """The transformer layers, from the first to the last."""

    @abstractmethod
    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        """Module paths of the layer stacks; the parameters below them count as the encoder's."""

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        """Makes the attention module (at ``Attention.path``) for other head sizes.

        Called by compaction and by loading, also on the meta device.

        Args:
            module: as transformers makes it; its projections may be narrowed already.
            part: the description of the module.
            sizes: see :class:`HeadSizes`.

        Returns:
            its replacement, which may be the same module, changed.

        Raises:
            NotImplementedError: the architecture has no narrow form (``Attention.narrows`` is
                False).
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention with narrower heads")

    def join(self, module: nn.Module) -> nn.Module:
        """Fuses gate and up of the feed-forward module at ``FeedForward.path``.

        The result has the fused layer in its submodule ``gate_up``, and an attribute
        ``finegates_joined`` of any value. Called by compaction and by loading, also on the meta
        device.

        Args:
            module: as transformers makes it; its layers may be narrowed already.

        Raises:
            NotImplementedError: the architecture has no such form (``FeedForward.path`` is None).
        """
        raise NotImplementedError(f"{type(self).__name__} has no joined feed-forward part")

    def query_scale(self, module: nn.Module, sizes: HeadSizes) -> float:
        """Factor of the query projection that corrects the scale of scores.

        It differs from 1 if the module's forward derives the scale from the narrowed width. Called
        before :meth:`narrow`.
        """
        return 1.0

    def obstacle(self, model: nn.Module, part: Attention) -> str | None:
        """Says why an attention module cannot be narrowed; None if it can.

        Called before :meth:`narrow`, with the dense or gated module.
        """
        return None if part.narrows else f"{type(self).__name__} does not narrow them"

    def removed_parameters(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> int:
        """Counts the parameters that :meth:`narrow` removes, apart from those of projections."""
        return 0

    def with_sizes(self, module: nn.Module, part: Attention) -> Attention:
        """Sets the attributes of a dense attention module that hold its sizes, in place.

        Called before a narrowed module gets its dense sizes again.

        Args:
            module: as the configuration gives it, which may have other sizes.
            part: the dense attention, described from the narrowed module.

        Returns:
            its description, with what only a dense module says.
        """
        return part

    def per_head(self, module: nn.Module) -> Mapping[str, int]:
        """Tensors of an attention module with entries for every query head: path and axis."""
        return {}

    def norm_of(self, module: nn.Module) -> NormSpec | None:
        """The norms of queries and keys of an attention module; None without."""
        return None

    def stream(self, model: nn.Module) -> Stream:
        """The residual stream, for gates on hidden dimensions.

        Raises:
            ValueError: something that meets it is not described.
        """
        raise ValueError(
            f"{type(self).__name__} does not describe the residual stream of "
            f"{type(unwrap(model)).__name__}, so its hidden dimensions cannot be closed"
        )

    def gated(self, model: nn.Module) -> list[str]:
        """Paths of the layers to gate: every linear layer of every block."""
        return [path for block in self.blocks(model) for path in block.linears()]

    def head(self, model: nn.Module) -> list[str]:
        """Module paths of the task head; by default :func:`head_paths`."""
        return head_paths(model)


def attentions(adapter: Adapter, model: nn.Module) -> dict[str, Attention]:
    """All attentions of a model by their paths, from its first layer to its last."""
    return {part.path: part for block in adapter.blocks(model) for part in block.attentions}


def unwrap(model: nn.Module) -> nn.Module:
    """The plain transformers model inside ``peft.PeftModel`` and the containers of trainers.

    Those containers are ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``; any
    other model is returned as it is. LoRA layers stay where peft put them, at the paths of the
    layers that they replaced.

    Raises:
        TypeError: it is not a model.
        ValueError: the peft method adds prompts, which a plain model cannot express.
    """
    check_model(model)
    model = without_containers(model)
    # Detected by its attributes, so that peft need not be installed.
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
    """Module paths of the task head, for the usual layout of transformers.

    These are the modules next to the base model (``classifier``, ``lm_head``, ``cls``), and the
    base model's pooler, which only a head reads. A model that is its base model and has a head, as
    T5's are, has it under one of the usual names. Empty for a model without either.

    Args:
        model: plain or wrapped by ``peft``.
    """
    plain = unwrap(model)
    prefix = base_prefix(plain)
    paths = [f"{prefix}pooler"] if _has_parameters(plain, f"{prefix}pooler") else []
    base = prefix.removesuffix(".")
    paths += [
        name
        for name, _ in plain.named_children()
        if (name != base if prefix else name in _HEADS) and _has_parameters(plain, name)
    ]
    return paths


_HEADS = ("lm_head", "classification_head", "classifier", "qa_outputs")


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
    # An omitted pooler is None or absent.
    return has_module(model, path) and any(True for _ in model.get_submodule(path).parameters())
