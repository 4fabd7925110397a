"""Removes the wrappers that trainers put around a model.

Distributed training and compilation wrap the model in another module. accelerate replaces its
``forward`` by one under autocast, and spreads a model over devices by hooks on its modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn

# accelerate's attributes for the forward that it replaced, and for its device hooks.
_ORIGINAL = "_original_forward"
_HOOK = "_hf_hook"


def without_containers(model: nn.Module) -> nn.Module:
    """Unwraps ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``.

    Args:
        model: any; without such a container it is returned unchanged.
    """
    containers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = model._modules.get("module" if isinstance(model, containers) else "_orig_mod")
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def remove_autocast(model: nn.Module) -> None:
    """Restores the forward that mixed precision replaced, in place.

    ``TrainingArguments(bf16=True)`` and ``Accelerator.prepare`` leave a ``forward`` on the
    instance, which computes under autocast. Compiled calls are removed, too.

    Args:
        model: any; modules without such a forward do not change.
    """
    for module in model.modules():
        original = module.__dict__.pop(_ORIGINAL, None)
        if original is not None:
            _reset_forward(module)
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None


def has_autocast(model: nn.Module) -> bool:
    """Whether mixed precision has replaced the forward of any module."""
    return any(_ORIGINAL in vars(module) for module in model.modules())


def _reset_forward(module: nn.Module) -> None:
    """Removes an instance's forward wrappers down to the class's, or the innermost."""
    function = own_forward(module)
    own = module.__dict__.pop("forward", None)
    if function is not None:
        bound = hasattr(own, "__func__")
        module.forward = MethodType(function, module) if bound else function


def own_forward(module: nn.Module) -> Any:
    """The function that replaces the forward of an instance's class, without wrappers, or None."""
    own = module.__dict__.get("forward")
    function: Any = getattr(own, "__func__", own)
    # A model that was prepared twice has two wrappers. Those of the class must remain.
    while function is not type(module).forward and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
        function = getattr(function, "__func__", function)
    return None if function is type(module).forward else function


@contextmanager
def autocast_removed(model: nn.Module) -> Iterator[None]:
    """Within the block, the model has its class's forward (:func:`remove_autocast`)."""
    names = ("forward", _ORIGINAL, "_compiled_call_impl")
    before = [
        (module, {name: vars(module)[name] for name in names if name in vars(module)})
        for module in model.modules()
    ]
    remove_autocast(model)
    try:
        yield
    finally:
        for module, values in before:
            vars(module).update(values)


def check_undispatched(model: nn.Module) -> None:
    """Raises for a model whose modules have hooks of accelerate (``device_map``).

    Such hooks hold the original forward of each module and may have moved its weights.

    Raises:
        ValueError: a module has such a hook; the message names it.
    """
    for path, module in model.named_modules():
        if _HOOK in module.__dict__:
            raise ValueError(
                f"module {path or '(the model)'} has a hook of accelerate "
                f"({type(module.__dict__[_HOOK]).__name__}), as models loaded with device_map or "
                "offloading have: load the model without device_map, or remove the hooks with "
                "accelerate.hooks.remove_hook_from_submodules(model), once its weights fit on one "
                "device"
            )
