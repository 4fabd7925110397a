"""Random one-layer transformers with sixteen kinds of blocks.

The blocks differ in the properties that decide their flat directions: biases, rotary embeddings,
norms of queries and keys, grouped queries, gate projections, homogeneous activations, and fused
layers. Tests measure all described types of models, some of which have further directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finegates.compaction.certificate import InFloat64

VOCABULARY = 48
WIDTH = 8


@dataclass(frozen=True)
class BlockKind:
    """A type of transformers model and the special properties of its block.

    Attributes:
        type: ``config.model_type``.
        about: a short description of the block.
        settings: configuration values other than the sizes.
        sizes: the configuration's names for the sizes, a key of ``_NAMES``.
    """

    type: str
    about: str
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: str = "usual"


_GROUPED: dict[str, Any] = {"num_key_value_heads": 1}
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 4,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
_EXPERTS: dict[str, Any] = {**_GROUPED, "num_local_experts": 2, "num_experts_per_tok": 2}
_GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu"}
KINDS: dict[str, BlockKind] = {
    "bert": BlockKind("bert", "biases, GELU"),
    "llama": BlockKind("llama", "no biases, rotary, grouped", _GROUPED),
    "t5": BlockKind("t5", "no biases, ReLU, cross-attention", {"feed_forward_proj": "relu"}, "t5"),
    "qwen3": BlockKind("qwen3", "queries and keys normed", {**_GROUPED, "head_dim": 4}),
    "gpt2": BlockKind("gpt2", "one layer for q, k, v", {}, "gpt2"),
    "nemotron": BlockKind("nemotron", "squared ReLU", _GROUPED),
    "phi3": BlockKind("phi3", "fused gate and up", _GROUPED),
    "mixtral": BlockKind("mixtral", "experts", _EXPERTS),
    "deberta-v2": BlockKind("deberta-v2", "scores of relative positions", _DEBERTA),
    "albert": BlockKind("albert", "embeddings of another width"),
    "bloom": BlockKind("bloom", "one layer, head by head; ALiBi", {}, "bloom"),
    "gpt_neox": BlockKind("gpt_neox", "part of a head rotated", {"rotary_pct": 0.5}),
    "starcoder2": BlockKind(
        "starcoder2", "rotary, grouped, biases", {**_GROUPED, "use_bias": True}
    ),
    "qwen2": BlockKind("qwen2", "biases of q, k, v alone", _GROUPED),
    "olmo2": BlockKind("olmo2", "norm over all heads", _GROUPED),
    "t5-gated": BlockKind("t5", "gate projection, cross-attention", _GATED, "t5"),
}
"""Kinds of blocks by name."""

_NAMES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "usual": lambda width, heads: {
        "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": heads,
        "intermediate_size": width + 4, "max_position_embeddings": 32,
    },
    "gpt2": lambda width, heads: {
        "n_embd": width, "n_layer": 1, "n_head": heads, "n_inner": width + 4, "n_positions": 32,
    },
    "bloom": lambda width, heads: {"hidden_size": width, "n_layer": 1, "n_head": heads},
    "t5": lambda width, heads: {
        "d_model": width, "d_kv": width // heads, "num_layers": 1, "num_heads": heads,
        "d_ff": width + 4, "decoder_start_token_id": 0,
    },
}  # fmt: skip


def block_model(name: str, width: int = WIDTH, heads: int = 2, seed: int = 0) -> nn.Module:
    """Builds a random one-layer model in float64 with weights large enough to matter.

    Args:
        name: a key of ``KINDS``.
        width: of the residual stream; the feed-forward part is 4 wider where the configuration
            allows it.
        heads: number of heads.
        seed: of the weights.

    Raises:
        ValueError: unknown kind.
    """
    from transformers import CONFIG_MAPPING, AutoModel

    if name not in KINDS:
        raise ValueError(f"unknown kind of block {name!r}; known: {', '.join(KINDS)}")
    kind = KINDS[name]
    settings = {
        "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        **_NAMES[kind.sizes](width, heads), **kind.settings,
    }  # fmt: skip
    model: nn.Module = AutoModel.from_config(
        CONFIG_MAPPING[kind.type](**settings), attn_implementation="eager"
    )
    implementation: Any = getattr(model, "set_experts_implementation", None)
    if implementation is not None:
        implementation("eager")  # grouped matmuls do not support float64
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.2 / width**0.5, generator=generator)
    return model.double().eval()


def block_output(
    model: nn.Module,
    rows: int,
    length: int = 9,
    seed: int = 0,
    replaced: dict[str, Tensor] | None = None,
) -> Tensor:
    """Last hidden states of random tokens in float64, shape (rows, length, width).

    Args:
        model: from :func:`block_model`, with or without gates.
        rows: number of sequences.
        length: tokens in each sequence.
        seed: of the tokens.
        replaced: tensors to use instead of parameters, by parameter name.
    """
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    inputs = {"input_ids": torch.randint(3, VOCABULARY, (rows, length), generator=generator)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(
            3, VOCABULARY, (rows, length), generator=generator
        )
    with InFloat64():
        found: Tensor = torch.func.functional_call(model, replaced or {}, (), inputs)[0]
    return found
