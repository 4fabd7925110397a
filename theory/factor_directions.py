"""Flat directions of low-rank factors in a transformer block.

Factors BA of rank r on the layers that gates would wrap (:mod:`theory.flatness`) have at least

- r² flat directions for each layer (GL(r): B → BM, A → M⁻¹A),
- r more for each layer whose output is read only by norms that subtract the mean over features:
  B → B + 1vᵀ adds the same number to all features,
- r more for each layer of keys that reads such a norm y = γ ∘ n + β directly and whose scores see
  no position of a key: Σ n = 0, so that A → A + v(1/γ)ᵀ adds the same vector to all keys, which
  softmax ignores.

At LoRA's start, where B = 0, the outputs do not depend on A, and all of A is flat. Unlike those of
gates, the numbers above do not contain the width. There are more if r is of the order of the width,
when the tangents of the factors meet those of invertible maps of a whole head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import adapter_for, unwrap
from finegates.compaction.certificate import InFloat64
from finegates.head_rows import letters_of
from theory.flatness import clips, sees_key_positions, size_of


def centred_layers(model: nn.Module) -> list[str]:
    """Layers of the blocks whose outputs only norms with a subtraction of the mean read.

    They write to a residual stream with ``torch.nn.LayerNorm``, before or after the sum.
    """
    if not any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        return []
    found = []
    for block in adapter_for(model).blocks(model):
        found += [part.o for part in block.attentions]
        if block.feed_forward is not None:
            found.append(block.feed_forward.down)
    return found


def shifted_keys(model: nn.Module) -> list[str]:
    """Layers of keys that read a ``torch.nn.LayerNorm`` directly, without positions of keys.

    Found in a forward pass on four tokens; the model may be on the device ``meta``.
    """
    parts = [part for block in adapter_for(model).blocks(model) for part in block.attentions]
    chosen = {
        part.k: model.get_submodule(part.k)
        for part in parts
        if part.projected is None
        and not part.norm
        and not part.fixed_scores
        and part.rotary is None
        and letters_of(part, part.k) == ("k",)
        and not sees_key_positions(model, part)
        and not clips(model, part)
    }
    normed: list[Tensor] = []
    found: list[str] = []

    def look(path: str, given: Tensor) -> None:
        if any(given is output for output in normed):
            found.append(path)

    handles = [
        module.register_forward_hook(lambda _, inputs, output: normed.append(output))
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    handles += [
        layer.register_forward_pre_hook(lambda _, inputs, path=path: look(path, inputs[0]))
        for path, layer in chosen.items()
    ]
    config: Any = unwrap(model).config
    device = next(model.parameters()).device
    tokens = torch.full((1, 4), 3, device=device)
    inputs = {"input_ids": tokens}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    try:
        with torch.no_grad(), InFloat64():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def factor_directions(model: nn.Module, rank: int) -> int:
    """Flat directions of low-rank factors on the layers that gates would wrap, at a small rank.

    Args:
        model: without gates and factors, in evaluation mode.
        rank: r.
    """
    layers = adapter_for(model).gated(model)
    alike = [*set(centred_layers(model)), *shifted_keys(model)]
    return rank**2 * len(layers) + rank * sum(path in layers for path in alike)


def start_directions(model: nn.Module, rank: int) -> int:
    """Flat directions of low-rank factors at B = 0: all of A, and what norms subtract from B.

    Args:
        model: without gates and factors, in evaluation mode.
        rank: r.
    """
    layers = adapter_for(model).gated(model)
    inputs = sum(size_of(model, path, "cols") for path in layers)
    return rank * (inputs + sum(path in layers for path in set(centred_layers(model))))
