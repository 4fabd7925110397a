"""Sparsity penalties on the gates of a model.

For a gate vector with mean open probability p and a target sparsity s:

- ``target``: ``|p - (1 - s)|``, the released code's;
- ``hinge``: ``max(p, 1 - s)``, version 1's: no reward for closing more than asked.

A layer's penalty is the mean over its gated sides, the model's the mean over its gated layers. With
kurtosis weighting, p becomes a weighted mean over the dimensions that are still open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from finegates.gates import Gate, StochasticGate
from finegates.layers import dense_weight, gated_layers
from finegates.presets import check_reachable


def target_penalty(open_fraction: Tensor, sparsity: float) -> Tensor:
    """``|p - (1 - s)|`` for p of any shape."""
    return (open_fraction - (1.0 - sparsity)).abs()


def hinge_penalty(open_fraction: Tensor, sparsity: float) -> Tensor:
    """``max(p, 1 - s)`` for p of any shape; its gradient is zero once p is below 1 - s."""
    return open_fraction.clamp(min=1.0 - sparsity)


PENALTIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "target": target_penalty,
    "hinge": hinge_penalty,
}


class SparsityPenalty:
    """The mean penalty over the gated layers of a model.

    Args:
        model: with gates attached.
        sparsity: the target s in [0, 1).
        kind: ``"target"`` or ``"hinge"``.
        kurtosis: a :class:`KurtosisWeights` of the same model, or None for plain means.

    Raises:
        ValueError: no trainable gates, an unknown kind, or a target out of reach.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        kind: str = "target",
        kurtosis: KurtosisWeights | None = None,
    ) -> None:
        if kind not in PENALTIES:
            raise ValueError(f"unknown penalty {kind!r}; choose one of {sorted(PENALTIES)}")
        self.sparsity = sparsity
        self.kurtosis = kurtosis
        self._penalty = PENALTIES[kind]
        self._layers = {
            name: sides
            for name, layer in gated_layers(model).items()
            if (sides := [(s, g) for s, g in layer.gates() if isinstance(g, StochasticGate)])
        }
        gates = [gate for sides in self._layers.values() for _, gate in sides]
        if not gates:
            raise ValueError("the model has no trainable gates; call finegates.attach first")
        for gate in gates:
            check_reachable(gate.preset, sparsity)
        # The flat form below serves gates of one preset; it costs three operations, not three a
        # gate. Each side weighs 1 / (its layer's sides * layers).
        preset = gates[0].preset
        self._flat = all(gate.preset == preset for gate in gates)
        self._gates = gates
        self._side_of = torch.repeat_interleave(
            torch.arange(len(gates), device="cpu"),
            torch.tensor([gate.size for gate in gates], dtype=torch.int64, device="cpu"),
        )
        self._sizes = torch.tensor(
            [float(gate.size) for gate in gates], dtype=torch.float32, device="cpu"
        )
        self._share = torch.tensor(
            [1.0 / (len(s) * len(self._layers)) for s in self._layers.values() for _ in s],
            dtype=torch.float32,
            device="cpu",
        )

    def __call__(self) -> Tensor:
        """The penalty, a differentiable scalar (float32)."""
        if self._flat and self.kurtosis is None:
            fractions = self._open_fractions_flat()
        else:
            fractions = torch.stack(
                [
                    self._open_fraction(name, side, gate)
                    for name, sides in self._layers.items()
                    for side, gate in sides
                ]
            )
        share = self._share.to(fractions.device)
        return (self._penalty(fractions, self.sparsity) * share).sum()

    def _open_fraction(self, name: str, side: str, gate: StochasticGate) -> Tensor:
        probability = gate.open_probability()
        if self.kurtosis is None:
            return probability.mean()
        weights = self.kurtosis.weights(name, side)
        return probability.mean() if weights is None else (weights * probability).sum()

    def _open_fractions_flat(self) -> Tensor:
        """Mean P of every side, shape (sides,), in three operations on one long vector."""
        first = self._gates[0]
        latent = torch.cat([gate.latent for gate in self._gates])
        if self._side_of.device != latent.device:
            self._side_of = self._side_of.to(latent.device)
            self._sizes = self._sizes.to(latent.device)
        mean = torch.tanh(latent) if first.preset.tanh else latent
        probability = torch.special.ndtr((mean + first.preset.shift) / first.preset.probability_std)
        sums = probability.new_zeros(len(self._gates)).index_add(0, self._side_of, probability)
        return sums / self._sizes


class JointPenalty:
    """The weighted sum of the penalties of several gated models, two towers of one model, say.

    Args:
        parts: each a weight and a penalty, at least one.
    """

    def __init__(self, parts: Sequence[tuple[float, Callable[[], Tensor]]]) -> None:
        self.parts = tuple(parts)

    def __call__(self) -> Tensor:
        """The sum, a differentiable scalar (float32) on the device of the first part's gates."""
        terms = [weight * penalty() for weight, penalty in self.parts]
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()


class KurtosisWeights:
    """Weights of a layer's open rows and columns from the kurtosis of what flows through them.

    With the mean input activation a (in,) of the last forward pass and ``M = a * W`` (out, in), the
    weight of an open row i is the softmax over open rows of ``-sqrt(kurt_i) / tau``, where kurt_i
    is the fourth standardised moment of row i of M over open columns; columns likewise. Rows of
    heavy-tailed content get less of the penalty's weight, hence are pushed less.

    Args:
        model: with gates attached; forward hooks record activations until :meth:`remove`.
        tau: temperature, 100 in the released code.
    """

    def __init__(self, model: nn.Module, tau: float = 100.0) -> None:
        self.tau = tau
        self._layers = gated_layers(model)
        self._activation: dict[str, Tensor] = {}
        self._hooks = [
            layer.register_forward_pre_hook(self._recorder(name))
            for name, layer in self._layers.items()
        ]

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
        """Takes the forward hooks off again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                x = inputs[0].detach()
                self._activation[name] = x.reshape(-1, x.shape[-1]).float().mean(0)

        return record


def kurtosis(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Fourth standardised moment ``m4 / m2^2`` along ``dim`` over entries where ``mask`` is one.

    Args:
        x: shape (a, b).
        mask: shape (a, b), zeros and ones.
        dim: the dimension to reduce.

    Returns:
        the other dimension's shape; zero where fewer than one entry or no variance is left.
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


__all__ = [
    "PENALTIES",
    "JointPenalty",
    "KurtosisWeights",
    "SparsityPenalty",
    "hinge_penalty",
    "kurtosis",
    "target_penalty",
]
