"""Adapters: one description per architecture, the only place with module names.

To add an architecture, describe its modules (:mod:`finegates.adapters.descriptions`). Those with
an attention module of the library's own have an :class:`Adapter` subclass, listed in ``ADAPTERS``;
add a tiny configuration to ``ARCHITECTURES`` in ``tests/support/tiny.py``, which takes it
through the conformance suite (``tests/adapters/test_adapters.py``).
"""

from __future__ import annotations

from torch import nn

from finegates.adapters.base import Adapter, attentions, has_module, unwrap
from finegates.adapters.bert import BertAdapter
from finegates.adapters.deberta_v2 import DebertaV2Adapter
from finegates.adapters.described import DescribedAdapter, register
from finegates.adapters.distilbert import DistilbertAdapter
from finegates.adapters.gpt2 import Gpt2Adapter
from finegates.adapters.llama import LlamaAdapter
from finegates.adapters.mistral import MistralAdapter
from finegates.adapters.mpnet import MpnetAdapter
from finegates.adapters.qwen2 import Qwen2Adapter
from finegates.adapters.qwen3 import Qwen3Adapter
from finegates.adapters.roberta import RobertaAdapter
from finegates.adapters.t5 import T5Adapter
from finegates.blocks import Attention, Block, Experts, FeedForward, HeadSizes, Mixer
from finegates.specs import (
    AttentionSpec,
    FeedForwardSpec,
    MixerSpec,
    NormSpec,
    RotarySpec,
    is_named_cross,
)

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Attention",
    "AttentionSpec",
    "Block",
    "Experts",
    "FeedForward",
    "FeedForwardSpec",
    "HeadSizes",
    "Mixer",
    "MixerSpec",
    "NormSpec",
    "RotarySpec",
    "adapted_parts",
    "adapter_for",
    "attentions",
    "has_module",
    "is_named_cross",
    "register",
    "unwrap",
]

_REMEDY = (
    "to gate layers one by one all the same, name the layers with "
    "GateConfig(preset='reference', modules=...)"
)

ADAPTERS: tuple[Adapter, ...] = (
    BertAdapter(),
    RobertaAdapter(),
    DebertaV2Adapter(),
    DistilbertAdapter(),
    MpnetAdapter(),
    T5Adapter(),
    LlamaAdapter(),
    MistralAdapter(),
    Qwen2Adapter(),
    Qwen3Adapter(),
    Gpt2Adapter(),
)


DESCRIBED = DescribedAdapter()


def adapter_for(model: nn.Module) -> Adapter:
    """Looks up the adapter of a transformers model by ``model.config.model_type``.

    Args:
        model: a transformers model, or a ``peft`` model around one.

    Raises:
        ValueError: the model has no configuration, its type has no adapter, or its layers are not
            at the paths of that type.
    """
    model_type = getattr(getattr(unwrap(model), "config", None), "model_type", None)
    known = {name: adapter for adapter in ADAPTERS for name in adapter.model_types}
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(
            f"{type(model).__name__} has no config.model_type, so its architecture is unknown; "
            f"adapters exist for {sorted(known)}; {_REMEDY}"
        )
    if model_type not in known:
        inside = sorted(_known_types_inside(unwrap(model), known))
        if inside:
            raise ValueError(
                f"{type(model).__name__} ({model_type}) holds models of the types "
                f"{', '.join(inside)}; give one of these instead of the whole"
            )
        if DESCRIBED.blocks(model):
            return DESCRIBED
        raise ValueError(
            f"no adapter for model type {model_type!r}; adapters exist for {sorted(known)}; "
            f"{_REMEDY}"
        )
    adapter, plain = known[model_type], unwrap(model)
    stacks = adapter.encoder(plain)
    if not stacks or not all(has_module(plain, path) for path in stacks):
        raise ValueError(
            f"{type(plain).__name__} has the configuration of model type {model_type!r}, but not "
            f"its layers; give the inner model that has them, or, {_REMEDY}"
        )
    return adapter


def _known_types_inside(model: nn.Module, known: dict[str, Adapter]) -> set[str]:
    """The types with an adapter of their own among the models inside a model."""
    types = {
        getattr(getattr(module, "config", None), "model_type", None)
        for module in model.modules()
        if hasattr(type(module), "config_class")
    }
    return {each for each in types if each in known}


def adapted_parts(model: nn.Module) -> dict[str, tuple[nn.Module, Adapter]]:
    """The parts of a model that have an adapter.

    Args:
        model: a transformers model, plain.

    Returns:
        parts and adapters by module path: the model itself at ``""``, or else the outermost models
        inside (such as the text model of a vision-language model). Empty if there are none.
    """
    found: dict[str, tuple[nn.Module, Adapter]] = {}
    for path, module in model.named_modules():
        inside = any(not outer or path.startswith(f"{outer}.") for outer in found)
        # Layers refer to their model's configuration, too; only models have a config_class.
        if inside or not hasattr(module, "config") or not hasattr(type(module), "config_class"):
            continue
        try:
            found[path] = module, adapter_for(module)
        except ValueError:
            continue
    return found
