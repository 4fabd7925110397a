"""Tiny configurations of every described type, and what kinds of inputs they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.dinov2 import modeling_dinov2

VOCABULARY = 48
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_WIDE = {**_TEXT, "hidden_size": 32}
_EIGHT = {**_GROUPED, "head_dim": 8}
_SEQUENCES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_BART = {**_SEQUENCES, "max_position_embeddings": 64}
_IMAGE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}
_WAVE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": (8, 8),
    "conv_stride": (3, 2),
    "conv_kernel": (4, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": VOCABULARY,
    "classifier_proj_size": 16,
}
_WINDOW = {"sliding_window": 4}  # shorter than the inputs


def _without(values: Mapping[str, Any], *names: str, **others: Any) -> dict[str, Any]:
    return {**{key: value for key, value in values.items() if key not in names}, **others}


# Configuration values by type; a name after a slash is a variant of the type.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "bert": _TEXT,
    "roberta": _TEXT,
    "deberta-v2": {
        **_TEXT,
        "relative_attention": True,
        "position_buckets": 4,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "deberta/talking": {
        **_TEXT,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "max_relative_positions": 16,
        "talking_head": True,
    },
    "mpnet": _TEXT,
    "llama": _GROUPED,
    "mistral": {**_GROUPED, **_WINDOW},
    "qwen2": _GROUPED,
    "qwen3": _EIGHT,
    "gpt2": {
        **_without(_TEXT, "intermediate_size"),
        "n_inner": 40,
    },
    "t5": {
        "vocab_size": VOCABULARY,
        "d_model": 24,
        "d_kv": 6,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 4,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
    },
    "albert": {**_TEXT, "embedding_size": 16},
    "camembert": _TEXT,
    "data2vec-text": _TEXT,
    "deberta": {
        **_TEXT,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "max_relative_positions": 16,
    },
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 24,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 40,
        "max_position_embeddings": 64,
    },
    "electra": {**_TEXT, "embedding_size": 16},
    "ernie": _TEXT,
    "esm": _without(
        _TEXT,
        "bos_token_id",
        "eos_token_id",
        position_embedding_type="rotary",
        mask_token_id=3,
        token_dropout=True,
    ),
    "eurobert": _GROUPED,
    "modernbert": {
        **_TEXT,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "num_hidden_layers": 3,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "nomic_bert": _TEXT,
    "xlm-roberta": _TEXT,
    "xlm-roberta-xl": _TEXT,
    "bloom": {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "n_layer": 2,
        "n_head": 4,
        "pad_token_id": 0,
    },
    "cohere": _GROUPED,
    "cohere/qk-norm": {**_GROUPED, "use_qk_norm": True},
    "cohere2": {**_GROUPED, **_WINDOW},
    "falcon": {
        **_WIDE,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "parallel_attn": True,
        "bias": False,
    },
    "falcon/multi-query": {**_WIDE, "multi_query": True, "parallel_attn": True, "bias": False},
    "falcon/alibi": {**_WIDE, "multi_query": False, "alibi": True, "bias": True},
    "gemma": _EIGHT,
    "gemma2": {**_EIGHT, **_WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_EIGHT, **_WINDOW, "query_pre_attn_scalar": 8},
    "glm4": _EIGHT,
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "pad_token_id": 0,
    },
    "gpt_neox": {**_WIDE, "rotary_pct": 0.5},
    "gptj": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 40,
        "n_positions": 64,
        "rotary_dim": 4,
        "pad_token_id": 0,
    },
    "granite": _GROUPED,
    "ministral3": _EIGHT,
    "nemotron": _EIGHT,
    "olmo": _GROUPED,
    "olmo/clipped": {**_GROUPED, "clip_qkv": 0.5},
    "olmo2": _GROUPED,
    "olmo3": {**_GROUPED, **_WINDOW},
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "ffn_dim": 40,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 24,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "phi": {**_WIDE, "num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "phi/qk-norm": {**_WIDE, "partial_rotary_factor": 0.5, "qk_layernorm": True},
    "phi3": {**_WIDE, "num_key_value_heads": 2},
    "qwen3_5_text": {
        **_EIGHT,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "smollm3": {**_GROUPED, "no_rope_layer_interval": 2},
    "stablelm": {**_WIDE, "num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "stablelm/qk-norm": {
        **_WIDE,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": True,
    },
    "starcoder2": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **_EIGHT,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
    "deepseek_v3": {
        **_without(_GROUPED, num_key_value_heads=4),
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 12,
        "kv_lora_rank": 12,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 6,
    },
    "gpt_oss": {
        **_without(_EIGHT, **_WINDOW),
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "bart": {**_BART, "forced_eos_token_id": None},
    "blenderbot": _BART,
    "m2m_100": _BART,
    "marian": _without(_BART, pad_token_id=0),
    "mbart": {**_BART, "forced_eos_token_id": None},
    "mt5": {
        "vocab_size": VOCABULARY,
        "d_model": 24,
        "d_kv": 6,
        "num_layers": 2,
        "num_heads": 4,
        "d_ff": 40,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "feed_forward_proj": "gated-gelu",
    },
    "trocr": _without(_BART, *(name for name in _BART if name.startswith("encoder"))),
    "pegasus": _without(_BART, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0),
    "whisper": {
        **_SEQUENCES,
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "max_target_positions": 32,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
    "clip": {
        "text_config": {**_TEXT, "projection_dim": 16},
        "vision_config": {**_IMAGE, "projection_dim": 16},
        "projection_dim": 16,
    },
    "siglip": {"text_config": {**_TEXT, "max_position_embeddings": 16}, "vision_config": _IMAGE},
    "audio-spectrogram-transformer": _without(
        _IMAGE,
        "image_size",
        "num_channels",
        max_length=24,
        num_mel_bins=8,
        frequency_stride=4,
        time_stride=4,
    ),
    "hubert": _WAVE,
    "wav2vec2": {
        **_WAVE,
        "num_codevectors_per_group": 4,
        "codevector_dim": 8,
        "proj_codevector_dim": 8,
    },
    "deit": {**_IMAGE, "architectures": ["DeiTForImageClassification"]},
    "dinov2": _without(_IMAGE, "intermediate_size", mlp_ratio=2),
    "dinov2/swiglu": _without(_IMAGE, "intermediate_size", mlp_ratio=2, use_swiglu_ffn=True),
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "num_channels": 3,
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "mlp_ratio": 2.0,
    },
    "vit": _IMAGE,
    "vit_mae": {
        **_IMAGE,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 40,
    },
}
if hasattr(modeling_dinov2, "Dinov2SelfAttention"):
    # Older versions of transformers use other modules for this option.
    del CONFIGURATIONS["dinov2/swiglu"]
IMAGES = frozenset(("deit", "dinov2", "swin", "vit", "vit_mae"))
WAVES = frozenset(("hubert", "wav2vec2"))
TOWERS = frozenset(("clip", "siglip"))
SEQUENCES = frozenset(
    ("bart", "blenderbot", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "whisper")
)
ENCODERS = frozenset(
    (
        *(
            "bert",
            "deberta-v2",
            "mpnet",
            "roberta",
            "albert",
            "camembert",
            "data2vec-text",
            "deberta",
            "distilbert",
            "electra",
        ),
        *("ernie", "esm", "eurobert", "modernbert", "nomic_bert", "xlm-roberta"),
        "xlm-roberta-xl",
    )
)
