"""Hooks and replaced forwards of users, in a model whose layers are replaced by others.

A hook of a layer sees inputs and outputs of the layer's present sizes, and would be lost with the
layer. A function that replaces a forward may refer to the modules that it was made for, which a
copy of the model does not use any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType

from torch import nn

from finegates.compaction.dense_paths import by_dense_path
from finegates.gates.gated_linear import GatedLinear
from finegates.modules.changed_settings import move_hooks, user_hooks
from finegates.modules.compact_linear import CompactLinear
from finegates.wrappers import own_forward

_REMEDY = "remove it, and add it to the result"


def check_carried(model: nn.Module, result: nn.Module) -> None:
    """Raises ValueError if a hook or a replaced forward of a model is not in its other form.

    Args:
        model: plain; the message names its module.
        result: the model with other layers.
    """
    found = _by_path(result)
    for path, modules in _by_path(model).items():
        others = found.get(path, [])
        if _hooks(modules) - _hooks(others):
            raise ValueError(
                f"{path or type(model).__name__} has a hook, which would be lost with the layer "
                f"that gets other sizes; {_REMEDY}, or gate the dense model"
            )
        if _forwards(modules) > _forwards(others):
            raise ValueError(
                f"the forward of {type(modules[0]).__name__} was replaced ({path}), which would be "
                "lost; delete it from the module, or gate the dense model"
            )
    compact = [path for path, module in model.named_modules() if isinstance(module, CompactLinear)]
    check_forwards(model, compact)


def check_forwards(model: nn.Module, layers: Iterable[str]) -> None:
    """Raises ValueError if a function replaces the forward of a module whose layers are replaced.

    A method that is bound to the module is copied with it; a function may refer to the module
    that is copied.

    Args:
        model: plain.
        layers: paths of the layers.
    """
    paths = list(layers)
    for path, module in model.named_modules():
        if own_forward(module) is None:
            continue
        own = vars(module)["forward"]
        bound = isinstance(own, MethodType) and own.__self__ is module
        prefix = f"{path}." if path else ""
        if not bound and any(layer == path or layer.startswith(prefix) for layer in paths):
            raise ValueError(
                f"the forward of {type(module).__name__} was replaced ({path}) by a function, "
                "which may go on using the layers that it was made for; delete it from the module, "
                "or bind it to the module (types.MethodType)"
            )


def check_layer_forwards(model: nn.Module, layers: Iterable[str]) -> None:
    """Raises ValueError if the forward of a layer that becomes another one was replaced.

    Args:
        model: plain.
        layers: paths of the layers.
    """
    for path in layers:
        for inner, module in model.get_submodule(path).named_modules(prefix=path):
            if own_forward(module) is not None:
                raise ValueError(
                    f"the forward of {type(module).__name__} was replaced ({inner}), which would "
                    "be lost with the layer; delete it from the module, and add it to the result"
                )


def carry_hooks(model: nn.Module, dense: nn.Module) -> None:
    """Gives the dense form of a model the hooks that the model has now, in place.

    Args:
        model: plain, from which dimensions were removed.
        dense: has the hooks from before.

    Raises:
        ValueError: a layer that became smaller got a hook since.
    """
    found = _by_path(dense)
    small = tuple(p for p, m in by_dense_path(model) if isinstance(m, CompactLinear))
    for path, modules in _by_path(model).items():
        others = found.get(path, [])
        if path in small or path.startswith(tuple(f"{each}." for each in small)):
            if _hooks(modules) - _hooks(others):
                raise ValueError(
                    f"{path} got a hook after dimensions were removed from it, and the hook would "
                    f"be lost; {_REMEDY}"
                )
            continue
        for module, other in zip(modules, others, strict=False):
            move_hooks(module, other)


def with_hooks_of(layer: GatedLinear, small: nn.Module, *, same_sizes: bool) -> bool:
    """Moves hooks of a gated layer to its compact form, in place.

    They are those of users, if they see the same numbers there.

    A hook on the gated layer does if inputs and outputs have their sizes. One on the layer between
    the gates does if they are also open; it runs on outputs before the row gate.

    Args:
        layer: with gates.
        small: its compact form.
        same_sizes: whether inputs and outputs of ``small`` are those of ``layer``.

    Returns:
        whether no hook is lost.
    """
    hooked = [module for module in layer.modules() if user_hooks(module)]
    if not hooked:
        return True
    opened = all(bool((gate.value() == 1).all()) for _, gate in layer.gates())
    kept = [layer, layer.base] if opened else [layer]
    if not same_sizes or len(hooked) > 1 or not any(hooked[0] is module for module in kept):
        return False
    move_hooks(hooked[0], small)
    return True


def _by_path(model: nn.Module) -> dict[str, list[nn.Module]]:
    found: dict[str, list[nn.Module]] = {}
    for path, module in by_dense_path(model):
        found.setdefault(path, []).append(module)
    return found


def _hooks(modules: Iterable[nn.Module]) -> set[int]:
    """Keys of the hooks, which copies keep."""
    return {key for module in modules for key in user_hooks(module)}


def _forwards(modules: Iterable[nn.Module]) -> int:
    return sum(own_forward(module) is not None for module in modules)
