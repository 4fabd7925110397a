"""Gated models inside a model, and their configurations."""

from __future__ import annotations

from torch import nn

from finegates.gates.config import GateConfig
from finegates.model_argument import check_model

# Attributes of the model that gates were attached to.
CONFIG, STRUCTURE, DENSE = "finegates_config", "finegates_structure", "finegates_dense"
BEFORE = "finegates_before"
LOST = "finegates_lost"


def gated_parts(model: nn.Module) -> dict[str, tuple[nn.Module, GateConfig]]:
    """Finds the gated models inside a model, itself included.

    Args:
        model: any; gates may have been attached to a part of it before it was assembled.

    Returns:
        each such model and its gate configuration, by module path; they are not nested.

    Raises:
        ValueError: they are nested, so that some gates would be under two penalties.
        TypeError: it is not a model.
    """
    check_model(model)
    parts = {
        path: (module, vars(module)[CONFIG])
        for path, module in model.named_modules()
        if CONFIG in vars(module)
    }
    for outer in parts:
        for path in parts:
            if path != outer and path.startswith(f"{outer}." if outer else ""):
                raise ValueError(
                    f"gates were attached to {path!r} and to {outer or 'the model'} around it, "
                    "so that they would be under two penalties; call finegates.detach, then "
                    "attach once"
                )
    return parts


def gate_config(model: nn.Module) -> GateConfig | None:
    """The configuration of the model's gates, or None.

    Raises:
        ValueError: gates were attached to several models within it (:func:`gated_parts`).
    """
    part = only_part(model)
    return None if part is None else part[1]


def only_part(model: nn.Module) -> tuple[nn.Module, GateConfig] | None:
    """The only gated model inside a model, with its configuration, or None.

    Raises:
        ValueError: there are several.
    """
    parts = gated_parts(model)
    if len(parts) > 1:
        raise ValueError(
            f"gates were attached to several models within {type(model).__name__}: "
            f"{', '.join(map(repr, parts))}; give one of them"
        )
    return next(iter(parts.values()), None)


def set_gate_config(part: nn.Module, config: GateConfig) -> None:
    """Replaces the configuration of a gated model, in place.

    Args:
        part: one of :func:`gated_parts`. Its dense form, if dimensions were removed from it, has
            the configuration, too.
        config: the new one.
    """
    form = vars(part).get(DENSE)
    for module in (part,) if form is None else (part, form.model):
        module.finegates_config = config


def forget_attachment(model: nn.Module) -> None:
    """Removes the attributes that :func:`attach` set on a model and its parts."""
    for module in model.modules():
        for name in (CONFIG, STRUCTURE, DENSE, BEFORE, LOST):
            module.__dict__.pop(name, None)
