"""A linear-like layer between row and column gates: ``y = w_r * base(w_c * x)``.

The base may be ``nn.Linear``, transformers' ``Conv1D`` or a LoRA layer of ``peft``; gates around a
low-rank adapter are therefore a composition, not a class of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finegates.arguments import check_model
from finegates.gates import Gate

# Other types hold the codes of quantisation, which mean something only to their own layer.
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class GatedLinear(nn.Module):
    """Gates the inputs (columns of W) and outputs (rows of W) of a linear-like layer.

    ``y = w_r * (W (w_c * x) + b)``; the bias is gated too, as in the paper.

    Args:
        base: the layer, from (..., in) to (..., out).
        rows: gate over the outputs, size out; None leaves them alone.
        cols: gate over the inputs, size in; None leaves them alone.

    Raises:
        TypeError: the base is not linear-like.
        ValueError: a gate's size is not the base's.
    """

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
        """(..., in) to (..., out), in the dtype of the base layer's output.

        Where the weight itself is trained, the gates go into it, ``(w_r W w_c) x + w_r b``: the
        same function, at a cost and with a memory that do not grow with the number of tokens. A
        frozen weight is left alone: its gradient would be computed for the gates' sake only.
        """
        if self.training and self._trains_weight(x):
            return self._forward_folded(x)
        if self.cols is not None:
            x = x * self.cols().to(x.dtype)
        y: Tensor = self.base(x)
        if self.rows is not None:
            rows = self.rows().to(y.dtype)
            clipped = self.rows.clips_at_zero and torch.is_grad_enabled() and rows.requires_grad
            y = _ScaledRows.apply(y, rows) if clipped else y * rows
        return y

    def _trains_weight(self, x: Tensor) -> bool:
        base = self.base
        if type(base) is not nn.Linear or not base.weight.requires_grad:
            return False
        # Hooks of others on the base must see its call; few tokens are cheaper to scale than W.
        hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks
        tokens = x.numel() // self.in_features
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
        """The base's weight as the base stores it; some models read its dtype."""
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
        """Yields ``("rows", gate)`` and ``("cols", gate)``, those that exist."""
        if self.rows is not None:
            yield "rows", self.rows
        if self.cols is not None:
            yield "cols", self.cols


class _ScaledRows(torch.autograd.Function):
    """``y = r * u`` that keeps y for its backward pass, which what follows often keeps anyway,
    in place of u, which nothing else needs.

    ``du = r dy`` and ``dr_i = sum(dy_i u_i) = sum(dy_i y_i) / r_i``. Where r_i = 0, dr_i is given
    as 0, so the rows must come from gates that are clipped there: nothing passes their clipping.
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
        # Never divide by 0, whatever becomes of the quotient: its own gradient would be no number.
        drows = torch.where(rows != 0, sums / torch.where(rows != 0, rows, 1.0), 0.0)
        return dy * rows, drows.to(rows.dtype)


def gated_layers(model: nn.Module) -> dict[str, GatedLinear]:
    """Every gated layer of a model by its module name, in the model's order.

    Raises:
        TypeError: it is not a model.
    """
    check_model(model)
    return {
        name: module for name, module in model.named_modules() if isinstance(module, GatedLinear)
    }


def leaf_gates(model: nn.Module) -> list[Gate]:
    """The gates of a model's layers, each once; of derived gates, what they are made of."""
    layers = gated_layers(model).values()
    found = (leaf for layer in layers for _, gate in layer.gates() for leaf in gate.leaves())
    return list(dict.fromkeys(found))


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
