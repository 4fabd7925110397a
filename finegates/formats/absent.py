"""Optional modules that a model lacks, which its configuration does not record.

A class may omit a part through an argument of its constructor (``add_pooling_layer=False``); the
attribute is then None.
"""

from __future__ import annotations

from torch import nn

from finegates.adapters import has_module


def absent_modules(model: nn.Module, rebuilt: nn.Module) -> list[str]:
    """Paths of modules that are None in a model but not in its rebuilt form.

    Args:
        model: may lack modules.
        rebuilt: the model that its class and configuration give.

    Returns:
        the outermost paths, in module order.
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
        ValueError: a path does not name a module.
    """
    for path in paths:
        parent, _, name = path.rpartition(".")
        if not path or not has_module(model, path):
            raise ValueError(f"{path!r} is not a module that could be absent")
        owner = model.get_submodule(parent)
        delattr(owner, name)
        setattr(owner, name, None)
