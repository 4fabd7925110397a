"""Raises torch's limit of compiled graphs: a compact model needs one per layer.

The layers of a dense model have equal sizes and share one graph. The layers of a compact model have
different sizes, and torch stops compiling a function after eight graphs.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from finegates.modules.compact_linear import CompactLinear


def allow_graphs(model: nn.Module) -> None:
    """Raises torch's recompilation limits for compiling a model layer by layer.

    The limits apply to the whole process and are never lowered. A model that is compiled as a whole
    does not need this.

    Args:
        model: compact. Without a list of compact layers nothing changes.
    """
    dynamo = sys.modules.get("torch._dynamo")
    layers = _longest_stack(model)
    if dynamo is None or layers < 2:
        return
    config: Any = dynamo.config
    # torch's limit for a function, times the number of layers.
    config.recompile_limit = max(config.recompile_limit, _GRAPHS * layers)
    config.accumulated_recompile_limit = max(
        config.accumulated_recompile_limit, config.recompile_limit
    )


_GRAPHS = 8


def _longest_stack(model: nn.Module) -> int:
    stacks = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return max(
        (len(stack) for stack in stacks if _is_compact(stack)),
        default=0,
    )


def _is_compact(stack: nn.ModuleList) -> bool:
    return any(isinstance(module, CompactLinear) for module in stack.modules())
