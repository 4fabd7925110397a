"""Tiny random models of every described type, with every task head, and inputs for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.dinov2 import modeling_dinov2

from finegates.compaction.certificate import InFloat64

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
_HEADS = {
    "base": "AutoModel",
    "sequence": "AutoModelForSequenceClassification",
    "masked": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "question": "AutoModelForQuestionAnswering",
    "token": "AutoModelForTokenClassification",
    "choice": "AutoModelForMultipleChoice",
    "image": "AutoModelForImageClassification",
    "audio": "AutoModelForAudioClassification",
    "ctc": "AutoModelForCTC",
    "speech": "AutoModelForSpeechSeq2Seq",
}


def configuration(name: str) -> PretrainedConfig:
    """The tiny configuration of a described type or variant."""
    kind = name.partition("/")[0]
    return CONFIG_MAPPING[kind](**CONFIGURATIONS[name])


def heads(name: str) -> list[str]:
    """The task heads of a type in transformers."""
    kind, config = name.partition("/")[0], type(configuration(name))
    left_out = {
        "masked": kind not in ENCODERS,
        "choice": kind not in ENCODERS,
        "causal": kind in ENCODERS | SEQUENCES,
        "seq2seq": kind not in SEQUENCES,
    }
    return [
        head
        for head, factory in _HEADS.items()
        if not left_out.get(head, False) and config in getattr(transformers, factory)._model_mapping
    ]


def described_model(
    name: str,
    head: str = "base",
    *,
    seed: int = 0,
    attention: str = "sdpa",
    experts: str = "eager",
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """A random model in evaluation mode, with weights large enough that every layer matters.

    Experts are computed one by one, because torch's grouped matmul does not support float64.
    """
    factory = getattr(transformers, _HEADS[head])
    config = configuration(name)
    try:
        model: nn.Module = factory.from_config(config, attn_implementation=attention)
    except ValueError as error:
        if "attention" not in str(error):
            raise
        model = factory.from_config(configuration(name))  # has only one kind
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(experts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.normal_(0.0, 0.3, generator=generator)
    return model.to(dtype).eval()


def described_inputs(
    name: str,
    head: str = "base",
    *,
    padding: str = "right",
    seed: int = 0,
    length: int = 9,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Inputs of three rows for a model of a type and head; text has padding."""
    kind, generator = name.partition("/")[0], torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    def ids(*shape: int) -> Tensor:
        return torch.randint(4, VOCABULARY, shape, generator=generator)

    if kind in IMAGES or (kind in TOWERS and head == "image"):
        images = {"pixel_values": normal(3, 3, 16, 16)}
        return {**images, "noise": normal(3, 16)} if kind == "vit_mae" else images
    if kind in WAVES:
        return {"input_values": normal(3, 160)}
    if kind == "audio-spectrogram-transformer":
        return {"input_values": normal(3, 24, 8)}
    if kind == "whisper":
        features = {"input_features": normal(3, 8, 40)}
        return features if head == "audio" else {**features, "decoder_input_ids": ids(3, 6)}
    text = _text(configuration(name), ids(3, length), padding)
    if kind in SEQUENCES and head in ("base", "seq2seq"):
        text["decoder_input_ids"] = ids(3, 5)
    if kind in SEQUENCES and head == "sequence":
        _end(text, configuration(name).eos_token_id)
    if kind in TOWERS:
        text["pixel_values"] = normal(3, 3, 16, 16)
        if kind == "clip":
            _end(text, 2)
    if head == "choice":
        text = {key: value[:2].repeat(1, 2).view(2, 2, length) for key, value in text.items()}
    return text


def _text(config: PretrainedConfig, ids: Tensor, padding: str) -> dict[str, Tensor]:
    mask = torch.ones_like(ids)
    for row, missing in enumerate((0, 2, 4)):
        if missing and padding == "right":
            mask[row, -missing:] = 0
        elif missing:
            mask[row, :missing] = 0
    pad = getattr(config, "pad_token_id", None) or 0
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def _end(text: dict[str, Tensor], token: int) -> None:
    """Puts the end-of-sequence token at the last position without padding."""
    for row, mask in enumerate(text["attention_mask"]):
        text["input_ids"][row, int(mask.nonzero()[-1])] = token


@torch.no_grad()
def described_outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """All floating-point outputs of a model."""
    double = next(p for p in model.parameters() if p.is_floating_point()).dtype is torch.float64
    with without_downcasts() if double else nullcontext():
        return list(_floats(model(**inputs)))


def _floats(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _floats(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _floats(value)


def relative_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, relative to each tensor's largest value.

    It is inf if shapes or positions of non-finite values differ.
    """
    if [each.shape for each in one] != [each.shape for each in other]:
        return float("inf")
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        a, b = (each[each.isfinite()] for each in (a, b))
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)))
    return worst


@contextmanager
def without_downcasts() -> Iterator[None]:
    """Computes in float64 throughout, so that two computations of the same value agree closely."""
    with InFloat64():
        yield
