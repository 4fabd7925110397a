"""Specs of causal language models."""

from __future__ import annotations

import math
from typing import Any

from finegates.blocks import Layout
from finegates.specs import AttentionSpec, FeedForwardSpec, MixerSpec, NormSpec, RotarySpec, named

_GROUPED = {"num_key_value_groups": "each"}
_HALF = RotarySpec()


def _factor_of_rotation(module: Any) -> int:
    """The dimensions of its table of angles, which are even, since each angle turns a pair."""
    factor = module.config.rope_parameters.get("partial_rotary_factor", 1.0)
    return 2 * math.ceil(int(module.head_dim * factor) / 2)


def _falcon_layout(module: Any) -> Layout:
    if module.new_decoder_architecture:
        return "groups"
    return "multi_query" if module.multi_query else "heads"


def _whole_products(module: Any) -> bool:
    """Whether a module of BLOOM calls its layers, and does not multiply slices of weights."""
    return not (module.pretraining_tp > 1 and module.slow_but_exact)


ATTENTIONS: tuple[AttentionSpec, ...] = (
    AttentionSpec(
        named("llama.LlamaAttention", "mistral.MistralAttention", "qwen2.Qwen2Attention"),
        sizes=_GROUPED,
        rotary=_HALF,
        joint=True,
        executor="rotary",
    ),
    AttentionSpec(
        named("qwen3.Qwen3Attention"),
        sizes=_GROUPED,
        rotary=_HALF,
        norm=NormSpec(),
        joint=True,
        executor="rotary",
    ),
    AttentionSpec(
        named(
            "eurobert.EuroBertAttention",
            "gemma.GemmaAttention",
            "gemma2.Gemma2Attention",
            "granite.GraniteAttention",
            "ministral3.Ministral3Attention",
            "mixtral.MixtralAttention",
            "nomic_bert.NomicBertAttention",
            "olmo.OlmoAttention",
            "smollm3.SmolLM3Attention",
            "starcoder2.Starcoder2Attention",
        ),
        sizes=_GROUPED,
        rotary=_HALF,
        joint=True,
    ),
    AttentionSpec(
        named("qwen3_moe.Qwen3MoeAttention"),
        sizes=_GROUPED,
        rotary=_HALF,
        norm=NormSpec(),
        joint=True,
    ),
    AttentionSpec(
        named("gemma3.Gemma3Attention"),
        sizes=_GROUPED,
        rotary=_HALF,
        norm=NormSpec(offset=1.0),
        joint=True,
    ),
    AttentionSpec(
        named("olmo2.Olmo2Attention", "olmo3.Olmo3Attention"),
        sizes=_GROUPED,
        rotary=_HALF,
        norm=NormSpec(over="all"),
        joint=True,
    ),
    AttentionSpec(
        named("cohere.CohereAttention", "cohere2.Cohere2Attention"),
        sizes=_GROUPED,
        rotary=RotarySpec("next", order="repeated"),
        # With a weight for every head.
        fixed_scores=lambda module: getattr(module, "use_qk_norm", False),
        fixed_heads=lambda module: getattr(module, "use_qk_norm", False),
        joint=True,
    ),
    AttentionSpec(
        named("glm4.Glm4Attention"),
        sizes=_GROUPED,
        rotary=RotarySpec("next", rotated=_factor_of_rotation),
        joint=True,
    ),
    AttentionSpec(
        named("nemotron.NemotronAttention NemotronSdpaAttention NemotronFlashAttention2"),
        sizes={**_GROUPED, "num_heads": "heads", "num_key_value_heads": "kv_heads"},
        rotary=RotarySpec(rotated=_factor_of_rotation),
        # Older versions scale by the width that they find.
        scaled_by_width=lambda module, sizes: (
            1.0 if hasattr(module, "scaling") else (sizes.width / sizes.head_dim) ** 0.5
        ),
        joint=True,
    ),
    AttentionSpec(
        named("stablelm.StableLmAttention"),
        sizes={**_GROUPED, "num_heads": "heads", "num_key_value_heads": "kv_heads"},
        rotary=RotarySpec(rotated="rotary_ndims"),
        fixed_scores=lambda module: module.qk_layernorm,
        fixed_heads=lambda module: module.qk_layernorm,
        joint=True,
    ),
    AttentionSpec(
        named("phi.PhiAttention"),
        o="dense",
        sizes=_GROUPED,
        rotary=RotarySpec(rotated="rotary_ndims"),
        fixed_scores=lambda module: module.qk_layernorm,
        joint=True,
    ),
    AttentionSpec(
        named("phi3.Phi3Attention"),
        q="qkv_proj",
        k="qkv_proj",
        v="qkv_proj",
        sizes={**_GROUPED, "num_key_value_heads": "kv_heads"},
        config_sizes={"num_attention_heads": "heads"},
        rotary=RotarySpec(rotated=_factor_of_rotation),
    ),
    AttentionSpec(
        named("gpt_neox.GPTNeoXAttention"),
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        layout="heads",
        width="head_size",
        rotary=RotarySpec(rotated="rotary_ndims"),
    ),
    AttentionSpec(
        named("falcon.FalconAttention"),
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        layout=_falcon_layout,
        sizes={"num_heads": "heads", "num_kv_heads": "kv_heads"},
        rotary=_HALF,
        scaled_by_width=True,
        unsupported=lambda module: (
            "its scores with alibi are scaled in two ways" if module.config.alibi else None
        ),
    ),
    AttentionSpec(
        named("gpt_oss.GptOssAttention"),
        sizes=_GROUPED,
        rotary=RotarySpec(order="once"),
        per_head={"sinks": 0},
        joint=True,
    ),
    AttentionSpec(
        named("qwen3_5.Qwen3_5Attention"),
        layout="gated_queries",
        sizes=_GROUPED,
        rotary=RotarySpec(rotated=_factor_of_rotation),
        norm=NormSpec(offset=1.0),
        joint=True,
    ),
    AttentionSpec(
        named("gptj.GPTJAttention"),
        o="out_proj",
        sizes={"num_attention_heads": "heads"},
        rotary=RotarySpec(
            "next", table=None, order="sines", rotated="rotary_dim", buffer="embed_positions"
        ),
        unsupported=lambda module: (
            "it rotates heads as a whole" if module.rotary_dim is None else None
        ),
        joint=True,
    ),
    AttentionSpec(
        named("gpt2.GPT2Attention"),
        q="c_attn",
        k="c_attn",
        v="c_attn",
        o="c_proj",
        sizes={"num_heads": "heads", "split_size": "heads*width"},
        when=lambda module: not module.is_cross_attention,
    ),
    AttentionSpec(
        named("gpt_neo.GPTNeoSelfAttention"), o="out_proj", sizes={"num_heads": "heads"}, joint=True
    ),
    AttentionSpec(
        named("opt.OPTAttention"), o="out_proj", sizes={"num_heads": "heads"}, joint=True
    ),
    AttentionSpec(
        named("bloom.BloomAttention"),
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        layout="heads",
        sizes={"num_heads": "heads"},
        head_arguments={"alibi": None},
        when=_whole_products,
    ),
)
FEED_FORWARDS: tuple[FeedForwardSpec, ...] = (
    FeedForwardSpec(
        named(
            "llama.LlamaMLP",
            "mistral.MistralMLP",
            "qwen2.Qwen2MLP",
            "qwen3.Qwen3MLP",
            "cohere.CohereMLP",
            "cohere2.Cohere2MLP",
            "eurobert.EuroBertMLP",
            "gemma.GemmaMLP",
            "gemma2.Gemma2MLP",
            "gemma3.Gemma3MLP",
            "granite.GraniteMLP",
            "ministral3.Ministral3MLP",
            "nomic_bert.NomicBertMLP",
            "olmo.OlmoMLP",
            "olmo2.Olmo2MLP",
            "olmo3.Olmo3MLP",
            "qwen3_5.Qwen3_5MLP",
            "qwen3_moe.Qwen3MoeMLP",
            "smollm3.SmolLM3MLP",
            "stablelm.StableLmMLP",
            "deepseek_v3.DeepseekV3MLP",
        ),
        gate="gate_proj",
        joint=True,
    ),
    FeedForwardSpec(
        named("glm4.Glm4MLP", "phi3.Phi3MLP"),
        up="gate_up_proj",
        gate="gate_up_proj",
        phi="activation_fn",
    ),
    FeedForwardSpec(named("nemotron.NemotronMLP")),
    FeedForwardSpec(named("starcoder2.Starcoder2MLP"), up="c_fc", down="c_proj", phi="act"),
    FeedForwardSpec(
        named("falcon.FalconMLP", "gpt_neox.GPTNeoXMLP"),
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        phi="act",
    ),
    FeedForwardSpec(named("gptj.GPTJMLP"), up="fc_in", down="fc_out", phi="act"),
    FeedForwardSpec(
        named("gpt2.GPT2MLP", "gpt_neo.GPTNeoMLP"), up="c_fc", down="c_proj", phi="act"
    ),
    FeedForwardSpec(
        named("bloom.BloomMLP"),
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        phi="gelu_impl",
        when=_whole_products,
    ),
)

MIXERS: tuple[MixerSpec, ...] = (
    MixerSpec(
        named("deepseek_v3.DeepseekV3Attention"),
        reads=("q_proj", "q_a_proj", "kv_a_proj_with_mqa"),
        inner=("q_b_proj", "kv_b_proj"),
        writes=("o_proj",),
        products=lambda module: module.num_heads * (module.qk_head_dim + module.v_head_dim),
    ),
    MixerSpec(
        named("qwen3_5.Qwen3_5GatedDeltaNet"),
        reads=("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
        writes=("out_proj",),
    ),
)
