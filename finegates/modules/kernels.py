"""Ways to multiply and to move data that only inference takes, above all oneDNN's float32 product
where it is faster than torch's default one.

torch multiplies float32 matrices by the BLAS library that it was built with. On CPUs of another
maker than the library's that one may leave half of the arithmetic unused, while oneDNN, which torch
carries for other types, does not. Both round: results differ in the last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


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


def is_rewritten() -> bool:
    """Whether a trace, a transform of ``torch.func``, a forward-mode derivative or a dispatch mode
    (fake tensors, ``make_fx``) sees each operation, so that none may write into a given tensor."""
    return bool(
        torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    )
