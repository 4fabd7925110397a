"""Modules that a model was made without, of which its configuration has no word.

A class may leave out a part if it is told so when it is made (``add_pooling_layer=False``); the
attribute is None then.
"""

from __future__ import annotations

from torch import nn

from finegates.adapters import has_module


def absent_modules(model: nn.Module, rebuilt: nn.Module) -> list[str]:
    """Paths of modules that another form of the model has where the model has None.

    Args:
        model: may lack modules.
        rebuilt: what its class and configuration give.

    Returns:
        the outermost paths, in the order of the modules.
    """
    found: list[str] = []
    for path, _ in rebuilt.named_modules():
        if any(path.startswith(f"{outer}.") for outer in found):
            continue
        parent, _, name = path.rpartition(".")
        if path and has_module(model, parent):
            owner = model.get_submodule(parent)
            if getattr(owner, name, owner) is None:
                found.append(path)
    return found


def drop_modules(model: nn.Module, paths: list[str]) -> None:
    """Sets modules to None, in place.

    Raises:
        ValueError: a path of no module.
    """
    for path in paths:
        parent, _, name = path.rpartition(".")
        if not path or not has_module(model, path):
            raise ValueError(f"{path!r} is not a module that could be absent")
        owner = model.get_submodule(parent)
        delattr(owner, name)
        setattr(owner, name, None)
