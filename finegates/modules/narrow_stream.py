"""Embeddings, norms and heads of a residual stream from which dimensions were removed.

A removed dimension was zero in the whole stream. So embeddings lose columns, layers that read the
stream lose inputs, and norms go on as if the zeros were there:

- With k of d dimensions, the mean of squares over d is k/d times the one over k, so an RMS norm
  ``w x / sqrt(mean_d + eps)`` is ``w sqrt(d/k) x / sqrt(mean_k + eps d/k)``: the stock module with
  another weight and epsilon.
- A layer norm needs sums over k but means over d (:class:`CountingLayerNorm`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from finegates.blocks import Stream

MARK = "finegates_stream"
"""The attribute of a model with (kept, dense) dimensions of its stream."""


class CountingLayerNorm(nn.LayerNorm):
    """A layer norm over d dimensions, of which those that were removed are zero.

    With S the sum over the kept dimensions,

        m = S(x) / d,   v = S((x - m)^2) / d + (1 - k/d) m^2,   y = (x - m) / sqrt(v + eps) g + b.

    Args:
        kept: number k of dimensions of the input.
        size: number d.
        eps: of the dense norm.
        bias: whether it has one.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        kept: int,
        size: int,
        eps: float,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(kept, eps=eps, bias=bias, device=device, dtype=dtype)
        self.size = size

    def forward(self, input: Tensor) -> Tensor:
        """(..., k) to (..., k), computed in at least float32."""
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        share = self.normalized_shape[0] / self.size
        mean = x.mean(-1, keepdim=True) * share
        centred = x - mean
        variance = centred.square().mean(-1, keepdim=True) * share + (1 - share) * mean.square()
        y = centred * torch.rsqrt(variance + self.eps)
        y = y.to(input.dtype) * self.weight
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"{self.normalized_shape[0]} of {self.size}, eps={self.eps}"


@torch.no_grad()
def narrow_stream(
    model: nn.Module, stream: Stream, kept: Tensor, gate: Tensor | None = None
) -> None:
    """Removes dimensions of the residual stream outside of blocks, in place.

    The linear layers of blocks are not touched. With or without storage (meta device).

    Args:
        model: plain.
        stream: of the dense model.
        kept: int64 (k,), increasing.
        gate: (d,), which multiplied what modules write to the stream, and goes into their weights.
            A table that an output layer shares stays shared if it is one where it is kept. None
            for ones.
    """
    factors = None if gate is None else gate.index_select(0, kept.to(gate.device))
    if factors is not None and bool((factors == 1).all()):
        factors = None
    # By the parameter they replace, which must live as long as its id is used.
    made: dict[tuple[int, int, bool], tuple[nn.Parameter, nn.Parameter]] = {}

    def put(owner: nn.Module, name: str, axis: int, *, scaled: bool) -> None:
        old: Any = owner._parameters[name]
        if old is None:
            return
        scaled = scaled and factors is not None
        key = (id(old), axis, scaled)
        if key not in made:
            new = _cut(old, axis, kept, factors if scaled else None)
            made[key] = old, nn.Parameter(new, requires_grad=old.requires_grad)
        owner._parameters[name] = made[key][1]

    tables = list(dict.fromkeys(name.removesuffix(".weight") for name in stream.tables))
    for module in {id(m): m for m in map(model.get_submodule, tables)}.values():
        put(module, "weight", 1, scaled=True)
        module.embedding_dim = kept.numel()  # type: ignore[assignment]
    for module in {id(m): m for m in map(model.get_submodule, stream.writes)}.values():
        put(module, "weight", 0, scaled=True)
        put(module, "bias", 0, scaled=True)
        module.out_features = kept.numel()  # type: ignore[assignment]
    for module in {id(m): m for m in map(model.get_submodule, stream.reads)}.values():
        put(module, "weight", 1, scaled=False)
        module.in_features = kept.numel()  # type: ignore[assignment]
    for path in stream.layer_norms:
        model.set_submodule(path, _counting(model.get_submodule(path), stream, kept, factors))
    for path, offset in stream.rms_norms:
        _fit_rms_norm(model.get_submodule(path), stream.size, kept, offset)
    setattr(model, MARK, (kept.numel(), stream.size))


def _cut(tensor: Tensor, axis: int, kept: Tensor, factors: Tensor | None) -> Tensor:
    chosen = tensor.detach().index_select(axis, kept.to(tensor.device))
    if factors is not None:
        wide = torch.promote_types(chosen.dtype, torch.float32)
        shape = [-1 if each == axis else 1 for each in range(chosen.ndim)]
        scale = factors.to(chosen.device, chosen.dtype).to(wide).view(shape)
        chosen = (chosen.to(wide) * scale).to(chosen.dtype)
    return chosen.contiguous()


def _counting(norm: Any, stream: Stream, kept: Tensor, factors: Tensor | None) -> nn.Module:
    """The counting form of a layer norm over the whole stream."""
    weight = norm.weight
    device, dtype = (None, None) if weight is None else (weight.device, weight.dtype)
    small = CountingLayerNorm(
        kept.numel(), stream.size, norm.eps, bias=norm.bias is not None, device=device, dtype=dtype
    )
    for name in ("weight", "bias"):
        old = getattr(norm, name)
        if old is None and name == "weight":
            old = torch.ones(stream.size, dtype=torch.float32, device=kept.device)
        if old is not None:
            setattr(small, name, nn.Parameter(_cut(old, 0, kept, factors)))
    return small.train(norm.training)


def _fit_rms_norm(norm: Any, size: int, kept: Tensor, offset: float) -> None:
    weight: Tensor = norm.weight
    growth = size / kept.numel()
    chosen = _cut(weight, 0, kept, None).to(torch.float64) + offset
    chosen = (math.sqrt(growth) * chosen - offset).to(weight.dtype)
    norm.weight = nn.Parameter(chosen, requires_grad=weight.requires_grad)
    for attribute in ("variance_epsilon", "eps"):
        if attribute in vars(norm):
            setattr(norm, attribute, getattr(norm, attribute) * growth)


def removed_stream_parameters(
    model: nn.Module, stream: Stream, kept: Tensor, gate: Tensor | None = None
) -> int:
    """Counts the parameters that :func:`narrow_stream` removes, shared ones once.

    Args:
        model: as for :func:`narrow_stream`, dense or gated; so are the others.
        stream: see there.
        kept: see there.
        gate: see there.
    """
    axes: dict[int, tuple[Tensor, set[int]]] = {}

    def note(path: str, name: str, axis: int) -> None:
        module = model.get_submodule(path)
        module = getattr(module, "original_module", module)
        tensor = None if module is None else getattr(module, name, None)
        if isinstance(tensor, nn.Parameter):
            axes.setdefault(id(tensor), (tensor, set()))[1].add(axis)

    for name in stream.tables:
        note(name.removesuffix(".weight"), "weight", 1)
    written = set(axes)
    for path in stream.writes:
        note(path, "weight", 0)
        note(path, "bias", 0)
    read: set[int] = set()
    for path in stream.reads:
        note(path, "weight", 1)
        read.add(id(getattr(model.get_submodule(path), "weight", None)))
    for path in (*stream.layer_norms, *(path for path, _ in stream.rms_norms)):
        note(path, "weight", 0)
        note(path, "bias", 0)
    after = {
        key: tensor.numel() // stream.size ** len(found) * kept.numel() ** len(found)
        for key, (tensor, found) in axes.items()
    }
    removed = sum(tensor.numel() for tensor, _ in axes.values()) - sum(after.values())
    if gate is not None and not bool((gate[kept.to(gate.device)] == 1).all()):
        removed -= sum(after[key] for key in written & read)  # no longer shared
    return removed
