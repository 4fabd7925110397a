"""A common view of linear-like layers: nn.Linear, Conv1D, LoRA layers of peft."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Other dtypes are codes of quantisation, which only their own layer can interpret.
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_linear(layer: nn.Module) -> nn.Module:
    """Returns the layer with the original weight, inside a LoRA layer if there is one.

    Raises:
        TypeError: the layer is not nn.Linear, Conv1D, or a peft layer around one; its weight is
            quantised; or it is a subclass of nn.Linear with another forward.
    """
    inner = _innermost(layer)
    if not _looks_linear(inner):
        if ".quantized" in type(inner).__module__:  # of torch.ao
            raise TypeError(
                f"{type(inner).__module__}.{type(inner).__name__} is quantised, and its numbers "
                "are not stored; take the model from before it was quantised"
            )
        raise TypeError(
            f"{type(layer).__name__} is not linear-like: gates go around nn.Linear, transformers' "
            "Conv1D, or a peft LoRA layer around one of them"
        )
    if is_quantised(inner):
        raise TypeError(
            f"the weight of {type(inner).__name__} is {_weight_dtype(inner)}, not floating point "
            "of 16, 32 or 64 bits: gates and compaction need its numbers; load the model without "
            "quantisation, or exclude this layer"
        )
    if not _multiplies_plainly(inner):
        raise TypeError(
            f"{type(inner).__name__} is a subclass of nn.Linear with its own forward, which may "
            "not be x W^T + b: compaction could change its outputs; exclude this layer"
        )
    return inner


def check_numbers(layer: nn.Module) -> None:
    """Raises TypeError if a linear-like layer stores codes of its weight, as torchao does.

    Such a weight has the shape and the dtype of the numbers that it replaces, so that
    :func:`find_linear` accepts it.
    """
    weight = find_linear(layer).weight
    assert isinstance(weight, Tensor)
    codes = codes_of(weight)
    if codes is not None:
        raise TypeError(
            f"its weight is quantised ({codes}), and its numbers are not stored; take the model "
            "from before it was quantised, or load it without quantisation"
        )


def codes_of(tensor: Tensor) -> str | None:
    """Which codes a tensor of a quantisation library stores instead of numbers, or None."""
    if not is_traceable_wrapper_subclass(tensor):
        return None
    codes = sorted(str(dtype) for dtype in _stored_dtypes(tensor) - set(_PRECISIONS))
    return f"{type(tensor).__name__} of {', '.join(codes)}" if codes else None


def _stored_dtypes(tensor: Tensor) -> set[torch.dtype]:
    """Dtypes of the tensors inside a tensor subclass, or of the tensor itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return {tensor.dtype}
    names, _ = tensor.__tensor_flatten__()
    return set().union(*(_stored_dtypes(getattr(tensor, name)) for name in names))


def is_linear(layer: nn.Module) -> bool:
    """Whether :func:`find_linear` finds one."""
    try:
        find_linear(layer)
    except TypeError:
        return False
    return True


def looks_linear(layer: nn.Module) -> bool:
    """Whether the layer's class is linear-like, ignoring its weight and forward."""
    return _looks_linear(_innermost(layer))


def is_quantised(layer: nn.Module) -> bool:
    """Whether a layer is linear-like but for its quantised weight."""
    return looks_linear(layer) and _weight_dtype(_innermost(layer)) not in _PRECISIONS


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear-like layer; raises as :func:`find_linear`."""
    linear = find_linear(layer)
    rows, columns = linear.weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if is_conv1d(linear) else (int(columns), int(rows))


def layer_size(layer: nn.Module) -> int:
    """Weights of a layer of a linear-like class, also of one with codes of a quantisation."""
    if is_linear(layer):
        return math.prod(linear_shape(layer))
    inner: Any = _innermost(layer)
    return int(inner.nf * inner.nx if is_conv1d(inner) else inner.in_features * inner.out_features)


def multiply(layer: nn.Module, x: Tensor) -> Tensor:
    """Maps (..., in) to (..., out) with a linear-like layer, which may have no inputs left.

    Conv1D cannot reshape a tensor without elements. Its output is then the bias, and low-rank terms
    around it are zero.

    Args:
        layer: linear-like, of 0 inputs or more.
        x: (..., in).
    """
    if x.shape[-1] == 0 and is_conv1d(inner := _innermost(layer)):
        y: Tensor = nn.functional.linear(x, inner.weight.T, inner.bias)  # type: ignore[arg-type]
        return y
    y = layer(x)
    return y


def unmergeable(layer: nn.Module) -> str | None:
    """The reason why :func:`dense_weight` cannot merge a layer's adapters, or None.

    Plain low-rank terms (LoRA, AdaLoRA) can be merged, and terms that peft has merged already are
    part of the weight. Other methods (IA3, LoHa, OFT, ...) and variants of LoRA (DoRA, ...) are not
    of the form ``W + scale B A``.

    Args:
        layer: any; a layer that is not of peft has nothing to merge.
    """
    if not hasattr(layer, "get_base_layer"):
        return None
    kind = type(layer).__module__.removeprefix("peft.tuners.").removesuffix(".layer")
    if hasattr(getattr(layer, "base_layer", None), "get_base_layer"):
        return f"its {kind} adapter has another one inside"
    if getattr(layer, "merged", False):
        return None
    if not hasattr(layer, "lora_A"):
        return f"its adapter ({kind}.{type(layer).__name__} of peft) is not LoRA"
    for adapter in getattr(layer, "active_adapters", ()):
        variant = getattr(layer, "lora_variant", {}).get(adapter)
        if getattr(layer, "use_dora", {}).get(adapter):
            return f"its adapter {adapter!r} is not plain LoRA but DoRA, which has magnitudes"
        if variant is not None:
            return f"its adapter {adapter!r} is not plain LoRA ({type(variant).__name__} of peft)"
        if getattr(layer, "lora_bias", {}).get(adapter):
            return f"its adapter {adapter!r} has its own bias (lora_bias)"
    return None


@torch.no_grad()
def dense_weight(layer: nn.Module, *, rounded: bool = True) -> tuple[Tensor, Tensor | None]:
    """The weight (out, in) and bias (out,) of a layer, with low-rank terms merged.

    Terms are merged in at least float32, for any dtype of the layer.

    Args:
        layer: see :func:`find_linear`; it does not change.
        rounded: round a merged weight to the dtype of the layer. With False, a half-precision
            weight with merged terms is returned in float32.

    Returns:
        new tensors or views.

    Raises:
        TypeError: the layer is not linear-like, or quantised.
        ValueError: its adapters cannot be merged (:func:`unmergeable`).
    """
    linear = find_linear(layer)
    check_numbers(linear)
    weight = linear.weight.detach()  # type: ignore[operator]
    bias = None if linear.bias is None else linear.bias.detach()  # type: ignore[operator]
    if is_conv1d(linear):
        weight = weight.T
    if layer is linear or getattr(layer, "disable_adapters", False):
        return weight, bias
    reason = unmergeable(layer)
    if reason is not None:
        raise ValueError(
            f"this layer's weight is unknown: {reason}; merge it with peft (merge_and_unload)"
        )
    if not getattr(layer, "merged", False):
        stored = weight.dtype
        weight = _with_low_rank_terms(layer, weight)
        weight = weight.to(stored) if rounded else weight
    return weight, bias


def _with_low_rank_terms(layer: nn.Module, weight: Tensor) -> Tensor:
    """W + sum of the active terms, (out, in), in at least float32."""
    for adapter in layer.active_adapters:  # type: ignore[union-attr]
        # An active adapter may belong to other layers only.
        if adapter in layer.lora_A:  # type: ignore[operator]
            wide = torch.promote_types(weight.dtype, torch.float32)
            weight = weight.to(wide) + _low_rank_term(layer, adapter).to(wide)
    return weight


def _low_rank_term(layer: Any, adapter: str) -> Tensor:
    """scale B A (out, in), in at least float32."""
    left, right = layer.lora_B[adapter], layer.lora_A[adapter]
    if isinstance(left, nn.Linear) and isinstance(right, nn.Linear):
        # As in peft, which rounds the term to half precision if the factors are.
        wide = torch.promote_types(left.weight.dtype, torch.float32)
        return (left.weight.to(wide) @ right.weight.to(wide)) * layer.scaling[adapter]
    term: Tensor = layer.get_delta_weight(adapter)  # AdaLoRA, with one scale per rank
    return term.T if is_conv1d(layer.get_base_layer()) else term


def _innermost(layer: nn.Module) -> nn.Module:
    """The layer inside all layers of peft, or the layer itself."""
    if not hasattr(layer, "get_base_layer"):
        return layer
    inner = layer.get_base_layer()  # type: ignore[operator]
    assert isinstance(inner, nn.Module)
    return inner


def _looks_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def _multiplies_plainly(linear: nn.Module) -> bool:
    own = isinstance(linear, nn.Linear) and type(linear).forward is not nn.Linear.forward
    return not own or type(linear).__name__ == "FalconLinear"  # equal up to its own rounding


def _weight_dtype(layer: nn.Module) -> torch.dtype | None:
    # Some store their codes under other names and have no weight.
    return getattr(getattr(layer, "weight", None), "dtype", None)


def is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer is transformers' Conv1D, which stores its weight (in, out)."""
    # By name, because importing transformers takes seconds.
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")
