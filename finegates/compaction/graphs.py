"""How many graphs torch may compile of one function: a compact model needs one for each layer.

The layers of a dense model share their sizes, so that one graph serves all. Those of a compact
model have sizes of their own. torch stops compiling a function after eight graphs.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from finegates.modules.compact_linear import CompactLinear


def allow_graphs(model: nn.Module) -> None:
    """Raises torch's limits of recompilation to what compiling a model layer by layer takes.

    The limits are torch's own for the whole process and are never lowered. A model whose layers
    are compiled as one needs none of this.

    Args:
        model: compact. Without a list of compact layers nothing changes.
    """
    dynamo = sys.modules.get("torch._dynamo")
    layers = _longest_stack(model)
    if dynamo is None or layers < 2:
        return
    config: Any = dynamo.config
    # As many for each layer as torch gives to a function.
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
