"""Descriptions that a process registered, as text in a folder, for other processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from finegates.adapters.printed import registration
from finegates.adapters.registered import registered_in

KEY = "descriptions"
"""The entry of a structure that holds the code; it is shown, and never run."""


def descriptions_of(model: nn.Module) -> dict[str, str]:
    """The entry for a model whose modules have registered descriptions; empty without."""
    specs = registered_in(model)
    return {KEY: registration(specs)} if specs else {}


def advice(structure: Mapping[str, Any]) -> str:
    """What to do about a model that cannot be rebuilt, for messages; empty if nothing is known."""
    code = structure.get(KEY)
    if not isinstance(code, str):
        return ""
    return (
        ". It was made with descriptions that this process may not have; look at them, and "
        f"register them before loading:\nfrom finegates.adapters import *\n{code}"
    )
