"""A linear-like layer between row and column gates.

``y = w_r * base(w_c * x)``, where the base is ``nn.Linear``, transformers' ``Conv1D`` or a LoRA
layer of ``peft``. Gates around a low-rank adapter therefore need no class of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finegates.gates.gate import Gate
from finegates.model_argument import check_model
from finegates.modules.kinds import GatedLayer
from finegates.modules.linear import find_linear, linear_shape, multiply


class GatedLinear(GatedLayer):
    """Gates the inputs and outputs (columns and rows of W) of a linear layer.

    ``y = w_r * (W (w_c * x) + b)``; the bias is gated too, as in the paper.

    Args:
        base: the layer, from (..., in) to (..., out).
        rows: gate over the outputs, size out, or None.
        cols: gate over the inputs, size in, or None.

    Raises:
        TypeError: the base is not linear-like.
        ValueError: a gate's size is not the base's.
    """

    saves_output: bool = True
    """Whether the backward pass may keep the output: nothing changes it in place."""

    def __init__(self, base: nn.Module, rows: Gate | None = None, cols: Gate | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear_shape(base)
        for side, gate, size in (
            ("rows", rows, self.out_features),
            ("cols", cols, self.in_features),
        ):
            if gate is not None and gate.size != size:
                raise ValueError(f"the {side} gate has size {gate.size}, the layer needs {size}")
        self.base = base
        self.rows = rows
        self.cols = cols

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out), in the dtype of the base layer's output.

        Where the weight is trained, the gates scale it, ``(w_r W w_c) x + w_r b``: the same
        function, whose extra time and memory do not grow with the number of tokens. A frozen weight
        is not scaled, because that would need its gradient.
        """
        if self.training and self._trains_weight(x):
            return self._forward_folded(x)
        if self.cols is not None:
            x = x * self.cols().to(x.dtype)
        y = multiply(self.base, x)
        if self.rows is not None:
            rows = self.rows().to(y.dtype)
            clipped = self.rows.clips_at_zero and torch.is_grad_enabled() and rows.requires_grad
            y = _ScaledRows.apply(y, rows) if clipped and self.saves_output else y * rows
        return y

    def _trains_weight(self, x: Tensor) -> bool:
        base = self.base
        if type(base) is not nn.Linear or not base.weight.requires_grad:
            return False
        # Hooks on the base must see its call; few tokens are cheaper to scale than W.
        hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks
        tokens = x.numel() // max(1, self.in_features)
        return not hooked and tokens * (self.in_features + self.out_features) > base.weight.numel()

    def _forward_folded(self, x: Tensor) -> Tensor:
        assert isinstance(self.base, nn.Linear)
        weight, bias = self.base.weight, self.base.bias
        if self.cols is not None:
            weight = weight * self.cols().to(weight.dtype)
        if self.rows is not None:
            rows = self.rows().to(weight.dtype)
            weight = weight * rows[:, None]
            bias = None if bias is None else bias * rows
        return nn.functional.linear(x, weight, bias)

    @property
    def weight(self) -> Tensor:
        """The base's weight as stored, whose dtype some models read."""
        weight = find_linear(self.base).weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, shape (out,), or None."""
        bias = find_linear(self.base).bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def gates(self) -> Iterator[tuple[str, Gate]]:
        """Yields ``("rows", gate)`` and ``("cols", gate)`` where they exist."""
        if self.rows is not None:
            yield "rows", self.rows
        if self.cols is not None:
            yield "cols", self.cols


class _ScaledRows(torch.autograd.Function):
    """``y = r * u``, saving y instead of u for the backward pass.

    The next operation often saves y anyway, whereas nothing else needs u. ``du = r dy`` and ``dr_i
    = sum(dy_i u_i) = sum(dy_i y_i) / r_i``. Where r_i = 0, dr_i is returned as 0, so the rows must
    come from gates that are clipped there and pass no gradient.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, rows: Tensor) -> Tensor:
        y = u * rows
        ctx.save_for_backward(y, rows)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        y, rows = ctx.saved_tensors
        sums = (dy * y).flatten(0, -2).sum(0)
        # Avoid dividing by 0 even where the quotient is discarded: its gradient would be NaN.
        drows = torch.where(rows != 0, sums / torch.where(rows != 0, rows, 1.0), 0.0)
        return dy * rows, drows.to(rows.dtype)


def gated_layers(model: nn.Module) -> dict[str, GatedLinear]:
    """All gated layers of a model by module name, in the model's order.

    Raises:
        TypeError: it is not a model.
    """
    check_model(model)
    return {
        name: module for name, module in model.named_modules() if isinstance(module, GatedLinear)
    }


def leaf_gates(model: nn.Module) -> list[Gate]:
    """The gates of a model's layers, each once; derived gates give their sources."""
    check_model(model)
    layers = [module for module in model.modules() if isinstance(module, GatedLayer)]
    gates = (gate for layer in layers for gate in (layer.rows, layer.cols) if gate is not None)
    found = (leaf for gate in gates for leaf in gate.leaves())
    return list(dict.fromkeys(found))
