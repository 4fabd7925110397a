"""Gates on the outputs of modules that are not linear layers: embeddings and norms.

The module stays what it is, under its own path, with the gate as a submodule and a hook that
multiplies its output. A gate on the residual stream is shared by all modules that write to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finegates.gates.gate import Gate

NAME = "finegates_gate"


def _multiplied(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    gate: Any = module._modules[NAME]
    return output * gate().to(output.dtype)


def gate_outputs(model: nn.Module, paths: Iterable[str], gate: Gate) -> None:
    """Multiplies the outputs of modules by a gate, in place.

    Args:
        model: owns the modules; none of them has such a gate yet.
        paths: of modules whose output is a tensor (..., n).
        gate: (n,); the modules share it.
    """
    for path in paths:
        module = model.get_submodule(path)
        module.add_module(NAME, gate)
        module.register_forward_hook(_multiplied)


def output_gates(model: nn.Module) -> dict[str, Gate]:
    """The gates on outputs, by the path of the module."""
    found: dict[str, Gate] = {}
    for path, module in model.named_modules():
        gate = module._modules.get(NAME)
        if isinstance(gate, Gate):
            found[path] = gate
    return found


def width_gate(model: nn.Module) -> Gate | None:
    """The gate on the residual stream of a model, or None.

    Raises:
        ValueError: its modules have several.
    """
    gates = list(dict.fromkeys(output_gates(model).values()))
    if len(gates) > 1:
        raise ValueError(f"{type(model).__name__} has {len(gates)} gates on residual streams")
    return gates[0] if gates else None


def remove_output_gates(model: nn.Module) -> None:
    """Removes the gates on outputs, in place."""
    for path in output_gates(model):
        module = model.get_submodule(path)
        del module._modules[NAME]
        for key, hook in list(module._forward_hooks.items()):
            if hook is _multiplied:
                del module._forward_hooks[key]


@torch.no_grad()
def fold_output_gates(model: nn.Module) -> None:
    """Multiplies the gates on outputs into the weights of their modules, in place.

    A weight that another module shares is copied first. The gates stay; remove them next.
    """
    for path, gate in output_gates(model).items():
        module = model.get_submodule(path)
        axis = 1 if isinstance(module, nn.Embedding) else 0
        for name in ("weight", "bias"):
            old = module._parameters.get(name)
            if old is None:
                continue
            shape = [-1 if each == axis else 1 for each in range(old.ndim)]
            new = old * gate.value().to(old.dtype).view(shape)
            module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
