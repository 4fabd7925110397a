"""Derived bounds on how far two exact rewritings of a linear layer differ in floating point.

Standard model: fl(a op b) = (a op b)(1 + d), |d| <= u with u = eps / 2. A product of k such factors
differs from 1 by at most gamma_k = k u / (1 - k u).

For y = w_r * (W (w_c * x) + b) with n columns, each product w_r W w_c x is rounded

- gated: once in w_c * x, once in its product with W, at most n times in the additions (bias
  included, in any order), once in w_r * (...): n + 3.
- compact: twice in folding w_r W w_c (three times if half precision is folded in float32 and
  rounded again), once in the product, at most n times in the additions: n + 3, in half precision n
  + 4. The bias, with the contribution of a constant input, is rounded at most three times before
  its addition.

So each result is within gamma_(n+4) * w_r (|W| |w_c| |x| + |b|) of the exact one, and the two are
within twice that. Wider accumulators, fused multiply-adds and other summation orders round less. A
low-rank term of rank r sums over n and then over r, is scaled and added: r + 3 more roundings, on
|W| + |scale B| |A|. Underflow is ignored, because the tests have no numbers near it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.modules.linear import dense_weight, find_linear


def gamma(roundings: int, dtype: torch.dtype) -> float:
    """k u / (1 - k u)."""
    ku = roundings * torch.finfo(dtype).eps / 2
    assert ku < 0.5, f"{roundings} roundings in {dtype}: the bound says nothing"
    return ku / (1 - ku)


@torch.no_grad()
def linear_bound(layer: GatedLinear, x: Tensor, *, error: Tensor | None = None) -> Tensor:
    """Largest difference of gated and compact outputs, in float64, shaped as the output.

    Args:
        layer: in the tested precision.
        x: (..., in), its input.
        error: (..., in), the largest difference of the two inputs; zero if None.
    """
    dtype = layer.weight.dtype
    weight, bias, extra = _magnitude(layer.base)
    rows = torch.ones(layer.out_features) if layer.rows is None else layer.rows.value().abs()
    cols = torch.ones(layer.in_features) if layer.cols is None else layer.cols.value().abs()
    rows, cols = rows.to(torch.float64), cols.to(torch.float64)
    # Both round the gates to the layer's precision, which enlarges them by at most 1 + u.
    grown = (1 + torch.finfo(dtype).eps) ** 2
    size = x.abs().to(torch.float64)
    carried = torch.zeros_like(size) if error is None else error
    summed = ((size + carried) * cols) @ weight.T + bias
    bound = 2 * gamma(layer.in_features + 4 + extra, dtype) * summed
    bound = bound + (carried * cols) @ weight.T
    return grown * rows * bound


def model_bound(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> Tensor:
    """Largest difference of a gated model and its compact form, to first order.

    Each gated layer l contributes at most :func:`linear_bound` to its output y_l. The rest of the
    model propagates it by its derivative, so that

        |difference| <= sum over l of |d output / d y_l| bound_l + O(u^2),

    with exact derivatives by autograd. The operations between gated layers (residual sums, norms
    over the hidden width, softmax and products over length and head width, activations, the head)
    round differently because their inputs differ. Each has at most as many roundings as the gated
    product before it, on numbers not larger than the sums in its bound. At most three such steps
    come between two products. Hence the factor of four. In float64 the second order is far below
    the first.

    Args:
        model: gated, float64, in evaluation mode.
        run: maps a model to its output.

    Returns:
        the bound, with the shape of the output.
    """
    outputs: list[Tensor] = []
    bounds: list[Tensor] = []

    def record(layer: nn.Module, arguments: tuple[Tensor, ...], y: Tensor) -> Tensor:
        assert isinstance(layer, GatedLinear)
        bounds.append(linear_bound(layer, arguments[0].detach()))
        # If nothing before it is trainable, y starts the graph.
        y = y if y.requires_grad else y.detach().requires_grad_()
        outputs.append(y)
        return y

    hooks = [layer.register_forward_hook(record) for layer in gated_layers(model).values()]
    try:
        result = run(model)
    finally:
        for hook in hooks:
            hook.remove()
    assert result.dtype == torch.float64
    total = torch.zeros(result.numel(), dtype=torch.float64)
    for index, number in enumerate(result.flatten()):
        slopes = torch.autograd.grad(number, outputs, retain_graph=True, allow_unused=True)
        for slope, bound in zip(slopes, bounds, strict=True):
            if slope is not None:
                total[index] += (slope.abs() * bound).sum()
    return 4 * total.reshape(result.shape)


def _magnitude(base: nn.Module) -> tuple[Tensor, Tensor, int]:
    """|W| (with low-rank terms, without cancellation), |b|, and the additional roundings."""
    linear = find_linear(base)
    weight, bias = dense_weight(linear)
    size, extra = weight.abs().to(torch.float64), 0
    if base is not linear:
        for name in base.active_adapters:  # type: ignore[union-attr]
            left, right = base.lora_B[name].weight, base.lora_A[name].weight  # type: ignore[index]
            scale = abs(base.scaling[name])  # type: ignore[index]
            size = size + scale * left.abs().to(torch.float64) @ right.abs().to(torch.float64)
            extra += right.shape[0] + 3
    shift = torch.zeros(size.shape[0], dtype=torch.float64) if bias is None else bias.abs()
    return size, shift.to(torch.float64), extra
