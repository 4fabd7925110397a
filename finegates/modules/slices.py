"""Rows and columns of linear-like layers, cut out in place or put back between zeros.

A LoRA layer of peft has rows and columns, too: those of its base layer, the columns of A and the
rows of B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finegates.modules.linear import find_linear, is_conv1d, unmergeable

Cut = tuple[int, Tensor]
"""A dimension of a tensor, and the indices to keep of it, int64, increasing."""


def parameters_by_side(layer: nn.Module) -> list[tuple[nn.Parameter, int | None, int | None]]:
    """The parameters of a linear-like layer, each with its dimension of rows and of columns.

    Args:
        layer: ``nn.Linear``, Conv1D, or a LoRA layer of peft around one.

    Raises:
        TypeError: it is not linear-like.
        ValueError: it has an adapter other than plain LoRA, whose parameters have other dimensions.
    """
    linear = find_linear(layer)
    turned = is_conv1d(linear)
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, nn.Parameter)
    found: list[tuple[nn.Parameter, int | None, int | None]]
    found = [(weight, 1, 0) if turned else (weight, 0, 1)]
    if isinstance(bias, nn.Parameter):
        found.append((bias, 0, None))
    if layer is linear:
        return found
    lora: Any = layer
    reason = unmergeable(layer)
    plain = reason is None and hasattr(layer, "lora_A")
    plain = plain and all(isinstance(a, nn.Linear) for a in lora.lora_A.values())
    if not plain:
        raise ValueError(reason or f"{type(layer).__name__} is not plain LoRA")
    for name, first in lora.lora_A.items():
        found.append((first.weight, None, 1))
        second = lora.lora_B[name]
        found.append((second.weight, 0, None))
        if second.bias is not None:
            found.append((second.bias, 0, None))
    known = {id(parameter) for parameter, _, _ in found}
    if any(id(parameter) not in known for parameter in layer.parameters()):
        raise ValueError(f"{type(layer).__name__} has parameters that plain LoRA does not have")
    return found


def cuts_of(
    layer: nn.Module, rows: Tensor, cols: Tensor
) -> list[tuple[nn.Parameter, tuple[Cut, ...]]]:
    """What to cut of each parameter of a layer so that it keeps some rows and columns.

    Args:
        layer: as for :func:`parameters_by_side`, which says what is raised.
        rows: int64, increasing, the rows to keep.
        cols: the same of columns.
    """
    return [
        (
            parameter,
            tuple(
                (axis, index)
                for axis, index in ((row_axis, rows), (col_axis, cols))
                if axis is not None
            ),
        )
        for parameter, row_axis, col_axis in parameters_by_side(layer)
    ]


def cut(tensor: Tensor, cuts: tuple[Cut, ...]) -> Tensor:
    """The kept part of a tensor, contiguous, as a new tensor."""
    for axis, index in cuts:
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor.contiguous()


def put_back(tensor: Tensor, cuts: tuple[Cut, ...], shape: torch.Size) -> Tensor:
    """A tensor of which :func:`cut` would give this one; zeros elsewhere."""
    for axis, index in reversed(cuts):
        size = (*tensor.shape[:axis], shape[axis], *tensor.shape[axis + 1 :])
        whole = tensor.new_zeros(size)
        tensor = whole.index_copy(axis, index.to(tensor.device), tensor)
    return tensor


def note_sizes(layer: nn.Module) -> None:
    """Sets the attributes of a layer that hold its sizes, after its parameters were cut."""
    linear: Any = find_linear(layer)
    if is_conv1d(linear):
        linear.nx, linear.nf = linear.weight.shape
        sizes = linear.nx, linear.nf
    else:
        linear.out_features, linear.in_features = linear.weight.shape
        sizes = linear.in_features, linear.out_features
    if layer is linear:
        return
    lora: Any = layer
    lora.in_features, lora.out_features = sizes
    for name, first in lora.lora_A.items():
        first.in_features = sizes[0]
        lora.lora_B[name].out_features = sizes[1]
