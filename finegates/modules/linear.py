"""Linear-like layers: nn.Linear, Conv1D, LoRA layers of peft, as one kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Other types hold the codes of quantisation, which mean something only to their own layer.
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_linear(layer: nn.Module) -> nn.Module:
    """The layer that holds the original weight: the layer itself, or what a LoRA layer wraps.

    Raises:
        TypeError: neither nn.Linear, nor Conv1D, nor a peft layer around one; or its weight is
            quantised; or it is of a subclass of nn.Linear that computes in a way of its own.
    """
    inner = _innermost(layer)
    if not _looks_linear(inner):
        raise TypeError(
            f"{type(layer).__name__} is not linear-like: gates go around nn.Linear, transformers' "
            "Conv1D, or a peft LoRA layer around one of them"
        )
    if is_quantised(inner):
        raise TypeError(
            f"the weight of {type(inner).__name__} is {_weight_dtype(inner)}, not floating point "
            "of 16, 32 or 64 bits: gates and compaction need its numbers; load the model without "
            "quantisation, or leave this layer alone"
        )
    if not _multiplies_plainly(inner):
        raise TypeError(
            f"{type(inner).__name__} is an nn.Linear with a forward of its own, which need not be "
            "x W^T + b: compaction could change what it computes; leave this layer alone"
        )
    return inner


def is_linear(layer: nn.Module) -> bool:
    """Whether :func:`find_linear` finds one."""
    try:
        find_linear(layer)
    except TypeError:
        return False
    return True


def looks_linear(layer: nn.Module) -> bool:
    """Whether it is linear-like by its class, whatever its weight holds and its forward does."""
    return _looks_linear(_innermost(layer))


def is_quantised(layer: nn.Module) -> bool:
    """Whether a layer would be linear-like if its weight held numbers in place of codes."""
    return looks_linear(layer) and _weight_dtype(_innermost(layer)) not in _PRECISIONS


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear-like layer. Raises TypeError as :func:`find_linear` does."""
    linear = find_linear(layer)
    rows, columns = linear.weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if _is_conv1d(linear) else (int(columns), int(rows))


def unmergeable(layer: nn.Module) -> str | None:
    """Why what peft has put into a layer cannot be merged by :func:`dense_weight`, or None.

    Plain low-rank terms can be (LoRA, AdaLoRA), and whatever peft itself has merged already is part
    of the weight. Other methods (IA3, LoHa, OFT, ...) and variants of LoRA (DoRA, ...) compute
    something else than ``W + scale B A``.

    Args:
        layer: any; one that is not of peft has nothing to merge.
    """
    if not hasattr(layer, "get_base_layer"):
        return None
    kind = type(layer).__module__.removeprefix("peft.tuners.").removesuffix(".layer")
    if hasattr(getattr(layer, "base_layer", None), "get_base_layer"):
        return f"its {kind} adapter has another one inside"
    if getattr(layer, "merged", False):
        return None
    if not hasattr(layer, "lora_A"):
        return f"its adapter ({kind}.{type(layer).__name__} of peft) is no LoRA"
    for adapter in getattr(layer, "active_adapters", ()):
        variant = getattr(layer, "lora_variant", {}).get(adapter)
        if getattr(layer, "use_dora", {}).get(adapter):
            return f"its adapter {adapter!r} is no plain LoRA but DoRA, with magnitudes of its own"
        if variant is not None:
            return f"its adapter {adapter!r} is no plain LoRA ({type(variant).__name__} of peft)"
        if getattr(layer, "lora_bias", {}).get(adapter):
            return f"its adapter {adapter!r} has a bias of its own (lora_bias)"
    return None


@torch.no_grad()
def dense_weight(layer: nn.Module, *, rounded: bool = True) -> tuple[Tensor, Tensor | None]:
    """The weight (out, in) and bias (out,) that a linear-like layer applies, low-rank terms merged.

    Terms are merged in at least float32, whatever the layer's precision.

    Args:
        layer: see :func:`find_linear`; it is not changed.
        rounded: round a merged weight to the precision that the layer stores. False leaves that to
            those who compute on: a half-precision weight with merged terms is float32 then.

    Returns:
        new tensors or views.

    Raises:
        TypeError: the layer is not linear-like.
        ValueError: what peft has put into it cannot be written so (:func:`unmergeable`).
    """
    linear = find_linear(layer)
    weight = linear.weight.detach()  # type: ignore[operator]
    bias = None if linear.bias is None else linear.bias.detach()  # type: ignore[operator]
    if _is_conv1d(linear):
        weight = weight.T
    if layer is linear or getattr(layer, "disable_adapters", False):
        return weight, bias
    reason = unmergeable(layer)
    if reason is not None:
        raise ValueError(
            f"this layer's weight is not known: {reason}; merge it with peft (merge_and_unload)"
        )
    if not getattr(layer, "merged", False):
        stored = weight.dtype
        weight = _with_low_rank_terms(layer, weight)
        weight = weight.to(stored) if rounded else weight
    return weight, bias


def _with_low_rank_terms(layer: nn.Module, weight: Tensor) -> Tensor:
    """W + sum of the active terms, (out, in), in at least float32."""
    for adapter in layer.active_adapters:  # type: ignore[union-attr]
        # An adapter of other layers is active here, too, and has nothing here.
        if adapter in layer.lora_A:  # type: ignore[operator]
            wide = torch.promote_types(weight.dtype, torch.float32)
            weight = weight.to(wide) + _low_rank_term(layer, adapter).to(wide)
    return weight


def _low_rank_term(layer: Any, adapter: str) -> Tensor:
    """scale B A (out, in), in at least float32."""
    left, right = layer.lora_B[adapter], layer.lora_A[adapter]
    if isinstance(left, nn.Linear) and isinstance(right, nn.Linear):
        # As peft does, which rounds it to half precision where the factors are of that.
        wide = torch.promote_types(left.weight.dtype, torch.float32)
        return (left.weight.to(wide) @ right.weight.to(wide)) * layer.scaling[adapter]
    term: Tensor = layer.get_delta_weight(adapter)  # AdaLoRA, with a scale for every rank
    return term.T if _is_conv1d(layer.get_base_layer()) else term


def _innermost(layer: nn.Module) -> nn.Module:
    """What all layers of peft lie around, or the layer itself."""
    if not hasattr(layer, "get_base_layer"):
        return layer
    inner = layer.get_base_layer()  # type: ignore[operator]
    assert isinstance(inner, nn.Module)
    return inner


def _looks_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or _is_conv1d(layer)


def _multiplies_plainly(linear: nn.Module) -> bool:
    own = isinstance(linear, nn.Linear) and type(linear).forward is not nn.Linear.forward
    return not own or type(linear).__name__ == "FalconLinear"  # the same, rounded in its own way


def _weight_dtype(layer: nn.Module) -> torch.dtype | None:
    # Some keep their codes under other names and have no weight at all.
    return getattr(getattr(layer, "weight", None), "dtype", None)


def _is_conv1d(layer: nn.Module) -> bool:
    # By name: importing transformers here would cost seconds to those who only need gates.
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")
