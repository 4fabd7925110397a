"""Names of the functions that compute attention and experts, torch's own only.

Any other name could make transformers fetch code. Nested models have their own names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from finegates.modules.experts import IMPLEMENTATION

TORCHS_OWN: dict[str, tuple[str, ...]] = {
    "attention": ("eager", "sdpa"),
    "experts": ("eager", "batched_mm"),
}
"""Allowed names, by what the functions compute.

``grouped_mm`` is the default of transformers for experts if torch has it.
"""

_ATTRIBUTES = {"attention": "_attn_implementation", "experts": IMPLEMENTATION}


def implementations(model: nn.Module) -> dict[str, dict[str, str]]:
    """Allowed implementation names of a model and its nested models.

    Returns:
        names by what the functions compute, by the path of the model (``""``, ``"decoder"``).
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
    """Restores the names of :func:`implementations`.

    Raises:
        ValueError: a name is not allowed, or a path does not name a model.
    """
    # A nested model may have had its own configuration, which it shares with the outer one here.
    configs = dict(_all_configs(model))
    for path, names in sorted(
        dict(stored).items()
    ):  # outermost first, because it passes its names on
        if path not in configs:
            raise ValueError(f"{path!r} is not a model with a choice of implementations")
        for kind, name in dict(names).items():
            if name not in TORCHS_OWN.get(kind, ()):
                raise ValueError(f"{name!r} is not a function of torch for {kind}")
            setattr(configs[path], _ATTRIBUTES[kind], name)


def _configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Configurations of a model and its nested models, each once."""
    seen: list[Any] = []
    for path, config in _all_configs(model):
        if all(config is not other for other in seen):
            seen.append(config)
            yield path, config


def _all_configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Configurations of a model and its nested models, by path."""
    for path, module in model.named_modules():
        # Layers refer to their model's configuration, too; only models have a config_class.
        if hasattr(type(module), "config_class"):
            yield path, getattr(module, "config", None)
