"""Which functions compute attention and experts: by name, and only those that torch itself has.

Any other name could make transformers fetch code. Every model inside another one has names of its
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

TORCHS_OWN: dict[str, tuple[str, ...]] = {
    "attention": ("eager", "sdpa"),
    "experts": ("eager", "batched_mm"),
}
"""The names that are kept, by what the functions compute. Experts by ``grouped_mm`` are what
transformers takes by itself, wherever torch has it."""

_ATTRIBUTES = {"attention": "_attn_implementation", "experts": "_experts_implementation"}


def implementations(model: nn.Module) -> dict[str, dict[str, str]]:
    """The names by which a model and those inside compute, as plain values; others are left out.

    Returns:
        by the path of the model (``""``, ``"decoder"``), names by what the functions compute.
    """
    found = {}
    for path, config in _configs(model):
        names = {
            kind: name
            for kind, attribute in _ATTRIBUTES.items()
            if (name := getattr(config, attribute, None)) in TORCHS_OWN[kind]
        }
        if names:
            found[path] = names
    return found


def set_implementations(model: nn.Module, stored: Any) -> None:
    """Gives a model, and those inside, the names of :func:`implementations`.

    Raises:
        ValueError: not such names, or a model that is not there.
    """
    # A model inside may have had a configuration of its own which is the outer one's here.
    configs = dict(_all_configs(model))
    for path, names in sorted(dict(stored).items()):  # the outermost first: it passes its names on
        if path not in configs:
            raise ValueError(f"{path!r} is not a model that could name its functions")
        for kind, name in dict(names).items():
            if name not in TORCHS_OWN.get(kind, ()):
                raise ValueError(f"{name!r} is not a function of torch for {kind}")
            setattr(configs[path], _ATTRIBUTES[kind], name)


def _configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The configurations of a model and of those inside, each once."""
    seen: list[Any] = []
    for path, config in _all_configs(model):
        if all(config is not other for other in seen):
            seen.append(config)
            yield path, config


def _all_configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The configurations of a model and of those inside, by the path of each model."""
    for path, module in model.named_modules():
        # A layer keeps its model's configuration; a model has a class for it.
        if hasattr(type(module), "config_class"):
            yield path, getattr(module, "config", None)
