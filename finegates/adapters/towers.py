"""Specs of encoder-decoders, and of models of speech and images."""

from __future__ import annotations

from finegates.adapters.encoders import BERT
from finegates.specs import AttentionSpec, FeedForwardSpec, is_named_cross, named

ATTENTIONS: tuple[AttentionSpec, ...] = (
    AttentionSpec(
        named("t5.T5Attention", "mt5.MT5Attention"),
        q="q",
        k="k",
        v="v",
        o="o",
        width="key_value_proj_dim",
        sizes={"inner_dim": "heads*width"},
        # All layers use the position scores of the first, head by head.
        fixed_heads=True,
        cross=is_named_cross,
        joint=True,
    ),
    AttentionSpec(
        named(
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
        joint=True,
    ),
    AttentionSpec(
        named("whisper.WhisperAttention"),
        o="out_proj",
        sizes={"num_heads": "heads"},
        cross=is_named_cross,
    ),
    AttentionSpec(
        named("trocr.TrOCRAttention"),
        o="out_proj",
        cross=is_named_cross,
        unsupported=lambda module: "its heads are joined to the width of its input",
    ),
    AttentionSpec(
        named(
            "audio_spectrogram_transformer.ASTAttention",
            "deit.DeiTAttention",
            "dinov2.Dinov2Attention",
            "vit.ViTAttention",
            "vit_mae.ViTMAEAttention",
        ),
        joint=True,
    ),
    AttentionSpec(named("dinov2.Dinov2SelfAttention"), joint=True, **BERT),  # of older versions
    AttentionSpec(
        named("swin.SwinAttention"),
        per_head={"relative_position_bias.relative_position_bias_table": 1},
        joint=True,
    ),
)
FEED_FORWARDS: tuple[FeedForwardSpec, ...] = (
    FeedForwardSpec(
        named("t5.T5DenseActDense", "mt5.MT5DenseActDense"), up="wi", down="wo", phi="act"
    ),
    FeedForwardSpec(
        named("t5.T5DenseGatedActDense", "mt5.MT5DenseGatedActDense"),
        up="wi_1",
        gate="wi_0",
        down="wo",
        phi="act",
        joint=True,
    ),
    FeedForwardSpec(
        named(
            "bart.BartEncoderLayer BartDecoderLayer",
            "blenderbot.BlenderbotEncoderLayer BlenderbotDecoderLayer",
            "m2m_100.M2M100EncoderLayer M2M100DecoderLayer",
            "marian.MarianEncoderLayer MarianDecoderLayer",
            "mbart.MBartEncoderLayer MBartDecoderLayer",
            "opt.OPTDecoderLayer",
            "pegasus.PegasusEncoderLayer PegasusDecoderLayer",
            "trocr.TrOCRDecoderLayer",
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
        named("dinov2.Dinov2MLP"), up="fc1", down="fc2", phi="activation_fn|activation"
    ),
    FeedForwardSpec(named("dinov2.Dinov2SwiGLUFFN"), gate="gate_proj"),
    FeedForwardSpec(
        named("hubert.HubertFeedForward", "wav2vec2.Wav2Vec2FeedForward"),
        up="intermediate_dense",
        down="output_dense",
        phi="intermediate_act_fn",
    ),
)
