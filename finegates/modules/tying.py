"""Weights that the output layer of a language model shares with its embeddings.

Gates around such a weight belong to the output layer only. While they are trained, the weight stays
shared. Once they are folded in, the layer needs its own weight, and transformers must know that it
is no longer tied, or saving and loading would tie it again.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from finegates.modules.kinds import between_gates
from finegates.modules.linear import find_linear, is_linear


def move_tied_keys(model: nn.Module, old: str, new: str) -> None:
    """Updates the tied keys of a transformers model after a module moved.

    Args:
        model: its ``_tied_weights_keys`` and those of models inside are changed where they name a
            parameter of the module.
        old: path that the keys name.
        new: path that they shall name.
    """
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if not old.startswith(prefix):
            continue
        here, there = f"{old.removeprefix(prefix)}.", f"{new.removeprefix(prefix)}."
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            keys: Any = getattr(module, attribute, None)
            if keys and any(key.startswith(here) for key in keys):
                # A mapping from each name to the one it is tied to.
                renamed = {_moved(key, here, there): source for key, source in keys.items()}
                setattr(module, attribute, renamed)


def _moved(key: str, here: str, there: str) -> str:
    return there + key.removeprefix(here) if key.startswith(here) else key


def untie(model: nn.Module, path: str) -> None:
    """Copies the weight of a linear layer if another module shares it, in place.

    Args:
        model: owns the layer.
        path: of the layer.
    """
    linear = find_linear(model.get_submodule(path))
    weight = linear.weight
    assert isinstance(weight, nn.Parameter)
    owners = sum(weight is other for m in model.modules() for other in m._parameters.values())
    if owners > 1:
        linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)


def shares_embeddings(model: nn.Module) -> bool:
    """Whether the output layer of a language model shares the embeddings' weight."""
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    words: Any = model.get_input_embeddings() if head is not None else None  # type: ignore[operator]
    if head is None or words is None:
        return False
    layer = between_gates(head)
    layer = find_linear(layer) if is_linear(layer) else layer
    return getattr(layer, "weight", None) is getattr(words, "weight", None)


def note_untied(model: nn.Module, *, separate: bool = False) -> None:
    """Records in a model that its output layer is no longer tied to the embeddings.

    Then neither saving nor initialisation ties them again. ``tie_word_embeddings`` of the
    configuration applies to all shared tensors at once; T5 uses it for the scale of its outputs, so
    it cannot be changed there.

    Args:
        model: its configuration and its lists of tied tensors are changed; so are those of nested
            models.
        separate: copy every tensor that is still tied, because ``from_pretrained`` will not tie it.
    """
    config: Any = getattr(model, "config", None)
    if (
        _can_say(model)
        and getattr(config, "tie_word_embeddings", False)
        and not shares_embeddings(model)
    ):
        config.tie_word_embeddings = False
        if separate:
            for key in getattr(model, "all_tied_weights_keys", {}):
                _separate(model, key)
    forget_untied(model)


def forget_untied(model: nn.Module) -> None:
    """Removes untied tensors from the lists by which transformers ties them.

    Args:
        model: its lists and those of nested models are changed.
    """
    for module in model.modules():
        keys: Any = getattr(module, "all_tied_weights_keys", None)
        if not isinstance(keys, dict):
            continue
        apart = {key for key, source in keys.items() if _are_apart(module, key, source)}
        if not apart:
            continue
        module.all_tied_weights_keys = _without(keys, apart)
        own: Any = getattr(module, "_tied_weights_keys", None)
        if isinstance(own, dict) and not _can_say(module):
            module._tied_weights_keys = _without(own, apart)


def _can_say(model: nn.Module) -> bool:
    """Whether the configuration decides if the output layer is tied."""
    find: Any = getattr(model, "get_output_embeddings", None)
    model_type = getattr(getattr(model, "config", None), "model_type", "t5")
    return model_type != "t5" and find is not None and find() is not None


def _without(keys: dict[str, str], gone: set[str]) -> Any:
    return {key: source for key, source in keys.items() if key not in gone}


def _are_apart(module: nn.Module, *names: str) -> bool:
    """Whether a module's tensors of these names are distinct."""
    found = [_tensor(module, name) for name in names]
    return None not in found and len({id(tensor) for tensor in found}) > 1


def _tensor(module: nn.Module, name: str) -> Any:
    path, _, key = name.rpartition(".")
    try:
        return getattr(module.get_submodule(path), key, None)
    except AttributeError:
        return None


def _separate(module: nn.Module, name: str) -> None:
    """Replaces a parameter by a copy."""
    tensor = _tensor(module, name)
    if isinstance(tensor, nn.Parameter):
        path, _, key = name.rpartition(".")
        own = nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        setattr(module.get_submodule(path), key, own)
