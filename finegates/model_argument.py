"""Type check of the argument ``model`` of public functions."""

from __future__ import annotations

from typing import Any

from torch import nn

from finegates.arguments import named


def check_model(model: object) -> None:
    """Raises TypeError unless the argument is a module."""
    if isinstance(model, nn.Module):
        return
    raise TypeError(f"a model (torch.nn.Module) is needed, got {named(model)}; {_remedy(model)}")


def _remedy(value: Any) -> str:
    if isinstance(value, str):
        return (
            f"load the model first, as transformers does: AutoModel.from_pretrained({value!r}), or "
            "finegates.load for the folder of a compact one"
        )
    if isinstance(value, type) and issubclass(value, nn.Module):
        return "make one of that class"
    if isinstance(getattr(value, "model", None), nn.Module):
        return "give its attribute 'model'"
    return "give the model itself, as transformers or finegates.load returns it"
