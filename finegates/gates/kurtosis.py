"""Weights of the penalty from the kurtosis of rows and columns."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from finegates.gates.gate import Gate
from finegates.gates.gated_linear import gated_layers
from finegates.modules.linear import dense_weight


class KurtosisWeights:
    """Weights of a layer's open rows and columns from their kurtosis.

    With the mean input activation a (in,) of the last forward pass and ``M = a * W`` (out, in), the
    weight of an open row i is the softmax over open rows of ``-sqrt(kurt_i) / tau``, where kurt_i
    is the fourth standardised moment of row i of M over open columns; columns likewise.
    Heavy-tailed rows get less of the penalty's weight, so they are pushed less toward zero.

    Args:
        model: with gates attached; forward hooks record activations until :meth:`remove` is called,
            or until this object is garbage-collected.
        tau: temperature, 100 in the released code.
    """

    def __init__(self, model: nn.Module, tau: float = 100.0) -> None:
        self.tau = tau
        self._layers = gated_layers(model)
        self._activation: dict[str, Tensor] = {}
        # The hooks refer to the activations, not to self, so that self can be collected.
        hooks = [
            layer.register_forward_pre_hook(_recorder(self._activation, name))
            for name, layer in self._layers.items()
        ]
        self._remove = weakref.finalize(self, _remove_all, hooks)
        self._remove.atexit = False

    def weights(self, name: str, side: str) -> Tensor | None:
        """Weights over a side's dimensions, summing to one, zero where closed.

        Returns:
            shape (out,) for ``"rows"`` and (in,) for ``"cols"``; None before the first forward pass
            or when everything is closed.
        """
        activation = self._activation.get(name)
        if activation is None:
            return None
        layer = self._layers[name]
        weight, _ = dense_weight(layer.base)
        rows, cols = _open_mask(layer.rows, weight, 0), _open_mask(layer.cols, weight, 1)
        content = weight.float() * activation
        mask = (rows[:, None] & cols[None, :]).float()
        kept = rows if side == "rows" else cols
        if not bool(kept.any()):
            return None
        kurt = kurtosis(content, mask, dim=1 if side == "rows" else 0)
        scores = (-kurt.sqrt() / self.tau).masked_fill(~kept, float("-inf"))
        return torch.softmax(scores, dim=0)

    def remove(self) -> None:
        """Removes the forward hooks."""
        self._remove()


def _recorder(
    activation: dict[str, Tensor], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            x = inputs[0].detach()
            activation[name] = x.reshape(-1, x.shape[-1]).float().mean(0)  # (in,)

    return record


def _remove_all(hooks: Sequence[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def kurtosis(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Fourth standardised moment ``m4 / m2^2`` of masked entries.

    Args:
        x: shape (a, b).
        mask: shape (a, b), zeros and ones.
        dim: the dimension to reduce.

    Returns:
        the shape of the other dimension; zero where there is no entry or no variance.
    """
    count = mask.sum(dim, keepdim=True).clamp(min=1.0)
    centred = (x - (x * mask).sum(dim, keepdim=True) / count) * mask
    m2 = centred.square().sum(dim) / count.squeeze(dim)
    m4 = centred.pow(4).sum(dim) / count.squeeze(dim)
    return torch.where(m2 > 0, m4 / m2.square().clamp(min=torch.finfo(x.dtype).tiny), 0.0)


@torch.no_grad()
def _open_mask(gate: Gate | None, weight: Tensor, dim: int) -> Tensor:
    if gate is None:
        return torch.ones(weight.shape[dim], dtype=torch.bool, device=weight.device)
    return ~gate.closed()
