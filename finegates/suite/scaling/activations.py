"""Measures activation memory per token that a layer saves for backward.

Layers are measured on the CPU, with fewer heads in the true proportions
(``finegates.suite.timing.memory``). Every term is proportional to the width, so the result is
scaled by a factor. The difference between models of two layers and one layer excludes embeddings
and head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.seeds import seed_everything
from finegates.suite.timing.memory import peak_tensor_bytes

BATCH, LENGTH = 2, 128


def reduced(config: PretrainedConfig, layers: int) -> tuple[PretrainedConfig, int]:
    """The shape with fewer heads in the same proportions, and the factor."""
    sizes: dict[str, Any] = config.to_dict()
    heads = sizes["num_attention_heads"]
    kv_heads = sizes.get("num_key_value_heads") or heads
    factor = kv_heads
    changed = {
        "hidden_size": sizes["hidden_size"] // factor,
        "intermediate_size": sizes["intermediate_size"] // factor,
        "num_attention_heads": heads // factor,
        "num_hidden_layers": layers,
        "vocab_size": 64,
    }
    if "num_key_value_heads" in sizes:
        changed |= {
            "num_key_value_heads": 1,
            "head_dim": sizes["hidden_size"] // heads,
        }
    return type(config)(**{**_plain(sizes), **changed}), factor


def _plain(sizes: dict[str, Any]) -> dict[str, Any]:
    kept = ("max_position_embeddings", "type_vocab_size", "hidden_act", "tie_word_embeddings")
    return {key: sizes[key] for key in kept if key in sizes}


def activation_bytes(
    config: PretrainedConfig, *, precision: str, trains_all: bool, gated: bool
) -> float:
    """Bytes per token and layer of a training step, without weight gradients."""
    peaks, weights = [], []
    for layers in (1, 2):
        small, factor = reduced(config, layers)
        peaks.append(_peak(small, precision, trains_all, gated))
        weights.append(_weights(small) if trains_all else 0)
    held = (peaks[1] - peaks[0]) - 4 * (weights[1] - weights[0])
    return factor * held / (BATCH * LENGTH)


def _build(config: PretrainedConfig) -> Any:
    seed_everything(0)
    is_causal = config.model_type == "llama"
    auto = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
    return auto.from_config(config)


def _weights(config: PretrainedConfig) -> int:
    return sum(p.numel() for p in _build(config).parameters())


def _peak(config: PretrainedConfig, precision: str, trains_all: bool, gated: bool) -> int:
    model = _build(config).train()
    if gated:
        attach(model, GateConfig(preset="reference", train_weights=trains_all))
    else:
        model.requires_grad_(trains_all)
        model.enable_input_require_grads()
    ids = torch.arange(BATCH * LENGTH).remainder(60).view(BATCH, LENGTH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            outputs = model(input_ids=ids)
        outputs.logits.float().sum().backward()

    return peak_tensor_bytes(step)
