"""A learnable 2:4 mask, which keeps two of every four weights in a row.

A small version of the baseline in the paper's table of properties (MaskLLM, Fang et al. 2024). A
frozen weight is multiplied by a mask. In training the mask is a Gumbel-softmax mixture of the six
patterns with two ones, in evaluation the most probable pattern. It trains 6/4 parameters per
weight. Shapes do not change, so that only hardware with 2:4 sparse matmuls runs it faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finegates.adapters import adapter_for, unwrap
from finegates.gates.attachment import head_parameters

PATTERNS = torch.tensor(
    [[float(place in kept) for place in range(4)] for kept in itertools.combinations(range(4), 2)],
    dtype=torch.float32,
    device="cpu",
)
"""The six masks of four weights with two ones, (6, 4)."""


class MaskedLinear(nn.Module):
    """``y = x (M * W)^T + b`` with frozen weight W and learnable 2:4 mask M.

    The mask is along the inputs. In training ``M = sum_k p_k P_k`` for each group of four weights,
    where P_k are the patterns and ``p = softmax((scale * logits + g) / temperature)`` with Gumbel
    noise g. In evaluation M is the pattern with the largest logit. A pattern's initial logit is
    the fraction of its group's magnitude that it keeps, so that training starts from magnitude
    pruning.

    Args:
        base: a linear layer whose number of inputs is a multiple of four; its weight and bias are
            frozen.
        scale: scale of the logits, above 0; larger values give sharper initial masks.

    Attributes:
        temperature: temperature of the mixture, above 0; at low ones it is nearly one-hot.

    Raises:
        ValueError: the number of inputs is not a multiple of four.
    """

    def __init__(self, base: nn.Linear, scale: float = 10.0) -> None:
        super().__init__()
        if base.in_features % 4:
            raise ValueError(f"a 2:4 mask needs inputs in fours, got {base.in_features}")
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.temperature = 1.0
        groups = base.weight.detach().float().abs().unflatten(1, (-1, 4))  # (out, in / 4, 4)
        kept = groups @ PATTERNS.to(groups).T  # (out, in / 4, 6)
        share = kept / groups.sum(-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)
        self.logits = nn.Parameter(share)
        self.register_buffer("patterns", PATTERNS.to(groups), persistent=False)

    def mask(self) -> Tensor:
        """The mask (out, in). In evaluation two of every four entries are one."""
        assert isinstance(self.patterns, Tensor)
        if self.training:
            scores = self.scale * self.logits
            mixture = functional.gumbel_softmax(scores, tau=self.temperature, dim=-1)
        else:
            chosen = self.logits.argmax(-1)
            mixture = functional.one_hot(chosen, len(self.patterns)).to(self.logits.dtype)
        # (out, in / 4, 6) times (6, 4) is (out, in / 4, 4).
        return (mixture @ self.patterns).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        weight = self.base.weight
        return functional.linear(x, weight * self.mask().to(weight.dtype), self.base.bias)


def attach_masks(model: nn.Module, scale: float = 10.0) -> nn.Module:
    """Masks the gateable layers in place and trains masks and task head.

    Args:
        model: a transformers model whose architecture has an adapter and uses ``nn.Linear``.
        scale: see :class:`MaskedLinear`.

    Returns:
        the same model.

    Raises:
        TypeError: a layer is not ``nn.Linear``.
        ValueError: the architecture does not have an adapter, or a layer's number of inputs is not
            a multiple of four.
    """
    inner = unwrap(model)
    layers: dict[str, nn.Linear] = {}
    for path in adapter_for(inner).gated(inner):
        layer = inner.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{path} is {type(layer).__name__}; masks go on nn.Linear")
        layers[path] = layer
    for parameter in inner.parameters():
        parameter.requires_grad_(False)
    for path, layer in layers.items():
        inner.set_submodule(path, MaskedLinear(layer, scale).train(layer.training))
    for parameter in head_parameters(inner).values():
        parameter.requires_grad_(True)
    return model


@torch.no_grad()
def fold_masks(model: nn.Module) -> nn.Module:
    """Sets masked weights to zero and removes the masks, in place.

    Returns:
        the same model, with plain linear layers.
    """
    inner = unwrap(model)
    masked = {n: m for n, m in inner.named_modules() if isinstance(m, MaskedLinear)}
    for path, layer in masked.items():
        layer.eval()
        layer.base.weight.mul_(layer.mask().to(layer.base.weight.dtype))
        inner.set_submodule(path, layer.base)
    return model


def zero_fraction(model: nn.Module) -> float:
    """Fraction of zeros among the weights of the gateable layers."""
    inner = unwrap(model)
    layers = map(inner.get_submodule, adapter_for(inner).gated(inner))
    weights = [layer.get_parameter("weight") for layer in layers]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def masked_layers(model: nn.Module) -> Iterator[MaskedLinear]:
    """Yields the layers with masks."""
    return (module for module in model.modules() if isinstance(module, MaskedLinear))


class MaskSchedule(TrainerCallback):
    """Lowers the temperature of all masks geometrically over the training.

    Args:
        model: model with masks.
        start: temperature at the first step.
        end: temperature at the last step.
    """

    def __init__(self, model: nn.Module, start: float = 1.0, end: float = 0.05) -> None:
        if not 0 < end <= start:
            raise ValueError(f"temperatures must fall and stay above 0, got {start} to {end}")
        self._layers = list(masked_layers(model))
        self._start, self._end = start, end

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Sets the temperature of the step."""
        progress = state.global_step / max(1, state.max_steps)
        for layer in self._layers:
            layer.temperature = self._start * (self._end / self._start) ** progress
