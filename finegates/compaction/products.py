"""Ways to multiply and to move data that only inference takes, above all oneDNN's float32 product
where it is faster than torch's default one.

torch multiplies float32 matrices by the BLAS library that it was built with. On CPUs of another
maker than the library's that one may leave half of the arithmetic unused, while oneDNN, which torch
carries for other types, does not. Both round: results differ in the last bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from finegates.layers import gated_layers
from finegates.stock_methods import adapt_stock_methods

if TYPE_CHECKING:
    from finegates.compaction.cost import CostModel


def has_onednn() -> bool:
    """Whether this torch has the product at all."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by oneDNN, without a gradient.

    Args:
        x: float32 (..., in) on the CPU.
        weight: float32 (out, in).
        bias: float32 (out,) or None.
    """
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def runs_plainly(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer may take the ways that only inference has.

    That is in float32 on the CPU, without gradients, and while nothing records or rewrites the
    call: no compiler, no exporter, no trace, no transform of ``torch.func``, no autocast.
    """
    return (
        not torch.is_grad_enabled()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not is_rewritten()
    )


def is_rewritten() -> bool:
    """Whether a trace, a transform of ``torch.func``, a forward-mode derivative or a dispatch mode
    (fake tensors, ``make_fx``) sees each operation, so that none may write into a given tensor."""
    return bool(
        torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    )


def select_columns(x: Tensor, index: Tensor, plainly: bool | None = None) -> Tensor:
    """x[:, index] of a matrix (n, columns), index int64.

    Args:
        x: (n, columns).
        index: (m,), of columns.
        plainly: what :func:`runs_plainly` says, where it has been asked already.
    """
    if torch.onnx.is_in_onnx_export():
        # ONNX Runtime copies a selected row at once and a selected column number by number.
        return x.t().index_select(0, index).t()
    plainly = runs_plainly(x, x) if plainly is None else plainly
    if plainly and torch.get_num_threads() > 1:
        # torch selects columns on one thread; this gives the same numbers on all.
        return x.gather(1, index.expand(x.shape[0], -1))
    return x.index_select(1, index)


def use_products(model: nn.Module, cost: CostModel) -> nn.Module:
    """Lets a model multiply by the product that is the faster on this machine; changes the model.

    The choice is the machine's: :func:`finegates.save` keeps it with the name of the machine, and
    :func:`finegates.load` takes it up on one like it. It serves a dense model as well.

    Args:
        model: dense or compact. Its plain linear layers become :class:`CompactLinear` ones with the
            same parameters, which removes nothing.
        cost: of this machine, by :func:`finegates.calibrate`.

    Returns:
        the model; the layer itself, replaced, if the model is a single linear layer.

    Raises:
        ValueError: the model has gates, which go around ordinary linear layers only.
    """
    from finegates.compaction.layers import CompactLinear

    gated = next(iter(gated_layers(model)), None)
    if gated is not None:
        raise ValueError(
            f"layer {gated or 'given'} has gates; compact the model first (finegates.compact), "
            "then choose its products"
        )

    def fast(layer: nn.Module) -> nn.Module:
        if type(layer) is nn.Linear:
            plain = layer
            layer = CompactLinear(plain.weight, plain.bias)
            layer.train(plain.training)
            # The parameters themselves: they may be tied, or frozen.
            layer.weight, layer.bias = plain.weight, plain.bias  # type: ignore[misc]
            layer.keeps_stock_layout = True
        if isinstance(layer, CompactLinear):
            layer.onednn_from = cost.onednn_from
        return layer

    for parent in list(model.modules()):
        if isinstance(parent, CompactLinear):
            continue  # its product is part of it
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = fast(child)
    adapt_stock_methods()
    return fast(model)
