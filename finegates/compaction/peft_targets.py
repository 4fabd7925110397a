"""Lets peft adapt compact models by the names of dense layers.

peft finds layers by name and wraps ``nn.Linear``. In a compact model a layer of that name contains
its ``nn.Linear``, or is fused with others. Adapters go around the inner ``nn.Linear``, where they
have the kept sizes and can be merged.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from finegates.adapters import adapter_for
from finegates.adapters.base import has_module
from finegates.modules.compact_linear import CompactLinear


def product_paths(model: nn.Module) -> dict[str, str]:
    """Maps paths of dense layers to those of the inner ``nn.Linear``.

    Args:
        model: plain; for a dense model the result is empty.

    Returns:
        for every compact or fused layer the path of its ``nn.Linear``, or of the adapter that wraps
        it.
    """

    def product(path: str) -> str:
        return f"{path}.linear" if isinstance(model.get_submodule(path), CompactLinear) else path

    found = {
        path: product(path) for path, m in model.named_modules() if isinstance(m, CompactLinear)
    }
    for joint, members in joint_layers(model).items():
        found |= dict.fromkeys(members, product(joint))
    return found


def joint_layers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The dense layers of each fused layer, by its path."""
    changed = ("finegates_heads", "finegates_joined")
    if not any(hasattr(module, name) for module in model.modules() for name in changed):
        return {}
    joint: dict[str, tuple[str, ...]] = {}
    for block in adapter_for(model).blocks(model):
        for part in block.attentions:
            if part.joint and has_module(model, part.joint_path):
                joint[part.joint_path] = part.joint_linears()
        feed = block.feed_forward
        if feed is not None and feed.path is not None and feed.gate is not None:
            path = f"{feed.path}.gate_up"
            if has_module(model, path):
                joint[path] = (feed.gate, feed.up)
    return joint


def teach_peft() -> None:
    """Patches the tuners of peft to translate names of dense layers.

    Called whenever a compact model is made or loaded, if peft is installed. Further calls change
    nothing, and models without compact layers are adapted as before.
    """
    try:
        from peft.tuners.tuners_utils import BaseTuner
    except ImportError:
        return
    if not hasattr(BaseTuner.inject_adapter, "finegates_targets"):
        BaseTuner.inject_adapter = _translating(BaseTuner.inject_adapter)  # type: ignore


def _translating(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def inject(self: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        products = product_paths(model)
        if products:
            _translate(self, model, adapter_name, products)
        return method(self, model, adapter_name, *args, **kwargs)

    inject.finegates_targets = True  # type: ignore[attr-defined]
    return inject


def _translate(tuner: Any, model: nn.Module, name: str, products: Mapping[str, str]) -> None:
    """Replaces dense names by inner paths in the configuration of an adapter."""
    config = tuner.peft_config[name]
    # peft chooses by architecture if the configuration names no targets.
    config = tuner._prepare_adapter_config(config, tuner.get_model_config(model))
    tuner.peft_config[name] = config
    targets = getattr(config, "target_modules", None)
    if not targets or (isinstance(targets, str) and targets.lower() == "all-linear"):
        return

    def means(path: str) -> bool:
        return bool(tuner._check_target_module_exists(config, path))

    meant = [path for path in products if means(path)]
    if not meant:
        return
    others = {path for path, _ in model.named_modules() if path and path not in products}
    config.target_modules = {products[path] for path in meant} | set(filter(means, others))
    feed_forward = getattr(config, "feedforward_modules", None)
    if feed_forward:
        config.feedforward_modules = {
            products.get(path, path) for path in (*meant, *others) if _names(feed_forward, path)
        }
    for kind in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, kind, None)
        if patterns:
            own = {
                products[path]: value
                for path in meant
                for pattern, value in reversed(patterns.items())
                if re.match(rf"(.*\.)?({pattern})$", path)
            }
            setattr(config, kind, {**own, **patterns})


def _names(patterns: Any, path: str) -> bool:
    """Whether names of layers, or a regular expression, match a path."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in patterns)
