"""What can be done with models of classes that are not of transformers, for messages."""

from __future__ import annotations

from typing import Any

from torch import nn

_AUTO = "transformers.Auto"


def has_config(model: nn.Module) -> bool:
    """Whether a model has a configuration of transformers."""
    config = getattr(model, "config", None)
    return hasattr(config, "model_type") and hasattr(config, "to_dict")


def way_to_save(model: nn.Module) -> str:
    """How a model of a class that transformers does not know can be saved.

    Args:
        model: of any class.

    Returns:
        a clause without a full stop.
    """
    kind = type(model).__name__
    if not has_config(model):
        return (
            f"write it with torch.save(model, file) and read it with torch.load(file, "
            f"weights_only=False) where {kind} can be imported, or write a graph with "
            "finegates.export_onnx"
        )
    config: Any = model.config
    settings, model_type = type(config).__name__, config.model_type
    if _is_of_transformers(type(config)):  # which knows the type already, and takes no other
        return (
            f"give {kind} a configuration class of its own, derived from {settings}, with another "
            f"model_type, and register both before saving and before loading, {_AUTO}Config."
            f"register and {_AUTO}Model.register, or write it with torch.save(model, file)"
        )
    named = "" if model_type else f"give {settings} a model_type and "
    return (
        f"{named}register it before saving and before loading, {_AUTO}Config.register("
        f"{model_type or 'model_type'!r}, {settings}) and {_AUTO}Model.register({settings}, {kind})"
        ", or write it with torch.save(model, file)"
    )


def is_of_transformers(model: nn.Module) -> bool:
    """Whether the class of a model is defined in transformers."""
    return _is_of_transformers(type(model))


def _is_of_transformers(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "transformers"
