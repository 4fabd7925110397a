"""Faster matmuls and gathers for inference, such as oneDNN's float32 matmul.

torch multiplies float32 matrices with the BLAS library that it was built with. On CPUs of another
vendor than the library's, that may use half of the arithmetic units, while oneDNN, which torch
includes for other dtypes, uses all. Both round: results differ in the last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def has_onednn() -> bool:
    """Whether this build of torch has oneDNN's matmul."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes x W^T + b with oneDNN, without a gradient.

    Args:
        x: float32 (..., in) on the CPU.
        weight: float32 (out, in).
        bias: float32 (out,) or None.
    """
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def is_plain_tensor(tensor: Tensor) -> bool:
    """Whether it is not of a subclass, such as int8 weights, which know few operators."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def runs_plainly(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer can use the functions for inference.

    They need float32 on the CPU, a weight that is not of a tensor subclass, no gradients, and a
    call that is not recorded or rewritten: no compiler, exporter, trace, transform of
    ``torch.func`` or autocast.
    """
    return (
        not torch.is_grad_enabled()
        and is_plain_tensor(weight)
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
        plainly: the result of :func:`runs_plainly`, if known.
    """
    if torch.onnx.is_in_onnx_export():
        # ONNX Runtime copies a selected row as a block, but a selected column element by element.
        return x.t().index_select(0, index).t()
    plainly = runs_plainly(x, x) if plainly is None else plainly
    if plainly and torch.get_num_threads() > 1:
        # torch selects columns on one thread; this uses all threads, with the same result.
        return x.gather(1, index.expand(x.shape[0], -1))
    return x.index_select(1, index)


def is_rewritten() -> bool:
    """Whether operations are recorded or rewritten, so that none may write in place.

    That is by a trace, a transform of ``torch.func``, a forward-mode derivative or a dispatch mode
    (fake tensors, ``make_fx``).
    """
    return bool(
        torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    )
