"""The specs of all architectures, in groups that share them.

To add an architecture, name its attention and feed-forward classes in a spec that fits, or write a
spec of its own; then add a tiny configuration to ``CONFIGURATIONS`` in
``tests/support/described.py``, which takes it through the conformance suite.
"""

from __future__ import annotations

from typing import Any

from finegates.blocks import Layout
from finegates.specs import (
    AttentionSpec,
    FeedForwardSpec,
    MixerSpec,
    NormSpec,
    RotarySpec,
    is_named_cross,
)


def _named(*classes: str) -> tuple[str, ...]:
    """Class names written as one: ``"bart.BartEncoderLayer BartDecoderLayer"``."""
    names = []
    for text in classes:
        package, _, rest = text.partition(".")
        names += [f"{package}.{name}" for name in rest.split()]
    return tuple(names)


_GROUPED = {"num_key_value_groups": "each"}
_HALF = RotarySpec()

# --- Encoders after BERT -------------------------------------------------------------------------

_BERT: dict[str, Any] = {
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "^output.dense",
    "width": "attention_head_size",
    "sizes": {"num_attention_heads": "heads", "all_head_size": "heads*width"},
}
_ENCODERS = (
    AttentionSpec(
        _named(
            "camembert.CamembertSelfAttention",
            "data2vec.Data2VecTextSelfAttention",
            "ernie.ErnieSelfAttention",
            "xlm_roberta_xl.XLMRobertaXLSelfAttention",
        ),
        **_BERT,
    ),
    AttentionSpec(
        _named("esm.EsmSelfAttention"),
        rotary=RotarySpec(when=lambda module: module.position_embedding_type == "rotary"),
        scaled_by_width=True,
        **_BERT,
    ),
    AttentionSpec(
        _named("albert.AlbertAttention"),
        q="query",
        k="key",
        v="value",
        o="dense",
        width="attention_head_size",
    ),
    AttentionSpec(
        _named("modernbert.ModernBertAttention"),
        q="Wqkv",
        k="Wqkv",
        v="Wqkv",
        o="Wo",
        rotary=_HALF,
        scaled_by_width=True,
    ),
    AttentionSpec(
        _named("deberta.DisentangledSelfAttention"),
        q="in_proj",
        k="in_proj",
        v="in_proj",
        o="^output.dense",
        layout="heads",
        width="attention_head_size",
        sizes={"num_attention_heads": "heads", "all_head_size": "heads*width"},
        # Positions have projections of their own, which read all dimensions.
        fixed_scores=True,
        fixed_heads=lambda module: module.talking_head,
        value_bias=True,
        per_head={
            "q_bias": 0,
            "v_bias": 0,
            "pos_proj.weight": 0,
            "pos_q_proj.weight": 0,
            "pos_q_proj.bias": 0,
        },
    ),
)
_ENCODER_FEEDS = (
    FeedForwardSpec(
        _named(
            "camembert.CamembertLayer",
            "data2vec.Data2VecTextLayer",
            "deberta.DebertaLayer",
            "ernie.ErnieLayer",
            "xlm_roberta_xl.XLMRobertaXLLayer",
        ),
        up="intermediate.dense",
        down="output.dense",
        phi="intermediate.intermediate_act_fn",
    ),
    FeedForwardSpec(
        _named("esm.EsmLayer"),
        up="intermediate.dense",
        down="output.dense",
        phi=None,
        activation="gelu",
    ),
    FeedForwardSpec(_named("albert.AlbertLayer"), up="ffn", down="ffn_output", phi="activation"),
    FeedForwardSpec(_named("modernbert.ModernBertMLP"), up="Wi", down="Wo", gate="Wi", phi="act"),
)

# --- Decoders with rotary embeddings -------------------------------------------------------------


def _factor_of_rotation(module: Any) -> int:
    factor = module.config.rope_parameters["partial_rotary_factor"]
    return int(module.head_dim * factor)


def _falcon_layout(module: Any) -> Layout:
    if module.new_decoder_architecture:
        return "groups"
    return "multi_query" if module.multi_query else "heads"


_DECODERS = (
    AttentionSpec(
        _named(
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
    ),
    AttentionSpec(
        _named("qwen3_moe.Qwen3MoeAttention"), sizes=_GROUPED, rotary=_HALF, norm=NormSpec()
    ),
    AttentionSpec(
        _named("gemma3.Gemma3Attention"),
        sizes=_GROUPED,
        rotary=_HALF,
        norm=NormSpec(offset=1.0),
    ),
    AttentionSpec(
        _named("olmo2.Olmo2Attention", "olmo3.Olmo3Attention"),
        sizes=_GROUPED,
        rotary=_HALF,
        norm=NormSpec(over="all"),
    ),
    AttentionSpec(
        _named("cohere.CohereAttention", "cohere2.Cohere2Attention"),
        sizes=_GROUPED,
        rotary=RotarySpec("next", order="repeated"),
        # With a weight for every head.
        fixed_scores=lambda module: getattr(module, "use_qk_norm", False),
        fixed_heads=lambda module: getattr(module, "use_qk_norm", False),
    ),
    AttentionSpec(
        _named("glm4.Glm4Attention"),
        sizes=_GROUPED,
        rotary=RotarySpec("next", rotated=_factor_of_rotation),
    ),
    AttentionSpec(
        _named("nemotron.NemotronAttention NemotronSdpaAttention NemotronFlashAttention2"),
        sizes={**_GROUPED, "num_heads": "heads", "num_key_value_heads": "kv_heads"},
        rotary=RotarySpec(rotated=_factor_of_rotation),
        # Older versions scale by the width that they find.
        scaled_by_width=lambda module, sizes: (
            1.0 if hasattr(module, "scaling") else (sizes.width / sizes.head_dim) ** 0.5
        ),
    ),
    AttentionSpec(
        _named("stablelm.StableLmAttention"),
        sizes={**_GROUPED, "num_heads": "heads", "num_key_value_heads": "kv_heads"},
        rotary=RotarySpec(rotated="rotary_ndims"),
        fixed_scores=lambda module: module.qk_layernorm,
        fixed_heads=lambda module: module.qk_layernorm,
    ),
    AttentionSpec(
        _named("phi.PhiAttention"),
        o="dense",
        sizes=_GROUPED,
        rotary=RotarySpec(rotated="rotary_ndims"),
        fixed_scores=lambda module: module.qk_layernorm,
    ),
    AttentionSpec(
        _named("phi3.Phi3Attention"),
        q="qkv_proj",
        k="qkv_proj",
        v="qkv_proj",
        sizes={**_GROUPED, "num_key_value_heads": "kv_heads"},
        config_sizes={"num_attention_heads": "heads"},
        rotary=RotarySpec(
            rotated=lambda module: int(
                module.head_dim * module.config.rope_parameters.get("partial_rotary_factor", 1.0)
            )
        ),
    ),
    AttentionSpec(
        _named("gpt_neox.GPTNeoXAttention"),
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        layout="heads",
        width="head_size",
        rotary=RotarySpec(rotated="rotary_ndims"),
    ),
    AttentionSpec(
        _named("falcon.FalconAttention"),
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
        _named("gpt_oss.GptOssAttention"),
        sizes=_GROUPED,
        rotary=RotarySpec(order="once"),
        per_head={"sinks": 0},
    ),
    AttentionSpec(
        _named("qwen3_5.Qwen3_5Attention"),
        layout="gated_queries",
        sizes=_GROUPED,
        rotary=RotarySpec(rotated=_factor_of_rotation),
        norm=NormSpec(offset=1.0),
    ),
    AttentionSpec(
        _named("gptj.GPTJAttention"),
        o="out_proj",
        sizes={"num_attention_heads": "heads"},
        rotary=RotarySpec(
            "next", table=None, order="sines", rotated="rotary_dim", buffer="embed_positions"
        ),
        unsupported=lambda module: (
            "it rotates heads as a whole" if module.rotary_dim is None else None
        ),
    ),
)
_DECODER_FEEDS = (
    FeedForwardSpec(
        _named(
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
    ),
    FeedForwardSpec(
        _named("glm4.Glm4MLP", "phi3.Phi3MLP"),
        up="gate_up_proj",
        gate="gate_up_proj",
        phi="activation_fn",
    ),
    FeedForwardSpec(_named("nemotron.NemotronMLP")),
    FeedForwardSpec(_named("starcoder2.Starcoder2MLP"), up="c_fc", down="c_proj", phi="act"),
    FeedForwardSpec(
        _named("falcon.FalconMLP", "gpt_neox.GPTNeoXMLP"),
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        phi="act",
    ),
    FeedForwardSpec(_named("gptj.GPTJMLP"), up="fc_in", down="fc_out", phi="act"),
)

# --- Decoders with positions of other kinds ------------------------------------------------------


def _in_slices(module: Any) -> str | None:
    if module.pretraining_tp > 1 and module.slow_but_exact:
        return "it multiplies slices of its weights"
    return None


_OTHERS = (
    AttentionSpec(
        _named("gpt_neo.GPTNeoSelfAttention"), o="out_proj", sizes={"num_heads": "heads"}
    ),
    AttentionSpec(_named("opt.OPTAttention"), o="out_proj", sizes={"num_heads": "heads"}),
    AttentionSpec(
        _named("bloom.BloomAttention"),
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        layout="heads",
        sizes={"num_heads": "heads"},
        head_arguments={"alibi": None},
        unsupported=_in_slices,
    ),
)
_OTHER_FEEDS = (
    FeedForwardSpec(_named("gpt_neo.GPTNeoMLP"), up="c_fc", down="c_proj", phi="act"),
    FeedForwardSpec(
        _named("bloom.BloomMLP"), up="dense_h_to_4h", down="dense_4h_to_h", phi="gelu_impl"
    ),
)

# --- Encoder-decoders, speech and images ---------------------------------------------------------

_TOWERS = (
    AttentionSpec(
        _named(
            "bart.BartAttention",
            "blenderbot.BlenderbotAttention",
            "clip.CLIPAttention",
            "hubert.HubertAttention",
            "m2m_100.M2M100Attention",
            "marian.MarianAttention",
            "mbart.MBartAttention",
            "pegasus.PegasusAttention",
            "siglip.SiglipAttention",
            "wav2vec2.Wav2Vec2Attention",
        ),
        o="out_proj",
        cross=is_named_cross,
    ),
    AttentionSpec(
        _named("whisper.WhisperAttention"),
        o="out_proj",
        sizes={"num_heads": "heads"},
        cross=is_named_cross,
    ),
    AttentionSpec(
        _named(
            "audio_spectrogram_transformer.ASTAttention",
            "deit.DeiTAttention",
            "dinov2.Dinov2Attention",
            "vit.ViTAttention",
            "vit_mae.ViTMAEAttention",
        ),
    ),
    AttentionSpec(_named("dinov2.Dinov2SelfAttention"), **_BERT),  # of older versions
    AttentionSpec(
        _named("swin.SwinAttention"),
        per_head={"relative_position_bias.relative_position_bias_table": 1},
    ),
)
_TOWER_FEEDS = (
    FeedForwardSpec(
        _named(
            "bart.BartEncoderLayer BartDecoderLayer",
            "blenderbot.BlenderbotEncoderLayer BlenderbotDecoderLayer",
            "m2m_100.M2M100EncoderLayer M2M100DecoderLayer",
            "marian.MarianEncoderLayer MarianDecoderLayer",
            "mbart.MBartEncoderLayer MBartDecoderLayer",
            "opt.OPTDecoderLayer",
            "pegasus.PegasusEncoderLayer PegasusDecoderLayer",
            "whisper.WhisperEncoderLayer WhisperDecoderLayer",
            "audio_spectrogram_transformer.ASTMLP",
            "clip.CLIPMLP",
            "deit.DeiTMLP",
            "phi.PhiMLP",
            "siglip.SiglipMLP",
            "swin.SwinMLP",
            "vit.ViTMLP",
            "vit_mae.ViTMAEMLP",
        ),
        up="fc1",
        down="fc2",
        phi="activation_fn",
    ),
    FeedForwardSpec(
        _named("dinov2.Dinov2MLP"), up="fc1", down="fc2", phi="activation_fn|activation"
    ),
    FeedForwardSpec(_named("dinov2.Dinov2SwiGLUFFN"), gate="gate_proj"),
    FeedForwardSpec(
        _named("hubert.HubertFeedForward", "wav2vec2.Wav2Vec2FeedForward"),
        up="intermediate_dense",
        down="output_dense",
        phi="intermediate_act_fn",
    ),
)

# --- What mixes tokens otherwise -----------------------------------------------------------------

MIXERS: tuple[MixerSpec, ...] = (
    MixerSpec(
        _named("deepseek_v3.DeepseekV3Attention"),
        reads=("q_proj", "q_a_proj", "kv_a_proj_with_mqa"),
        inner=("q_b_proj", "kv_b_proj"),
        writes=("o_proj",),
        products=lambda module: module.num_heads * (module.qk_head_dim + module.v_head_dim),
    ),
    MixerSpec(
        _named("qwen3_5.Qwen3_5GatedDeltaNet"),
        reads=("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
        writes=("out_proj",),
    ),
)

ATTENTIONS: tuple[AttentionSpec, ...] = (*_ENCODERS, *_DECODERS, *_OTHERS, *_TOWERS)
FEED_FORWARDS: tuple[FeedForwardSpec, ...] = (
    *_ENCODER_FEEDS,
    *_DECODER_FEEDS,
    *_OTHER_FEEDS,
    *_TOWER_FEEDS,
)
