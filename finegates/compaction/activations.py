"""The activation that a feed-forward part calls, and its value at zero.

The module decides, not the configuration: a changed activation is a changed attribute of the
module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from finegates.adapters import FeedForward

_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    functional.elu,
    functional.gelu,
    functional.hardswish,
    functional.hardtanh,
    functional.leaky_relu,
    functional.mish,
    functional.relu,
    functional.relu6,
    functional.selu,
    functional.sigmoid,
    functional.silu,
    functional.softplus,
    functional.tanh,
)
_MODULES = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Identity,
    nn.LogSigmoid,
    nn.Mish,
    nn.SELU,
    nn.Softplus,
    nn.Softsign,
)


_OF_ARCHITECTURES = ("transformers.models.bloom.modeling_bloom.BloomGelu",)


def activation_of(part: FeedForward, model: nn.Module) -> Any:
    """The activation that a feed-forward part calls.

    If the called attribute is unknown, the name decides; None for an unknown name.
    """
    from transformers.activations import ACT2FN

    if part.phi is not None:
        path, _, name = part.phi.rpartition(".")
        return getattr(model.get_submodule(path), name)
    if part.activation not in ACT2FN:
        return None
    return ACT2FN[part.activation]  # ACT2FN makes the module on access; .get returns its class


def acts_on_numbers(phi: Any) -> bool:
    """Whether an activation is known to act elementwise.

    None counts as elementwise, because descriptions require it.
    """
    if isinstance(phi, nn.Module):
        alike = all(parameter.numel() == 1 for parameter in phi.parameters())
        known = type(phi) in {*_named_classes(), *_MODULES}
        return alike and (known or _class_name(phi) in _OF_ARCHITECTURES)
    return phi is None or any(phi is known for known in _FUNCTIONS)


def activation_at_zero(phi: Any) -> float | None:
    """phi(0), or None if it depends on parameters or is unknown."""
    if phi is None or (isinstance(phi, nn.Module) and next(phi.parameters(), None) is not None):
        return None
    return float(phi(torch.zeros(1, dtype=torch.float64, device="cpu")))


def _class_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


@functools.cache
def _named_classes() -> frozenset[type]:
    """Classes of the activations that transformers names."""
    from transformers.activations import ACT2FN

    return frozenset(type(ACT2FN[name]) for name in ACT2FN)
